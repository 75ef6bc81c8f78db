"""Learning cells run side by side, cost cells alone; neither changes what is recorded."""

import threading
from pathlib import Path

import pytest

from lookback.benchmarks.record import AnyCell, Outcome
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite
from tests.processes import LINUX, replace_processes, runner_of, tiny, untimed_record
from tests.records import as_cost, cost_record, learn_record


def several(folder: Path, jobs: int, *cells: AnyCell) -> Runner:
    return Runner(folder, Suite("jobs", "", cells), jobs=jobs)


@LINUX
def test_scores_do_not_depend_on_jobs_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [tiny("rwkv", seed=seed, steps=6) for seed in range(3)]
    cells.append(tiny("lstm", steps=6))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = several(tmp_path / "alone", 1, *cells)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    beside = several(tmp_path / "beside", 3, *cells)
    assert alone.run() == beside.run() == 0
    for cell in cells:
        first, second = alone.recorded(cell), beside.recorded(cell)
        assert untimed_record(first) == untimed_record(second)
        assert first.machine.facts["threads"] == second.machine.facts["threads"] == 1
        assert "jobs" not in first.machine.facts and second.machine.facts["jobs"] == 3


def test_learning_cells_share_the_device_and_cost_cells_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two learning cells wait for each other; the cost cells come after, by length."""
    together = threading.Barrier(2, timeout=60)
    running = []
    costs = []

    def measure(self: Runner, cell: AnyCell, *rest: object) -> Outcome:
        running.append(cell)
        if cell.kind == "learn":
            together.wait()
            outcome = learn_record(cell).outcome
        else:
            costs.append((cell.length, cell.model, tuple(running)))
            outcome = cost_record(cell).outcome
        running.remove(cell)
        return outcome

    replace_processes(monkeypatch, measure)
    cells = [
        as_cost(tiny(model), {"length": length})
        for model in ("rwkv", "lstm")
        for length in (48, 24)
    ]
    runner = several(tmp_path, 2, *cells, tiny(seed=0), tiny(seed=1))
    assert runner.run() == 0 and runner.missing() == []
    order = [(length, model) for length, model, _ in costs]
    assert order == [(24, "rwkv"), (24, "lstm"), (48, "rwkv"), (48, "lstm")]
    assert all(len(beside) == 1 for *_, beside in costs)


@pytest.mark.parametrize("ends_as", ["ok", "oom"])
def test_a_cell_out_of_memory_beside_others_is_measured_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_as: str
) -> None:
    """What is recorded is what it does with all the memory."""
    tries = []

    def measure(self: Runner, cell: AnyCell, work: Path, log: object, jobs: int) -> Outcome:
        if cell.seed == 0:
            tries.append(jobs)
            if jobs > 1 or ends_as == "oom":
                return Outcome(status="oom", message="too large")
        return learn_record(cell).outcome

    replace_processes(monkeypatch, measure)
    runner = several(tmp_path, 2, tiny(seed=0), tiny(seed=1))
    assert runner.run() == 0 and tries == [2, 1]
    assert runner.recorded(tiny(seed=0)).outcome.status == ends_as
    assert "jobs" not in runner.recorded(tiny(seed=0)).machine.facts


def test_a_line_a_cell_says_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_processes(monkeypatch, lambda self, cell, *rest: learn_record(cell, 93).outcome)
    assert runner_of(tmp_path, tiny(), tiny(seed=1)).run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "faults: 2 cells, 0 recorded, 2 to measure"
    assert lines[1] == "[1/2] copy rwkv @24 seed 0 rate 0.001 0.93 in 0.0 s"
    assert lines[2] == "[2/2] copy rwkv @24 seed 1 rate 0.001 0.93 in 0.0 s"
