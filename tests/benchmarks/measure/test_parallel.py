"""A cell trained by several processes has the numbers of one, and the right status if one fails.

The processes communicate by gloo on a CPU. Starting them takes seconds, so all cells are learned
after one start, and most tests of failures are `slow`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.cell import check
from lookback.benchmarks.measure.train import InterruptedRunError
from lookback.benchmarks.record import AnyCell, LearnNumbers, Record, make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite
from tests.benchmarks.measure.test_train import learned, stop_after
from tests.processes import LINUX, PLUGIN, processes_of, wait_until

pytestmark = pytest.mark.xdist_group("distributed")  # they share one start

BASE = {
    "kind": "learn",
    "task": "copy",
    "width": 16,
    "depth": 1,
    "length": 24,
    "batch_size": 5,
    "steps": 12,
    "warmup": 2,
    "validations": 3,
    "validation_examples": 70,
    "test_examples": 70,
    "test_lengths": [24, 40],
    "learning_rate": 3e-3,
}
LABEL = {**BASE, "task": "listops", "length": 64, "test_lengths": []}
CELLS = {
    "growing": make_cell(
        {**BASE, "model": "rwkv", "length": 40, "start_length": 20, "reach": True}
    ),
    "two layers": make_cell({**BASE, "model": "rrwkv", "depth": 2}),
    "several rates": make_cell(
        {**BASE, "model": "transformer", "learning_rates": [1e-3, 1e-2], "steps": 6}
    ),
    "lengths drawn": make_cell(
        {**BASE, "model": "lstm", "length": 40, "start_length": 20, "lengths": "draw"}
    ),
    "bits": make_cell(
        {**BASE, "task": "python", "model": "transformer", "length": 32, "batch_size": 3}
    ),
    "shorter than the interval": make_cell(
        {**BASE, "model": "rrwkv", "model_options": {"interval": 40}}
    ),
    "label": make_cell({**LABEL, "model": "rwkv", "direction": "bidirectional", "depth": 2}),
}  # their batches cannot be divided evenly by two processes
STOPPED = CELLS["two layers"]
RESUMED = ("one, then two", "two, then one")


def learn_all(folder: Path) -> None:
    """Learn every cell as one of two processes; rank 0 writes the numbers."""
    torch.set_num_threads(1)
    with parallel.process_group("cpu", 300):
        numbers = {name: learned(cell, folder / name) for name, cell in CELLS.items()}
        numbers["one, then two"] = learned(STOPPED, folder / "one, then two")
        with pytest.raises(InterruptedRunError):
            learned(
                STOPPED, folder / "two, then one", stop_after(7 if parallel.rank() == 0 else 100)
            )
        if parallel.rank() == 0:
            dumped = {name: value.model_dump(mode="json") for name, value in numbers.items()}
            (folder / "numbers.json").write_text(json.dumps(dumped))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LearnNumbers]:
    """Return the numbers of every cell, learned by two processes."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(InterruptedRunError):
        learned(STOPPED, folder / "one, then two", stop_after(7))
    handler = signal.getsignal(signal.SIGTERM)  # torch's launcher sets its own
    assert parallel.launch(learn_all, 2, folder, folder) == 0
    signal.signal(signal.SIGTERM, handler)

    numbers = {}
    for name, value in json.loads((folder / "numbers.json").read_text()).items():
        numbers[name] = LearnNumbers.model_validate_json(json.dumps(value))
    numbers["two, then one"] = learned(STOPPED, folder / "two, then one")
    return numbers


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LearnNumbers]:
    numbers = {name: learned(cell, tmp_path_factory.mktemp("one")) for name, cell in CELLS.items()}
    return {**numbers, **dict.fromkeys(RESUMED, numbers["two layers"])}


@pytest.mark.parametrize("name", [*CELLS, *RESUMED])
def test_two_processes_learn_what_one_does(
    of_one: dict[str, LearnNumbers], of_two: dict[str, LearnNumbers], name: str
) -> None:
    """To rounding, which may change at most one answer in a hundred."""
    one, two = of_one[name], of_two[name]
    assert two.steps == one.steps and two.learning_rate == one.learning_rate
    assert [point.step for point in two.curve] == [point.step for point in one.curve]
    assert [point.loss for point in two.curve] == pytest.approx(
        [point.loss for point in one.curve], rel=1e-5
    )
    assert [p.validation for p in two.curve] == pytest.approx(
        [p.validation for p in one.curve], rel=1e-5, abs=0.01
    )
    for ours, theirs in zip(two.tests, one.tests, strict=True):
        assert (ours.length, ours.examples, ours.count) == (
            theirs.length,
            theirs.examples,
            theirs.count,
        )
        assert (
            ours.loss == pytest.approx(theirs.loss, rel=1e-5)
            and ours.seen_in_training == theirs.seen_in_training
        )
        assert [(b.low, b.count) for b in ours.by_distance] == [
            (b.low, b.count) for b in theirs.by_distance
        ]
        assert [b.loss for b in ours.by_position] == pytest.approx(
            [b.loss for b in theirs.by_position], rel=1e-4
        )
    for ours, theirs in zip(two.trials, one.trials, strict=True):
        assert ours.validation == pytest.approx(theirs.validation, rel=1e-5, abs=0.01)
    assert [b.share for b in two.reach_after] == pytest.approx(
        [b.share for b in one.reach_after], rel=1e-4
    )


def test_compared_cells_do_what_their_names_say(of_one: dict[str, LearnNumbers]) -> None:
    """And none of them stops learning."""
    assert of_one["growing"].reach_after and of_one["bits"].tests[0].by_position
    for name in ("growing", "lengths drawn"):
        assert of_one[name].tokens_at_full_length < of_one[name].tokens_trained
    for numbers in of_one.values():
        losses = [point.loss for point in numbers.curve]
        assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_rows_are_divided_evenly(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: processes)
    for rows in (7, 8, 64):
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares.append(range(*parallel.local_rows(rows)))
        assert [row for share in shares for row in share] == list(range(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_many_processes_are_refused() -> None:
    for fields, line in (
        (
            {"processes": 6},
            "processes = 6: expected at most one for each of the 5 sequences of a batch",
        ),
        ({"processes": 0}, "greater than or equal to 1"),
        ({"shard": True}, "shard: unknown field"),
    ):
        with pytest.raises(ValueError, match=line):
            check(make_cell({**BASE, "model": "rwkv", **fields}))


def test_one_process_keeps_its_id() -> None:
    """Records from before there were several processes stay those of the same cells."""
    cell = make_cell({**BASE, "model": "rwkv"})
    assert cell.id == make_cell({**BASE, "model": "rwkv", "processes": 1}).id
    assert "processes" not in cell.canonical()


def stumbling(how: str, **fields: object) -> AnyCell:
    return make_cell(
        {**BASE, "model": "stumbles", "model_options": {"how": how}, "processes": 2, **fields}
    )


def measured(folder: Path, cell: AnyCell) -> Record:
    runner = Runner(folder, Suite("faults", "", (cell,)), plugins=[PLUGIN], threads=1)
    runner.run()
    record = runner.recorded(cell)
    assert record is not None and not processes_of(folder)
    return record


@pytest.mark.slow
def test_an_error_in_one_process_is_that_of_the_cell(tmp_path: Path) -> None:
    """And not that the other process lost its connection."""
    outcome = measured(tmp_path, stumbling("raise")).outcome
    assert outcome.status == "error" and "stumbled in process 1" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("kill", "killed", "SIGKILL"),
        ("hang", "timeout", "not done after 90"),
        ("memory", "oom", "out of memory"),
    ],
)
def test_a_process_that_fails_ends_the_cell(
    tmp_path: Path, how: str, status: str, message: str
) -> None:
    outcome = measured(tmp_path, stumbling(how, time_limit=90 if how == "hang" else 3600)).outcome
    assert outcome.status == status and message in outcome.message


@pytest.mark.slow
@LINUX
def test_the_same_command_resumes_a_stopped_cell(tmp_path: Path) -> None:
    """After Ctrl-C all processes save and end; the next run ends as one that was never stopped."""
    cell = make_cell(
        {**BASE, "model": "unhurried", "processes": 2, "validation_examples": 4, "test_examples": 4}
    )
    whole = measured(tmp_path / "whole", cell)
    code = (
        "import sys; from pathlib import Path; "
        "from tests.benchmarks.measure.test_parallel import *; "
        "cell = make_cell(json.loads(sys.argv[2])); folder = Path(sys.argv[1]); "
        "sys.exit(Runner(folder, Suite('faults', '', (cell,)), plugins=[PLUGIN], threads=1).run())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "parts"), cell.model_dump_json()]
    running = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL)
    wait_until(lambda: list((tmp_path / "parts").rglob("checkpoint.pt")), "a checkpoint")
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(timeout=60) == 130 and not processes_of(tmp_path / "parts")
    parts = measured(tmp_path / "parts", cell)
    assert parts.outcome.learn is not None and whole.outcome.learn is not None
    # The sum of losses is rounded where training was stopped.
    losses = [point.loss for point in whole.outcome.learn.curve]
    assert [p.loss for p in parts.outcome.learn.curve] == pytest.approx(losses, rel=1e-6)
