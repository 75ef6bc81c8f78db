"""Does looking back at mediums help? Its scores, gradients and costs beside RWKV-4's."""

from __future__ import annotations

import pandas as pd

from lookback.benchmarks.report.endpoints import Evidence
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.pages.suite import RECONSTRUCTION
from lookback.benchmarks.report.plots import intervals
from lookback.benchmarks.report.sections.costs import ratios
from lookback.benchmarks.report.sections.learning import gradient_ratios

TITLE = "RRWKV beside RWKV-4: does looking back at mediums help?"


def rrwkv_page(evidence: Evidence) -> Page | None:
    """Return the page; None if these records compare nothing of the two."""
    blocks: list[Block] = []
    lead = [RECONSTRUCTION]
    judged = [one.verdicts for one in evidence.judged.values()]
    parts = [
        add_names(table[table["model"] == "rrwkv"], with_length=True)
        for table in judged
        if not table.empty
    ]
    gains = pd.concat(parts) if parts else pd.DataFrame()
    if not gains.empty:
        depths = gains["depth"].astype(str)
        labels = gains["suite"] + ": " + gains["task_name"] + ", depth " + depths
        gains = gains.assign(label=labels)
        lead.insert(0, verdict_sentence(gains))
        blocks.append(_endpoint_block(gains, by_default(gains)))
    gradients = gradient_ratios(evidence["gradients"], "rrwkv", "rwkv")
    if not gradients.empty:
        blocks.append(_gradient_block(add_names(gradients)))
    prices = ratios(evidence["costs"], "rrwkv", "rwkv")
    if not prices.empty:
        blocks.append(_cost_block(prices))
    if not blocks:
        return None
    if gains.empty:
        lead.insert(0, "No published record compares what RRWKV and RWKV-4 learn yet.")
    return Page(
        title=TITLE,
        source=f"{len(evidence.records)} records. Made by `lookback report rrwkv`.",
        lead=lead,
        blocks=blocks,
    )


def by_default(gains: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of RRWKV without options; all rows if there are none."""
    plain = gains[gains["model_options"] == "{}"]
    return plain if len(plain) else gains


def verdict_sentence(gains: pd.DataFrame) -> str:
    """Count the verdicts on RRWKV."""
    rows = by_default(gains)
    counts = rows["verdict"].value_counts()
    counted = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"RRWKV minus RWKV-4 on {len(rows)} primary endpoints: {counted}."


def _endpoint_block(gains: pd.DataFrame, drawn: pd.DataFrame) -> Block:
    """Draw differences over the smallest that matters, so that endpoints share one axis."""
    differences = ["difference", "difference_low", "difference_high"]
    scaled = drawn[differences].div(drawn["matters"], axis=0)
    rows = drawn.assign(**scaled, panel="")
    figure = intervals(rows, "label", "panel", "in smallest differences that matter", 1.0)
    columns = ["suite", "task_name", "model_name", "seeds", *differences]
    columns += ["matters", "smallest_shown", "verdict"]
    text = (
        "Paired by seed, with 95 % intervals. Shaded: differences too small to matter. Right of "
        "zero RRWKV is better."
    )
    return Block("What it gains", text, figure, gains[columns])


def _gradient_block(gradients: pd.DataFrame) -> Block:
    columns = ["suite", "task_name", "trained_length", "quantity", "model_name", "ratio"]
    text = (
        "The gradient of a trained RRWKV's output over RWKV-4's, each relative to that at distance "
        "zero: the geometric mean, paired by seed, with its 95 % interval. Above 1, more arrives "
        "from far back; whether a model uses it, the endpoints say."
    )
    table = gradients[[*columns, "ratio_low", "ratio_high", "seeds"]]
    return Block("What arrives from far back", text, table=table)


def _cost_block(prices: pd.DataFrame) -> Block:
    table = prices.rename(columns={"trained_length": "at_length", "width_baseline": "RWKV-4 width"})
    table = table.rename(columns={"width": "RRWKV width"})
    columns = ["suite", "quantity", "at_length", "batch", "ratio", "ratio_low"]
    columns += ["ratio_high", "RRWKV width", "RWKV-4 width"]
    text = (
        "RRWKV's cost over RWKV-4's at the longest length that both have, with the bounds that "
        "the quartiles of both allow. Parameters are matched, so widths differ; an odd width is "
        "slower by itself."
    )
    return Block("What it costs", text, table=table[columns])
