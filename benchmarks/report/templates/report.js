
// Tables sort by a click on a column's head: up, down, as it was. Without this script they are read as they stand.
"use strict";
const units = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9 };

function key(cell) {
  const text = cell.textContent.trim();
  const found = /^(?:[≥×<>~] ?)?([-+−]?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?: (B|KB|MB|GB)\b)?/.exec(text);
  if (!found) return { rank: text ? 1 : 2, text };
  return { rank: 0, value: Number(found[1].replaceAll(",", "").replace("−", "-")) * (units[found[2]] ?? 1), text };
}

function compare(one, other) {
  if (one.rank === 0 && other.rank === 0) return one.value - other.value;
  return one.text.localeCompare(other.text, "en", { numeric: true });
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "·";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const now = before === null ? "ascending" : before === "ascending" ? "descending" : null;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (now === null) return body.append(...rows);
      head.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => [key(row.cells[column]), row]);
      keyed.sort(([one], [other]) => one.rank - other.rank || sign * compare(one, other));
      body.append(...keyed.map(([, row]) => row));
    });
  }
}
