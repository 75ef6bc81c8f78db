"""How figures look: a colour, a marker and a dash of its own for each model, and the same bytes from the same data.

Figures are drawn for a page, or, within `using("paper")`, for the columns of a paper: in its widths and type, and also
written as PDF and as PNG of 300 dots an inch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which people with colour-blindness tell apart; the yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (2, 1)))
FIRST = ("transformer", "rwkv", "rrwkv", "lstm")  # these look the same in every report

RC: dict[str, Any] = {
    "svg.hashsalt": "lookback", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.titlesize": 10,
    "axes.titlelocation": "left", "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "legend.title_fontsize": 8, "savefig.dpi": 150, "axes.axisbelow": True, "text.parse_math": False,
}  # fmt: skip

STYLES = ("page", "paper")
PAPER: dict[str, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Serif"],  # like Times, and matplotlib brings it: the same on every machine
    "font.size": 8, "axes.titlesize": 8.5, "legend.title_fontsize": 8, "lines.linewidth": 1.2, "lines.markersize": 3.5,
    "axes.linewidth": 0.6, "grid.linewidth": 0.4, "savefig.dpi": 300, "pdf.fonttype": 42,  # journals refuse Type 3
}  # fmt: skip
ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches
NARROWEST, LOWEST = 0.72, 1.7  # of a panel in a paper: the share of its width on a page, and inches
_style = "page"


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Draw and write for a page or for a paper; raises ValueError for another name."""
    global _style
    if name not in STYLES:
        raise ValueError(f"style {name!r}: expected one of {', '.join(STYLES)}")
    before = _style, dict(RC)
    _style = name
    RC.update(PAPER if name == "paper" else {})
    try:
        yield
    finally:
        _style = before[0]
        RC.clear()
        RC.update(before[1])


def for_paper() -> bool:
    """Whether figures are being drawn for a paper."""
    return _style == "paper"


def in_order(models: Iterable[str]) -> list[str]:
    """Models as reports list them: ours first, then the others by name."""
    return sorted(set(models), key=_place)


def _place(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Ours by their order, options of a model behind it, and numbers in names by their size."""
    plain = name.split(" ")[0]
    parts = [(int(part or -1), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return FIRST.index(plain) if plain in FIRST else len(FIRST), parts


def looks(models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line properties of each model."""
    others = [name for name in in_order(models) if name not in FIRST]
    numbers = {name: i for i, name in enumerate([*FIRST, *others])}
    return {
        name: {
            "color": COLOURS[numbers[name] % len(COLOURS)],
            "marker": MARKERS[numbers[name] % len(MARKERS)],
            "linestyle": DASHES[numbers[name] % len(DASHES)],
        }
        for name in in_order(models)
    }


def panels(count: int, rows: int = 1, width: float = 3.1, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in `rows` rows; sizes in inches a panel. A paper may need more rows for its width."""
    columns = -(-count // rows)
    total = max(width * columns, 4.2)
    if for_paper():
        rows = max(rows, -(-count // max(1, int(TWO_COLUMNS / (NARROWEST * width)))))
        columns = -(-count // rows)
        total = ONE_COLUMN if columns == 1 else TWO_COLUMNS
        height = max(height * min(1.0, total / columns / width), min(height, LOWEST))
    figure, axes = plt.subplots(rows, columns, figsize=(total, height * rows + 0.5), squeeze=False)
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    return figure, list(axes.flat[:count])


def length_axis(axes: Axes, lengths: Iterable[float], name: str) -> None:
    """A logarithmic axis with a mark at every length there is."""
    marks = sorted(set(lengths))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{mark:g}" for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(marks) > 6:
        axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel(name)


def log_axis(axes: Axes) -> None:
    """A logarithmic vertical axis whose marks are plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Iterable[Axes], n: str) -> None:
    """One legend for all panels, below them, that says of how many measurements they are."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    letter = 0.055 if for_paper() else 0.075  # inches, of most letters
    inches = letter * max(len(name) for name in entries) + 0.6  # what an entry takes
    columns = max(1, min(len(entries), int(figure.get_figwidth() / inches)))
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * (rows - 1))  # the panels keep theirs
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, title=n)


def few(values: Any) -> str:
    """A number, or the least and the greatest of several."""
    return " to ".join(f"{value:,}" for value in sorted({int(values.min()), int(values.max())}))


def save(figure: Figure, path: Path) -> None:
    """Write SVG, and for a paper PDF and PNG; no dates, so that bytes repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(RC):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": "Lookback"})
        if for_paper():
            figure.savefig(path.with_suffix(".png"))
            figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None, "Creator": "Lookback"})
    plt.close(figure)
