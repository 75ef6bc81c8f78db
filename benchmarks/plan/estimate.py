"""What a cell will need, told without running it.

Its model, a training step and a test are gone through with tensors that have shapes but no memory
(FakeTensorMode), by the same functions as measuring does, and bytes and operations are counted on
the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lookback.benchmarks.measure.cost import CPU_WARMUP, LEARNING_RATE, WEIGHT_DECAY
from lookback.benchmarks.measure.evaluate import EVALUATION_BATCH, EVALUATION_TOKENS
from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.measure.operations import counter
from lookback.benchmarks.measure.step import (
    logits_and_targets,
    make_optimizer,
    model_of,
    precision,
    training_step,
)
from lookback.benchmarks.record import AnyCell
from lookback.models.model import parameter_count
from lookback.models.model import state_bytes as bytes_of_state
from lookback.models.wkv import tiled
from lookback.tasks.task import AbsentCorpusError, Batch, Task, get_task

READINGS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
LSTM = torch.ops.aten.mkldnn_rnn_layer.default
ALIKE = (
    "seed",
    "learning_rate",
    "weight_decay",
    "warmup",
    "time_limit",
    "target_score",
    "reach",
    "compile",
    "deterministic",
)


@dataclass(frozen=True)
class Estimate:
    """Of one cell; None where the model cannot be gone through without numbers.

    peak_bytes: most bytes of tensors alive at once, in training or in the largest test. Of a cell
    on a CPU they agree with what is measured; for a GPU they are an estimate, made of the CPU's
    operators without their scratch. Of several processes they are those of each GPU, or on a CPU of
    all together.
    """

    parameters: int
    step_flops: int | None  # of one training step
    flops: int | None  # of the whole cell
    peak_bytes: int | None


def need(cell: AnyCell) -> Estimate:
    """What the cell will need; cells that differ in seed, rate and the like are gone through once."""
    return _need(_essence(cell))


def peak_bytes(cell: AnyCell) -> int | None:
    """Of `need` that part alone, in less time."""
    return _peak_bytes(_essence(cell))


def _essence(cell: AnyCell) -> AnyCell:
    return cell.model_copy(
        update={
            name: field.default for name, field in type(cell).model_fields.items() if name in ALIKE
        }
    )


@cache
def _need(cell: AnyCell) -> Estimate:
    peak = _peak_bytes(cell)
    if peak is None:
        return Estimate(count_parameters(cell), None, None, None)
    with FakeTensorMode():
        rehearsal = FakeRun(cell)
        step, flops = rehearsal.operations()
    return Estimate(parameter_count(rehearsal.model), step, flops, peak)


@cache
def _peak_bytes(cell: AnyCell) -> int | None:
    rows = -(-cell.batch_size // cell.processes)
    one = cell.model_copy(update={"batch_size": rows})
    try:
        with FakeTensorMode():
            peak = FakeRun(one).peak_bytes()
    except (RuntimeError, NotImplementedError):  # a model that looks at its numbers
        return None
    return peak * (cell.processes if cell.device == "cpu" else 1)


def count_parameters(cell: AnyCell) -> int:
    """Of the cell's model, embedding and head included; raises ValueError when there is no such
    model.
    """
    with torch.device("meta"):
        return parameter_count(model_of(cell, task_of(cell)))


def task_of(cell: AnyCell) -> Task:
    """The cell's task; raises ValueError where there is none."""
    return get_task(cell.task, cell.task_options)


class FakeRun:
    """A cell's model and optimizer on a CPU, and what goes through them. To be made within
    FakeTensorMode.
    """

    def __init__(self, cell: AnyCell) -> None:
        self.cell, self.here = cell, cell.model_copy(update={"device": "cpu"})
        self.model = model_of(cell, task_of(cell))
        self.optimizer = make_optimizer(self.model, LEARNING_RATE, WEIGHT_DECAY)
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.optimizer.step()  # makes its state
        self.optimizer.zero_grad(set_to_none=True)

    def training_step(self) -> None:
        """One step, on a batch without numbers."""
        batch = _shapes(self.cell, self.cell.length).of(self.cell.batch_size)
        training_step(self.model.train(), self.optimizer, batch, self.here, LEARNING_RATE)

    def reading(self, length: int, rows: int) -> None:
        """So many sequences without learning from them."""
        with torch.no_grad():
            logits_and_targets(self.model.eval(), _shapes(self.cell, length).of(rows), self.here)

    def peak_bytes(self) -> int:
        """Most bytes alive: in a training step, or in what of validation and tests goes through the
        model at once.
        """
        runs = [self.training_step]
        if self.cell.kind == "learn":
            length, rows, _ = max(self.readings(), key=lambda r: r[0] * r[1])
            runs.append(lambda: self.reading(length, rows))
        most = 0
        for run in runs:
            with FakeBytes(
                alive_in(self.model, self.optimizer), inside=self.cell.device == "cpu"
            ) as counted:
                run()
            most = max(most, counted.peak)
        return most

    def readings(self) -> list[tuple[int, int, int]]:
        """Length, sequences at once and sequences in all, of validation and tests."""
        cell = self.cell
        todo = [
            (
                cell.length,
                max(1, len(cell.learning_rates)) * cell.validations * cell.validation_examples,
            )
        ]
        todo += [(length, cell.test_examples) for length in cell.test_lengths or (cell.length,)]
        return [
            (n, max(1, min(EVALUATION_BATCH, count, EVALUATION_TOKENS // n)), count)
            for n, count in todo
        ]

    def operations(self) -> tuple[int, int]:
        """Of one training step, and of the whole cell."""
        cell, step = self.cell, count_flops(self.training_step)
        if cell.kind == "cost":
            once = count_flops(
                lambda: self.reading(cell.length, cell.batch_size)
            )  # prefilled, or generated
            return step, (cell.repeats + CPU_WARMUP + 1) * (step + once) + cell.generate * once
        growing = (
            1.0 if cell.start_length is None else 0.75 + 0.25 * cell.start_length / cell.length
        )  # its mean length
        flops = max(1, len(cell.learning_rates)) * cell.steps * step * growing
        for length, rows, examples in self.readings():
            # type: ignore[misc]
            flops += count_flops(lambda n=length, r=rows: self.reading(n, r)) * examples / rows
        return step, round(flops)


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call."""
    with counter() as counted:
        run()
    return counted.get_total_flops()


def state_bytes(cell: AnyCell) -> int:
    """What the cell's model keeps of one sequence of the cell's length, as decoding goes on from
    it.
    """
    here = cell.model_copy(update={"device": "cpu"} | _streaming(cell))
    with FakeTensorMode(), torch.no_grad(), precision(here):
        model = model_of(here, replace(task_of(cell), sequences_per_example=1)).eval()
        _, state = model.prefill(torch.zeros(1, cell.length, dtype=torch.int64))
    return bytes_of_state(state)


def _streaming(cell: AnyCell) -> dict[str, str]:
    return {"pooling": "last", "direction": "causal"} if cell.kind == "learn" else {}


def step_flops(cell: AnyCell) -> int:
    """Operations of a training step on one sequence of the cell's length."""
    with FakeTensorMode():
        return count_flops(FakeRun(cell.model_copy(update={"batch_size": 1})).training_step)


@dataclass(frozen=True)
class Shapes:
    """Of one sequence's tokens, targets and lengths, and how much of it is asked."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    lengths: tuple[int, ...] | None
    asked: int

    def of(self, rows: int) -> ShapedBatch:
        """A batch of so many sequences of these shapes."""
        tokens, targets = (
            torch.zeros(rows, *shape, dtype=torch.int64) for shape in (self.tokens, self.targets)
        )
        lengths = (
            None if self.lengths is None else torch.ones(rows, *self.lengths, dtype=torch.int64)
        )
        return ShapedBatch(tokens, targets, lengths=lengths, count=rows * self.asked)


@dataclass(frozen=True)
class ShapedBatch(Batch):
    """A batch of no numbers, of whose answers `count` are asked for."""

    count: int = 0

    def target_indices(self) -> Tensor:
        """As many indices as are asked for, and no numbers in them."""
        return torch.empty(self.count, 1, dtype=torch.int64).squeeze(1)


def _shapes(cell: AnyCell, length: int) -> Shapes:
    """Found by a real example; of a task whose data are not here, everything is taken to be asked."""
    return _sampled(cell.task, json.dumps(cell.task_options, sort_keys=True), length)


@cache
def _sampled(name: str, options: str, length: int) -> Shapes:
    task = get_task(name, json.loads(options))
    try:
        with _disable_current_modes():
            batch = task.batch("train", 0, 0, 1, length)
            asked = len(batch.target_indices())
    except AbsentCorpusError:
        many = (
            (length,) if task.sequences_per_example == 1 else (task.sequences_per_example, length)
        )
        return Shapes(many, () if task.classes else many, None, 1 if task.classes else length)
    lengths = None if batch.lengths is None else tuple(batch.lengths.shape[1:])
    return Shapes(tuple(batch.tokens.shape[1:]), tuple(batch.targets.shape[1:]), lengths, asked)


class FakeBytes(LiveBytes):
    """LiveBytes among tensors without numbers: where a number is read, for deciding on a path, it
    is 0.

    `inside` looks into operators written in Python, once for each shape. The workspace of the
    LSTM's operator, of which its fake form does not tell, is asked of real ones that are short.
    """

    scratch: ClassVar[dict[Any, int]] = {}  # bytes that an operator, called so, has alive at most

    def __init__(self, alive: Any, inside: bool) -> None:
        super().__init__(alive)
        self.inside = inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READINGS:
            return 0.0 if args[0].is_floating_point() else 0
        if (
            func._schema.name[-1] == "_"
            and torch.Tag.inplace_view not in func.tags
            and func._schema.returns
        ):
            return args[0]  # written in place: nothing is made
        if func._schema.name in OPDEFS and self.inside:
            return self._with_scratch(func, types, args, kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is LSTM and args[-1]:
            result = (*result[:3], torch.empty(_workspace(args), dtype=torch.uint8))
            self._count(result)
        return result

    def _with_scratch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        key = (
            func,
            tuple(
                (x.shape, x.dtype) if isinstance(x, Tensor) else x
                for x in tree_leaves((args, kwargs))
            ),
        )
        before, peak = self.now, self.peak
        if key in self.scratch:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        else:
            self.peak = before
            with self, few_tiles():
                result = OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
            self.scratch[key] = self.peak - before
        self.peak = max(peak, self.peak, before + self.scratch[key])
        return result

    def _looks_inside(self, args: Any) -> bool:
        return False


@contextmanager
def few_tiles() -> Iterator[None]:
    """Within it, WKV goes through three tiles of a sequence, which has thousands, and all alike in
    memory.
    """

    tiles = tiled.tiles

    def few(k: Any) -> list[slice]:
        whole = tiles(k)
        return whole if len(whole) <= 3 else [*whole[:2], whole[-1]]

    try:
        tiled.tiles = few
        yield
    finally:
        tiled.tiles = tiles


SHORT = (64, 320)  # positions


def _workspace(args: Any) -> int:
    """Bytes the LSTM's operator keeps for its backward pass: the same for every position, and some
    for all.
    """
    length, batch_size, width = args[0].shape
    few, more = (_short_workspace(n, width, args[10]) for n in SHORT)
    return few + (length * batch_size - SHORT[0]) * (more - few) // (SHORT[1] - SHORT[0])


@cache
def _short_workspace(length: int, into: int, width: int) -> int:
    with _disable_current_modes():
        weights = torch.zeros(4 * width, into), torch.zeros(4 * width, width)
        biases, state = torch.zeros(2, 4 * width).unbind(), torch.zeros(2, 1, width).unbind()
        x = torch.zeros(length, 1, into)
        return LSTM(x, *weights, *biases, *state, False, [], 2, width, 1, True, False, False, True)[
            3
        ].nbytes
