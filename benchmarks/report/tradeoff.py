"""Accuracy against cost: what a model scored on a task, and what it takes, where a suite measured both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.costs import costs_of
from lookback.benchmarks.report.figures import CONSTANT, of_seeds, score_axis
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, in_order, legend, looks, panels

COSTS = (
    ("training_tokens_per_second", "training, tokens a second", 1),
    ("training_peak_bytes", "training, peak memory, MB", 1e-6),
    ("state_bytes", "state a sequence, KB", 1e-3),
)  # fmt: skip
"""Panels of a row: a column of the frame, its title and the scale of its unit."""


def parts(records: Sequence[Record]) -> list[Part]:
    scores, costs = frames.scores(records), costs_of(records)
    points = points_of(scores, costs) if len(scores) and len(costs) else pd.DataFrame()
    if points.empty:
        return []
    length, protocol = points["cost_length"].iloc[0], points["with"].iloc[0]
    text = (
        f"What a model scored, and what it takes at {length:,} tokens, {protocol}. Upwards is better everywhere, of "
        "tokens a second to the right, of memory to the left. Scores are those at the longest test, means over seeds "
        "with 95 % intervals; costs are medians, throughput with quartiles."
    )
    return [Part("Score against cost", text, "score-against-cost", tradeoff(points, of_seeds(scores)), points)]


def points_of(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """A row a task, training length and model that was both scored and measured, at the longest test and length.

    Costs are of the first protocol, at the longest length at which every one of these models ended well, so that all
    stand beside each other; empty where fewer than two models have both.
    """
    costs = costs[(costs["protocol"] == costs["protocol"].iloc[0]) & costs["model"].isin(scores["model"])]
    measured = costs[(costs["phase"] == "training") & (costs["status"] == "ok")]
    lengths = [set(group["length"]) for _, group in measured.groupby("model")]
    common = set.intersection(*lengths) if len(lengths) > 1 else set()
    if not common:
        return pd.DataFrame()
    costs = costs[costs["length"] == max(common)]
    means = frames.over_seeds(scores, ["task", "length", "test_length", "model"], "score").dropna(subset=["mean"])
    longest = means.groupby(["task", "length"], sort=False)["test_length"].transform("max")
    taken = {str(model): _of_model(group) for model, group in costs.groupby("model", sort=False)}
    rows = [
        {**row, **taken[row["model"]], "cost_length": max(common), "with": costs["protocol"].iloc[0]}
        for row in means[means["test_length"] == longest].to_dict("records")
        if row["model"] in taken
    ]
    return pd.DataFrame(rows).rename(columns={"mean": "score"}) if rows else pd.DataFrame()


def _of_model(costs: pd.DataFrame) -> dict[str, float]:
    """Medians over tasks and seeds, which at one length are of the same model."""
    training, decode = (costs[costs["phase"] == phase] for phase in ("training", "decode"))
    throughput = {f"training_{name}": float(training[name].astype(float).median()) for name in (
        "tokens_per_second", "tokens_per_second_low", "tokens_per_second_high", "peak_bytes")}  # fmt: skip
    return {**throughput, "state_bytes": float(decode["state_bytes"].astype(float).median())}


def tradeoff(points: pd.DataFrame, seeds: str) -> Figure:
    """A row of panels a task and training length, a point a model."""
    groups = list(points.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups) * len(COSTS), rows=len(groups), height=2.4)
        for row, ((task, trained), group) in enumerate(groups):
            for column, (name, title, scale) in enumerate(COSTS):
                one = axes[row * len(COSTS) + column]
                _panel(one, group, name, scale)
                one.set_title(f"{task} at {group['test_length'].iloc[0]}, trained at {trained}")
                one.set_xlabel(title)
        legend(figure, axes, seeds)
    return figure


def _panel(axes: Axes, group: pd.DataFrame, name: str, scale: float) -> None:
    style = looks(group["model"])
    for model in in_order(group["model"]):
        row = group[group["model"] == model].iloc[0]
        if pd.notna(row[name]) and row[name] > 0:
            _point(axes, row, name, scale, {**style[model], "linestyle": ""}, model)
    axes.axhline(group["constant"].iloc[0], **CONSTANT)
    unit = group["score_unit"].iloc[0]
    score_axis(axes, unit)
    if unit != "accuracy":
        axes.margins(y=0.1)
        axes.invert_yaxis()  # so that upwards is better here too
    _cost_axis(axes)


def _point(axes: Axes, row: pd.Series, name: str, scale: float, look: dict[str, Any], model: str) -> None:
    value = float(row[name]) * scale
    if pd.notna(row["low"]):
        axes.vlines(value, row["low"], row["high"], color=look["color"], linewidth=1)
    if f"{name}_low" in row:
        ends = [float(row[f"{name}_{end}"]) * scale for end in ("low", "high")]
        axes.hlines(row["score"], *ends, color=look["color"], linewidth=1)
    axes.plot([value], [row["score"]], label=model, **look)


def _cost_axis(axes: Axes) -> None:
    """Logarithmic, with a margin and marks that are plain numbers, a few of them however far it spans."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    middle, reach = (low * high) ** 0.5, max(1.15 * (high / low) ** 0.5, 1.5)
    low, high = middle / reach, middle * reach
    axes.set_xlim(low, high)
    steps = (1, 1.5, 2, 3, 4, 6, 8) if reach < 2 else (1, 2, 3, 5) if reach < 6 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    marks = marks[:: -(-len(marks) // 5)]  # more would touch each other
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{mark:,.10g}" for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
