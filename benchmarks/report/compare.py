"""Compare two folders of records, or one model with another.

Two records are of the same measurement if their cells are equal in all but device and time limit.
docs/reports.md says what counts as a change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import PAIR, is_plain, judge, verdicts
from lookback.benchmarks.report.frames import distinct, frame
from lookback.benchmarks.report.make import Selection, chosen_records, endpoints_of
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.page import format_value, terminal_table
from lookback.benchmarks.report.sections.costs import ratios
from lookback.benchmarks.report.statistics import subtract
from lookback.benchmarks.storage import read_records

TOLERANCE = 0.1  # relative difference that medians of times may have
LAST_DIGIT = 0.001  # of a score without an interval
MATTERS = {"accuracy": 0.05, "bits per byte": 0.02}  # smallest difference, without an endpoint
TRIALS = ("-smoke", "-limit")  # suites that decide nothing beside whole ones
FAILED = ("changed", "worse", "at floor")
VERDICTS = (
    *FAILED,
    *("better", "baseline at floor", "inconclusive", "equivalent"),
    *("machine", "noisy", "only in A", "only in B"),
    *("both at floor", "both at ceiling", "within", "equal"),
)
"""In the order in which they are listed: those that a reader has to look at come first."""
MOST_ROWS = 40  # in a terminal

Row = dict[str, Any]
RUN = ["measurement", "seed", "suite", "machine"]
CELL = ["task", "task_options", "model", "model_options", "width", "depth", "trained_length"]
QUANTITY = ["quantity", "field", "test_options"]  # in words, and the column of the frame
OF_PHASES = ("ended_as", "seconds", "peak_bytes", "flops", "state_bytes")
INTERVAL = ["difference", "difference_low", "difference_high"]


@dataclass(frozen=True)
class Comparison:
    """A row per quantity or test with its verdict, and a row per ratio of costs."""

    rows: pd.DataFrame
    shown: pd.DataFrame  # the rows as a terminal shows them
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    heading: Sequence[str] = ()

    @property
    def failed(self) -> bool:
        """Whether anything changed or got worse."""
        return bool(self.rows["verdict"].isin(FAILED).any())

    def __str__(self) -> str:
        counts = self.rows["verdict"].value_counts(sort=False)
        counted = ", ".join(f"{count:,} {word}" for word, count in counts.items())
        tables = [terminal_table(t, MOST_ROWS) for t in (self.shown, self.costs) if not t.empty]
        summary = f"{len(self.rows):,} compared: {counted}."
        return "\n\n".join(["\n".join(self.heading), *tables, summary]).strip()

    def as_json(self) -> str:
        """Return all rows as JSON; numbers that are not finite are null."""
        rows, costs = (json.loads(t.to_json(orient="records")) for t in (self.rows, self.costs))
        return json.dumps({"failed": self.failed, "rows": rows, "costs": costs}, indent=1)


def by_verdict(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the order of VERDICTS, those of one verdict as they were."""
    order = rows["verdict"].map(VERDICTS.index).argsort(kind="stable")
    return rows.iloc[order].reset_index(drop=True)


# --- one folder against another


def compare_folders(a: Path, b: Path, tolerance: float = TOLERANCE) -> Comparison:
    """Compare the records below two folders.

    Raises ValueError if a folder has no records, if they have no measurement in common, or if the
    tolerance is negative.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance {tolerance}: expected a relative difference such as 0.1")
    before, after = _read(a), _read(b)
    sides = [measured(before), measured(after)]
    if all(side["machine"].replace("", pd.NA).nunique() <= 1 for side in sides):
        sides = [side.assign(machine="") for side in sides]  # else costs pair within each machine
    keys = [*RUN, *CELL, *QUANTITY]
    pairs = sides[0].merge(sides[1], "outer", keys, suffixes=("_a", "_b"), indicator="found")
    pairs = pairs.rename(columns={"value_a": "a", "value_b": "b"})
    in_both = (pairs["found"] == "both").groupby([pairs[key] for key in RUN]).transform("any")
    if not in_both.any():
        raise ValueError(
            f"no measurement in both {a} and {b} ({len(before):,} and {len(after):,} "
            "records): expected two runs of one suite"
        )
    alone = pairs[~in_both & (pairs["quantity"] == "status")]
    words = alone["found"].map({"left_only": "only in A", "right_only": "only in B"})
    rows = pd.concat([judged(pairs[in_both], tolerance), alone.assign(verdict=words)])
    columns = ["suite", "task_name", "model_name", *CELL, "seed", *QUANTITY, "a", "b", *INTERVAL]
    rows = by_verdict(add_names(rows.reset_index(drop=True))).reindex(columns=[*columns, "verdict"])
    heading = [_in_words("A", a, before), _in_words("B", b, after)]
    return Comparison(rows, differences(rows), heading=heading)


def _read(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of records")
    records, _ = distinct(read_records(folder))
    if not records:
        raise ValueError(f"{folder}: expected records, found none")
    return records


def _in_words(side: str, folder: Path, records: Sequence[Record]) -> str:
    machines = sorted({record.machine.device for record in records})
    commits = sorted({record.commit[:10] for record in records if record.commit})
    commit = ", ".join(commits) or "unknown"
    return f"{side}  {folder}: {len(records)} records, {', '.join(machines)}, commit {commit}"


def measured(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and quantity: its `value`, and the columns that help to judge it."""
    runs, costs, scores = (frame(name, records) for name in ("runs", "costs", "scores"))
    parts = []
    for column in ("status", "parameters"):
        parts.append(runs.assign(field=column, quantity=column, value=runs[column]))
    for column in OF_PHASES:
        if column in costs:
            quantity = costs["phase"] + " " + column.replace("_", " ")
            parts.append(costs.assign(field=column, quantity=quantity, value=costs[column]))
    parts = [part.assign(test_options="{}") for part in parts]
    if not scores.empty:
        of_test = {"field": "score", "quantity": scores["unit"], "value": scores["score"]}
        parts.append(scores.assign(**of_test, trained_length=scores["test_length"]))
    columns = ["device", "q1", "q3", "reference_seconds", "noisy", "sequences", "value"]
    columns += [*RUN, *CELL, *QUANTITY]
    return pd.concat([part.astype(object) for part in parts]).reindex(columns=columns)


def judged(pairs: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return pairs of values with their verdicts; scores in one row for all their seeds."""
    of_phase = pairs["field"] == "ended_as"
    pairs.loc[of_phase, ["a", "b"]] = pairs.loc[of_phase, ["a", "b"]].fillna("not measured")
    is_score = (pairs["field"] == "score") & (pairs["found"] == "both")
    rows = pairs[~is_score].dropna(subset=["a", "b"])  # without what one side lacks
    rows = rows.assign(verdict=[verdict(row, tolerance) for row in rows.to_dict("records")])
    test = ["measurement", "suite", "machine", "trained_length", *QUANTITY]
    scores = [score_row(group) for _, group in pairs[is_score].groupby(test, sort=False)]
    return pd.concat([rows, pd.DataFrame(scores)])


def verdict(row: Row, tolerance: float) -> str:
    """Judge two values of a quantity that is the same in both folders, if it is not a time."""
    if row["a"] == row["b"]:
        return "equal"
    if row["field"] == "seconds":
        return time_verdict(row, tolerance)
    # Peak memory is counted in another way on another kind of device.
    elsewhere = row["device_a"] != row["device_b"]
    return "machine" if elsewhere and row["field"] == "peak_bytes" else "changed"


def time_verdict(row: Row, tolerance: float) -> str:
    """Judge two timings of one phase by their quartiles and the reference workload around them."""
    before, after = row["a"], row["b"]
    overlap = row["q1_a"] <= after <= row["q3_a"] or row["q1_b"] <= before <= row["q3_b"]
    if overlap or _times_apart(before, after) <= 1 + tolerance:
        return "within"
    references = row["reference_seconds_a"], row["reference_seconds_b"]
    if all(reference and not math.isnan(reference) for reference in references):
        if _times_apart(before * references[1], after * references[0]) <= 1 + tolerance:
            return "machine"
    elif row["device_a"] != row["device_b"]:
        return "machine"
    return "noisy" if row["noisy_a"] or row["noisy_b"] else "changed"


def _times_apart(a: float, b: float) -> float:
    """Return how many times as large the larger one is."""
    return max(a, b) / min(a, b) if min(a, b) > 0 else math.inf


def score_row(test: pd.DataFrame) -> Row:
    """Return the row of one test, of all seeds that both sides have."""
    row = dict(test.iloc[0]) | {"seed": ""}
    failed = test[["a", "b"]].isna().sum()
    if failed.any():
        word = "equal" if failed["a"] == failed["b"] else "changed"
        quantity = f"{row['quantity']}, seeds not finite"
        return row | dict(failed) | {"quantity": quantity, "verdict": word}
    a, b = test["a"].astype(float), test["b"].astype(float)
    sequences = list(map(subtract, test["sequences_b"], test["sequences_a"]))
    pairs = pd.DataFrame({"difference": b - a, "value": b, "baseline": a, "sequences": sequences})
    numbers = judge(pairs, 0.0)
    low, high = numbers["difference_low"], numbers["difference_high"]
    if not pairs["difference"].any():
        word = "equal"
    elif math.isnan(low) or low == high:  # one seed without sums, or all seeds differ alike
        word = "changed" if abs(numbers["difference"]) >= LAST_DIGIT else "within"
    else:
        word = "changed" if low > 0 or high < 0 else "within"
    return row | numbers | {"a": numbers["baseline"], "b": numbers["value"], "verdict": word}


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that differ as a terminal shows them, each value in its own unit."""
    differ = rows[~rows["verdict"].isin(["within", "equal"])]
    shown = differ if len(differ) else rows
    fields = "_" + shown["field"]
    texts = {side: list(map(format_value, fields, shown[side])) for side in ("a", "b")}
    shown = shown.assign(**texts).rename(columns={"trained_length": "length"})
    columns = ["suite", "task_name", "model_name", "length", "seed", "quantity", "test_options"]
    return shown[[*columns, "a", "b", *INTERVAL, "verdict"]]


# --- one model against another


def compare_models(
    results: str | Path, model: str, against: str, published: bool = False
) -> Comparison:
    """Compare two models in all tests that both have, paired by seed; larger scores are better.

    With `published`, scores of the published records stand in for those that were not run here.
    Raises ValueError if a model has no records, or if they have no test in common.
    """
    models = Selection(models=(model, against))
    chosen, _ = distinct(chosen_records(Path(results), (), models, published))
    whole = [record for record in chosen if not record.suite.endswith(TRIALS)]
    chosen = whole or chosen
    endpoints = endpoints_of(chosen, Path(results))
    scores, costs = frame("scores", chosen), frame("costs", chosen)
    parts = []
    for (suite, unit), tests in scores.groupby(["suite", "unit"]) if len(scores) else ():
        matters = endpoints[suite].difference if suite in endpoints else MATTERS.get(unit, 0.05)
        keys = [*PAIR, "test_length", "test_options"]
        tests = tests[(tests["model"] == model) | is_plain(tests, against)]
        parts.append(verdicts(larger_is_better(tests), matters, against, keys))
    rows = pd.concat(parts) if parts else pd.DataFrame()
    if rows.empty:
        raise ValueError(f"{model} and {against} have no test of the same seed in common")
    rows = rows.assign(score=rows["value"].abs(), baseline=rows["baseline"].abs(), width=0)
    columns = ["suite", "task_name", "test_length", "test_options", "model_name", "baseline"]
    columns += ["score", *INTERVAL, "seeds", "smallest_shown", "verdict"]
    prices = ratios(costs, model, against)
    if not prices.empty:
        prices = prices[["suite", "quantity", "trained_length", "ratio", "ratio_low", "ratio_high"]]
    rows = by_verdict(add_names(rows, with_length=True)[columns])
    return Comparison(rows, rows, prices)


def larger_is_better(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with a column `value`; bits per byte count downwards."""
    if (scores["unit"] == "accuracy").all():
        return scores.assign(value=scores["score"])
    sequences = [None if row is None else -row for row in scores["sequences"]]
    return scores.assign(value=-scores["score"], sequences=sequences)
