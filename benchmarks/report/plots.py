"""The kinds of figure: curves, and intervals in rows. A section may also make panels of its own.

A plot is drawn panel by panel for a page, where panels stand beside or under one another, and whole
for a paper. The same data give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import pandas as pd
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from lookback.benchmarks.report.names import MODELS, option_words, sort_models

# Okabe and Ito's colours, which people with colour-blindness tell apart; without their yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (2, 1)))
FLOOR: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 2)), "linewidth": 1.2}
FEW_MODELS = 5  # up to so many, bands of intervals can be told apart
STEPS = 5  # between marks, at most, on an axis of lengths
LETTERS = 30  # of marks that fit on it
DENSE = 0.6  # octaves between lengths: bins of distance are half an octave wide
FEW_DECADES = 3.5  # that a logarithmic axis can show with three marks in each
TITLE_WIDTH = 36  # letters of a panel's title in one line
LABEL_WIDTH = 26  # letters of a row's label in one line
# Inches: margins of a panel, and what a legend takes.
LEFT, RIGHT, BOTTOM, MARGIN = 0.84, 0.34, 0.48, 0.07
LABELS_LEFT = 1.88  # of words beside rows
TITLE_HEIGHT = 0.17  # of a line
LEGEND_WIDTH = 5.4  # of a legend by itself
LEGEND_MARK = 0.6  # of an entry's line and the gap behind its text
LETTER = 0.066  # of a letter of a legend

TEMPLATES = Path(__file__).parent / "templates"
STYLES = {"page": ["page.mplstyle"], "paper": ["page.mplstyle", "paper.mplstyle"]}
PANEL = {"page": (3.5, 2.6), "paper": (3.25, 2.1)}  # inches


@dataclass(frozen=True)
class Panel:
    """Axes with a title; `draw` draws into them."""

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """A figure of panels with one legend."""

    panels: Sequence[Panel]
    legend: dict[str, dict[str, Any]] = field(default_factory=dict)  # line styles by entry
    height: float = 1.0  # of a panel, relative to the usual one
    left: float = LEFT  # inches, of the labels beside a panel

    def draw(self, style: str = "page", title: str = "") -> Figure:
        """Return all panels in one figure of at most two columns, the legend below."""
        width, height = PANEL[style]
        columns = min(2, len(self.panels))
        rows = -(-len(self.panels) // columns)
        size = (width * columns, height * self.height * rows + (0.5 if self.legend else 0))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for unused in axes.flat[len(self.panels) :]:
            unused.set_visible(False)
        for number, (panel, place) in enumerate(zip(self.panels, axes.flat, strict=False)):
            letter = f"({'abcdefghijklmnopqrstuvwxyz'[number % 26]}) " if style == "paper" else ""
            text = letter + panel.title if len(self.panels) > 1 else panel.title
            place.set_title(fill(text, TITLE_WIDTH))
            panel.draw(place)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        if self.legend:
            legend_rows = self._add_legend(figure, "outside lower center")
            figure.set_figheight(figure.get_figheight() + 0.18 * (legend_rows - 1))
        return figure

    def draw_apart(self) -> list[Figure]:
        """Return a figure per panel, without a legend, whose axes line up.

        The margins are constants, because measuring labels takes as long as drawing them.
        """
        width, height = PANEL["page"]
        height *= self.height
        titles = [fill(panel.title, TITLE_WIDTH) for panel in self.panels]
        lines = 1 + max(title.count("\n") for title in titles)
        right, top = width - RIGHT, height - TITLE_HEIGHT * lines - MARGIN
        figures = []
        for panel, title in zip(self.panels, titles, strict=True):
            figure = Figure((width, height))
            axes = figure.subplots()
            figure.subplots_adjust(self.left / width, BOTTOM / height, right / width, top / height)
            axes.set_title(title)
            panel.draw(axes)
            figures.append(figure)
        return figures

    def draw_legend(self) -> Figure:
        """Return the legend alone."""
        figure = Figure(figsize=(LEGEND_WIDTH, 1.0))
        rows = self._add_legend(figure, "center left")
        figure.set_figheight(0.05 + 0.22 * rows)
        return figure

    def _add_legend(self, figure: Figure, place: str) -> int:
        """Add the legend in as many columns as fit, and return the number of its rows."""
        handles = [Line2D([], [], **look) for look in self.legend.values()]
        column_width = LEGEND_MARK + LETTER * max(map(len, self.legend))
        columns = max(1, int(figure.get_figwidth() / column_width))
        rows = math.ceil(len(handles) / columns)
        figure.legend(handles, list(self.legend), loc=place, ncols=math.ceil(len(handles) / rows))
        return rows


def style(name: str = "page") -> contextlib.AbstractContextManager[None]:
    """Draw in a style of STYLES, whatever the user's own settings of matplotlib are."""
    files = [str(TEMPLATES / file) for file in STYLES[name]]
    return styles.context(files, after_reset=True)


@dataclass(frozen=True)
class Image:
    """A drawing as SVG, with its size in points."""

    text: str
    width: float
    height: float


def svg(figure: Figure) -> Image:
    """Return a figure as SVG, without a date."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    width, height = 72 * figure.get_size_inches()
    return Image(text.getvalue(), width, height)


def stack(rows: Iterable[Sequence[Image]]) -> str:
    """Return one SVG with rows of images.

    The ids that drawings refer to are digests of content, so that equal ones mean the same.
    """
    parts = []
    width = height = 0.0
    for row in filter(None, rows):
        left = 0.0
        for image in row:
            place = f'<svg x="{left:g}pt" y="{height:g}pt"'
            parts.append(image.text[image.text.index("<svg") :].replace("<svg", place, 1))
            left += image.width
        width = max(width, left)
        height += max(image.height for image in row)
    size = f'width="{width:g}pt" height="{height:g}pt"'
    pixels = f"0 0 {width / 0.75:g} {height / 0.75:g}"  # of 0.75 points
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{pixels}">'
    return "\n".join([start, *parts, "</svg>\n"])


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, PNG or PDF, as the path's ending says.

    Raises ValueError on another ending.
    """
    endings = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}  # no dates
    if path.suffix not in endings:
        raise ValueError(f"{path}: expected a file name that ends in .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=endings[path.suffix])


def line_styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the line properties of each model in order; ours look the same in every figure."""
    own = {name: number for number, name in enumerate(MODELS)}
    others = itertools.count(len(own))
    looks = {}
    models = sort_models(table[["model", "model_name"]].drop_duplicates())
    for model, name in models.itertuples(index=False):
        number = own[model] if name == MODELS.get(model) else next(others)
        colour = own.get(model, number)  # a variant has the colour of its model
        looks[name] = {
            "color": COLOURS[colour % len(COLOURS)],
            "marker": MARKERS[(number + number // len(MARKERS)) % len(MARKERS)],
            "linestyle": DASHES[(number + number // len(COLOURS)) % len(DASHES)],
        }
    return looks


def curves(
    table: pd.DataFrame,
    x: str,
    panel: Sequence[str],
    x_label: str = "",
    y_label: str | None = None,
    log_y: bool = False,
    y: str = "mean",
) -> Plot:
    """Plot a line per model with its band (columns low, high) against a length, axis log2.

    Those of the columns `panel` that tell rows apart make a panel each, that with most models
    first. The vertical axis is named after the column `unit`. A column `floor` is drawn dotted.
    """
    telling: list[str] = []
    for name in panel:
        panels_so_far = len(table[telling].drop_duplicates()) if telling else 1
        if len(table[[*telling, name]].drop_duplicates()) > panels_so_far:
            telling.append(name)
    panel = telling or panel[:1]
    looks = line_styles(table)
    labels = (x_label or x.replace("_", " "), table["unit"].iloc[0] if y_label is None else y_label)
    groups = table.groupby(list(panel), sort=False, dropna=False)
    panels = [
        Panel(panel_title(panel, key), partial(_draw_curves, rows, x, y, looks, labels, log_y))
        for key, rows in sorted(groups, key=lambda group: -group[1]["model_name"].nunique())
    ]
    legend = dict(looks)
    if "floor" in table and table["floor"].notna().any():
        legend["sighted floor"] = FLOOR
    return Plot(panels, legend)


def _draw_curves(
    rows: pd.DataFrame,
    x: str,
    y: str,
    looks: Mapping[str, dict[str, Any]],
    labels: tuple[str, str],
    log_y: bool,
    axes: Axes,
) -> None:
    drawn = set(rows["model_name"])
    names = [name for name in looks if name in drawn]
    for name in names:
        line = rows[rows["model_name"] == name].sort_values(x)
        axes.plot(line[x], line[y], label=name, **looks[name])
        if len(names) <= FEW_MODELS and "low" in line and line["low"].notna().any():
            colour = looks[name]["color"]
            axes.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
    if "floor" in rows and rows["floor"].notna().any():
        floor = rows.groupby(x)["floor"].mean()
        axes.plot(floor.index, floor.to_numpy(), **FLOOR)
    length_axis(axes, rows[x], labels[0])
    axes.set_ylabel(labels[1])
    if log_y:
        log_axis(axes)
    elif labels[1] == "accuracy":
        axes.set_ylim(-0.02, 1.02)


def panel_title(columns: Sequence[str], key: Iterable[Any]) -> str:
    """Return the title of a panel: names as they are, numbers with what they count."""
    words = []
    for column, value in zip(columns, key, strict=True):
        if column == "trained_length":
            words.append(f"trained at {value:,}")
        elif column == "test_length":
            words.append(f"read at {value:,}")
        elif column == "test_options":
            words += option_words(json.loads(value))
        elif str(value):
            words.append(str(value))
    return ", ".join(words)


def intervals(table: pd.DataFrame, label: str, panel: str, x_label: str, matters: float) -> Plot:
    """Plot differences with their intervals, rows under one another.

    Shaded: from -matters to matters, where a difference does not matter.
    """
    looks = line_styles(table)
    groups = list(table.groupby(panel, sort=False, dropna=False))
    panels = [
        Panel(str(name), partial(_draw_intervals, rows, label, looks, x_label, matters))
        for name, rows in groups
    ]
    most = max(len(rows) for _, rows in groups)
    return Plot(panels, height=max(0.6, 0.1 * most + 0.4), left=LABELS_LEFT)


def _draw_intervals(
    rows: pd.DataFrame,
    label: str,
    looks: Mapping[str, dict[str, Any]],
    x_label: str,
    matters: float,
    axes: Axes,
) -> None:
    axes.axvspan(-matters, matters, color="#000000", alpha=0.07, linewidth=0)
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    for place, (_, row) in enumerate(rows.iterrows()):
        look = looks[row["model_name"]]
        ends = [row["difference_low"], row["difference_high"]]
        axes.plot(ends, [place, place], color=look["color"])
        axes.plot(row["difference"], place, color=look["color"], marker=look["marker"])
    axes.set_yticks(range(len(rows)), [fill(text, LABEL_WIDTH) for text in rows[label]])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x_label, loc="right")


def length_axis(axes: Axes, lengths: Iterable[float], name: str) -> None:
    """Make a log2 axis with marks at the lengths, or at powers of two if those are too dense.

    Marks that would touch the one before are left out.
    """
    places = sorted({math.log2(length) for length in lengths if length > 0})
    octaves = places[-1] - places[0] if places else 0.0
    if any(high - low < DENSE for low, high in itertools.pairwise(places)):
        places = list(range(math.ceil(places[0]), math.floor(places[-1]) + 1))
    longest = max((len(_mark_text(2.0**place)) for place in places), default=0)
    steps = min(STEPS, LETTERS / (longest + 1))
    marks: list[float] = []
    for place in places:
        if not marks or place - marks[-1] >= octaves / steps:
            marks.append(place)

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2.0**mark for mark in marks]))
    axes.xaxis.set_major_formatter(FixedFormatter([_mark_text(2.0**mark) for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name)


def _mark_text(value: float) -> str:
    """Return a length from 100 on as a whole number, a smaller one with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def log_axis(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with at most seven letters a mark; see LEFT."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 10**FEW_DECADES else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())
