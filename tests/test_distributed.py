"""A cell trained by several processes: the numbers of one process, and the right status when one of
them fails.

The model is in each of them, or split over them. Processes talk by gloo on a CPU. Starting them
takes seconds, so one start serves for everything that is learned, and most of what can go wrong is
`slow`.
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
from lookback.benchmarks.measure.step import make_model, make_optimizer, training_step
from lookback.benchmarks.measure.train import InterruptedRunError
from lookback.benchmarks.record import Cell, LearnNumbers, Record, make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite
from lookback.models.model import parameter_count
from lookback.tasks.task import get_task
from tests.processes import LINUX, PLUGIN, processes_of, wait_until
from tests.test_train import learned, stop_after

pytestmark = pytest.mark.xdist_group("distributed")  # they share one start

BASE = {
    "kind": "learn",
    "task": "copy",
    "width": 16,
    "depth": 1,
    "length": 24,
    "batch_size": 5,
    "steps": 20,
    "warmup": 2,
    "validations": 4,
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
        {**BASE, "model": "transformer", "learning_rates": [1e-3, 1e-2], "steps": 12}
    ),
    "until solved": make_cell({**BASE, "model": "lstm", "target_score": 0.08, "validations": 10}),
    "bits": make_cell(
        {**BASE, "task": "python", "model": "transformer", "length": 32, "batch_size": 3}
    ),
    "split": make_cell({**BASE, "model": "transformer", "depth": 2, "shard": True, "reach": True}),
    "shorter than the interval": make_cell(
        {**BASE, "model": "rrwkv", "model_options": {"interval": 40}}
    ),
    "split, several rates": make_cell(
        {**BASE, "model": "rwkv", "learning_rates": [1e-3, 1e-2], "shard": True}
    ),
    "split label": make_cell(
        {**LABEL, "model": "rwkv", "direction": "bidirectional", "depth": 2, "shard": True}
    ),
}  # batches that two processes cannot share evenly
STOPPED = CELLS["two layers"]
SPLIT = STOPPED.model_copy(update={"shard": True})
RESUMED = ("one, then two", "two, then one", "one, then two that split", "two that split, then one")


def learn_all(folder: Path) -> None:
    """What each of the processes does; the first keeps the numbers."""
    torch.set_num_threads(1)
    with parallel.joined("cpu", 300):
        numbers = {name: learned(cell, folder / name) for name, cell in CELLS.items()}
        numbers["one, then two"] = learned(STOPPED, folder / "one, then two")
        numbers["one, then two that split"] = learned(SPLIT, folder / "one, then two that split")
        for name, cell in (("two, then one", STOPPED), ("two that split, then one", SPLIT)):
            with pytest.raises(InterruptedRunError):
                learned(cell, folder / name, stop_after(7 if parallel.rank() == 0 else 100))
        (folder / f"kept-{parallel.rank()}.json").write_text(json.dumps(kept_here()))
        if parallel.rank() == 0:
            text = json.dumps(
                {name: found.model_dump(mode="json") for name, found in numbers.items()}
            )
            (folder / "numbers.json").write_text(text)


def kept_here() -> list[int]:
    """Numbers in all weights, in those kept here of a model that is split, and in its gradients and
    moments.
    """
    cell = CELLS["split"]
    task = get_task(cell.task)
    model = make_model(cell, task)
    count = parameter_count(model)
    next(iter(model.blocks.parameters()))._no_weight_decay = True
    undecayed = [p.shape for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    split = parallel.spread(model, shard=True)
    optimizer = make_optimizer(split, cell.learning_rate, cell.weight_decay)
    training_step(split, optimizer, task.batch("train", 0, 0, 5, cell.length), cell, 0)
    kept = sum(parameter.to_local().numel() for parameter in split.parameters())
    assert (
        [p.shape for p in split.parameters() if getattr(p, "_no_weight_decay", False)]
        == undecayed
        != []
    )
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    return [count, kept, sum(x.to_local().numel() for x in moments)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes learned everything."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("one, then two", "one, then two that split"):
        with pytest.raises(InterruptedRunError):
            learned(STOPPED, folder / name, stop_after(7))
    handler = signal.getsignal(signal.SIGTERM)  # torch's launcher sets its own
    assert parallel.launch(learn_all, 2, folder, folder) == 0
    signal.signal(signal.SIGTERM, handler)
    return folder


@pytest.fixture(scope="module")
def of_two(two: Path) -> dict[str, LearnNumbers]:
    found = json.loads((two / "numbers.json").read_text())
    numbers = {
        name: LearnNumbers.model_validate_json(json.dumps(value)) for name, value in found.items()
    }
    return {
        **numbers,
        **{name: learned(STOPPED, two / name) for name in RESUMED if name not in numbers},
    }


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LearnNumbers]:
    numbers = {name: learned(cell, tmp_path_factory.mktemp("one")) for name, cell in CELLS.items()}
    return {**numbers, **dict.fromkeys(RESUMED, numbers["two layers"])}


@pytest.mark.parametrize("name", [*CELLS, *RESUMED])
def test_two_processes_learn_what_one_does(
    of_one: dict[str, LearnNumbers], of_two: dict[str, LearnNumbers], name: str
) -> None:
    """To rounding; at most one answer of a hundred may fall on the other side of it."""
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


def test_what_is_compared_is_no_first_step_nor_the_last(of_one: dict[str, LearnNumbers]) -> None:
    """The cells do what their names say, and none of them stands still."""
    assert (
        of_one["until solved"].steps < 20
        and of_one["growing"].reach_after
        and of_one["bits"].tests[0].by_position
    )
    for numbers in of_one.values():
        losses = [point.loss for point in numbers.curve]
        assert len(set(losses)) == len(losses)


def test_of_a_model_that_is_split_each_process_keeps_its_part(two: Path) -> None:
    """Of two processes about half of the weights and of AdamW's two moments, and both together all
    of them.
    """
    counts, kept, moments = zip(
        *(json.loads((two / f"kept-{rank}.json").read_text()) for rank in (0, 1)), strict=True
    )
    assert sum(kept) == counts[0] == counts[1] and sum(moments) == 2 * counts[0]
    assert max(kept) < 0.55 * counts[0]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_rows_are_shared_out_whole_and_evenly(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(parallel, "count", lambda: processes)
    for rows in (7, 8, 64):
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares.append(range(*parallel.share(rows)))
        assert [row for share in shares for row in share] == list(range(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_many_processes_are_refused() -> None:
    for fields, line in (
        (
            {"processes": 6},
            "processes = 6: expected at most one for each of the 5 sequences of a batch",
        ),
        (
            {"kind": "cost", "processes": 2, "test_lengths": []},
            "processes = 2: expected 1, for a `cost` cell",
        ),
        ({"processes": 0}, "greater than or equal to 1"),
        (
            {"shard": True},
            "processes = 1: expected at least 2, for `shard` splits the model over them",
        ),
    ):
        with pytest.raises(ValueError, match=line):
            check(make_cell({**BASE, "model": "rwkv", **fields}))


def test_one_process_keeps_its_name() -> None:
    """Cells from before there were several are found again."""
    cell = make_cell({**BASE, "model": "rwkv"})
    assert cell.id == make_cell({**BASE, "model": "rwkv", "processes": 1, "shard": False}).id
    assert "processes" not in cell.canonical() and "shard" not in cell.canonical()


def stumbling(how: str, **fields: object) -> Cell:
    return make_cell(
        {**BASE, "model": "stumbles", "model_options": {"how": how}, "processes": 2, **fields}
    )


def measured(folder: Path, cell: Cell) -> Record:
    runner = Runner(folder, Suite("faults", "", (cell,)), plugins=[PLUGIN], threads=1)
    runner.run()
    record = runner.recorded(cell)
    assert record is not None and not processes_of(folder)
    return record


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_is_said_of_the_cell(tmp_path: Path) -> None:
    """And not that the other could no longer talk to it."""
    outcome = measured(tmp_path, stumbling("raise")).outcome
    assert outcome.status == "error" and "stumbled in process 1" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("kill", "killed", "SIGKILL"),
        ("hang", "timeout", "not done after 90"),
        ("memory", "oom", "out of memory"),
    ],
)
def test_a_process_that_fails_ends_the_cell(
    tmp_path: Path, how: str, status: str, said: str
) -> None:
    outcome = measured(tmp_path, stumbling(how, time_limit=90 if how == "hang" else 3600)).outcome
    assert outcome.status == status and said in outcome.message


@pytest.mark.slow
@LINUX
def test_stopped_and_gone_on_by_the_same_command(tmp_path: Path) -> None:
    """Ctrl-C to the runner: all processes save and end, and the next run ends as one that nobody
    stopped.
    """
    cell = make_cell(
        {**BASE, "model": "unhurried", "processes": 2, "validation_examples": 4, "test_examples": 4}
    )
    whole = measured(tmp_path / "whole", cell)
    code = (
        "import sys; from pathlib import Path; from tests.test_distributed import *; "
        "cell = make_cell(json.loads(sys.argv[2])); folder = Path(sys.argv[1]); "
        "sys.exit(Runner(folder, Suite('faults', '', (cell,)), plugins=[PLUGIN], threads=1).run())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "parts"), cell.model_dump_json()]
    running = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
    wait_until(lambda: list((tmp_path / "parts").rglob("checkpoint.pt")), "a checkpoint")
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(timeout=60) == 130 and not processes_of(tmp_path / "parts")
    parts = measured(tmp_path / "parts", cell)
    assert parts.outcome.learn is not None and whole.outcome.learn is not None
    losses = [
        p.loss for p in whole.outcome.learn.curve
    ]  # sums of a segment are rounded where it was stopped
    assert [p.loss for p in parts.outcome.learn.curve] == pytest.approx(losses, rel=1e-6)
