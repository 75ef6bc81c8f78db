"""Pages: blocks of text, figure and table, written as Markdown and HTML, for a paper as LaTeX too.

Numbers are formatted here and nowhere else, by the names of their columns.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import humanize
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from lookback.benchmarks.report import plots
from lookback.benchmarks.report.names import options_text
from lookback.benchmarks.report.plots import Image, Plot
from lookback.benchmarks.storage import write_atomically

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
MOST_PANELS = 4  # of a figure; the others are shown to a reader who opens them
MOST_ROWS = 12  # of a table
UNUSUAL = ("at floor", "at ceiling")  # marks that stand beside a number
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for a formula


@dataclass(frozen=True)
class Block:
    """A part of a page: Markdown text, a figure, a table. Folded ones open at a click."""

    title: str
    text: str = ""
    figure: Plot | None = None
    table: pd.DataFrame | None = None
    folded: bool = False
    rows: int = MOST_ROWS  # of the table that are shown at first

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def summary(self) -> str:
        """First sentence of the text, for those who cannot see the figure."""
        sentence = " ".join(self.text.split()).split(". ")[0].rstrip(".")
        return f"{self.title}: {sentence}" if sentence else self.title


@dataclass(frozen=True)
class Page:
    """A title, a line on where the numbers are from, sentences that say the result, and blocks."""

    title: str
    source: str
    lead: Sequence[str]
    blocks: Sequence[Block]
    home: str = "../index.html"  # address of the overview


@dataclass(frozen=True)
class WrittenPage:
    """A page on disk, with the table that a terminal shows."""

    path: Path
    table: str
    is_new: bool = True


def write_page(page: Page, folder: Path, style: str = "page", key: str = "") -> WrittenPage:
    """Write README.md, index.html, and the figures (SVG) and tables (CSV) of a page.

    In style `paper` figures are also PDF and PNG, and tables also LaTeX. `key` stands for all that
    the page was made of; see `is_current`.
    """
    tables = [block.table for block in page.blocks if block.table is not None]
    shown = terminal_table(tables[0]) if tables else "no run ended well"
    readme = folder / "README.md"
    with plots.style("page"):
        drawings = {block.title: _drawing(block.figure) for block in page.blocks if block.figure}
    for block in page.blocks:
        if block.table is not None and not block.table.empty:
            write_atomically(folder / f"{block.file_name}.csv", csv(block.table))
        if style == "paper":
            _write_for_paper(block, folder)
        elif block.title in drawings:
            write_atomically(folder / f"{block.file_name}.svg", drawings[block.title].whole)
    write_atomically(readme, _markdown(page))
    write_atomically(folder / "index.html", _html(page, drawings, key))
    return WrittenPage(readme, shown)


@dataclass(frozen=True)
class Drawing:
    """A figure: its first panels and the legend as one SVG, and the addresses of all images."""

    whole: str
    legend: Sequence[str]  # one or none
    panels: Sequence[str]


def _drawing(figure: Plot) -> Drawing:
    """Draw every panel once."""
    panels = list(map(plots.svg, figure.draw_apart()))
    legend = [plots.svg(figure.draw_legend())] if figure.legend else []
    whole = plots.stack([panels[:2], panels[2:MOST_PANELS], legend])
    return Drawing(whole, list(map(data_url, legend)), list(map(data_url, panels)))


def data_url(image: Image) -> str:
    """Return an address that holds the image itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(image.text.encode()).decode()}"


def page_key(*settings: object) -> str:
    """Return a digest of a page's settings and of the code of the report."""
    return hashlib.sha256(f"{settings!r} {code_digest()}".encode()).hexdigest()[:16]


@functools.cache
def code_digest() -> str:
    """Return a digest of the files that pages are made with: code, templates, styles and data."""
    folder = Path(__file__).parent
    content = hashlib.sha256()
    for path in [*sorted(folder.rglob("*")), folder.parent / "published.csv"]:
        if path.is_file() and "__pycache__" not in path.parts:
            content.update(path.read_bytes())
    return content.hexdigest()


def is_current(html: Path, key: str) -> bool:
    """Return whether a page was made with this key."""
    if not html.is_file():
        return False
    return f'<meta name="made-of" content="{key}">' in html.read_text(encoding="utf-8")


def _write_for_paper(block: Block, folder: Path) -> None:
    """Write a figure with all its panels, and a table as LaTeX."""
    if block.figure is not None:
        with plots.style("paper"):
            for ending in (".svg", ".pdf", ".png"):
                plots.save(block.figure.draw("paper"), folder / f"{block.file_name}{ending}")
    if block.table is not None and not block.table.empty:
        write_atomically(folder / f"{block.file_name}.tex", latex(block.table))


def _markdown(page: Page) -> str:
    return TEMPLATES.get_template("page.md").render(
        page=page,
        most_panels=MOST_PANELS,
        table=lambda block: Markup(markdown_table(block.table.head(block.rows))),
        raw=Markup,
    )


def _html(page: Page, drawings: Mapping[str, Drawing], key: str) -> str:
    return TEMPLATES.get_template("page.html").render(
        page=page,
        key=key,
        css=Markup((Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")),
        prose=lambda text: Markup(MARKDOWN.render(text)),
        inline=lambda text: Markup(MARKDOWN.renderInline(text)),
        drawings=drawings,
        table=html_table,
        most_panels=MOST_PANELS,
    )


# --- tables


def formatted(table: pd.DataFrame, plus_minus: bool = False) -> pd.DataFrame:
    """Return a table as texts: intervals and marks join their numbers; empty columns are left out.

    `plus_minus` writes an interval as ± half of its width.
    """
    shown: dict[str, list[str]] = {}
    for name in table.columns:
        column = str(name)
        if column.endswith(("_low", "_high", "_mark")):
            continue
        ends = [f"{column}_{end}" for end in ("low", "high") if f"{column}_{end}" in table]
        digits = digits_of(table[[name, *ends]].to_numpy().flatten())
        texts = [format_value(column, value, digits) for value in table[name]]
        if ends:
            for place, (low, high) in enumerate(table[ends].itertuples(index=False)):
                texts[place] += format_interval(column, low, high, digits, plus_minus)
        for place, mark in enumerate(table.get(f"{column}_mark", ())):
            texts[place] += f", {mark}" if mark in UNUSUAL else ""
        if any(texts):
            shown[heading(column)] = texts
    return pd.DataFrame(shown)


def heading(column: str) -> str:
    """Return a column's name in words, without the unit that its values show."""
    words = re.sub(r"_(bytes|seconds|name)$", "", column).replace("_", " ")
    return words.replace(" per second", "/s")


def digits_of(values: Iterable[Any]) -> int:
    """Return how many digits behind the point the numbers of a column have."""
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").dropna()
    largest = numbers.abs().max() if len(numbers) else 0.0
    if largest < 10:
        return 2 if (numbers.round(2) == numbers).all() else 3
    return 0 if largest >= 1000 or (numbers % 1 == 0).all() else 1


def format_value(column: str, value: Any, digits: int | None = None) -> str:
    """Return a value as people read it, empty for none; `digits` are those of its column."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return ""
    if column.endswith("_options"):
        return options_text(value)
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = float(value)
    if column.endswith("_bytes"):
        return str(humanize.naturalsize(number)).replace("kB", "KB").replace(" Bytes", " B")
    if column.endswith("_seconds"):
        return f"{number:,.3g} s" if number >= 1 else f"{1e3 * number:,.3g} ms"
    if column.endswith("difference"):
        return f"{number:+.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    if digits is None or column == "ratio":  # of which one column has small and large ones
        digits = digits_of([value])
    return f"{round(number, digits) + 0.0:,.{digits}f}"  # without the sign of -0.0


def format_interval(
    column: str, low: float, high: float, digits: int, plus_minus: bool = False
) -> str:
    """Return an interval behind its number; empty if there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    if plus_minus:
        return f" ± {(high - low) / 2:.{digits}f}"
    ends = [format_value(column, end, digits) for end in (low, high)]
    return f" ({ends[0]} to {ends[1]})"


def sides(shown: pd.DataFrame) -> list[str]:
    """Return the side of each column of texts: words stand to the left, numbers to the right."""
    is_word = shown.map(lambda text: bool(text) and not re.match(r"[-+]?[\d.]", text))
    return ["left" if is_word[name].any() else "right" for name in shown]


def markdown_table(table: pd.DataFrame) -> str:
    """Return a Markdown table of a table's formatted values."""
    shown = formatted(table)
    texts = shown.map(escape_markdown)
    return str(texts.to_markdown(index=False, colalign=sides(shown), disable_numparse=True))


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: neither a tag nor a link nor another column."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter, escaped in {"&": "&amp;", "<": "&lt;", "|": "\\|", "`": "\\`"}.items():
        shown = shown.replace(letter, escaped)
    return shown.replace("](", "]\\(")


def terminal_table(table: pd.DataFrame, rows: int = MOST_ROWS) -> str:
    """Return the first rows of a table for a terminal, and how many more there are."""
    shown = formatted(table.head(rows))
    options = {"tablefmt": "plain", "colalign": sides(shown), "disable_numparse": True}
    text = str(shown.to_markdown(index=False, **options))
    return text if len(table) <= rows else f"{text}\n... and {len(table) - rows} more rows"


def html_table(table: pd.DataFrame) -> Markup:
    """Return an HTML table; columns of words carry the class `text`."""
    shown = formatted(table)
    classes = ["text" if side == "left" else "number" for side in sides(shown)]
    for name, kind in zip(shown.columns, classes, strict=True):
        if kind == "number":
            shown[name] = shown[name].map(unbroken)
    columns = list(zip(shown.columns, classes, strict=True))
    rows = shown.itertuples(index=False, name=None)
    return Markup(TEMPLATES.get_template("table.html").render(columns=columns, rows=rows))


def unbroken(number: str) -> str:
    """Let a line break only between a number, its interval and its mark."""
    return re.sub(r"(?<!,) (?!\()", "\N{NO-BREAK SPACE}", number)


def latex(table: pd.DataFrame) -> str:
    """Return a booktabs `tabular`: intervals as ±, the best score of each group in bold."""
    shown = formatted(table, plus_minus=True)
    bold = pd.DataFrame("", index=shown.index, columns=shown.columns)
    for place in best_rows(table):
        bold.iloc[place, shown.columns.get_loc("score")] = "font-weight: bold;"
    letters = "".join(side[0] for side in sides(shown))
    styler = shown.style.format(escape="latex").format_index(escape="latex", axis=1)
    styler = styler.hide(axis="index").apply(lambda _: bold, axis=None)
    text = styler.to_latex(hrules=True, convert_css=True, column_format=letters)
    return "% \\usepackage{booktabs}\n" + text.replace("±", "$\\pm$")


def best_rows(table: pd.DataFrame) -> list[int]:
    """Return the places of the best accuracy of each task and lengths, if there are several."""
    if "score" not in table or "model_name" not in table:
        return []
    keys = [name for name in ("task_name", "trained_length", "test_length") if name in table]
    scores = table.reset_index(drop=True)
    groups = scores.groupby(keys, dropna=False) if keys else [((), scores)]
    places = []
    for _, group in groups:
        if len(group) > 1 and group["score"].notna().any():
            best = group["score"].max()
            places += [int(place) for place in group.index[group["score"] == best]]
    return places


def csv(table: pd.DataFrame) -> str:
    """Return a table as CSV: numbers with six digits, and no text that a spreadsheet would run.

    Further digits depend on the order in which a processor sums.
    """
    return table.map(_csv_value).to_csv(index=False, lineterminator="\n")


def _csv_value(value: object) -> object:
    if isinstance(value, float) and not math.isnan(value):
        return float(f"{value:.6g}")
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
