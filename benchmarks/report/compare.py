"""`lookback compare`: two folders of records, or two models within one folder.

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
from lookback.benchmarks.report import statistics
from lookback.benchmarks.report.endpoints import PAIR, verdicts
from lookback.benchmarks.report.frames import distinct, frame
from lookback.benchmarks.report.make import Selection, chosen_records, endpoints_of
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.page import format_value, formatted, terminal_table
from lookback.benchmarks.report.sections.costs import ratios
from lookback.benchmarks.storage import read_records

TOLERANCE = 0.1  # relative difference that medians of times may have
LAST_DIGIT = 0.001  # of a score without an interval
MATTERS = {"accuracy": 0.05, "bits per byte": 0.02}  # smallest difference, without an endpoint
VERDICTS = ("changed", "machine", "noisy", "within", "equal")
MOST_ROWS = 40  # in a terminal

Row = dict[str, Any]
CELL = ["suite", "task", "task_options", "model", "model_options", "variant", "width", "depth"]
CELL += ["trained_length"]


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
        counts = self.rows["verdict"].value_counts()
        counted = ", ".join(f"{counts[word]:,} {word}" for word in VERDICTS if word in counts)
        lines = [f"A  {self.a}", f"B  {self.b}", "", f"{len(self.rows):,} quantities: {counted}."]
        shown = self.rows[~self.rows["verdict"].isin(["within", "equal"])]
        shown = (shown if len(shown) else self.rows).head(MOST_ROWS)
        units = [quantity.replace(" ", "_") for quantity in shown["quantity"]]
        sides = {
            side: [
                format_value(unit, value) for unit, value in zip(units, shown[side], strict=True)
            ]
            for side in ("a", "b")
        }
        columns = ["suite", "task_name", "model_name", "trained_length", "quantity", "a", "b"]
        columns += ["difference", "difference_low", "difference_high", "verdict"]
        shown = shown.assign(**sides)
        texts = formatted(shown[[name for name in columns if name in shown]])
        texts = texts.rename(columns={"trained length": "length"})
        lines += ["", str(texts.to_markdown(index=False, tablefmt="plain", disable_numparse=True))]
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
    sides = [_read(folder) for folder in (a, b)]
    keys = ["measurement", "seed", "suite"]
    if any(len({record.machine.slug for record in side}) > 1 for side in sides):
        keys.append("machine")  # measurements of several machines pair within each
    runs = merged("runs", sides, keys)
    if runs.empty:
        raise ValueError(
            f"no measurement in both {a} and {b} ({len(sides[0]):,} and {len(sides[1]):,} "
            "records): expected two runs of one suite"
        )
    parts = [exact(runs, "status"), exact(runs, "parameters")]
    phases = merged("costs", sides, [*keys, "phase"], how="outer")
    if not phases.empty:
        parts += phase_rows(phases, tolerance)
    scores = merged("scores", sides, [*keys, "test_length", "test_options"])
    if not scores.empty:
        tests = ["measurement", "suite", "machine_a", "machine_b", "test_length", "test_options"]
        tests = [name for name in tests if name in scores]
        rows = [score_row(test) for _, test in scores.groupby(tests, sort=False)]
        parts.append(pd.DataFrame(rows))
    table = add_names(pd.concat(parts, ignore_index=True))
    order = table["verdict"].map(VERDICTS.index)
    table = table.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    common = {tuple(key) for key in runs[keys].itertuples(index=False)}
    descriptions = []
    for folder, records in zip((a, b), sides, strict=True):
        own = frame("runs", records)
        alone = [
            cell
            for cell, key in zip(own["cell_id"], own[keys].itertuples(index=False), strict=True)
            if tuple(key) not in common
        ]
        commits = sorted({record.commit for record in records if record.commit})
        devices = sorted(own["device"].unique())
        descriptions.append(Side(str(folder), len(records), devices, commits, sorted(alone)))
    return Comparison(descriptions[0], descriptions[1], table)


def _read(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of records")
    records, _ = distinct(read_records(folder))
    if not records:
        raise ValueError(f"{folder}: expected records, found none")
    return records


def merged(
    name: str, sides: Sequence[Sequence[Record]], keys: Sequence[str], how: str = "inner"
) -> pd.DataFrame:
    """Return a frame of both sides in one row for each key: other columns end in _a and _b.

    The columns that name a cell are those of either side.
    """
    frames = [frame(name, side) for side in sides]
    if any(rows.empty for rows in frames):
        return pd.DataFrame()
    both = frames[0].merge(frames[1], on=list(keys), suffixes=("_a", "_b"), how=how)
    if how == "outer":  # a phase that one side lacks, of a run that both have
        runs = [name for name in keys if name != "phase"]
        known = [set(rows[runs].itertuples(index=False, name=None)) for rows in frames]
        both = both[[key in known[0] & known[1] for key in both[runs].itertuples(index=False)]]
    for column in CELL:
        if column not in both:
            both[column] = both[f"{column}_a"].fillna(both[f"{column}_b"])
    return both


def exact(pairs: pd.DataFrame, column: str, name: str | pd.Series = "") -> pd.DataFrame:
    """Return rows of a quantity that is the same in both sides, or has changed."""
    a, b = pairs[f"{column}_a"], pairs[f"{column}_b"]
    words = (a == b).map({True: "equal", False: "changed"})
    rows = pairs.assign(quantity=name if len(name) else column, a=a, b=b, verdict=words)
    return rows[a.notna() & b.notna()][[*CELL, "quantity", "a", "b", "verdict"]]


def phase_rows(phases: pd.DataFrame, tolerance: float) -> list[pd.DataFrame]:
    """Return rows of the phases of cost cells: how they ended, time, memory, operations, state."""
    ends = phases.assign(
        ended_as_a=phases["ended_as_a"].fillna("not measured"),
        ended_as_b=phases["ended_as_b"].fillna("not measured"),
    )
    parts = [exact(ends, "ended_as", ends["phase"] + " status")]
    for column in ("peak_bytes", "flops", "state_bytes"):
        if f"{column}_a" in phases:
            names = phases["phase"] + " " + column.replace("_", " ")
            rows = exact(phases, column, names)
            if column == "peak_bytes":  # counted in another way on another kind of device
                elsewhere = phases["device_a"] != phases["device_b"]
                rows = rows.assign(
                    verdict=rows["verdict"].mask(elsewhere & (rows["a"] != rows["b"]), "machine")
                )
            parts.append(rows)
    both = phases[phases["seconds_a"].notna() & phases["seconds_b"].notna()]
    words = [time_verdict(row, tolerance) for row in both.to_dict("records")]
    a, b = both["seconds_a"], both["seconds_b"]
    times = both.assign(quantity=both["phase"] + " seconds", a=a, b=b, verdict=words)
    return [*parts, times[[*CELL, "quantity", "a", "b", "verdict"]]]


def time_verdict(row: Row, tolerance: float) -> str:
    """Judge two timings of one phase by their quartiles and the reference workload around them."""
    before, after = row["seconds_a"], row["seconds_b"]
    if before == after:
        return "equal"
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
    if min(a, b) > 0:
        return max(a, b) / min(a, b)
    return 1.0 if a == b else math.inf


def score_row(test: pd.DataFrame) -> Row:
    """Return the row of one test, of all seeds that both sides have."""
    first = test.iloc[0]
    unit = str(first["unit_a"])
    quantity = unit if first["test_options"] == "{}" else f"{unit} {first['test_options']}"
    row = {name: first[name] for name in CELL} | {"trained_length": first["test_length"]}
    finite = test.dropna(subset=["score_a", "score_b"])
    if len(finite) < len(test):
        counts = {side: int(test[f"score_{side}"].isna().sum()) for side in ("a", "b")}
        word = "equal" if counts["a"] == counts["b"] else "changed"
        return row | {"quantity": f"{quantity}, seeds not finite", "verdict": word} | counts
    differences = [float(value) for value in finite["score_b"] - finite["score_a"]]
    ends = zip(finite["sequences_b"], finite["sequences_a"], strict=True)
    sequences = pd.DataFrame({"sequences": [statistics.subtract(*end) for end in ends]})
    low, high = statistics.interval(differences, statistics.sequences_of(sequences))
    mean = math.fsum(differences) / len(differences)
    if not any(differences):
        word = "equal"
    elif math.isnan(low) or low == high:  # one seed without sums, or all seeds differ alike
        word = "changed" if abs(mean) >= LAST_DIGIT else "within"
    else:
        word = "changed" if low > 0 or high < 0 else "within"
    scores = {"a": finite["score_a"].mean(), "b": finite["score_b"].mean()}
    interval = {"difference": mean, "difference_low": low, "difference_high": high}
    return row | {"quantity": quantity, "verdict": word} | scores | interval


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
        parts = [terminal_table(self.rows)]
        if not self.costs.empty:
            parts.append(terminal_table(self.costs))
        counts = self.rows["verdict"].value_counts()
        counted = ", ".join(f"{count} {word}" for word, count in counts.items())
        return "\n\n".join([*parts, f"{len(self.rows)} tests: {counted}."])


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
    parts = []
    for suite in dict.fromkeys(record.suite for record in chosen):
        scores = frame("scores", [record for record in chosen if record.suite == suite])
        for unit in scores["unit"].unique() if len(scores) else ():
            values = larger_is_better(scores[scores["unit"] == unit])
            endpoint = endpoints.get(suite)
            matters = endpoint.difference if endpoint else MATTERS.get(unit, 0.05)
            keys = [*PAIR, "test_length", "test_options"]
            parts.append(verdicts(values, matters, against, keys))
    rows = pd.concat(parts) if parts else pd.DataFrame()
    if rows.empty:
        raise ValueError(f"{model} and {against} have no test of the same seed in common")
    rows = rows.assign(score=rows["value"].abs(), baseline=rows["baseline"].abs(), width=0)
    table = add_names(rows)
    columns = ["suite", "task_name", "test_length", "test_options", "model_name", "baseline"]
    columns += ["score", "difference", "difference_low", "difference_high", "seeds"]
    columns += ["smallest_shown", "verdict"]
    costs = frame("costs", chosen)
    prices = ratios(costs, model, against) if not costs.empty else costs
    if not prices.empty:
        prices = prices[["suite", "quantity", "trained_length", "ratio", "ratio_low", "ratio_high"]]
    return ModelComparison(table[columns], prices)


def larger_is_better(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with a column `value`; bits per byte count downwards."""
    if (scores["unit"] == "accuracy").all():
        return scores.assign(value=scores["score"])
    sequences = [None if row is None else -row for row in scores["sequences"]]
    return scores.assign(value=-scores["score"], sequences=sequences)
