"""Looking through many records, as a run and a report do when they start."""

import json
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lookback.benchmarks.record import (
    CurvePoint,
    LearnNumbers,
    Outcome,
    Record,
    TaskFacts,
    make_cell,
)
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.speed.timing import measure
from lookback.benchmarks.storage import read_records
from lookback.benchmarks.suite import Suite

COUNTS = (2500, 10_000)
REPORTED = 100  # records of the suite that is reported


def write_records(results: Path, name: str, count: int) -> Suite:
    """Return a suite of `count` cells, each with a record as long as that of a real run."""
    first = make_cell(
        {
            "kind": "learn",
            "task": "copy",
            "model": "rwkv",
            "width": 64,
            "depth": 2,
            "length": 64,
            "batch_size": 8,
        }
    )
    cells = tuple(first.model_copy(update={"seed": seed}) for seed in range(count))
    suite = Suite(name, "", cells)
    task = TaskFacts(
        vocabulary=10, classes=None, score="accuracy", baseline_score=0.1, source="made up"
    )
    curve = tuple(
        CurvePoint(step=step, loss=1.5, validation=0.25, seconds=0.125) for step in range(40)
    )
    numbers = LearnNumbers(
        parameters=1, steps=40, seconds=5.0, curve=curve, validation=None, tests=()
    )
    outcome = Outcome(status="ok", task=task, learn=numbers)

    runner = Runner(results, suite)
    runner.folder(first).mkdir(parents=True)
    for cell in cells:
        record = Record(
            suite=name,
            cell=cell,
            cell_id=cell.id,
            outcome=outcome,
            started="",
            ended="",
            machine=runner.machine(cell),
            versions={},
        )
        text = json.dumps(record.model_dump(mode="json"), indent=1)
        runner.path(cell).write_text(text, encoding="utf-8")
    return suite


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("action", ["missing", "reading a suite"])
def test_records(benchmark: BenchmarkFixture, tmp_path: Path, action: str, count: int) -> None:
    """Which of `count` cells are missing, or the REPORTED records of one suite beside `count`."""
    large = write_records(tmp_path, "large", count)
    small = write_records(tmp_path, "small", REPORTED)
    benchmark.group = f"records {action}"
    benchmark.extra_info |= {"section": "records", "name": action, "records": count}
    if action == "missing":
        measure(benchmark, lambda: Runner(tmp_path, large).missing())
    else:
        measure(benchmark, lambda: list(read_records(tmp_path, [small.name])))
