"""What length costs: time, memory, operations, energy and state of training, prefill and decode."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lookback.benchmarks.record import FINAL, Phase, Record
from lookback.benchmarks.report import generation, growth
from lookback.benchmarks.report.frames import Labels, protocol_of
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, few, in_order, legend, length_axis, log_axis, looks, panels
from lookback.benchmarks.report.tables import number, size

PHASES = ("training", "prefill", "decode")
NOISY = 0.1  # of its median, that the yardstick may be off
ROWS = (
    (("tokens_per_second", "tokens a second", 1), ("tokens_per_second", "tokens a second", 1),
     ("milliseconds", "milliseconds a token", 1)),
    (("peak_bytes", "peak memory, MB", 1e-6), ("peak_bytes", "peak memory, MB", 1e-6),
     ("state_bytes", "state a sequence, KB", 1e-3)),
    (("flops_a_token", "MFLOP a token", 1e-6),) * 3,
    (("joules_a_token", "energy a token, mJ", 1e3),) * 3,
)  # fmt: skip
"""Rows of panels, in each one for training, prefill and decode: a column, its title and the scale of its unit."""
READING = """Medians and quartiles of repeats; hollow (noisy) where these are over a tenth of the median apart, or \
where the yardstick, work that is always the same and is timed before and after, took a tenth more or less than its \
median on this page. Where a measurement ended otherwise than well, a cross at the top marks the length. Peak memory \
is the most that was alive at once, weights and optimizer state included; decode is one token after a context of that \
length."""

SHRINKS = "The batch shrinks as the length grows, so a decoded token's time says more of the batch than of the length."


def parts(records: Sequence[Record]) -> list[Part]:
    costs = costs_of(records)
    if costs.empty:
        return []
    curves = growth.curves_of(costs)
    return [
        *growth.words(costs, curves), *_figures(costs), *generation.parts(records), *growth.parts(curves),
        Part("Costs", table=cost_table(costs)),
    ]  # fmt: skip


def _figures(costs: pd.DataFrame) -> list[Part]:
    """A figure a protocol; their data are in one file where there is one protocol, else in one each."""
    several, found = costs["protocol"].nunique() > 1, []
    for number_, (protocol, group) in enumerate(costs.groupby("protocol", sort=False)):
        text = f"With {protocol}. {READING}" + (f" {SHRINKS}" if str(protocol).endswith(growth.SHRINKING) else "")
        name = "cost-by-length" + (f"-{number_ + 1}" if number_ else "")
        title = "Cost against length" + (f": {protocol}" if several else "")
        found.append(Part(title, text, name, cost_by_length(group), group))
    return found


def costs_of(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each `cost` cell and phase, measured or ended otherwise.

    Seconds, operations and joules are of one repeat; what is a token's is that, over the tokens of all sequences.
    Protocols in which the batch stays the same come first.
    """
    labels, rows = Labels.of(records), []
    for record in sorted(records, key=lambda record: record.cell.batch_tokens or 0):
        cell, cost = record.cell, record.outcome.cost
        if cell.kind != "cost" or (not cost and record.outcome.status not in FINAL):
            continue
        for name in PHASES:
            phase = cost.phases.get(name) if cost else None
            state = cost.state_bytes if cost and name == "decode" else None
            row = {
                "task": labels.task(cell), "model": labels.model(cell), "family": cell.model,
                "model_options": json.dumps(cell.model_options, sort_keys=True), "protocol": protocol_of(cell),
                "parameters": cost.parameters if cost else math.nan, "width": cell.width, "depth": cell.depth,
                "precision": cell.precision, "length": cell.length, "batch_size": cell.batch_size, "seed": cell.seed,
                "phase": name, "status": "ok",
                "state_bytes": math.nan if state is None else state / cell.batch_size,
            }  # fmt: skip
            if phase:
                row |= _measured(phase)
            else:
                row["status"] = cost.failed.get(name, "missing") if cost else record.outcome.status
            rows.append(row)
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    measured = list(_measured_columns())
    return _beside_the_yardstick(frame.reindex(columns=[*frame.columns, *(c for c in measured if c not in frame)]))


def _beside_the_yardstick(costs: pd.DataFrame) -> pd.DataFrame:
    """The yardstick of each row as a multiple of the median of all; where that is far from one, the time is noisy."""
    beside = costs["yardstick"] / costs["yardstick"].median()
    noisy = costs["noisy"].where(~((beside - 1).abs() > NOISY), other=True)
    return costs.assign(yardstick=beside, noisy=noisy)


def _measured(phase: Phase) -> dict[str, Any]:
    seconds, tokens = phase.seconds, phase.tokens
    return {
        "tokens_per_second": tokens / seconds.median, "tokens_per_second_low": tokens / seconds.high,
        "tokens_per_second_high": tokens / seconds.low, "seconds": seconds.median, "seconds_low": seconds.low,
        "seconds_high": seconds.high, "milliseconds": 1e3 * seconds.median / tokens,
        "milliseconds_low": 1e3 * seconds.low / tokens, "milliseconds_high": 1e3 * seconds.high / tokens,
        "n": seconds.n, "noisy": seconds.noisy, "peak_bytes": phase.peak_bytes,
        "reserved_bytes": math.nan if phase.reserved_bytes is None else phase.reserved_bytes,
        "flops_a_token": math.nan if phase.flops is None else phase.flops / tokens,
        "joules_a_token": math.nan if phase.joules is None else phase.joules / tokens,
        "yardstick": math.nan if phase.reference_seconds is None else phase.reference_seconds,
    }  # fmt: skip


def _measured_columns() -> tuple[str, ...]:
    names = ("tokens_per_second", "seconds", "milliseconds")
    spread = tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))
    return (*spread, "n", "noisy", "peak_bytes", "reserved_bytes", "flops_a_token", "joules_a_token", "yardstick")


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: what the longest length costs, in the first protocol there is."""
    costs = costs_of(records)
    if costs.empty:
        return {}
    costs = costs[costs["protocol"] == costs["protocol"].iloc[0]]
    longest = costs["length"].max()
    found = {}
    for model, group in costs[costs["length"] == longest].groupby("model", sort=False):
        here = group.groupby("phase").first()
        found[str(model)] = {
            f"train tok/s @{longest}": number(here.loc["training", "tokens_per_second"]),
            f"train peak @{longest}": size(here.loc["training", "peak_bytes"]),
            f"ms/token @{longest}": number(here.loc["decode", "milliseconds"], 2),
            f"state @{longest}": size(here.loc["decode", "state_bytes"]),
        }
    return found


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Every phase measured: throughput with quartiles and n, memory, operations, energy, state."""
    rows = []
    for row in costs.sort_values(["phase", "length"], kind="stable", key=_phases_first).itertuples():
        ok = row.status == "ok"
        rows.append({
            "phase": row.phase, "with": row.protocol, "length": row.length, "batch": row.batch_size,
            "model": row.model,
            "tokens/s": number(row.tokens_per_second) if ok else row.status,
            "quartiles": f"{number(row.tokens_per_second_low)} to {number(row.tokens_per_second_high)}" if ok else "",
            "n": f"{row.n:.0f}{' (noisy)' if row.noisy else ''}" if ok else "",
            "yardstick": number(row.yardstick, 2),
            "peak memory": size(row.peak_bytes), "reserved": size(row.reserved_bytes), "state": size(row.state_bytes),
            "MFLOP a token": number(row.flops_a_token / 1e6, 2), "mJ a token": number(row.joules_a_token * 1e3, 2),
        })  # fmt: skip
    table = growth.without_single(pd.DataFrame(rows), "with")
    seldom = ("yardstick", "reserved", "MFLOP a token", "mJ a token")
    return table.drop(columns=[column for column in seldom if (table[column] == "").all()])


def _phases_first(column: pd.Series) -> pd.Series:
    return column.map(PHASES.index) if column.name == "phase" else column


def cost_by_length(costs: pd.DataFrame) -> Figure | None:
    """What length costs in one protocol: a column of panels a phase, a row a quantity that was measured."""
    kept = [row for row in ROWS if any(costs[column].notna().any() for column, _, _ in row)]
    if not kept:
        return None
    style = looks(costs["model"])
    with mpl.rc_context(RC):
        figure, axes = panels(3 * len(kept), rows=len(kept))
        cells = [(phase, *panel) for row in kept for phase, panel in zip(PHASES, row, strict=True)]
        for one, (phase, column, title, scale) in zip(axes, cells, strict=True):
            rows = costs[costs["phase"] == phase]
            one.set_visible(bool(rows[column].notna().any()))
            if one.get_visible():
                _panel(one, rows, column, scale, style)
                one.set_title(f"{phase}: {title}")
        legend(figure, axes, f"medians of n = {few(costs['n'].dropna().astype(int))} runs; hollow: noisy")
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, column: str, scale: float, style: dict[str, dict[str, Any]]) -> None:
    """One quantity of one phase, a line a model."""
    ended = 0
    for model in in_order(rows["model"]):
        line = rows[rows["model"] == model].sort_values("length")
        _line(axes, line, column, scale, model, style[model])
        broken = line[~line["status"].isin(["ok", "missing"])]
        if len(broken):
            _endings(axes, broken, ended, style[model])
            ended += 1
    log_axis(axes)
    low, high = axes.get_ylim()
    if ended:
        high *= (high / low) ** (0.09 * ended + 0.05)  # room for the endings above the lines
        axes.set_ylim(low, high)
    if not low * 8 < high < low * 1e4:  # marks neither so few nor so many that the axis has none to read
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if high < low * 1e4 else (1,)))
    length_axis(axes, rows["length"], "length, tokens")


def _line(axes: Axes, line: pd.DataFrame, column: str, scale: float, model: str, look: dict[str, Any]) -> None:
    values = line[column].astype(float) * scale
    axes.plot(line["length"], values, label=model, **look)
    if f"{column}_low" in line:
        spread = [line[f"{column}{end}"].astype(float) * scale for end in ("_low", "_high")]
        axes.vlines(line["length"], *spread, color=look["color"], linewidth=1)
        noisy = line["noisy"].fillna(False).astype(bool)
        hollow = {**look, "linestyle": "", "markerfacecolor": "white", "zorder": 3}
        axes.plot(line["length"][noisy], values[noisy], **hollow)


def _endings(axes: Axes, broken: pd.DataFrame, place: int, look: dict[str, Any]) -> None:
    """Marks at the top, a line of them a model, at the lengths that ended otherwise, and how the first of them did."""
    height, at_top = 0.96 - 0.085 * place, axes.get_xaxis_transform()
    crosses = {"color": look["color"], "marker": "x", "linestyle": "", "markersize": 5, "transform": at_top}
    axes.plot(broken["length"], [height] * len(broken), **crosses, clip_on=False)
    first = broken.iloc[0]
    axes.annotate(
        str(first["status"]), (first["length"], height), xycoords=at_top, xytext=(-5, 0), textcoords="offset points",
        ha="right", va="center", fontsize=7, color=look["color"],
    )  # fmt: skip
