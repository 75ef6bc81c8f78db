"""Generation: time and memory as tokens come one by one, the RWKV paper's figure (Peng et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.frames import Labels, protocol_of
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.scaling import Growth, fit
from lookback.benchmarks.report.style import RC, in_order, legend, log_axis, looks, panels
from lookback.benchmarks.report.tables import number, size

TEXT = """From an empty state, token by token, medians of a few passes: of each model the longest there is. A \
straight line is a token that costs the same wherever it stands. Below, a token's time and the state on logarithmic \
axes. *Late / early* is a token's time in the last half over that in the quarter before: 1 where all take the same, 2 \
where each takes as long as there are tokens before it; the *exponent* is that of a token's time, fitted as all \
exponents here, and the *verdict* is on it: constant is a straight line above, more is a curve."""
SPACING = 2**0.5  # of the marks that a token's time is taken between


def parts(records: Sequence[Record]) -> list[Part]:
    generated = generated_of(records)
    if generated.empty:
        return []
    made = []
    for number_, (protocol, group) in enumerate(generated.groupby("protocol", sort=False)):
        several = generated["protocol"].nunique() > 1
        title = "Generation, token by token" + (f": {protocol}" if several else "")
        name = "generation" + (f"-{number_ + 1}" if number_ else "")
        text = " ".join([TEXT, *_endings(records, str(protocol))])
        made.append(Part(title, text, name, generation_figure(group), group, generation_table(group)))
    return made


def _endings(records: Sequence[Record], protocol: str) -> list[str]:
    """A sentence for each generation that ended otherwise than well."""
    labels = Labels.of(records)
    return [
        f"{labels.model(r.cell)} ended in {status} on the way to {r.cell.length:,} tokens."
        for r in records
        if r.outcome.cost and (status := r.outcome.cost.failed.get("generation")) and protocol_of(r.cell) == protocol
    ]


def generated_of(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each mark of the longest generation of each model and protocol: what it took since the first token."""
    longest: dict[tuple[str, str], Record] = {}
    labels = Labels.of(records)
    for record in records:
        if record.outcome.cost and record.outcome.cost.generation:
            key = protocol_of(record.cell), labels.model(record.cell)
            before = longest.get(key)
            if before is None or _tokens(before) < _tokens(record):
                longest[key] = record
    rows = []
    for (protocol, model), record in longest.items():
        assert record.outcome.cost
        last_tokens, last_seconds = 0, 0.0
        for mark in record.outcome.cost.generation:
            each = 1e3 * (mark.seconds - last_seconds) / (mark.tokens - last_tokens)
            last_tokens, last_seconds = mark.tokens, mark.seconds
            alive = math.nan if mark.alive_bytes is None else mark.alive_bytes
            rows.append({
                "protocol": protocol, "model": model, "batch_size": record.cell.batch_size, "tokens": mark.tokens,
                "seconds": mark.seconds, "milliseconds_a_token": each, "state_bytes": mark.state_bytes,
                "alive_bytes": alive,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _tokens(record: Record) -> int:
    return record.outcome.cost.generation[-1].tokens if record.outcome.cost else 0


def rates(line: pd.DataFrame) -> list[tuple[float, float]]:
    """A token's milliseconds between marks half an octave apart or more, each at the middle of its stretch."""
    found, tokens, seconds = [], 0.0, 0.0
    rows = line.sort_values("tokens")
    for row in rows.itertuples():
        if row.tokens >= SPACING * tokens or row.tokens == rows["tokens"].max():
            found.append(((row.tokens + tokens) / 2, 1e3 * (row.seconds - seconds) / (row.tokens - tokens)))
            tokens, seconds = float(row.tokens), float(row.seconds)
    return [(middle, each) for middle, each in found if each > 0]


def growth_of(line: pd.DataFrame) -> Growth | None:
    """How a token's time grows with what stands before it; the first stretch, which warms up, is left out."""
    found = rates(line)[1:]
    return fit([middle for middle, _ in found], [each for _, each in found]) if len(found) >= 4 else None


def late_over_early(line: pd.DataFrame) -> float:
    """A token's time in the last half over that in the quarter before, between the marks nearest to their ends.

    1 where all tokens take the same, 2 where they take as long as there are tokens before them.
    """
    last = line["tokens"].max()
    first, middle, end = (line.iloc[(line["tokens"] - share * last).abs().argmin()] for share in (0.25, 0.5, 1))
    if not first["tokens"] < middle["tokens"] < end["tokens"] or first["seconds"] >= middle["seconds"]:
        return math.nan
    early, late = (
        (to["seconds"] - since["seconds"]) / (to["tokens"] - since["tokens"])
        for since, to in ((first, middle), (middle, end))
    )
    return float(late / early)


def generation_table(generated: pd.DataFrame) -> pd.DataFrame:
    """A row a model: its longest generation, how a token's time grew, and its state."""
    rows = []
    for model in in_order(generated["model"]):
        line = generated[generated["model"] == model].sort_values("tokens")
        first, last, growth = line.iloc[0], line.iloc[-1], growth_of(line)
        rows.append({
            "model": model, "tokens": number(last["tokens"]), "seconds": number(last["seconds"], 2),
            "late / early": number(late_over_early(line), 2),
            "exponent": "" if growth is None else str(growth.exponent) if growth.grows else "no growth seen",
            "verdict": "" if growth is None else growth.verdict,
            f"state after {first['tokens']:,.0f}": size(first["state_bytes"]),
            "state at the end": size(last["state_bytes"]), "alive at the end": size(last["alive_bytes"]),
        })  # fmt: skip
    table = pd.DataFrame(rows).fillna("")
    return table.drop(columns=[column for column in ("alive at the end",) if (table[column] == "").all()])


def generation_figure(generated: pd.DataFrame) -> Figure:
    """Above, as in the paper, linear axes: seconds and memory; below, a token's time and the state, logarithmic."""
    memory, name = ("alive_bytes", "alive") if generated["alive_bytes"].notna().any() else ("state_bytes", "state")
    with mpl.rc_context(RC):
        figure, axes = panels(4, rows=2, width=4.2)
        style = looks(generated["model"])
        for model in in_order(generated["model"]):
            line = generated[generated["model"] == model].sort_values("tokens")
            look = {**style[model], "label": model, "markevery": _few_marks(len(line))}
            tokens = [0, *line["tokens"]]
            axes[0].plot(tokens, [0, *line["seconds"]], **look)
            axes[1].plot(line["tokens"], line[memory] * 1e-6, **look)
            stretches = rates(line)[1:]  # the first warms up
            axes[2].plot(*np.transpose(stretches or [(math.nan, math.nan)]), **{**look, "markevery": 1})
            axes[3].plot(line["tokens"], line["state_bytes"] * 1e-3, **look)
        titles = ("seconds since the first token", f"memory: {name}, MB", "milliseconds a token", "state, KB")
        for one, title in zip(axes, titles, strict=True):
            one.set_title(title)
            one.set_xlabel("tokens generated")
        for one in axes[:2]:
            one.set_ylim(bottom=0)
            one.set_xlim(left=0)
            one.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for one in axes[2:]:
            one.set_xscale("log", base=2)
            one.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            log_axis(one)
        legend(figure, axes, f"medians of a few passes, {generated['protocol'].iloc[0]}")
    return figure


def _few_marks(points: int) -> int:
    return max(1, points // 10)
