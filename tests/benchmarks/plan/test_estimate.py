"""What is predicted is what is measured: bytes to the byte, operations as counted by hand."""

import re
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.measure.cost import LEARNING_RATE, WEIGHT_DECAY, cost
from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.measure.step import make_model, make_optimizer, training_step
from lookback.benchmarks.plan import dry_run
from lookback.benchmarks.plan.dry_run import (
    Plan,
    PlannedCell,
    duration,
    make_plan,
    operations,
    size,
    time_words,
    without_too_big,
)
from lookback.benchmarks.plan.estimate import estimate, state_bytes, step_flops
from lookback.benchmarks.record import Cell, Machine, make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_record, record_files, write_record
from lookback.benchmarks.suite import Suite
from lookback.models.model import model_names
from lookback.tasks.task import get_task
from tests.records import as_cost, cost_record

BASE = ("transformer", "rwkv", "rrwkv", "lstm")
MODELS = (*BASE, "rwkv7", "gated_deltanet", "mamba2")
RESULTS = Path(__file__).parents[3] / "results" / "published"


def small(model: str, **fields: object) -> Cell:
    given = {"kind": "cost", "task": "copy", "width": 32, "depth": 2, "length": 64, "batch_size": 2}
    if fields.get("kind") != "learn":
        given["repeats"] = 1
    return make_cell({**given, "model": model, **fields})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(  # one tile of WKV, and several; one segment of matrix_state, and several
    "shape", [{}, {"batch_size": 16, "length": 144}]
)
def test_predicted_bytes_are_those_measured(model: str, shape: dict[str, int]) -> None:
    cell = small(model, **shape)
    task = get_task("copy")
    net = make_model(cell, task).train()
    optimizer, batch = (
        make_optimizer(net, LEARNING_RATE, WEIGHT_DECAY),
        task.batch("train", 0, 0, cell.batch_size, cell.length),
    )
    for _ in range(2):
        training_step(net, optimizer, batch, cell, 0)
    with LiveBytes(alive_in(net, optimizer)) as counted:
        training_step(net, optimizer, batch, cell, 0)
    # of the LSTM's workspace the real operator rounds to pages what is worked out here by the
    # position
    assert estimate(cell).peak_bytes == pytest.approx(
        counted.peak, rel=0.005 if model == "lstm" else 0
    )


def test_predicted_bytes_are_those_on_record() -> None:
    """Of reference machines; 0.2 % leaves room for what a step has lost or gained since."""
    records = (
        read_record(path)
        for path in record_files(RESULTS)
        if re.match(r"cost-.*-L1024-", path.name)
    )
    found = {
        record.cell.model: record
        for record in records
        if record.cell.device == "cpu" and record.outcome.cost
    }
    for record in found.values():
        measured = record.outcome.cost.phases["training"].peak_bytes  # type: ignore[union-attr]
        measured_cell = record.cell.model_copy(update={"model_options": record.options.model})
        assert estimate(measured_cell).peak_bytes == pytest.approx(measured, rel=0.002), (
            record.cell_id
        )
    assert found


def test_operations_of_attention_by_hand() -> None:
    """A transformer's matrices take 2 operations a weight and token forward, 4 backward; attention
    adds to it.
    """
    width, length, depth = 32, 128, 2
    flops = step_flops(small("transformer", width=width, length=length, task="python"))
    matrices = depth * 13 * width**2 + 256 * width
    pairs = length * (length + 1) // 2
    attention = depth * 4 * pairs * width  # two products forward, a multiplication and an addition
    assert flops == 6 * matrices * length + 3.5 * attention  # five backward: the scores once more


def test_operations_of_a_recurrence_by_hand() -> None:
    """An LSTM has 13 width^2 weights a layer: 8 of the recurrence, 5 behind it."""
    width, length = 32, 64
    flops = step_flops(small("lstm", width=width, length=length, task="python"))
    # the lowest layer's input needs a gradient too, for the embedding
    assert flops == 6 * length * (2 * 13 * width**2 + 256 * width)


def test_operations_of_a_cell_are_those_of_its_steps_and_readings() -> None:
    cell = small(
        "rwkv", kind="learn", steps=10, validations=2, validation_examples=8, test_examples=16
    )
    estimated, longer = estimate(cell), estimate(cell.model_copy(update={"steps": 20}))
    assert estimated.flops and estimated.step_flops and longer.flops
    assert longer.flops - estimated.flops == 10 * estimated.step_flops
    # type: ignore[operator]
    assert (
        estimate(cell.model_copy(update={"learning_rates": (1e-3, 1e-2)})).flops
        > 1.5 * estimated.flops
    )
    assert estimate(cell.model_copy(update={"seed": 3})) is estimated  # gone through once


@pytest.mark.parametrize("model", MODELS)
def test_predicted_state_is_what_a_model_keeps(model: str) -> None:
    cell = small(model, batch_size=1, length=40)
    assert state_bytes(cell) == cost(cell, get_task("copy"), lambda *_: None).state_bytes


@pytest.mark.parametrize("model", BASE)
def test_a_length_that_no_machine_holds_is_told_without_holding_it(model: str) -> None:
    estimated = estimate(small(model, task="python", length=131072, batch_size=64, width=256))
    assert estimated.peak_bytes and estimated.peak_bytes > 200e9


def test_what_cannot_be_gone_through_is_unknown() -> None:
    from torch import nn

    from lookback.models.model import register_model
    from tests.plugin_models import Plain

    if "peeks" not in model_names():

        @register_model("peeks")
        class Peeks(Plain):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + nn.functional.pad(self.linear(x)[x.sum(-1) > 0], (0, 0, 0, 1)).sum()

    estimated = estimate(small("peeks"))
    assert estimated.parameters > 0 and (
        estimated.step_flops,
        estimated.flops,
        estimated.peak_bytes,
    ) == (None, None, None)


def runner(folder: Path, *cells: Cell, memory: int = 10**12) -> Runner:
    here = Machine(slug="some-machine", device="Some Machine", facts={"memory_bytes": memory})
    return Runner(folder, Suite("s", "s", cells), machines={"cpu": here})


def test_cells_above_the_memory_are_marked_and_left_out(tmp_path: Path) -> None:
    little, much = small("transformer"), small("transformer", length=4096)
    planned = runner(
        tmp_path,
        little,
        much,
        memory=(estimate(little).peak_bytes + estimate(much).peak_bytes) // 2,
    )  # type: ignore[operator]
    assert [line.state for line in make_plan(planned).lines] == ["to measure", "too big"]
    assert "1 too big" in str(make_plan(planned))
    assert without_too_big(planned).suite.cells == (little,)
    assert not list(tmp_path.iterdir())


def test_times_scale_with_parameters_and_tokens_from_the_nearest_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of a minute: a cell twice as long computes twice as much, but starts no slower."""
    monkeypatch.setattr(dry_run, "PUBLISHED_RECORDS", tmp_path / "nothing published")
    known = small("rwkv", length=256)
    record = cost_record(known, suite="s", parameters=estimate(known).parameters)
    write_record(tmp_path / "some-machine" / "s", record)
    cells = (
        known,
        known.model_copy(update={"seed": 1}),
        small("rwkv", length=512),
        small("lstm", length=256),
    )
    lines = make_plan(runner(tmp_path, *cells)).lines
    assert [line.state for line in lines] == ["recorded"] + 3 * ["to measure"]
    ratio = estimate(cells[3]).flops / estimate(known).flops  # type: ignore[operator]
    expected = [60, 60, pytest.approx(4 + 56 * 2, rel=1e-3), pytest.approx(4 + 56 * ratio)]
    assert [line.seconds for line in lines] == expected
    total = duration(sum(line.seconds for line in lines[1:]))
    assert f"about {total}\n" in str(make_plan(runner(tmp_path, *cells)))


def test_hours_of_learning_cells_that_run_side_by_side(cell: Cell) -> None:
    hour = PlannedCell(cell, "to measure", seconds=3600.0)
    cost = PlannedCell(as_cost(cell), "to measure", seconds=3600.0)  # runs alone
    plan = str(Plan((hour, hour, cost), memory=None, device="mine", references=(), jobs=2))
    assert "3 cells: 0 recorded, 3 to measure" in plan
    assert "about 3 hours, 2 hours with 2 learning cells at a time" in plan


def test_times_from_another_machine_are_in_proportion_of_the_reference_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = small("rwkv", length=256)
    record = cost_record(cell, suite="s", parameters=estimate(cell).parameters)
    there = record.machine.model_copy(update={"slug": "published"})
    phase = record.outcome.cost.phases["training"]  # type: ignore[union-attr]
    phase = phase.model_copy(update={"reference_seconds": 0.01})
    numbers = record.outcome.cost.model_copy(update={"phases": {"training": phase}})  # type: ignore[union-attr]
    outcome = record.outcome.model_copy(update={"cost": numbers})
    record = record.model_copy(update={"machine": there, "outcome": outcome})
    write_record(tmp_path / "published" / "s", record)
    monkeypatch.setattr(dry_run, "PUBLISHED_RECORDS", tmp_path / "published")
    monkeypatch.setattr(dry_run, "reference_workload_seconds", lambda *_: 0.03)
    (line,) = make_plan(runner(tmp_path / "own", cell)).lines
    assert line.seconds == pytest.approx(4 + 56 * 3)

    # Of the same model, a record from elsewhere tells more than one of another model from here.
    other = cost_record(small("lstm", length=256), suite="s", parameters=1000)
    write_record(tmp_path / "own" / "some-machine" / "s", other)
    (line,) = make_plan(runner(tmp_path / "own", cell)).lines
    assert line.seconds == pytest.approx(4 + 56 * 3)


def test_gpu_hours_are_of_all_processes_and_of_a_rate_where_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes share the work: half the time, the same hours; each keeps half of the
    activations.
    """
    one = small("rwkv", kind="learn", batch_size=64, length=256, time_limit=1e9)
    two = one.model_copy(update={"processes": 2})
    lines = make_plan(runner(tmp_path, one, two), assumed=1e6).lines
    assert (
        estimate(one).flops == estimate(two).flops
        and estimate(two).peak_bytes > estimate(one).peak_bytes
    )  # two models, on a CPU
    for line, processes in zip(lines, (1, 2), strict=True):
        seconds = 4 + estimate(one).flops / 1e6 / processes  # type: ignore[operator]
        assert line.seconds == pytest.approx(seconds)
        assert line.hours == pytest.approx(line.seconds * processes / 3600)
    total = duration(3600 * sum(line.hours for line in lines))
    assert str(make_plan(runner(tmp_path, one, two), assumed=1e6)).endswith(f"about {total}")
    monkeypatch.setattr(dry_run, "PUBLISHED_RECORDS", tmp_path / "nothing published")
    unknown = str(make_plan(runner(tmp_path, one)))
    assert "about" not in unknown  # no hours are better than zero hours
    assert "Measure one cell of each model first" in unknown
    gpu = (estimate(cell.model_copy(update={"device": "cuda"})).peak_bytes for cell in (one, two))
    assert 0.5 < 1 / (next(gpu) / next(gpu)) < 0.6
    with pytest.raises(ValueError, match="expected a positive number"):
        make_plan(runner(tmp_path, one), assumed=-1.0)


def test_numbers_are_written_for_people() -> None:
    assert [size(x) for x in (1234567, 2.5e13)] == ["1.23 MB", "25 TB"]
    assert [operations(x) for x in (999, 2.5e13, None)] == ["999 FLOP", "25.0 TFLOP", ""]
    durations = ["4 seconds", "1.5 minutes", "2 hours", "2.3 days"]
    assert [duration(x) for x in (4, 90, 7200, 200000)] == durations
    assert duration(60 * 86400) == "60 days"
    assert [time_words(120, on_gpu) for on_gpu in (True, False)] == ["120 GPU hours", "5 days"]
