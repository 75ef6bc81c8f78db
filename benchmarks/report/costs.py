"""What length costs: time, memory and state of training, prefill and decode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.record import Record
from benchmarks.report.frames import Labels, run_fields
from benchmarks.report.parts import Part
from benchmarks.report.style import RC, few, in_order, legend, length_axis, log_axis, looks, panels
from benchmarks.report.tables import number, size

PHASES = ("training", "prefill", "decode")
COSTS = (
    ("training", "tokens_per_second", "training: tokens a second"),
    ("training", "peak_bytes", "training: peak memory, MB"),
    ("decode", "seconds", "decode: milliseconds a token"),
    ("decode", "state_bytes", "decode: state, KB"),
)
UNITS = {"peak_bytes": 1e-6, "state_bytes": 1e-3, "seconds": 1e3}


def parts(records: Sequence[Record]) -> list[Part]:
    costs = costs_of(records)
    if costs.empty:
        return []
    text = "Medians. Peak memory counts live tensors, weights and optimizer state included."
    return [
        Part("Cost against length", text, "cost-by-length", cost_by_length(costs), costs),
        Part("Costs", table=cost_table(costs)),
    ]


def costs_of(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each `cost` cell and phase, measured or failed."""
    labels, rows = Labels.of(records), []
    for record in records:
        if not record.outcome.cost:
            continue
        for name in PHASES:
            batch = record.cell.batch_size
            row = {**run_fields(record, labels), "phase": name, "batch_size": batch, "state_bytes": math.nan}
            if phase := record.outcome.cost.phases.get(name):
                seconds = phase.seconds
                row |= {
                    "status": "ok", "tokens_per_second": phase.tokens / seconds.median,
                    "tokens_per_second_low": phase.tokens / seconds.high,
                    "tokens_per_second_high": phase.tokens / seconds.low, "seconds": seconds.median, "n": seconds.n,
                    "noisy": seconds.noisy, "peak_bytes": phase.peak_bytes, "reserved_bytes": phase.reserved_bytes,
                }  # fmt: skip
            else:
                row["status"] = record.outcome.cost.failed.get(name, "missing")
            if name == "decode" and record.outcome.cost.state_bytes is not None:
                row["state_bytes"] = record.outcome.cost.state_bytes
            rows.append(row)
    return pd.DataFrame(rows)


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: what the longest length costs."""
    costs = costs_of(records)
    if costs.empty:
        return {}
    longest = costs["length"].max()
    found = {}
    for model, group in costs[costs["length"] == longest].groupby("model", sort=False):
        here = group.set_index("phase")
        found[str(model)] = {
            f"train tok/s @{longest}": number(here.loc["training", "tokens_per_second"]),
            f"train peak @{longest}": size(here.loc["training", "peak_bytes"]),
            f"ms/token @{longest}": number(here.loc["decode", "seconds"] * 1e3, 2),
            f"state @{longest}": size(here.loc["decode", "state_bytes"]),
        }
    return found


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Every phase measured: throughput with quartiles and n, memory, state."""
    rows = []
    for row in costs.sort_values(["phase", "length"], kind="stable", key=_phases_first).itertuples():
        ok = row.status == "ok"
        rows.append({
            "phase": row.phase, "length": row.length, "batch": row.batch_size, "model": row.model,
            "tokens/s": number(row.tokens_per_second) if ok else row.status,
            "quartiles": f"{number(row.tokens_per_second_low)} to {number(row.tokens_per_second_high)}" if ok else "",
            "n": f"{row.n:.0f}{' (noisy)' if row.noisy else ''}" if ok else "",
            "peak memory": size(row.peak_bytes) if ok else "", "state": size(row.state_bytes),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _phases_first(column: pd.Series) -> pd.Series:
    return column.map(PHASES.index) if column.name == "phase" else column


def cost_by_length(costs: pd.DataFrame) -> Figure | None:
    """What length costs, on two logarithmic axes; a cross at the top where memory ended."""
    if costs.empty:
        return None
    with mpl.rc_context(RC):
        figure, axes = panels(len(COSTS))
        for one, (phase, column, title) in zip(axes, COSTS, strict=True):
            rows = costs[costs["phase"] == phase]
            style = looks(rows["model"])
            for model in in_order(rows["model"]):
                line = rows[rows["model"] == model].sort_values("length")
                one.plot(line["length"], line[column].astype(float) * UNITS.get(column, 1), label=model, **style[model])
                for length in line.loc[line["status"] != "ok", "length"]:
                    at_top = one.get_xaxis_transform()
                    one.plot(length, 0.97, "x", color=style[model]["color"], transform=at_top, clip_on=False)
            log_axis(one)
            one.set_title(title)
            length_axis(one, rows["length"], "length, tokens")
        legend(figure, axes, f"medians of n = {few(costs['n'].dropna().astype(int))} runs")
    return figure
