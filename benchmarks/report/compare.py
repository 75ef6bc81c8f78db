"""`lookback compare`: two folders of records, or two models within one folder.

Two records are of the same measurement if their cells are equal in all but device and time limit.
docs/reports.md says what counts as a change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Phase, Record
from lookback.benchmarks.report import statistics
from lookback.benchmarks.report.endpoints import PAIR, judge
from lookback.benchmarks.report.frames import distinct, measurement
from lookback.benchmarks.report.make import endpoints_of
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.page import format_value, formatted, terminal_table
from lookback.benchmarks.report.section import Frames
from lookback.benchmarks.report.sections.costs import ratios
from lookback.benchmarks.report.sections.scores import named
from lookback.benchmarks.storage import read_records

TOLERANCE = 0.1  # relative difference that medians of times may have
LAST_DIGIT = 0.001  # of a score without an interval
MATTERS = {"accuracy": 0.05, "bits per byte": 0.02}  # smallest difference, without an endpoint
VERDICTS = ("changed", "machine", "noisy", "within", "equal")
MOST_ROWS = 40  # in a terminal

Pair = tuple[Record, Record]
Row = dict[str, Any]


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
        columns = ["suite", "task_name", "model_name", "length", "quantity", "a", "b", "times"]
        columns += ["difference", "difference_low", "difference_high", "verdict"]
        texts = formatted(shown.assign(**sides)[columns])
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
    pairs = pair_records(*sides)
    if not pairs:
        raise ValueError(
            f"no measurement in both {a} and {b} ({len(sides[0]):,} and {len(sides[1]):,} "
            "records): expected two runs of one suite"
        )
    rows: list[Row] = []
    for pair in pairs:
        rows += compare_pair(pair, tolerance)
    for group in _over_seeds(pairs):
        rows += compare_scores(group)
    table = add_names(pd.DataFrame(rows))
    order = table["verdict"].map(VERDICTS.index)
    table = table.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    both = {id(record) for pair in pairs for record in pair}
    descriptions = []
    for folder, records in zip((a, b), sides, strict=True):
        alone = sorted(record.cell_id for record in records if id(record) not in both)
        machines = sorted({record.machine.device for record in records})
        commits = sorted({record.commit for record in records if record.commit})
        descriptions.append(Side(str(folder), len(records), machines, commits, alone))
    return Comparison(descriptions[0], descriptions[1], table)


def _read(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of records")
    records, _ = distinct(read_records(folder))
    if not records:
        raise ValueError(f"{folder}: expected records, found none")
    return records


def pair_records(a: Sequence[Record], b: Sequence[Record]) -> list[Pair]:
    """Pair records of the same measurement, one to one.

    First those of one suite and machine, then those of one suite, then any. A measurement that one
    side has twice is paired only where suite and machine tell the two apart.
    """
    what = {id(record): measurement(record) for record in (*a, *b)}
    keys: tuple[Callable[[Record], Hashable], ...] = (
        lambda record: (record.suite, record.machine.slug, what[id(record)]),
        lambda record: (record.suite, what[id(record)]),
        lambda record: what[id(record)],
    )
    pairs: list[Pair] = []
    left, right = list(a), list(b)
    for key in keys:
        ours, theirs = _unique(left, key), _unique(right, key)
        pairs += [(ours[name], theirs[name]) for name in ours if name in theirs]
        taken = {id(record) for pair in pairs for record in pair}
        left = [record for record in left if id(record) not in taken]
        right = [record for record in right if id(record) not in taken]
    return pairs


def _unique(records: Iterable[Record], key: Callable[[Record], Hashable]) -> dict[Hashable, Record]:
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {name: group[0] for name, group in groups.items() if len(group) == 1}


def _over_seeds(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Return the pairs of learning cells in groups that differ in nothing but the seed."""
    groups: dict[Hashable, list[Pair]] = {}
    for a, b in pairs:
        if a.outcome.learn and b.outcome.learn:
            key = (a.suite, b.suite, a.machine.slug, b.machine.slug, measurement(a, "seed"))
            groups.setdefault(key, []).append((a, b))
    return list(groups.values())


def _row(record: Record, quantity: str, a: Any, b: Any, word: str) -> Row:
    """Return a row; `times` is how many times as large B is, of numbers that differ."""
    cell = record.cell
    row: Row = {
        "suite": record.suite,
        "task": cell.task,
        "task_options": json.dumps(cell.task_options, sort_keys=True),
        "model": cell.model,
        "model_options": json.dumps(cell.model_options, sort_keys=True),
        "variant": cell.model,
        "trained_length": cell.length,
        "width": cell.width,
        "depth": cell.depth,
        "length": cell.length,
        "quantity": quantity,
        "a": a,
        "b": b,
        "difference_low": math.nan,
        "difference_high": math.nan,
        "verdict": word,
    }
    is_ratio = isinstance(a, int | float) and isinstance(b, int | float) and a != b and a > 0
    return row | {"difference": math.nan, "times": b / a if is_ratio else math.nan}


def compare_pair(pair: Pair, tolerance: float) -> list[Row]:
    """Return rows of everything but scores, which are judged over seeds."""
    a, b = pair
    rows = [_exact(a, "status", a.outcome.status, b.outcome.status)]
    numbers = [record.outcome.learn or record.outcome.cost for record in pair]
    if numbers[0] and numbers[1]:
        rows.append(_exact(a, "parameters", numbers[0].parameters, numbers[1].parameters))
    costs = [record.outcome.cost for record in pair]
    if not (costs[0] and costs[1]):
        return rows
    if costs[0].state_bytes is not None and costs[1].state_bytes is not None:
        rows.append(_exact(a, "state_bytes", costs[0].state_bytes, costs[1].state_bytes))
    for name in sorted({*costs[0].phases, *costs[1].phases, *costs[0].failed, *costs[1].failed}):
        ends = [
            "ok" if name in cost.phases else cost.failed.get(name, "not measured")
            for cost in costs
            if cost
        ]
        rows.append(_exact(a, f"{name} status", ends[0], ends[1]))
        if ends == ["ok", "ok"]:
            rows += _phase(pair, name, costs[0].phases[name], costs[1].phases[name], tolerance)
    return rows


def _exact(record: Record, quantity: str, a: Any, b: Any) -> Row:
    return _row(record, quantity, a, b, "equal" if a == b else "changed")


def _phase(pair: Pair, name: str, a: Phase, b: Phase, tolerance: float) -> list[Row]:
    record = pair[0]
    times = (a.seconds.median, b.seconds.median)
    rows = [_row(record, f"{name} seconds", *times, time_verdict(pair, a, b, tolerance))]
    peak = _exact(record, f"{name} peak bytes", a.peak_bytes, b.peak_bytes)
    if peak["verdict"] == "changed" and pair[0].cell.device != pair[1].cell.device:
        peak["verdict"] = "machine"  # counted in another way on a GPU
    rows.append(peak)
    if a.flops is not None and b.flops is not None:
        rows.append(_exact(record, f"{name} operations", a.flops, b.flops))
    return rows


def time_verdict(pair: Pair, a: Phase, b: Phase, tolerance: float) -> str:
    """Judge two timings of one phase by their quartiles and the reference workload around them."""
    before, after = a.seconds, b.seconds
    if before.median == after.median:
        return "equal"
    overlap = before.low <= after.median <= before.high or after.low <= before.median <= after.high
    if overlap or _times_apart(before.median, after.median) <= 1 + tolerance:
        return "within"
    if a.reference_seconds and b.reference_seconds:
        relative = (before.median * b.reference_seconds, after.median * a.reference_seconds)
        if _times_apart(*relative) <= 1 + tolerance:
            return "machine"
    elif len({(record.machine.slug, record.cell.device) for record in pair}) > 1:
        return "machine"
    return "noisy" if before.noisy or after.noisy else "changed"


def _times_apart(a: float, b: float) -> float:
    """Return how many times as large the larger one is."""
    if min(a, b) > 0:
        return max(a, b) / min(a, b)
    return 1.0 if a == b else math.inf


def compare_scores(group: Sequence[Pair]) -> list[Row]:
    """Return a row per test of pairs that differ in nothing but the seed."""
    keys = ["seed", "test_length", "test_options"]
    sides = [Frames([pair[end] for pair in group])["scores"] for end in (0, 1)]
    if sides[0].empty or sides[1].empty:
        return []
    columns = [*keys, "unit", "score", "sequences", "correct", "count"]
    both = sides[0][columns].merge(sides[1][columns], on=keys, suffixes=("_a", "_b"))
    rows = []
    for (length, options), test in both.groupby(["test_length", "test_options"], sort=False):
        rows.append(_score_row(group[0][0], length, options, test))
    return rows


def _score_row(record: Record, length: int, options: str, test: pd.DataFrame) -> Row:
    unit = str(test["unit_a"].iloc[0])
    quantity = unit if options == "{}" else f"{unit} {options}"
    finite = test.dropna(subset=["score_a", "score_b"])
    if len(finite) < len(test):
        return _exact(
            record,
            f"{quantity}, seeds not finite",
            int(test["score_a"].isna().sum()),
            int(test["score_b"].isna().sum()),
        ) | {"length": length}
    differences = [float(value) for value in finite["score_b"] - finite["score_a"]]
    ends = zip(finite["sequences_a"], finite["sequences_b"], strict=True)
    sequences = [statistics.subtract(b, a) for a, b in ends]
    pairs = pd.DataFrame({"sequences": sequences})
    low, high = statistics.interval(differences, statistics.sequences_of(pairs))
    if math.isnan(low) or low == high:  # one seed without sums, or all seeds differ alike
        low, high = one_seed_difference(finite, unit)
    mean = math.fsum(differences) / len(differences)
    if not any(differences):
        word = "equal"
    elif math.isnan(low):
        word = "changed" if abs(mean) >= LAST_DIGIT else "within"
    else:
        word = "changed" if low > 0 or high < 0 else "within"
    row = _row(record, quantity, finite["score_a"].mean(), finite["score_b"].mean(), word)
    interval = {"difference": mean, "difference_low": low, "difference_high": high}
    return row | interval | {"length": length, "times": math.nan}


def one_seed_difference(test: pd.DataFrame, unit: str) -> tuple[float, float]:
    """Return the interval of a difference of accuracies from the answers alone.

    Newcombe 1998, method 10, of Wilson intervals. (nan, nan) of what is no accuracy.
    """
    if unit != "accuracy" or not (test[["count_a", "count_b"]] > 0).all(axis=None):
        return math.nan, math.nan
    ends = []
    for side in ("a", "b"):
        correct, count = int(test[f"correct_{side}"].sum()), int(test[f"count_{side}"].sum())
        ends.append((correct / count, *statistics.wilson_interval(correct, count)))
    (p, low_a, high_a), (q, low_b, high_b) = ends
    low = q - p - math.hypot(q - low_b, high_a - p)
    return low, q - p + math.hypot(high_b - q, p - low_a)


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


def compare_models(results: str | Path, model: str, against: str) -> ModelComparison:
    """Compare two models in all tests that both have, larger scores being better.

    Raises ValueError if they have no test in common.
    """
    records = _read(Path(results))
    names = {record.cell.model for record in records}
    for name in (model, against):
        if name not in names:
            known = ", ".join(sorted(names))
            raise ValueError(f"no records of model {name!r} in {results}: expected one of {known}")
    frames = Frames(records)
    scores = frames["scores"]
    endpoints = endpoints_of(records)
    rows: list[Row] = []
    if not scores.empty:
        scores = scores[scores["model"].isin([model, against])]
        keys = [*PAIR, "test_length", "test_options", "unit"]
        own = scores[scores["model"] == model]["variant"].unique()
        others = scores[scores["model"] == against]["variant"].unique()
        for ours in own:
            for theirs in others:
                pairs = statistics.paired(scores, keys, "score", ours, theirs)
                for key, group in pairs.groupby(keys, sort=False, dropna=False):
                    row = dict(zip(keys, key, strict=True)) | _first(scores, ours)
                    endpoint = endpoints.get(str(row["suite"]))
                    matters = endpoint.difference if endpoint else MATTERS.get(row["unit"], 0.05)
                    rows.append(row | _judged(group, row["unit"], matters, scores))
    if not rows:
        raise ValueError(f"{model} and {against} have no test of the same seed in common")
    costs = frames["costs"]
    prices = ratios(costs, model, against) if not costs.empty else costs
    if not prices.empty:
        columns = ["suite", "quantity", "trained_length", "ratio", "ratio_low", "ratio_high"]
        prices = prices[columns]
    table = named(add_names(pd.DataFrame(rows)), "difference")
    columns = ["suite", "task_name", "test_length", "test_options", "model_name", "baseline"]
    columns += ["score", "difference", "difference_low", "difference_high", "seeds"]
    table = table.rename(columns={"shown": "smallest_shown"})[
        [*columns, "smallest_shown", "verdict"]
    ]
    return ModelComparison(table, prices)


def _first(scores: pd.DataFrame, variant: str) -> Row:
    row = scores[scores["variant"] == variant].iloc[0]
    return {name: row[name] for name in ("model", "model_options", "variant", "width")}


def _judged(group: pd.DataFrame, unit: str, matters: float, scores: pd.DataFrame) -> Row:
    """Judge paired differences; of bits per byte, fewer are better."""
    sign = 1.0 if unit == "accuracy" else -1.0
    flipped = group.assign(difference=sign * group["difference"])
    if statistics.sequences_of(group) is not None:
        flipped = flipped.assign(sequences=[sign * row for row in group["sequences"]])
    score, baseline = group["score"].mean(), group["baseline"].mean()
    test = scores[scores["test_length"] == group["test_length"].iloc[0]]
    floor = float(test[test["task"] == group["task"].iloc[0]]["floor"].mean())
    own, other = (statistics.standing(float(value), floor, unit) for value in (score, baseline))
    row = judge(flipped, matters, own, other)
    return row | {"score": score, "baseline": baseline}
