"""With many records, reading grows with the cells in question; reads are counted, not timed."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lookback.benchmarks import storage
from lookback.benchmarks.record import Cell, Outcome, Record
from lookback.benchmarks.report.make import all_records
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_records, write_record
from lookback.benchmarks.suite import Suite
from tests.records import learn_record, record

Counted = Callable[[Callable[[], object]], Counter[str]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts the files that a call opens and those that it parses as records."""
    counts: Counter[str] = Counter()

    def count(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **named: object) -> object:
            counts[name] += 1
            return call(*arguments, **named)

        return counting

    monkeypatch.setattr(Path, "read_bytes", count("opened", Path.read_bytes))
    monkeypatch.setattr(Record, "model_validate_json", count("parsed", Record.model_validate_json))

    def of(call: Callable[[], object]) -> Counter[str]:
        counts.clear()
        call()
        return counts.copy()

    return of


def fill(
    results: Path, cell: Cell, suite: str, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> tuple[Cell, ...]:
    """Write records of a suite on this machine, one per seed."""
    monkeypatch.setattr(storage.os, "fsync", lambda handle: None)
    cells = tuple(cell.model_copy(update={"seed": seed}) for seed in seeds)
    folder = Runner(results, Suite(suite, "", cells)).folder(cell)
    for seeded in cells:
        write_record(folder, learn_record(seeded, suite=suite))
    return cells


def test_missing_cells_take_one_read_per_cell(
    tmp_path: Path, cell: Cell, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records beside them are not read, in this folder and in others."""
    cells = fill(tmp_path, cell, "mine", range(20), monkeypatch)
    runner = Runner(
        tmp_path, Suite("mine", "", (*cells[:10], cell.model_copy(update={"seed": 99})))
    )
    few = counted(runner.missing)
    for number in range(10):
        fill(tmp_path, cell, f"other-{number}", range(20), monkeypatch)
    assert counted(runner.missing) == few == Counter({"opened": 10, "parsed": 10})
    twice = Runner(tmp_path, Suite("mine", "", cells))
    assert counted(twice.missing) == Counter({"opened": 20, "parsed": 20})


def test_a_report_parses_only_the_records_of_its_suite(
    tmp_path: Path, cell: Cell, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files are opened at most once, to see that they do not contain the suite's name."""
    fill(tmp_path, cell, "mine", range(10), monkeypatch)
    report = lambda: all_records(tmp_path, ["mine"])  # noqa: E731
    assert counted(report) == Counter({"opened": 10, "parsed": 10})
    for number in range(1, 4):
        fill(tmp_path, cell, f"other-{number}", range(50), monkeypatch)
        assert counted(report) == Counter({"opened": 10 + 50 * number, "parsed": 10})
    assert len(report()) == 10


def test_records_are_found_wherever_they_lie(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record says of which suite it is; the folder's name does not."""
    (tmp_path / "mine").mkdir()
    names = ("mine", "mine-smoke", "other", "mine")
    for seed, (suite, folder) in enumerate(
        zip(names, ("mine", "mine", "mine", "elsewhere"), strict=True)
    ):
        write_record(
            tmp_path / folder, learn_record(cell.model_copy(update={"seed": seed}), suite=suite)
        )
    assert sorted(found.cell.seed for found in read_records(tmp_path, ["mine"])) == [0, 3]
    assert sorted(found.cell.seed for found in read_records(tmp_path, ["mine", "other"])) == [
        0,
        2,
        3,
    ]
    assert len(list(read_records(tmp_path))) == 4


def test_records_are_read_one_at_a_time(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, cell, "mine", range(3), monkeypatch)
    records: Iterator[Record] = read_records(tmp_path, ["mine"])
    assert next(records).cell.seed in range(3) and len(list(records)) == 2


def limited(cell: Cell, seconds: float) -> Cell:
    return cell.model_copy(update={"time_limit": seconds})


def test_a_longer_time_limit_measures_nothing_again(tmp_path: Path, cell: Cell) -> None:
    """A limit says how long a measurement may take, not what is measured."""
    runner = Runner(tmp_path, Suite("mine", "", (cell,)))
    write_record(runner.folder(cell), learn_record(cell))
    for seconds in (100.0, 90000.0):
        assert Runner(tmp_path, Suite("mine", "", (limited(cell, seconds),))).missing() == []


def test_only_a_timeout_is_tried_again_under_a_longer_limit(tmp_path: Path, cell: Cell) -> None:
    short, long = limited(cell, 10.0), limited(cell, 20.0)
    runner = Runner(tmp_path, Suite("mine", "", (short,)))
    write_record(runner.folder(cell), record(short, Outcome(status="timeout")))
    assert runner.missing() == []
    assert Runner(tmp_path, Suite("mine", "", (long,))).missing() == [long]
    write_record(runner.folder(cell), record(short, Outcome(status="nan")))
    assert Runner(tmp_path, Suite("mine", "", (long,))).missing() == []
