"""Each claim of the RWKV and RRWKV papers on range and cost beside the records; data in TOML."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.report.endpoints import Evidence
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.sections.costs import growth, ratios
from lookback.benchmarks.report.sections.learning import gradient_ratios

TITLE = "Claims of the RWKV and RRWKV papers"
CLAIMS = Path(__file__).with_suffix(".toml")
WORDS = {"holds": "hold", "fails": "fail", "undecided": "undecided", "not measured": "not measured"}
NOT_DECIDED = ("both at floor", "both at ceiling", "at floor", "baseline at floor")


def read_claims() -> list[dict[str, Any]]:
    """Return the claims, as the TOML file has them."""
    return list(tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["claim"])


def claims_page(evidence: Evidence) -> Page | None:
    """Return the page of all claims; None if these records measure none of them."""
    measures = claim_measures(evidence)
    if measures.empty:
        return None
    rows = []
    for claim in read_claims():
        own = measures[measures["claim"] == claim["claim"]]
        rows.append({
            "kind": claim["kind"],
            "claim": claim["claim"],
            "verdict": claim_verdict(own),
            "measures": len(own),
            "deciding": deciding_measure(own),
            "claimed_by": claim["paper"],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    counts = table["verdict"].value_counts()
    counted = ", ".join(f"{count} {WORDS[word]}" for word, count in counts.items())
    text = (
        "A measure is in favour where its whole 95 % interval lies in the band that the claim "
        "wants, and against where all of it lies outside. A claim holds if all measures are in "
        "favour, and fails if one is against. Ratios of costs have the bounds that the quartiles "
        "of both allow; counted bytes and operations are exact. *Property*: follows from the "
        "architecture, and is checked here. *Finding*: could be otherwise. Endpoints on which a "
        "model has not left the sighted floor decide nothing."
    )
    return Page(
        title=TITLE,
        source=f"{len(evidence.records)} records. Made by `lookback report claims`.",
        lead=[f"{len(rows)} claims on range and cost, in our words: {counted}."],
        blocks=[
            Block("Claims", text, table=table),
            Block("Measures", "What each verdict stands on.", table=measures, folded=True),
        ],
    )


def claim_measures(evidence: Evidence) -> pd.DataFrame:
    """Return a row per claim and measure: its value, interval, band and judgement."""
    costs = evidence["costs"]
    found = {
        "growth": growth(costs),
        "ratios": ratios(costs, "rrwkv", "rwkv"),
        "gradients": gradient_ratios(evidence["gradients"], "rrwkv", "rwkv"),
        "verdicts": evidence.verdicts,
    }
    rows = []
    for claim in read_claims():
        table = found[claim["frame"]]
        if not table.empty:
            rows += [measure(claim, row) for row in choose(table, claim).to_dict("records")]
    return pd.DataFrame([row for row in rows if not math.isnan(row["value"])])


def choose(table: pd.DataFrame, claim: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows that a claim is about."""
    for column in ("suite", "quantity"):
        if column in claim:
            table = table[table[column].isin(claim[column])]
    if claim["frame"] != "ratios":
        options = json.dumps(claim.get("options", {}))
        table = table[(table["model"] == claim["model"]) & (table["model_options"] == options)]
    return table


def measure(claim: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table of measures."""
    column = claim["value"]
    value = float(row[column])
    low, high = (float(row.get(f"{column}_{end}", math.nan)) for end in ("low", "high"))
    least, most = claim.get("low", -math.inf), claim.get("high", math.inf)
    ends = (value, value) if math.isnan(low) else (low, high)
    if row.get("verdict") in NOT_DECIDED or row.get("seeds") == 1:
        word = "undecided"
    elif least <= ends[0] and ends[1] <= most:
        word = "in favour"
    else:
        word = "against" if ends[1] < least or ends[0] > most else "undecided"
    return {
        "claim": claim["claim"],
        "suite": row["suite"],
        "measure": row.get("quantity") or row.get("verdict"),
        "of": column.replace("_", " "),
        "value": value,
        "value_low": low,
        "value_high": high,
        "wanted": band_words(least, most),
        "judged": word,
    }


def band_words(least: float, most: float) -> str:
    """Return a band in words: `up to 1.25`, `0.25 and more`, `-0.25 to 0.25`."""
    if least == -math.inf:
        return f"up to {most:g}"
    return f"{least:g} and more" if most == math.inf else f"{least:g} to {most:g}"


def claim_verdict(measures: pd.DataFrame) -> str:
    """Return holds, fails, undecided or not measured."""
    if measures.empty:
        return "not measured"
    words = set(measures["judged"])
    if "against" in words:
        return "fails"
    return "holds" if words == {"in favour"} else "undecided"


def deciding_measure(measures: pd.DataFrame) -> str:
    """Return the first measure that is against a claim, else that leaves it undecided, else any."""
    if measures.empty:
        return ""
    order = measures["judged"].map(["against", "undecided", "in favour"].index)
    row = measures.iloc[int(order.argmin())]
    words = f"{row['of']} of {row['measure']}: {row['value']:.2f}"
    if math.isnan(row["value_low"]):
        return words
    return f"{words} ({row['value_low']:.2f} to {row['value_high']:.2f})"
