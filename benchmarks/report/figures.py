"""What figures of learned scores share: lines with intervals, seeds as points, heatmaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lookback.benchmarks.report.style import few, in_order, looks

CONSTANT: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 2)), "linewidth": 1.2, "label": "sighted floor"}
FEW_MODELS = 5  # up to so many, seeds can be told apart in a figure
SHADES = "YlGnBu"  # from light to dark throughout, so that it is also read in grey


def of_seeds(frame: pd.DataFrame) -> str:
    """How many seeds, and test examples of each, a figure stands on."""
    seeds = few(frame.groupby(["task", "model", "length"])["seed"].nunique())
    examples = f", {few(frame['examples'])} examples each" if "examples" in frame else ""
    return f"n = {seeds} seed{'' if seeds == '1' else 's'}{examples}"


def lines(axes: Axes, group: pd.DataFrame, x: str) -> None:
    """A line a model, with its interval where models are few enough to tell these apart: columns mean, low, high."""
    style = looks(group["model"])
    for model in in_order(group["model"]):
        line = group[group["model"] == model].sort_values(x)
        axes.plot(line[x], line["mean"], label=model, **style[model])
        if len(style) <= FEW_MODELS and not line["low"].map(math.isnan).all():
            axes.fill_between(line[x], line["low"], line["high"], color=style[model]["color"], alpha=0.15, linewidth=0)


def seed_points(axes: Axes, runs: pd.DataFrame, x: str, y: str) -> None:
    """A small point a seed, where there are several seeds and so few models that one can tell whose they are."""
    if runs["model"].nunique() > FEW_MODELS or runs["seed"].nunique() < 2:
        return
    style = looks(runs["model"])
    for model in in_order(runs["model"]):
        of_model, look = runs[runs["model"] == model], style[model]
        axes.plot(
            of_model[x], of_model[y], linestyle="none", marker=look["marker"], markersize=3, alpha=0.6,
            markerfacecolor="none", color=look["color"], zorder=1,
        )  # fmt: skip


def score_axis(axes: Axes, unit: str) -> None:
    """Name the axis of scores by their unit; accuracies all stand from 0 to 1."""
    axes.set_ylabel(unit if unit == "accuracy" else f"{unit} (lower is better)")
    if unit == "accuracy":
        axes.set_ylim(-0.02, 1.02)


def quality(values: pd.DataFrame, constant: float, best: float) -> pd.DataFrame:
    """0 for the sighted floor and whatever is worse, 1 for the best there can be; for either direction of a score."""
    reach = best - constant
    return ((values - constant) / reach if reach else values * 0).clip(0, 1)


def heat(axes: Axes, values: pd.DataFrame, constant: float, best: float) -> None:
    """A heatmap of a table of scores, first row at the top, with the numbers in it; hatched where there is none."""
    shades = mpl.colormaps[SHADES]
    how_good = quality(values, constant, best)
    axes.grid(False)
    axes.set_facecolor("white")
    rows, columns = values.shape
    axes.fill_between([0, columns], 0, rows, facecolor="none", edgecolor="#d9d9d9", hatch="////", linewidth=0)
    axes.pcolor(how_good.to_numpy(dtype=float), cmap=shades, vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    for row in range(rows):
        for column in range(columns):
            value, good = values.iat[row, column], how_good.iat[row, column]
            if not math.isnan(value):
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
                ink = "white" if good > 0.55 else "black"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([i + 0.5 for i in range(columns)], [str(name) for name in values.columns], fontsize=7)
    axes.set_yticks([i + 0.5 for i in range(rows)], [str(name) for name in values.index], fontsize=7)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def shade_bar(figure: Figure, axes: Sequence[Axes], best: str) -> None:
    """The scale that all heatmaps of a figure share."""
    scale = mpl.cm.ScalarMappable(Normalize(0, 1), mpl.colormaps[SHADES])
    bar = figure.colorbar(
        scale, ax=list(axes), orientation="horizontal", fraction=0.05, shrink=0.5, aspect=30, pad=0.02
    )
    bar.set_ticks([0, 0.5, 1], labels=["sighted floor", "half-way", best], fontsize=7)
    bar.outline.set_visible(False)
