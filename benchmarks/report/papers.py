"""What the RWKV paper says of cost beside our records, a page each: complexity and generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import generation, growth
from lookback.benchmarks.report.answers import Question, notes_on, write_answer
from lookback.benchmarks.report.costs import costs_of
from lookback.benchmarks.report.growth import SHRINKING, Curve, curves_of
from lookback.benchmarks.report.page import Made, NothingToReportError
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.published import OURS, published
from lookback.benchmarks.report.style import in_order
from lookback.benchmarks.report.tables import number, plain

MEASURED = {
    "time of T tokens at once": "prefill time", "memory of T tokens at once": "prefill memory",
    "time of one more token": "decode time", "state after T tokens": "state",
}  # fmt: skip

COMPLEXITY = """*Time* and *space* are the paper's, for inference: orders for one layer, T the length, d the width, s \
and c the size of a window or chunk. The other columns are measured: p of y = c + a·T^p with its 95 % interval, and \
the verdict; how they were fitted stands below.

**What is not the same.** The paper counts the mixing over time alone: the products with weights, T·13d² in our \
models and T·15d² in RRWKV, come on top and are linear, so that attention at lengths below some ten widths is not yet \
quadratic. Its Transformer keeps the T×T matrix of attention; ours, as all today, is fused and does not, so that its \
memory is linear; one token at a time it keeps keys and values, the Td of the table. RWKV's d is its state: read at \
once, T tokens take memory for T tokens in every model."""

GENERATION = """The paper (Peng et al. 2023, arXiv 2305.13048) shows the time to generate tokens one by one, float32 \
on an A100: RWKV a straight line, Transformers of the same size curves. Seconds of models of other sizes on other \
machines are not to be compared; the shapes are, and how far the lines part."""


def complexity_page(records: Sequence[Record], folder: Path) -> Made:
    """The published table with our exponents beside it, and all exponents of the same records."""
    curves = [curve for curve in curves_of(costs_of(records)) if len(curve.points) >= 2]
    protocols = [p for p in dict.fromkeys(curve.protocol for curve in curves) if not p.endswith(SHRINKING)]
    if not protocols:
        raise NothingToReportError("no model was measured at two lengths or more with a fixed batch: nothing to fit")
    tables = [complexity_table([curve for curve in curves if curve.protocol == protocol]) for protocol in protocols]
    parts = [
        Part(f"The table, and what was measured with {protocol}", table=table)
        for protocol, table in zip(protocols, tables, strict=True)
    ]
    title = f"The RWKV paper's complexities, measured on {records[0].machine.device}"
    text = f"{_made_by(records, 'complexity')}\n\n{COMPLEXITY}"
    return write_answer(folder, title, text, [*parts, *growth.parts(curves)], records, plain(tables[0]))


def complexity_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row a published model, with ours where we have it, and then those of ours that the paper does not have."""
    by_model: dict[str, dict[str, Curve]] = {}
    for curve in curves:
        by_model.setdefault(curve.model, {})[curve.quantity] = curve
    families = {model: next(iter(found.values())).family for model, found in by_model.items()}
    rows, shown = [], set()
    for name, orders in published("complexity").groupby("model", sort=False):
        order = dict(zip(orders["task"], orders["setting"], strict=True))
        said = {"time": order["time"], "space": order["space"]}
        ours = [model for model in in_order(by_model) if families[model] == OURS.get(str(name))]
        rows += [{"model": str(name), **said, "measured": model, **_exponents(by_model[model])} for model in ours]
        rows += [] if ours else [{"model": str(name), **said}]
        shown |= set(ours)
    rows += [{"model": "", "measured": model, **_exponents(by_model[model])} for model in in_order(by_model)
             if model not in shown]  # fmt: skip
    return pd.DataFrame(rows).fillna("")


def _exponents(found: dict[str, Curve]) -> dict[str, str]:
    cells = {}
    for column, quantity in MEASURED.items():
        grown = found[quantity].growth if quantity in found else None
        exponent = f"{grown.exponent}, " if grown and grown.grows else ""
        cells[column] = f"{exponent}{grown.verdict}" if grown else ""
    return cells


def generation_page(records: Sequence[Record], folder: Path) -> Made:
    """The paper's words beside what we measured, and the figure."""
    generated = generation.generated_of(records)
    if generated.empty:
        raise NothingToReportError("no cell generated: expected `cost` cells with generate = true")
    table = beside_the_paper(generated)
    parts = [Part("The paper's figure in words, and ours", table=table), *generation.parts(records)]
    title = f"Generation, token by token, on {records[0].machine.device}"
    text = f"{_made_by(records, 'generation')}\n\n{GENERATION}"
    return write_answer(folder, title, text, parts, records, plain(table))


def beside_the_paper(generated: pd.DataFrame) -> pd.DataFrame:
    """Seconds for a thousand tokens, or for all where they were fewer, and the line's shape."""
    rows = []
    for name, group in published("generation-time").groupby("model", sort=False):
        found = dict(zip(group["task"], group["value"], strict=True))
        shape = group.loc[group["task"] == "shape", "setting"].iloc[0]
        seconds = f"{found['low']:.0f} to {found['high']:.0f}"
        rows.append({"model": str(name), "tokens": "1,000", "seconds": seconds, "line": shape, "from": "the paper"})
    for protocol in generated["protocol"].unique():
        here = generated[generated["protocol"] == protocol]
        for model in in_order(here["model"]):
            line = here[here["model"] == model]
            grown, tokens = generation.growth_of(line), min(1000, int(line["tokens"].max()))
            rows.append({
                "model": model, "tokens": number(tokens), "seconds": f"{seconds_at(line, tokens):.3g}",
                "line": _shape(grown.verdict if grown else "not clear"), "from": f"our records, {protocol}",
            })  # fmt: skip
    return pd.DataFrame(rows)


def seconds_at(line: pd.DataFrame, tokens: int) -> float:
    """Between two marks the time is taken to pass evenly."""
    marks = line.sort_values("tokens")
    after = marks[marks["tokens"] >= tokens].iloc[0]
    before = marks[marks["tokens"] < tokens]
    start, began = (float(before.iloc[-1][c]) for c in ("tokens", "seconds")) if len(before) else (0.0, 0.0)
    share = (tokens - start) / (float(after["tokens"]) - start)
    return began + share * (float(after["seconds"]) - began)


def _shape(verdict: str) -> str:
    return {"constant": "straight", "not clear": "not clear"}.get(verdict, f"curved: a token's time is {verdict}")


def _made_by(records: Sequence[Record], name: str) -> str:
    suite, sizes = records[0].suite, [r.outcome.cost.parameters for r in records if r.outcome.cost]
    low, high = min(sizes, default=0), max(sizes, default=math.nan)
    made = (
        f"Made from the records of suite {suite} alone, by `make paper-rwkv-{name}`. "
        f"Models of {low:,} to {high:,} parameters."
    )
    return "\n\n".join([made, *notes_on(records)])


QUESTIONS = (Question("complexity", complexity_page, "cost"), Question("generation", generation_page, "cost"))
