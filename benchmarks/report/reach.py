"""Reach: the share of an output's gradient that arrives n positions back, untrained and trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lookback.benchmarks.record import Cell, Record
from lookback.benchmarks.report.figures import of_seeds
from lookback.benchmarks.report.frames import Labels, run_fields
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, in_order, legend, length_axis, looks, panels

LIMIT = 1e-3  # of the gradient at distance 0: what arrives with less counts as lost
FLOOR = 1e-7  # shares below it are not drawn
WHEN = ("untrained", "trained")
SHOWN = (1, 4, 16, 64, 256, 1024, 4096)  # distances whose shares stand in the table
RUN = ["task", "length", "model"]

TEXT = (
    "The gradient of an answer with respect to the embedding n positions back, relative to that at distance 0: root "
    "mean square over examples and positions that are asked, in bins of half an octave. Geometric means over seeds; "
    "shaded: least to greatest; dotted: a thousandth."
)
TABLE_TEXT = (
    "The path between two tokens n apart in one layer, in theory; the first distance from which on no bin holds a "
    "thousandth of the gradient (median over seeds, least and greatest in brackets); and shares of trained models. "
    "Reach is what can arrive, not what is made of it: that is for the scores to say."
)
NOTHING_TEXT = (
    " Where it ends at 1, nothing arrives from before: with RWKV's published initialisation, blocks add nothing at "
    "first, and the untrained model answers from the present token alone."
)


def parts(records: Sequence[Record]) -> list[Part]:
    shares = shares_of(records)
    if shares.empty:
        return []
    nothing = shares[(shares["low"] == 1) & (shares["share"] == 0)]
    return [
        Part("Reach", TEXT, "reach", reach_by_distance(shares), shares),
        Part("How far back gradients reach", TABLE_TEXT + (NOTHING_TEXT if len(nothing) else ""),
             table=reach_table(shares)),
    ]  # fmt: skip


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: from where on less than a thousandth reaches a trained model."""
    found: dict[str, dict[str, str]] = {}
    shares = shares_of(records)
    for (task, length, model, when), group in _groups(shares, [*RUN, "when"]):
        if when == "trained":
            found.setdefault(model, {})[f"{task} reach @{length}"] = _end(group)
    return found


def shares_of(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each bin of distance of each run, untrained and trained. The length is that of measuring."""
    labels, rows = Labels.of(records), []
    for record in records:
        if not (numbers := record.outcome.learn):
            continue
        length = max((record.cell.length, *record.cell.test_lengths))
        run = {**run_fields(record, labels), "trained_at": record.cell.length, "length": length}
        for when, bins in zip(WHEN, (numbers.reach_before, numbers.reach_after), strict=True):
            rows += [{**run, "path": path(record.cell), "when": when, **part.model_dump()} for part in bins]
    return pd.DataFrame(rows)


def path(cell: Cell) -> str:
    """What lies between two tokens n apart in one layer, in theory; nothing of models that are not ours."""
    through_decays = "1 step, through n decays"
    if cell.model != "rrwkv":
        known = {"transformer": "1 step", "rwkv": through_decays, "lstm": "n steps"}
        return known.get(cell.model, "")
    interval = cell.model_options.get("interval", 16)
    segment = "sqrt(T)" if interval == "sqrt" else interval
    ways = {
        "recurrent": f"1 step, through {segment} decays of a token and n/{segment} of a segment",
        "attention": f"1 step, to a mean of {segment} tokens",
        "none": f"{through_decays}; 1 step to the mean of the last {segment} tokens",
    }
    return through_decays if interval == "none" else ways[cell.model_options.get("retrospection", "recurrent")]


def ends(group: pd.DataFrame) -> list[int]:
    """Of each seed, sorted, the first distance from which on no bin has a share of LIMIT, or one behind the last."""
    kept = group[group["share"] >= LIMIT].groupby("seed")["high"].max()
    return sorted(int(distance) + 1 for distance in kept)


def _groups(shares: pd.DataFrame, by: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    return [] if shares.empty else list(shares.groupby(by, sort=False))


def _end(group: pd.DataFrame) -> str:
    """Where the reach ends: median, and least and greatest where seeds differ."""
    if group.empty:
        return ""
    found, farthest = ends(group), int(group["high"].max())
    least, median, most = (
        f"beyond {farthest}" if end > farthest else str(end)
        for end in (found[0], found[(len(found) - 1) // 2], found[-1])
    )
    return median if least == most else f"{median} ({least} to {most})"


def reach_table(shares: pd.DataFrame) -> pd.DataFrame:
    """A row a task and model: path in theory, where reach ends, and a few shares of trained models."""
    rows = []
    in_tasks = shares.sort_values(["task", "length"], kind="stable")
    for (task, length, model), group in _groups(in_tasks, RUN):
        row = {"task": task, "length": length, "model": model, "path": group["path"].iloc[0]}
        for when in WHEN:
            row[f"below 1/1000, {when}"] = _end(group[group["when"] == when])
        rows.append(row | {"seeds": group["seed"].nunique()} | _shares_at(group[group["when"] == "trained"]))
    return pd.DataFrame(rows).fillna("")


def _shares_at(group: pd.DataFrame) -> dict[str, str]:
    """Trained shares at the distances shown, means over seeds."""
    found = {}
    for distance in SHOWN:
        here = group[(group["low"] <= distance) & (group["high"] >= distance)]
        if len(here):
            found[f"share at {distance}"] = f"{geometric_mean(here['share']):.2g}"
    return found


def geometric_mean(values: pd.Series) -> float:
    """Of shares; 0 where one of them is."""
    return math.exp(math.fsum(math.log(v) for v in values) / len(values)) if values.min() > 0 else 0.0


def reach_by_distance(shares: pd.DataFrame) -> Figure:
    """The share against distance, a row of panels a task: untrained and trained."""
    tasks = _groups(shares, ["task", "length"])
    with mpl.rc_context(RC):
        figure, axes = panels(2 * len(tasks), rows=len(tasks), width=3.6)
        for row, ((task, length), group) in enumerate(tasks):
            for one, when in zip(axes[2 * row : 2 * row + 2], WHEN, strict=True):
                _panel(one, group[(group["when"] == when) & (group["low"] > 0)])
                _share_axis(one, group.loc[group["share"] > 0, "share"].min())
                one.set_title(f"{task} at {length}, {when}")
                one.set_xlim(0.9, 1.1 * length)
                marks = [4**i for i in range(length.bit_length()) if 4**i <= length]
                length_axis(one, marks, "distance, positions")
        legend(figure, axes, of_seeds(shares))
    return figure


def _panel(axes: Axes, shares: pd.DataFrame) -> None:
    """A line a model; those of which nothing arrives are named."""
    style, nothing = looks(shares["model"]), []
    for model in in_order(shares["model"]):
        here = shares[shares["model"] == model].groupby(["low", "high"])["share"]
        line = here.agg(mean=geometric_mean, least="min", most="max").reset_index()
        if not line["most"].any():
            nothing.append(model.split(" ")[0])
        distance = (line["low"] * line["high"]) ** 0.5
        axes.plot(distance, line["mean"], label=model, **style[model])
        axes.fill_between(distance, line["least"], line["most"], color=style[model]["color"], alpha=0.15, linewidth=0)
    axes.axhline(LIMIT, color="#777777", linestyle=(0, (1, 2)), linewidth=1.2, label="a thousandth")
    if nothing:
        axes.text(0.03, 0.03, f"0 from 1 on: {', '.join(in_order(nothing))}", transform=axes.transAxes, fontsize=8)


def _share_axis(axes: Axes, least: float) -> None:
    """From FLOOR at the lowest, or from where there is something to see."""
    axes.set_yscale("log")
    axes.set_ylim(max(FLOOR, min(least / 2, LIMIT / 10)), 2)
    axes.yaxis.set_major_locator(LogLocator(numticks=10))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value > LIMIT / 2 else f"{value:.0e}")
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("share of the gradient at 0")
