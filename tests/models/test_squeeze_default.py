"""RRWKV's default is now `squeeze = false`; older records still say squeeze = true."""

from pathlib import Path
from typing import Any

from lookback.benchmarks.measure.cell import resolve_options
from lookback.benchmarks.record import LearnCell, Outcome, ResolvedOptions
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_record, record_files, write_record
from lookback.benchmarks.suite import Suite
from tests.records import record

RESULTS = Path(__file__).parents[2] / "results" / "published"


def test_a_record_with_squeeze_does_not_measure_a_cell_without(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": "copy", "model": "rrwkv", "width": 32, "depth": 2}
    cell = LearnCell(kind="learn", length=64, batch_size=32, **fields)
    options = resolve_options(cell)
    assert options.model["squeeze"] is False

    runner = Runner(tmp_path, Suite("suite", "", (cell,)), options={cell: options})
    old_options = ResolvedOptions(task=options.task, model={**options.model, "squeeze": True})
    old_record = record(cell, Outcome(status="oom")).model_copy(update={"options": old_options})
    write_record(runner.folder(cell), old_record)
    assert runner.missing() == [cell]
    assert read_record(runner.path(cell)).options.model["squeeze"] is True

    write_record(runner.folder(cell), old_record.model_copy(update={"options": options}))
    assert runner.missing() == []


def test_committed_records_say_whether_they_squeezed() -> None:
    records = [read_record(path) for path in record_files(RESULTS)]
    rrwkv = [record for record in records if record.cell.model == "rrwkv"]
    assert rrwkv
    for old_record in rrwkv:
        squeeze = old_record.options.model["squeeze"]
        assert old_record.cell.model_options.get("squeeze", squeeze) is squeeze
