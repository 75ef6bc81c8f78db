"""Figures of what was learned. Each takes a frame of frames.py; None when there is nothing to show."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.frames import over_seeds
from benchmarks.report.statistics import wilson_interval
from benchmarks.report.style import RC, few, in_order, legend, length_axis, looks, panels

CONSTANT: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 2)), "linewidth": 1.2, "label": "constant answer"}


def score_by_length(scores: pd.DataFrame) -> Figure | None:
    """The score at each test length, a panel a task; a vertical line at the training length."""
    if scores.empty:
        return None
    means = over_seeds(scores, ["task", "model", "length", "test_length"], "score")
    groups = list(means.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups), rows=-(-len(groups) // 4))
        for one, ((task, trained), group) in zip(axes, groups, strict=True):
            _lines(one, group, "test_length")
            one.axvline(trained, color="#bbbbbb", linewidth=1, zorder=0)
            one.axhline(group["constant"].iloc[0], **CONSTANT)
            _score_axis(one, group["score_unit"].iloc[0])
            one.set_title(f"{task}\ntrained at {trained}")
            length_axis(one, group["test_length"], "test length, tokens")
        legend(figure, axes, of_seeds(scores))
    return figure


def score_by_distance(distances: pd.DataFrame) -> Figure | None:
    """Accuracy against how far back the information lay: a row a task, a column a test length."""
    if distances.empty:
        return None
    bins = distances.groupby(["task", "length", "test_length"], sort=False)["low"].transform("nunique")
    distances = distances[bins > 1]  # copying has one distance at each length: the figure by length shows it
    if distances.empty:
        return None
    rows = list(distances.groupby(["task", "length"], sort=False))
    columns = max(group["test_length"].nunique() for _, group in rows)
    with mpl.rc_context(RC):
        figure, axes = panels(len(rows) * columns, rows=len(rows))
        for row, ((task, trained), group) in enumerate(rows):
            lengths = sorted(group["test_length"].unique())
            for column, one in enumerate(axes[row * columns : (row + 1) * columns]):
                if column >= len(lengths):
                    one.set_visible(False)
                    continue
                _distance_panel(one, group[group["test_length"] == lengths[column]])
                one.set_title(f"{task} at {lengths[column]}\ntrained at {trained}")
        legend(figure, axes, of_seeds(distances))
    return figure


def _distance_panel(axes: Axes, group: pd.DataFrame) -> None:
    counts = group.groupby(["model", "low", "high", "constant"], as_index=False, sort=False)[["correct", "count"]].sum()
    counts["distance"] = (counts["low"].clip(lower=1) * counts["high"].clip(lower=1)) ** 0.5
    counts["mean"] = counts["correct"] / counts["count"]
    bounds = [wilson_interval(int(c), int(n)) for c, n in zip(counts["correct"], counts["count"], strict=True)]
    counts["low"], counts["high"] = [low for low, _ in bounds], [high for _, high in bounds]
    _lines(axes, counts.sort_values("distance"), "distance")
    axes.axhline(group["constant"].iloc[0], **CONSTANT)
    _score_axis(axes, "accuracy")
    top = int(group["high"].max())
    length_axis(axes, [2**i for i in range(top.bit_length()) if 2**i >= group["low"].clip(lower=1).min()], "distance")


def learning_curves(curves: pd.DataFrame) -> Figure | None:
    """The validation score on the way, a panel a task; a thin line a seed."""
    if curves.empty:
        return None
    groups = list(curves.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups), rows=-(-len(groups) // 4))
        for one, ((task, trained), group) in zip(axes, groups, strict=True):
            style = looks(group["model"])
            for model in in_order(group["model"]):
                for number, (_, run) in enumerate(group[group["model"] == model].groupby("seed")):
                    shown = {**style[model], "marker": "", "label": None if number else model}
                    one.plot(run["step"], run["validation"], **shown)
            one.axhline(group["constant"].iloc[0], **CONSTANT)
            _score_axis(one, group["score_unit"].iloc[0])
            one.set_title(f"{task}\ntrained at {trained}")
            one.set_xlabel("training step")
        legend(figure, axes, of_seeds(curves))
    return figure


def of_seeds(frame: pd.DataFrame) -> str:
    """How many seeds, and test examples of each, a figure stands on."""
    seeds = few(frame.groupby(["task", "model", "length"])["seed"].nunique())
    examples = f", {few(frame['examples'])} examples each" if "examples" in frame else ""
    return f"n = {seeds} seed{'' if seeds == '1' else 's'}{examples}"


def _lines(axes: Axes, group: pd.DataFrame, x: str) -> None:
    """A line a model with its interval: columns mean, low, high."""
    style = looks(group["model"])
    for model in in_order(group["model"]):
        line = group[group["model"] == model].sort_values(x)
        axes.plot(line[x], line["mean"], label=model, **style[model])
        if not line["low"].map(math.isnan).all():
            axes.fill_between(line[x], line["low"], line["high"], color=style[model]["color"], alpha=0.15, linewidth=0)


def _score_axis(axes: Axes, unit: str) -> None:
    axes.set_ylabel(unit if unit == "accuracy" else f"{unit} (lower is better)")
    if unit == "accuracy":
        axes.set_ylim(-0.02, 1.02)
