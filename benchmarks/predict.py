"""What a cell will need, told without running it.

Its model, a training step and a test are gone through with tensors that have shapes but no memory (FakeTensorMode), by
the same functions as measuring does, and bytes and operations are counted on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from benchmarks.cost import CPU_WARMUP
from benchmarks.evaluate import EVALUATION_BATCH, EVALUATION_TOKENS
from benchmarks.flops import counter
from benchmarks.memory import LiveBytes, alive_in
from benchmarks.record import Cell
from benchmarks.step import answers, make_optimizer, model_of, precision, training_step
from models.model import parameter_count
from tasks.task import AbsentCorpusError, Batch, Task, get_task

READINGS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
LSTM = torch.ops.aten.mkldnn_rnn_layer.default
# What a cell's numbers depend on, besides its model and task
SIZES = ("length", "test_lengths", "batch_size", "precision", "device", "pooling", "direction", "dropout")
EFFORT = ("test_examples", "steps", "learning_rates", "validations", "validation_examples", "repeats", "generate")
ARCHITECTURE = ("kind", "task", "task_options", "model", "model_options", "width", "depth")


@dataclass(frozen=True)
class Need:
    """Of one cell; None where the model cannot be gone through without numbers.

    peak_bytes: most bytes of tensors alive at once, in training or in the largest test. Of a cell on a CPU they agree
    with what is measured; for a GPU they are an estimate, made of the CPU's operators without their scratch.
    """

    parameters: int
    step_flops: int | None  # of one training step
    flops: int | None  # of the whole cell
    peak_bytes: int | None


def need(cell: Cell) -> Need:
    """What the cell will need; cells that differ in seed, rate and the like are gone through once."""
    return _need(_essence(cell, *ARCHITECTURE, *SIZES, *EFFORT))


def _essence(cell: Cell, *fields: str) -> Cell:
    """The cell with all but these fields at their defaults, so that it can be looked up."""
    return Cell.model_validate({**{name: getattr(cell, name) for name in fields}, "time_limit": 1.0})


@cache
def _need(cell: Cell) -> Need:
    parameters = count_parameters(cell)
    try:
        step, peak = _training(_essence(cell, *ARCHITECTURE, *SIZES))
        flops, most = _whole(cell, step)
    except (RuntimeError, NotImplementedError):  # a model that looks at its numbers
        return Need(parameters, None, None, None)
    return Need(parameters, step, flops, max(peak, most))


def count_parameters(cell: Cell) -> int:
    """Of the cell's model, embedding and head included; raises ValueError when there is no such model."""
    with torch.device("meta"):
        return parameter_count(model_of(cell, task_of(cell)))


def task_of(cell: Cell) -> Task:
    return get_task(cell.task, cell.task_options)


@cache
def _training(cell: Cell) -> tuple[int, int]:
    """Operations of one training step, and the most bytes alive in it."""
    with FakeTensorMode():
        run, alive = _prepared(cell)
        with counter() as counted:
            run()  # the optimizer makes its state
        with FakeBytes(alive(), inside=cell.device == "cpu") as bytes_:
            run()
    return counted.get_total_flops(), bytes_.peak


def _prepared(cell: Cell) -> tuple[Callable[[], Any], Callable[[], list[Any]]]:
    """A training step to run, and what is alive between two of them."""
    task, here = task_of(cell), cell.model_copy(update={"device": "cpu"})
    model, batch = model_of(here, task).train(), _shapes(cell).of(cell.batch_size)
    optimizer = make_optimizer(model, here)
    return lambda: training_step(model, optimizer, batch, here, 0), lambda: alive_in(model, optimizer)


@cache
def _reading(cell: Cell, rows: int) -> tuple[float, int]:
    """Operations for each of `rows` sequences that are only read, and the most bytes alive meanwhile."""
    task, here = task_of(cell), cell.model_copy(update={"device": "cpu"})
    with FakeTensorMode(), torch.no_grad():
        model, batch = model_of(here, task).eval(), _shapes(cell).of(rows)
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)] if cell.kind == "learn" else []
        with FakeBytes([alive_in(model), moments], inside=cell.device == "cpu") as bytes_, counter() as counted:
            answers(model, batch, here)
    return counted.get_total_flops() / rows, bytes_.peak


def _whole(cell: Cell, step: int) -> tuple[int, int]:
    """Operations of a whole cell whose training step has `step` of them, and the most bytes alive in its tests."""
    one = _essence(cell, *ARCHITECTURE, *SIZES).model_copy(update={"test_lengths": ()})
    if cell.kind == "cost":
        once, _ = _reading(one, cell.batch_size)
        runs = cell.repeats + CPU_WARMUP + 1
        return round(runs * (step + once * cell.batch_size) + cell.generate * once * cell.batch_size), 0
    rates = max(1, len(cell.learning_rates))
    readings = [(cell.length, cell.validations * cell.validation_examples * rates)]
    readings += [(length, cell.test_examples) for length in cell.test_lengths or (cell.length,)]
    flops, peak = float(rates * cell.steps * step), 0
    for length, examples in readings:
        rows = max(1, min(EVALUATION_BATCH, examples, EVALUATION_TOKENS // length))
        each, most = _reading(one.model_copy(update={"length": length, "batch_size": 1}), rows)
        flops, peak = flops + each * examples, max(peak, most)
    return round(flops), peak


def state_bytes(cell: Cell) -> int:
    """What the cell's model keeps of one sequence of the cell's length, as decoding goes on from it."""
    here = cell.model_copy(update={"device": "cpu", "pooling": "last", "direction": "causal"})
    with FakeTensorMode(), torch.no_grad(), precision(here):
        model = model_of(here, replace(task_of(cell), documents=1)).eval()
        _, state = model.prefill(torch.zeros(1, cell.length, dtype=torch.int64))
    storages = [leaf.untyped_storage() for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def step_flops(cell: Cell) -> int:
    """Operations of a training step on one sequence of the cell's length."""
    with FakeTensorMode(), counter() as counted:
        _prepared(cell.model_copy(update={"batch_size": 1}))[0]()
    return counted.get_total_flops()


@dataclass(frozen=True)
class Shapes:
    """Of one sequence's tokens, targets and lengths, and how much of it is asked."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    lengths: tuple[int, ...] | None
    asked: int

    def of(self, rows: int) -> ShapedBatch:
        tokens, targets = (torch.zeros(rows, *shape, dtype=torch.int64) for shape in (self.tokens, self.targets))
        lengths = None if self.lengths is None else torch.ones(rows, *self.lengths, dtype=torch.int64)
        return ShapedBatch(tokens, targets, lengths=lengths, count=rows * self.asked)


@dataclass(frozen=True)
class ShapedBatch(Batch):
    """A batch of no numbers, of whose answers `count` are asked for."""

    count: int = 0

    def asked(self) -> Tensor:
        return torch.empty(self.count, 1, dtype=torch.int64).squeeze(1)


def _shapes(cell: Cell) -> Shapes:
    """Found by a real example; of a task whose data are not here, everything is taken to be asked."""
    return _sampled(cell.task, json.dumps(cell.task_options, sort_keys=True), cell.length)


@cache
def _sampled(name: str, options: str, length: int) -> Shapes:
    task = get_task(name, json.loads(options))
    try:
        with _disable_current_modes():
            batch = task.batch("train", 0, 0, 1, length)
            asked = len(batch.asked())
    except AbsentCorpusError:
        many = (length,) if task.documents == 1 else (task.documents, length)
        return Shapes(many, () if task.classes else many, None, 1 if task.classes else length)
    lengths = None if batch.lengths is None else tuple(batch.lengths.shape[1:])
    return Shapes(tuple(batch.tokens.shape[1:]), tuple(batch.targets.shape[1:]), lengths, asked)


class FakeBytes(LiveBytes):
    """LiveBytes among tensors without numbers: where a number is read, for deciding on a path, it is 0.

    `inside` looks into operators written in Python, once for each shape. The workspace of the LSTM's operator, of which
    its fake form does not tell, is asked of real ones that are short.
    """

    scratch: ClassVar[dict[Any, int]] = {}  # bytes that an operator, called so, has alive at most

    def __init__(self, alive: Any, inside: bool) -> None:
        super().__init__(alive)
        self.inside = inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READINGS:
            return 0.0 if args[0].is_floating_point() else 0
        if func._schema.name[-1] == "_" and torch.Tag.inplace_view not in func.tags and func._schema.returns:
            return args[0]  # written in place: nothing is made
        if func._schema.name in OPDEFS and self.inside:
            return self._with_scratch(func, types, args, kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is LSTM and args[-1]:
            result = (*result[:3], torch.empty(_workspace(args), dtype=torch.uint8))
            self._count(result)
        return result

    def _with_scratch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        key = func, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in tree_leaves((args, kwargs)))
        before, peak = self.now, self.peak
        if key in self.scratch:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        else:
            self.peak = before
            with self:
                result = OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
            self.scratch[key] = self.peak - before
        self.peak = max(peak, self.peak, before + self.scratch[key])
        return result

    def _looks_inside(self, args: Any) -> bool:
        return False


SHORT = (64, 320)  # positions


def _workspace(args: Any) -> int:
    """Bytes the LSTM's operator keeps for its backward pass: the same for every position, and some for all."""
    length, batch_size, width = args[0].shape
    few, more = (_short_workspace(n, width, args[10]) for n in SHORT)
    return few + (length * batch_size - SHORT[0]) * (more - few) // (SHORT[1] - SHORT[0])


@cache
def _short_workspace(length: int, into: int, width: int) -> int:
    with _disable_current_modes():
        weights = torch.zeros(4 * width, into), torch.zeros(4 * width, width)
        biases, state = torch.zeros(2, 4 * width).unbind(), torch.zeros(2, 1, width).unbind()
        x = torch.zeros(length, 1, into)
        return LSTM(x, *weights, *biases, *state, False, [], 2, width, 1, True, False, False, True)[3].nbytes
