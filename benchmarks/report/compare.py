"""What changed between two folders of records, and how one model does beside another.

Two records are of the same measurement if their cells are equal in all but device and time limit.
docs/reports.md says what counts as a change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import PAIR, judge, verdicts
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
VERDICTS = ("changed", "machine", "noisy", "within", "equal")
DECIDED_FIRST = (
    "worse",
    "better",
    "not learned",
    "baseline not learned",
    "inconclusive",
    "equivalent",
    "both at floor",
    "both at ceiling",
)
MOST_ROWS = 40  # in a terminal

Row = dict[str, Any]
RUN = ["measurement", "seed", "suite", "machine"]
CELL = ["task", "task_options", "model", "model_options", "width", "depth", "trained_length"]
QUANTITY = ["quantity", "field"]  # in words, and the column of the frame
OF_PHASES = ("ended_as", "seconds", "peak_bytes", "flops", "state_bytes")
INTERVAL = ["difference", "difference_low", "difference_high"]


@dataclass(frozen=True)
class Side:
    """One of two folders."""

    folder: str
    records: int
    machines: list[str]
    commits: list[str]
    alone: list[str]  # cells that the other folder lacks

    def __str__(self) -> str:
        commits = ", ".join(commit[:10] for commit in self.commits) or "unknown"
        machines = ", ".join(self.machines)
        return f"{self.folder}: {self.records} records, {machines}, commit {commits}"


@dataclass(frozen=True)
class Comparison:
    """What two folders have in common, one row per quantity."""

    a: Side
    b: Side
    rows: pd.DataFrame

    @property
    def changed(self) -> bool:
        return bool((self.rows["verdict"] == "changed").any())

    def __str__(self) -> str:
        lines = [f"A  {self.a}", f"B  {self.b}", ""]
        lines.append(f"{len(self.rows):,} quantities: {_counted(self.rows)}.")
        differ = self.rows[~self.rows["verdict"].isin(["within", "equal"])]
        shown = differ if len(differ) else self.rows
        fields = "_" + shown["field"]
        texts = {side: list(map(format_value, fields, shown[side])) for side in ("a", "b")}
        shown = shown.assign(**texts).rename(columns={"trained_length": "length"})
        columns = ["suite", "task_name", "model_name", "length", "quantity", "a", "b"]
        lines += ["", terminal_table(shown[[*columns, *INTERVAL, "verdict"]], MOST_ROWS)]
        for name, side in (("A", self.a), ("B", self.b)):
            if side.alone:
                lines += ["", f"{len(side.alone):,} only in {name}: {', '.join(side.alone[:5])}"]
        return "\n".join(lines)

    def as_json(self) -> str:
        """Return every comparison as JSON; numbers that are not finite are null."""
        rows = json.loads(self.rows.to_json(orient="records"))
        content = {"changed": self.changed, "a": asdict(self.a), "b": asdict(self.b), "rows": rows}
        return json.dumps(content, indent=1)


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
    in_both = (pairs["found"] == "both").groupby([pairs[key] for key in RUN]).transform("any")
    if not in_both.any():
        raise ValueError(
            f"no measurement in both {a} and {b} ({len(before):,} and {len(after):,} "
            "records): expected two runs of one suite"
        )
    rows = judged_rows(pairs[in_both], tolerance)
    alone = pairs[~in_both & (pairs["quantity"] == "status")]
    return Comparison(
        _side(a, before, alone["cell_id_a"]), _side(b, after, alone["cell_id_b"]), rows
    )


def _read(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of records")
    records, _ = distinct(read_records(folder))
    if not records:
        raise ValueError(f"{folder}: expected records, found none")
    return records


def _side(folder: Path, records: Sequence[Record], alone: pd.Series) -> Side:
    devices = sorted({record.machine.device for record in records})
    commits = sorted({record.commit for record in records if record.commit})
    return Side(str(folder), len(records), devices, commits, sorted(alone.dropna()))


def measured(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and quantity: its `value`, and the columns that help to judge it."""
    runs, costs, scores = (frame(name, records) for name in ("runs", "costs", "scores"))
    parts = []
    for field in ("status", "parameters"):
        parts.append(runs.assign(field=field, quantity=field, value=runs[field]))
    for field in OF_PHASES:
        if field in costs:
            quantity = costs["phase"] + " " + field.replace("_", " ")
            parts.append(costs.assign(field=field, quantity=quantity, value=costs[field]))
    if not scores.empty:
        options = scores["test_options"].replace("{}", "")
        quantity = (scores["unit"] + " " + options).str.strip()
        of_test = {"field": "score", "quantity": quantity, "value": scores["score"]}
        parts.append(scores.assign(**of_test, trained_length=scores["test_length"]))
    columns = ["device", "cell_id", "q1", "q3", "reference_seconds", "noisy"]
    columns += ["sequences", *RUN, *CELL, *QUANTITY, "value"]
    return pd.concat([part.astype(object) for part in parts]).reindex(columns=columns)


def judged_rows(pairs: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return pairs of values with their verdicts, changes first; scores over all their seeds."""
    ends = ["value_a", "value_b"]
    of_phase = pairs["field"] == "ended_as"
    pairs.loc[of_phase, ends] = pairs.loc[of_phase, ends].fillna("not measured")
    is_score = (pairs["field"] == "score") & (pairs["found"] == "both")
    rows = pairs[~is_score].dropna(subset=ends)  # without what one side lacks
    rows = rows.assign(verdict=[verdict(row, tolerance) for row in rows.to_dict("records")])
    test = ["measurement", "suite", "machine", "trained_length", "quantity"]
    scores = [score_row(group) for _, group in pairs[is_score].groupby(test, sort=False)]
    table = pd.concat([rows.rename(columns={"value_a": "a", "value_b": "b"}), pd.DataFrame(scores)])
    table = add_names(table.reset_index(drop=True))
    columns = ["suite", "task_name", "model_name", *CELL, *QUANTITY, "a", "b", *INTERVAL]
    table = by_verdict(table, VERDICTS).reset_index(drop=True)
    return table.reindex(columns=[*columns, "verdict"])


def by_verdict(rows: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Return rows in the order of their verdicts, those of one verdict as they were."""
    return rows.iloc[rows["verdict"].map(order.index).argsort(kind="stable")]


def verdict(row: Row, tolerance: float) -> str:
    """Judge two values of a quantity that is the same in both folders, if it is not a time."""
    if row["value_a"] == row["value_b"]:
        return "equal"
    if row["field"] == "seconds":
        return time_verdict(row, tolerance)
    # Peak memory is counted in another way on another kind of device.
    elsewhere = row["device_a"] != row["device_b"]
    return "machine" if elsewhere and row["field"] == "peak_bytes" else "changed"


def time_verdict(row: Row, tolerance: float) -> str:
    """Judge two timings of one phase by their quartiles and the reference workload around them."""
    before, after = row["value_a"], row["value_b"]
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
    row = dict(test.iloc[0])
    failed = test[["value_a", "value_b"]].isna().sum()
    if failed.any():
        word = "equal" if failed["value_a"] == failed["value_b"] else "changed"
        counts = {"quantity": f"{row['quantity']}, seeds not finite", "verdict": word}
        return row | counts | {"a": failed["value_a"], "b": failed["value_b"]}
    a, b = test["value_a"].astype(float), test["value_b"].astype(float)
    sequences = list(map(subtract, test["sequences_b"], test["sequences_a"]))
    pairs = pd.DataFrame({"difference": b - a, "value": b, "baseline": a, "sequences": sequences})
    judged = judge(pairs, 0.0)
    low, high = judged["difference_low"], judged["difference_high"]
    if not pairs["difference"].any():
        word = "equal"
    elif math.isnan(low) or low == high:  # one seed without sums, or all seeds differ alike
        word = "changed" if abs(judged["difference"]) >= LAST_DIGIT else "within"
    else:
        word = "changed" if low > 0 or high < 0 else "within"
    return row | judged | {"a": judged["baseline"], "b": judged["value"], "verdict": word}


# --- one model against another


@dataclass(frozen=True)
class ModelComparison:
    """A model beside a baseline, paired by seed: a row per task and test."""

    rows: pd.DataFrame
    costs: pd.DataFrame

    @property
    def is_worse(self) -> bool:
        return bool(self.rows["verdict"].isin(["worse", "not learned"]).any())

    def as_json(self) -> str:
        """Return both tables as JSON; numbers that are not finite are null."""
        tables = {"tests": self.rows, "costs": self.costs}
        rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        return json.dumps({"worse": self.is_worse, **rows}, indent=1)

    def __str__(self) -> str:
        rows = by_verdict(self.rows, DECIDED_FIRST)
        tables = [terminal_table(t, MOST_ROWS) for t in (rows, self.costs) if not t.empty]
        return "\n\n".join([*tables, f"{len(rows)} tests: {_counted(rows)}."])


def compare_models(
    results: str | Path, model: str, against: str, published: bool = False
) -> ModelComparison:
    """Compare two models in all tests that both have, larger scores being better.

    With `published`, scores of the published records stand in for those that were not run here.
    Raises ValueError if a model has no records, or if they have no test in common.
    """
    models = Selection(models=(model, against))
    chosen, _ = distinct(chosen_records(Path(results), (), models, published))
    endpoints = endpoints_of(chosen)
    scores, costs = frame("scores", chosen), frame("costs", chosen)
    parts = []
    for (suite, unit), tests in scores.groupby(["suite", "unit"]) if len(scores) else ():
        matters = endpoints[suite].difference if suite in endpoints else MATTERS.get(unit, 0.05)
        keys = [*PAIR, "test_length", "test_options"]
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
    return ModelComparison(add_names(rows)[columns], prices)


def larger_is_better(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with a column `value`; bits per byte count downwards."""
    if (scores["unit"] == "accuracy").all():
        return scores.assign(value=scores["score"])
    sequences = [None if row is None else -row for row in scores["sequences"]]
    return scores.assign(value=-scores["score"], sequences=sequences)


def _counted(rows: pd.DataFrame) -> str:
    counts = rows["verdict"].value_counts(sort=False)
    return ", ".join(f"{count:,} {word}" for word, count in counts.items())
