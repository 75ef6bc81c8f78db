"""What changed between two folders of records, beyond what measuring again would change: `lookback compare A B`.

Two records are of the same measurement when their cells are equal in all but `device` and `time_limit`, which say where
and how long, not what. They are paired within a suite where they can be, and one to one: first those of one machine,
then of others. Of several records of one cell, suite and machine the newest counts.

What is a change:

- a status that is another one, of a cell or of a phase;
- parameters, operations, bytes of state and peak bytes that are not equal (a peak of another kind of device is counted
  in another way: verdict `machine`);
- a score, by test length: over the seeds that both have, paired differences whose 95 % t interval leaves out zero; of
  one seed's accuracy, a difference whose 95 % interval leaves out zero (Newcombe 1998, method 10, of Wilson intervals:
  of the answers, not of other seeds); of one seed's anything else, which has no interval, 0.001 or more;
- a time, when medians are more than the tolerance apart and each lies outside the other's quartiles. Not so when
  either is flagged (`noisy`), and not when the machine explains it (`machine`): both have a yardstick, the time that a
  fixed workload took around them, and divided by it they are within the tolerance; or they are of different machines
  and have none.

Learning curves, times of training runs, reserved bytes, energy, reach and generation are not compared.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Phase, Record, Score
from lookback.benchmarks.report.frames import Labels, measurement, options, protocol_of
from lookback.benchmarks.report.statistics import t_interval, wilson_interval
from lookback.benchmarks.report.tables import plain
from lookback.benchmarks.storage import read_records

TOLERANCE = 0.1  # share by which the medians of times may differ
LAST_PLACE = 0.001  # of a score, in reports
SHOWN = 20  # records of one folder alone that are named in a terminal; JSON has all
CHANGED, MACHINE, NOISY, WITHIN, EQUAL = VERDICTS = ("changed", "machine", "noisy", "within", "equal")
MEANING = {
    CHANGED: "changed", MACHINE: "differ as the machine does", NOISY: "differ, but too noisy to tell",
    WITHIN: "differ within what repeating gives", EQUAL: "equal",
}  # fmt: skip
Number = float | int | str | None
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class Row:
    """One quantity of one measurement, in A and in B."""

    cell: str  # suite, task, model and length, as people read them
    quantity: str
    a: Number
    b: Number
    shown: tuple[str, str]  # the two as people read them
    verdict: str
    change: str = ""  # by how much, as people read it
    better: bool | None = None  # whether B is; None where neither is better
    interval: tuple[float, float] | None = None  # 95 %, of the change
    note: str = ""
    records: tuple[str, ...] = ()  # ids of the cells in A

    @property
    def judged(self) -> str:
        """The verdict in a table."""
        if self.verdict != CHANGED or self.better is None:
            return self.verdict
        return f"{self.verdict}, {'better' if self.better else 'worse'}"


@dataclass(frozen=True)
class Side:
    """One of the two folders."""

    folder: str
    records: int
    machines: tuple[str, ...]
    commits: tuple[str, ...]
    alone: tuple[str, ...]  # ids of the records that the other one lacks

    def __str__(self) -> str:
        commits = ", ".join(commit[:10] for commit in self.commits) or "unknown"
        return f"{self.folder}: {self.records} records, {', '.join(self.machines)}, commit {commits}"


@dataclass(frozen=True)
class Comparison:
    """Two folders of records, measurement by measurement; it has changed where any of them has."""

    a: Side
    b: Side
    rows: tuple[Row, ...]  # what changed first

    @property
    def changed(self) -> bool:
        return any(row.verdict == CHANGED for row in self.rows)

    def __str__(self) -> str:
        """For a terminal: what differs, what agreed, and what only one folder has."""
        shown = [row for row in self.rows if row.verdict not in (WITHIN, EQUAL)]
        table = [plain(_table(shown)), ""] if shown else []
        return "\n".join([f"A  {self.a}", f"B  {self.b}", "", *table, *self._counts(), *self._alone()])

    def _counts(self) -> list[str]:
        found = Counter(row.verdict for row in self.rows)
        said = ", ".join(f"{found[verdict]:,} {MEANING[verdict]}" for verdict in VERDICTS if found[verdict])
        lines = [f"Of {len(self.rows):,} numbers and statuses: {said}."]
        if drawn := sum(row.interval is not None and row.verdict != EQUAL for row in self.rows):
            lines.append(f"{drawn:,} scores were judged at 95 % each: {drawn / 20:.1f} would change by chance.")
        if states := sum(bool(row.note) for row in self.rows):
            lines.append(f"{states:,} times were taken on a machine in another state, by its yardstick.")
        return lines

    def _alone(self) -> list[str]:
        lines = []
        for name, side in (("A", self.a), ("B", self.b)):
            more = [f"  and {len(side.alone) - SHOWN:,} more"] if len(side.alone) > SHOWN else []
            count = f"{len(side.alone):,} record{'' if len(side.alone) == 1 else 's'} only in {name}"
            lines += [f"{count}:", *(f"  {which}" for which in side.alone[:SHOWN]), *more] if side.alone else []
        return lines

    def as_json(self) -> str:
        counts = Counter(row.verdict for row in self.rows)
        said = {
            "changed": self.changed, "counts": {verdict: counts[verdict] for verdict in VERDICTS},
            "a": asdict(self.a), "b": asdict(self.b), "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip
        return json.dumps(said, indent=1, allow_nan=False)


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([
        {"cell": row.cell, "quantity": row.quantity, "A": row.shown[0], "B": row.shown[1], "change": row.change,
         "verdict": f"{row.judged}{f' ({row.note})' if row.note else ''}"}
        for row in rows
    ])  # fmt: skip


def compare(a: Path, b: Path, tolerance: float = TOLERANCE) -> Comparison:
    """Compare the records below two folders; raises ValueError where there is nothing to compare."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance {tolerance}: expected a share of the time, such as {TOLERANCE}")
    found = [_newest(_read(folder)) for folder in (a, b)]
    pairs, alone = paired(*found)
    if not pairs:
        counts = f"{len(found[0]):,} and {len(found[1]):,} records"
        raise ValueError(f"no cell has a record in both {a} and {b} ({counts}): expected two runs of one suite")
    labels = _labels([*found[0], *found[1]])
    rows = []
    for pair in pairs:
        rows += [replace(row, records=(pair[0].cell_id,)) for row in _of_pair(pair, labels, tolerance)]
    for group in _over_seeds(pairs):
        rows += [replace(row, records=tuple(a.cell_id for a, _ in group)) for row in _scores(group, labels)]
    rows.sort(key=lambda row: (VERDICTS.index(row.verdict), _numbers_by_size(row.cell), row.quantity))
    first, second = (_side(*side) for side in zip((a, b), found, alone, strict=True))
    return Comparison(first, second, tuple(rows))


def _read(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of records")
    records = list(read_records(folder))
    if not records:
        raise ValueError(f"{folder}: expected records, found none")
    return records


def _labels(records: Iterable[Record]) -> dict[str, Labels]:
    """What cells are called within each suite."""
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
    return {suite: Labels.of(found) for suite, found in suites.items()}


def _numbers_by_size(text: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _newest(records: Iterable[Record]) -> list[Record]:
    ordered = sorted(records, key=lambda record: record.ended)
    return list({(record.suite, record.machine.slug, record.cell_id): record for record in ordered}.values())


def _side(folder: Path, records: Sequence[Record], alone: Sequence[Record]) -> Side:
    machines = tuple(sorted({record.machine.device for record in records}))
    commits = tuple(sorted({record.commit for record in records if record.commit}))
    names = tuple(sorted(f"{record.suite} {record.cell_id} ({record.outcome.status})" for record in alone))
    return Side(str(folder), len(records), machines, commits, names)


# --- which records belong together


def paired(a: Sequence[Record], b: Sequence[Record]) -> tuple[list[Pair], tuple[list[Record], list[Record]]]:
    """Records of the same measurement, one to one, and those of either side that remain."""
    what = {id(record): measurement(record) for record in (*a, *b)}
    keys: tuple[Callable[[Record], Hashable], ...] = (
        lambda record: (record.suite, record.machine.slug, record.cell_id),
        lambda record: (record.suite, record.cell_id),
        lambda record: (record.suite, what[id(record)]),
        lambda record: what[id(record)],
    )
    pairs, left, right = [], list(a), list(b)
    for key in keys:
        ours, theirs = _alone_by(left, key), _alone_by(right, key)
        pairs += [(ours[name], theirs[name]) for name in ours if name in theirs]
        taken = {id(record) for pair in pairs for record in pair}
        left, right = ([record for record in side if id(record) not in taken] for side in (left, right))
    return pairs, (left, right)


def _alone_by(records: Iterable[Record], key: Callable[[Record], Hashable]) -> dict[Hashable, Record]:
    """Records by a key that no other one has."""
    found: dict[Hashable, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _over_seeds(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Pairs of `learn` cells that differ in nothing but the seed."""
    groups: dict[Hashable, list[Pair]] = {}
    for a, b in pairs:
        if a.outcome.learn and b.outcome.learn:
            places = (a.suite, b.suite, a.machine.slug, b.machine.slug, a.cell.device, b.cell.device)
            groups.setdefault((*places, measurement(a, "seed")), []).append((a, b))
    return list(groups.values())


# --- one pair of records


def _name(pair: Pair, labels: dict[str, Labels], seed: bool = True) -> str:
    """The same for (A, B) and (B, A)."""
    record = min(pair, key=lambda record: (record.cell_id, record.suite))
    cell, called = record.cell, labels[record.suite]
    name = f"{record.suite} {called.task(cell)} {called.model(cell)} L{cell.length}"
    if cell.kind == "cost":
        return f"{name}, {protocol_of(cell)}"
    return f"{name} seed {cell.seed}" if seed else name


def _of_pair(pair: Pair, labels: dict[str, Labels], tolerance: float) -> list[Row]:
    """All but the scores, which are judged over seeds."""
    name, (a, b) = _name(pair, labels), pair
    numbers = [record.outcome.learn or record.outcome.cost for record in pair]
    rows = _costs(name, pair, tolerance)
    if not any(row.quantity.endswith("status") and row.verdict == CHANGED for row in rows):
        rows.append(_exact(name, "status", a.outcome.status, b.outcome.status))
    if numbers[0] and numbers[1]:
        rows.append(_exact(name, "parameters", numbers[0].parameters, numbers[1].parameters))
    return rows


def _exact(name: str, quantity: str, a: int | str, b: int | str, smaller_is_better: bool = False) -> Row:
    shown = [value if isinstance(value, str) else f"{value:,}" for value in (a, b)]
    change = "" if a == b or isinstance(a, str) or isinstance(b, str) else f"{b - a:+,}"
    if isinstance(a, str) and "ok" in (a, b) and a != b:
        better: bool | None = b == "ok"
    else:
        better = b < a if smaller_is_better and a != b else None  # type: ignore[operator]
    return Row(name, quantity, a, b, (shown[0], shown[1]), EQUAL if a == b else CHANGED, change, better)


def _costs(name: str, pair: Pair, tolerance: float) -> list[Row]:
    a, b = (record.outcome.cost for record in pair)
    if a is None or b is None:
        return []
    rows = []
    if a.state_bytes is not None and b.state_bytes is not None:
        rows.append(_exact(name, "state, bytes", a.state_bytes, b.state_bytes, smaller_is_better=True))
    for phase in dict.fromkeys(sorted([*a.phases, *a.failed, *b.phases, *b.failed])):
        ends = ["ok" if phase in side.phases else side.failed.get(phase, "not measured") for side in (a, b)]
        rows.append(_exact(name, f"{phase} status", ends[0], ends[1]))
        if ends == ["ok", "ok"]:
            rows += _phase(name, phase, a.phases[phase], b.phases[phase], pair, tolerance)
    return rows


def _phase(name: str, phase: str, a: Phase, b: Phase, pair: Pair, tolerance: float) -> list[Row]:
    rows = [_time(name, f"{phase} time", a, b, pair, tolerance)]
    peak = _exact(name, f"{phase} peak, bytes", a.peak_bytes, b.peak_bytes, smaller_is_better=True)
    elsewhere = pair[0].cell.device != pair[1].cell.device and peak.verdict == CHANGED
    rows.append(replace(peak, verdict=MACHINE) if elsewhere else peak)
    if a.flops is not None and b.flops is not None:
        rows.append(_exact(name, f"{phase} FLOP", a.flops, b.flops))
    return rows


# --- times


def _time(name: str, quantity: str, a: Phase, b: Phase, pair: Pair, tolerance: float) -> Row:
    before, after = a.seconds.median, b.seconds.median
    shown = f"{1e3 * before:,.4g} ms", f"{1e3 * after:,.4g} ms"
    change = f"× {after / before:.3g}" if before and before != after else ""
    better = after < before if before != after else None
    slower = _slower(a, b)
    another_state = slower is not None and _apart(slower, 1.0) > 1 + tolerance
    note = f"machine in another state: yardstick × {slower:.3g}" if another_state else ""
    verdict = _time_verdict(a, b, pair, tolerance)
    return Row(name, quantity, before, after, shown, verdict, change, better, note=note)


def _slower(a: Phase, b: Phase) -> float | None:
    """How many times as long the same fixed workload took around B; None where one of the two has no yardstick."""
    return b.reference_seconds / a.reference_seconds if a.reference_seconds and b.reference_seconds else None


def _time_verdict(a: Phase, b: Phase, pair: Pair, tolerance: float) -> str:
    before, after = a.seconds, b.seconds
    if before.median == after.median:
        return EQUAL
    overlap = before.low <= after.median <= before.high or after.low <= before.median <= after.high
    if overlap or _apart(before.median, after.median) <= 1 + tolerance:
        return WITHIN
    if a.reference_seconds and b.reference_seconds:
        if _apart(before.median * b.reference_seconds, after.median * a.reference_seconds) <= 1 + tolerance:
            return MACHINE
    elif len({(record.machine.slug, record.cell.device) for record in pair}) > 1:
        return MACHINE
    return NOISY if before.noisy or after.noisy else CHANGED


def _apart(a: float, b: float) -> float:
    """How many times the smaller one the larger one is."""
    return max(a, b) / min(a, b) if min(a, b) > 0 else (1.0 if a == b else math.inf)


# --- scores


def _scores(group: Sequence[Pair], labels: dict[str, Labels]) -> list[Row]:
    """A row a test length, of pairs that differ in nothing but the seed."""
    name, rows = _name(group[0], labels, seed=len(group) == 1), []
    tests: dict[str, list[tuple[Score, Score]]] = {}
    for a, b in group:
        theirs = {_test_name(test): test for test in (b.outcome.learn.tests if b.outcome.learn else ())}
        for test in a.outcome.learn.tests if a.outcome.learn else ():
            if _test_name(test) in theirs:
                tests.setdefault(_test_name(test), []).append((test, theirs[_test_name(test)]))
    units = {record.outcome.task.score for pair in group for record in pair if record.outcome.task}
    unit = units.pop() if len(units) == 1 else "score"
    for length, pairs in tests.items():
        finite = [pair for pair in pairs if pair[0].score is not None and pair[1].score is not None]
        rows += [_score(name, unit, length, finite)] if finite else []
        before, after = (sum(pair[end].score is None for pair in pairs) for end in (0, 1))
        if before or after:
            rows.append(_exact(name, f"{unit} @{length}, seeds not finite", before, after, smaller_is_better=True))
    return rows


def _test_name(test: Score) -> str:
    return f"{test.length} {options(test.options)}".strip()


def _score(name: str, unit: str, length: str, pairs: Sequence[tuple[Score, Score]]) -> Row:
    a, b = ([float(pair[end].score or 0) for pair in pairs] for end in (0, 1))
    differences = [y - x for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / len(pairs)
    low, high = difference_interval(*pairs[0], unit) if len(pairs) == 1 else t_interval(differences)
    if low == high:  # all seeds differ alike: an interval without width would make certain what is not
        low, high = difference_interval(_pooled([a for a, _ in pairs]), _pooled([b for _, b in pairs]), unit)
    change = f"{mean:+.3f}" + ("" if math.isnan(low) else f" ({low:+.3f} to {high:+.3f}, n = {len(pairs)})")
    beyond = abs(mean) >= LAST_PLACE if math.isnan(low) else low > 0 or high < 0
    verdict = EQUAL if not any(differences) else CHANGED if beyond else WITHIN
    before, after = (math.fsum(values) / len(pairs) for values in (a, b))
    better = None if mean == 0 else (mean > 0) == (unit == "accuracy")
    interval = None if math.isnan(low) else (low, high)
    shown, change = (f"{before:.3f}", f"{after:.3f}"), change if any(differences) else ""
    return Row(name, f"{unit} @{length}", before, after, shown, verdict, change, better, interval)


def _pooled(scores: Sequence[Score]) -> Score:
    """The answers of several seeds as of one."""
    correct, count = (sum(getattr(score, name) for score in scores) for name in ("correct", "count"))
    return scores[0].model_copy(update={"correct": correct, "count": count})


def difference_interval(a: Score, b: Score, unit: str) -> tuple[float, float]:
    """Of B's accuracy minus A's, of one seed (Newcombe 1998, method 10); (nan, nan) of what is no accuracy."""
    if unit != "accuracy" or not a.count or not b.count:
        return math.nan, math.nan
    (low_a, high_a), (low_b, high_b) = (wilson_interval(test.correct, test.count) for test in (a, b))
    p, q = a.correct / a.count, b.correct / b.count
    return q - p - math.hypot(q - low_b, high_a - p), q - p + math.hypot(high_b - q, p - low_a)
