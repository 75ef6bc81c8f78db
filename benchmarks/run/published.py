"""Compare records with published ones, measure published ones again, and publish new ones."""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookback.benchmarks.record import FINAL, AnyCell, LearnNumbers, Record, Score
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import PUBLISHED, PUBLISHED_RECORDS, read_record, record_files
from lookback.benchmarks.suite import Suite, only_chooses

CONFIDENCE = 0.95

EQUAL = "equal to the last digit"
WITHIN = "within the interval of its seeds"
DIFFERENT = "different"


# After a run


def compare_with_published(runner: Runner, folder: Path = PUBLISHED_RECORDS) -> list[str]:
    """Compare the runner's records with published ones; return a line for each published machine.

    A line says how many scores are equal to the last digit, and how fast training was. Speeds are
    compared only where the number of threads is the same.
    """
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for cell in runner.suite.cells:
        own = _record_of(runner.path(cell))
        if own is None or own.outcome.status != "ok":
            continue
        for path in sorted(folder.glob(f"*/{runner.suite.name}/{cell.id}.json")):
            published = _record_of(path)
            if published is None or published.outcome.status != "ok":
                continue
            if own.options.repeat(published.options):
                pairs.setdefault(published.machine.device, []).append((own, published))
    return [_compare(device, records) for device, records in sorted(pairs.items())]


def _record_of(path: Path) -> Record | None:
    try:
        return read_record(path) if path.exists() else None
    except ValueError:
        return None


def _compare(device: str, pairs: Sequence[tuple[Record, Record]]) -> str:
    equal = 0
    learned = 0
    ratios = []
    reasons = set()
    for own, published in pairs:
        if own.outcome.learn and published.outcome.learn:
            learned += 1
            if _tests(own.outcome.learn) == _tests(published.outcome.learn):
                equal += 1
            else:
                reasons.update(_other_instructions(published, own))
        same_threads = own.machine.facts.get("threads") == published.machine.facts.get("threads")
        if own.cell.kind == "cost" and same_threads:
            ratios += _speed_ratios(own, published)

    parts = []
    if learned:
        parts.append(f"scores: {equal} of {learned} equal to the published records of {device}")
    parts += sorted(reasons)
    if ratios:
        speed = f"training steps {statistics.median(ratios):.2g} times as fast"
        parts.append(speed if parts else f"{speed} as in the published records of {device}")
    return "; ".join(parts) or f"published records of {device} had other numbers of threads"


def _other_instructions(published: Record, own: Record) -> list[str]:
    """Return a line if two CPUs summed in another order; in training, last digits grow."""
    there, here = (each.machine.facts.get("instruction_set") for each in (published, own))
    is_other = there and here and there != here
    return [f"published with {there}, measured here with {here}"] if is_other else []


def _tests(numbers: LearnNumbers) -> list[tuple[object, ...]]:
    """Return the numbers of all tests, to compare them to the last digit."""
    return [
        (test.length, test.count, test.correct, test.score, test.by_distance)
        for test in numbers.tests
    ]


def _speed_ratios(own: Record, published: Record) -> list[float]:
    """Return how many times as fast the training step of the first record is, if both timed it."""
    seconds = []
    for record in (published, own):
        numbers = record.outcome.cost
        if numbers is None or "training" not in numbers.phases:
            return []
        seconds.append(numbers.phases["training"].seconds.median)
    return [seconds[0] / seconds[1]] if seconds[1] > 0 else []


# Measuring again


@dataclass(frozen=True)
class Verdict:
    """How a record compares with a second measurement of its cell."""

    record: Record
    again: Record | None  # None if the measurement was stopped
    verdict: str

    @property
    def is_different(self) -> bool:
        return self.verdict not in (EQUAL, WITHIN)

    def __str__(self) -> str:
        place = f"{self.record.cell_id} of {self.record.suite} on {self.record.machine.device}"
        lines = [f"{place}: {self.verdict}"]
        if self.again is None or self.again.outcome.learn is None:
            return lines[0]
        assert self.record.outcome.learn is not None
        if self.verdict != EQUAL:
            lines += [f"  {line}" for line in _other_instructions(self.record, self.again)]
            for old, new in _paired_tests(self.record.outcome.learn, self.again.outcome.learn):
                lines.append(f"  at {old.length}: published {old.score}, here {new.score}")
        return "\n".join(lines)


@dataclass
class Verification:
    """Measures randomly chosen published records again.

    Attributes:
        folder: the records.
        count: how many to choose.
        seed: of the choice.
        cell_of: returns the cell that repeats a record on this machine; None if it cannot.
    """

    folder: Path
    count: int
    seed: int
    cell_of: Callable[[Record], AnyCell | None]
    jobs: int = 1
    records: list[Record] = field(default_factory=list)  # all that can be verified here

    def choose(self) -> list[Record]:
        """Choose among the learning records that ended well and need no plug-in.

        Those of pilots are left out: their one seed has no interval to judge by. Raises ValueError
        if there are none.
        """
        for path in record_files(self.folder):
            record = _record_of(path)
            if record is None or record.outcome.learn is None or record.cell.kind != "learn":
                continue
            needs_plugins = record.code is not None and record.code.plugins
            if not (needs_plugins or only_chooses(record.suite)) and self.cell_of(record):
                self.records.append(record)
        if not self.records:
            raise ValueError(f"{self.folder}: expected learning records that can be measured here")
        count = min(self.count, len(self.records))
        return random.Random(self.seed).sample(self.records, count)

    def verdicts(self, chosen: Sequence[Record]) -> Iterator[Verdict]:
        """Measure the chosen records again in a scratch folder, and yield a verdict for each."""
        by_threads: dict[int, list[Record]] = {}
        for record in chosen:
            by_threads.setdefault(int(record.machine.facts.get("threads", 1)), []).append(record)

        with tempfile.TemporaryDirectory(prefix="lookback-verify-") as scratch:
            for threads, records in by_threads.items():
                cells = [cell for record in records if (cell := self.cell_of(record))]
                suite = Suite("verify", "published records again", tuple(dict.fromkeys(cells)))
                jobs = max(1, self.jobs // threads)
                runner = Runner(Path(scratch), suite, threads=threads, jobs=jobs)
                code = runner.run()
                for record, cell in zip(records, cells, strict=True):
                    again = _record_of(runner.path(cell))
                    yield Verdict(record, again, self._judge(record, again))
                if code >= 128:
                    return

    def _judge(self, record: Record, again: Record | None) -> str:
        if again is None:
            return "not measured"
        old = record.outcome.learn
        new = again.outcome.learn
        assert old is not None and record.outcome.task is not None
        if new is None or again.outcome.task is None:
            return f"{DIFFERENT}: ended as {again.outcome.status}"
        if record.outcome.task.data != again.outcome.task.data:
            return f"{DIFFERENT}: its data are those of another version"
        if _tests(old) == _tests(new):
            return EQUAL

        # A forged score must not widen its own interval: the others and the new one make it.
        others = [
            sibling.outcome.learn
            for sibling in self.records
            if sibling.outcome.learn
            and sibling.cell.seed != record.cell.seed
            and _but_for_seed(sibling) == _but_for_seed(record)
        ]
        if len(others) < 2:
            return f"{DIFFERENT}, and fewer than three seeds have no interval"
        pairs = _paired_tests(old, new)
        is_within = len(pairs) == len(old.tests) == len(new.tests) and all(
            _is_within(test, [*others, new], len(pairs)) for test, _ in pairs
        )
        return WITHIN if is_within else DIFFERENT


def _but_for_seed(record: Record) -> tuple[str, str, AnyCell]:
    cell = record.cell.model_copy(update={"seed": 0})
    return record.suite, record.machine.slug, cell


def _paired_tests(old: LearnNumbers, new: LearnNumbers) -> list[tuple[Score, Score]]:
    """Return the tests of two measurements at the same lengths, in order."""
    return [
        (first, second)
        for first, second in zip(old.tests, new.tests, strict=False)
        if first.length == second.length
    ]


def _is_within(test: Score, seeds: Sequence[LearnNumbers], comparisons: int) -> bool:
    """Whether a score lies in the prediction interval of other seeds.

    Student's t for one more draw from a normal distribution; Bonferroni over `comparisons`. An
    interval is at least one answer wide.
    """
    from scipy.stats import t

    scores = [
        sibling.score
        for numbers in seeds
        for sibling in numbers.tests
        if sibling.length == test.length and sibling.score is not None
    ]
    if test.score is None or len(scores) < 2:
        return False
    n = len(scores)
    quantile = t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, n - 1)
    half = quantile * statistics.stdev(scores) * math.sqrt(1 + 1 / n)
    return abs(test.score - statistics.mean(scores)) <= max(half, 1 / test.count)


# Publishing


def publish(
    results: Path, machine: str, suites: Sequence[str], folder: Path = PUBLISHED_RECORDS
) -> list[str]:
    """Move a machine's records to the published ones, and return a line for each check.

    If some cannot be published, moves nothing and raises ValueError with every reason.
    """
    source = results / machine
    if not source.is_dir():
        known = sorted(path.name for path in results.glob("*/") if path.name != PUBLISHED)
        hint = f"expected one of {', '.join(known)}" if known else "run a suite first"
        raise ValueError(f"no records in {source}: {hint}")
    paths = []
    records = []
    for path in record_files(source):
        record = read_record(path)
        if not suites or record.suite in suites:
            paths.append(path)
            records.append(record)
    if not records:
        raise ValueError(f"no records of {', '.join(suites)} in {source}")
    _check_publishable(records)

    replaced = 0
    for path, record in zip(paths, records, strict=True):
        target = folder / record.machine.slug / record.suite / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced += target.exists()
        path.replace(target)

    counts = Counter(record.suite for record in records)
    names = ", ".join(f"{count} of {suite}" for suite, count in sorted(counts.items()))
    commits = ", ".join(sorted({(record.commit or "")[:12] for record in records}))
    messages = [
        f"{len(records)} records ({names}), {replaced} of which replace older ones",
        f"checked: all final, made at commit {commits} without uncommitted changes, digests known",
        f"moved to {folder / machine}",
    ]
    for suite in sorted(counts):
        stale = sum(1 for _ in record_files(folder / machine / suite)) - counts[suite]
        if stale:
            messages.append(f"{stale} records of {suite} were published before and stay")
    return messages


def _check_publishable(records: Sequence[Record]) -> None:
    """Raise ValueError with every reason why these records cannot be published."""
    faults: Counter[str] = Counter()
    for record in records:
        if record.outcome.status not in FINAL:
            faults[f"ended as {record.outcome.status}"] += 1
        if record.commit is None or record.uncommitted_changes is not False:
            faults["made without a commit or with uncommitted changes"] += 1
        if record.code is None:
            faults["do not know their code"] += 1
    if faults:
        reasons = "; ".join(f"{count} records {reason}" for reason, count in faults.items())
        raise ValueError(f"not published: {reasons}")
