"""Tables as texts: for Markdown, LaTeX, a terminal, a spreadsheet; and numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

TEXT_COLUMNS = (
    "model", "direction", "pooling", "task", "phase", "unit", "options", "source of the rule", "data", "cell", "status",
    "message", "what", "path", "", "minus", "better", "suite", "variant", "with", "verdict",
    "changed to", "claim", "claimed by", "such as", "measures", "measure", "wanted", "note", "made by",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for the beginning of one


def number(value: Any, digits: int = 0) -> str:
    """Readable, with thousands apart; empty for nothing."""
    return "" if pd.isna(value) else f"{float(value):,.{digits}f}"


def size(value: Any) -> str:
    """Bytes in the unit that reads best (decimal: 1 KB is 1000 bytes)."""
    if pd.isna(value):
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def span(values: pd.Series) -> str:
    """The least and the greatest whole number, one where they are the same."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def decimal(value: float, form: str = ".3f") -> str:
    """A score with as many places as scores have."""
    return "not finite" if math.isnan(value) else f"{value:{form}}"


def bounds(low: float, high: float, form: str = ".3f") -> str:
    """An interval; empty where there is none."""
    return "" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def by_place(rows: Sequence[Mapping[str, Any]], *columns: str) -> pd.DataFrame:
    """A table whose rows stand by these columns, and else (models, above all) in the order in which they came."""
    table = pd.DataFrame(list(rows))
    return table.sort_values(list(columns), kind="stable") if len(table) else table


def markdown(table: pd.DataFrame | None) -> str:
    """A Markdown table; columns of numbers to the right."""
    if table is None or table.empty:
        return ""
    cells = [[escaped(value) for value in row] for row in table.itertuples(index=False)]
    rule = [("---" if column in TEXT_COLUMNS else "---:") for column in table.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(map(str, table.columns)), rule, *cells])


def escaped(value: Any) -> str:
    """What a record says, as Markdown shows it: on one line, and neither a tag nor a link nor a picture of its own."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    for letter, shown in {"&": "&amp;", "<": "&lt;", "|": "\\|"}.items():
        text = text.replace(letter, shown)
    return text.replace("](", "]\\(")


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "|": "$|$", '"': "''", "[": "{[}", "*": "{*}", "`": r"\textasciigrave{}", "–": "--", "—": "---", "…": r"\ldots{}",
    "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "−": "$-$", "±": r"$\pm$", "·": r"$\cdot$", "²": "$^2$",
    "≈": r"$\approx$", "→": r"$\to$", **{letter: f"\\{letter}" for letter in "{}$&#_%"},
}  # fmt: skip
"""What LaTeX would obey (brackets and stars behind the end of a row), or does not know; other scripts are left."""
MINUS = re.compile(r"(?<![\w.)\]])-(?=\.?\d)")


def latex(table: pd.DataFrame) -> str:
    """A `tabular` with the rules of booktabs; columns of numbers to the right."""
    sides = "".join("l" if column in TEXT_COLUMNS else "r" for column in table.columns)
    rows = [_tex_row(row) for row in table.itertuples(index=False)]
    lines = [f"\\begin{{tabular}}{{{sides}}}", r"\toprule", _tex_row(table.columns), r"\midrule", *rows]
    return "\n".join([r"% \usepackage{booktabs}", *lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_row(values: Iterable[Any]) -> str:
    return " & ".join(tex(value) for value in values) + r" \\"


def tex(value: Any) -> str:
    """What a record says, as LaTeX shows it: on one line, and no command of its own. A minus is one, not a hyphen."""
    text = MINUS.sub("−", "".join(letter if letter.isprintable() else " " for letter in str(value)))
    return "".join(TEX.get(letter, letter) for letter in text)


def plain(table: pd.DataFrame) -> str:
    """The same for a terminal."""
    if table.empty:
        return "no cell ended well"
    rows = [list(map(str, table.columns)), *([str(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def csv(frame: pd.DataFrame) -> str:
    """As a file: the same bytes on every system, and nothing that a spreadsheet would run."""
    return safe(frame).map(_rounded).to_csv(index=False, lineterminator="\n")


def _rounded(value: object) -> object:
    """A number with ten digits: further ones depend on the order in which a processor sums."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would take for a formula is marked as text."""
    texts = frame.select_dtypes(include=["object", "string"]).columns
    return frame.assign(**{c: frame[c].map(lambda v: f"'{v}" if str(v).startswith(FORMULA) else v) for c in texts})
