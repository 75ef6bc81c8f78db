"""Estimate what a cell needs without running it.

A training step goes through the cell's model on tensors that have shapes but no memory
(FakeTensorMode), by the same functions that measure a cell. Bytes and operations are counted on the
way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from lookback.benchmarks.measure.cost import CPU_WARMUP, LEARNING_RATE, WEIGHT_DECAY
from lookback.benchmarks.measure.evaluate import (
    EVALUATION_BATCH,
    EVALUATION_TOKENS,
    planned_tests,
)
from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.measure.operations import counter
from lookback.benchmarks.measure.step import (
    SkipInitialisation,
    logits_and_targets,
    make_optimizer,
    meta_model,
    model_of,
    precision,
    training_step,
)
from lookback.benchmarks.record import AnyCell
from lookback.models.matrix_state import chunked
from lookback.models.model import parameter_count
from lookback.models.model import state_bytes as bytes_of_state
from lookback.models.wkv import tiled
from lookback.tasks.task import AbsentCorpusError, Batch, Task, get_task

# Fields that change neither shapes nor the number of steps: cells that differ in these alone
# share one estimate.
IRRELEVANT = (
    "seed",
    "learning_rate",
    "weight_decay",
    "warmup",
    "time_limit",
    "reach",
    "compile",
    "deterministic",
)
READ_NUMBER = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
READ_DEVICE = torch.ops.prim.device.default  # half of all operations on fake tensors
FORMULAS = counter().flop_registry
LSTM = torch.ops.aten.mkldnn_rnn_layer.default


@dataclass(frozen=True)
class Estimate:
    """Needs of one cell; None if its model cannot run on tensors without numbers.

    peak_bytes: largest number of bytes of tensors alive at once, in training or in a test. On a CPU
    it agrees with the measured number. For a GPU it is approximate, because it follows the CPU's
    operators, without their scratch memory. With several processes it counts one GPU, or on a CPU
    all processes together.
    """

    parameters: int
    step_flops: int | None  # of one training step; a multiplication and an addition are two
    flops: int | None  # of the whole cell
    peak_bytes: int | None


def estimate(cell: AnyCell) -> Estimate:
    """Return the needs of a cell; raises ValueError if its task or model does not exist."""
    fields = type(cell).model_fields
    defaults = {name: fields[name].default for name in IRRELEVANT if name in fields}
    return _estimate(cell.model_copy(update=defaults))


@cache
def _estimate(cell: AnyCell) -> Estimate:
    rows = -(-cell.batch_size // cell.processes)  # of the batch, in each process
    longest = max(cell.length, *getattr(cell, "test_lengths", ()), 0)
    training_batch = fake_batch_maker(cell, cell.length)
    test_batch = fake_batch_maker(cell, longest)

    try:
        with FakeTensorMode():
            run = FakeRun(cell)
            flops, peak = run.measure(lambda: run.train(training_batch(rows)))
            if longest > cell.length:  # otherwise training, which keeps activations, needs more
                batch_size = max(1, min(EVALUATION_BATCH, EVALUATION_TOKENS // longest))
                test_peak = run.measure(lambda: run.evaluate(test_batch(batch_size)))[1]
                peak = max(peak, test_peak)
    except (RuntimeError, NotImplementedError):  # the model looks at its numbers
        return Estimate(count_parameters(cell), None, None, None)

    sequence_flops = flops / rows
    training = training_steps(cell) * cell.batch_size
    return Estimate(
        parameters=parameter_count(run.model),
        step_flops=round(sequence_flops * cell.batch_size),
        # A forward pass takes a third of the operations of a training step.
        flops=round(sequence_flops * (training + _evaluated_sequences(cell) / 3)),
        peak_bytes=peak * cell.processes if cell.device == "cpu" else peak,
    )


def training_steps(cell: AnyCell) -> float:
    """Return the training steps of a cell, counted in steps at its full length."""
    if cell.kind == "cost":
        return cell.repeats + CPU_WARMUP + 1

    # Shorter sequences in training come in larger batches.
    return float(cell.steps * max(1, len(cell.learning_rates)))


def _evaluated_sequences(cell: AnyCell) -> float:
    """Return how many sequences of its length a cell reads without training on them."""
    if cell.kind == "cost":  # prefill, and generation of as many tokens
        return cell.batch_size * (cell.repeats + CPU_WARMUP + 1 + cell.generate)

    validations = max(1, len(cell.learning_rates)) * cell.validations
    lengths = [test.length for test in planned_tests(cell, task_of(cell))]
    test_tokens = cell.test_examples * sum(lengths)
    return validations * cell.validation_examples + test_tokens / cell.length


def count_parameters(cell: AnyCell) -> int:
    """Return the number of weights, embedding and head included.

    Raises ValueError if the model does not exist or cannot have this width.
    """
    return parameter_count(meta_model(cell, task_of(cell)))


def step_flops(cell: AnyCell) -> int:
    """Return the operations of a training step on one sequence of the cell's length.

    Raises RuntimeError if the model cannot run on tensors without numbers.
    """
    flops = estimate(cell.model_copy(update={"batch_size": 1, "processes": 1})).step_flops
    if flops is None:
        raise RuntimeError("it looks at numbers, which these tensors do not have")
    return flops


def state_bytes(cell: AnyCell) -> int:
    """Return the bytes of state that the model keeps after one sequence of the cell's length."""
    streaming = {"pooling": "last", "direction": "causal"} if cell.kind == "learn" else {}
    cell = cell.model_copy(update={"device": "cpu", **streaming})
    task = replace(task_of(cell), sequences_per_example=1)
    with FakeTensorMode(), torch.no_grad(), precision(cell):
        model = model_of(cell, task).eval()
        _, state = model.prefill(torch.zeros(1, cell.length, dtype=torch.int64))
    return bytes_of_state(state)


def task_of(cell: AnyCell) -> Task:
    """Return the cell's task; raises ValueError if it does not exist."""
    return get_task(cell.task, cell.task_options)


class FakeRun:
    """A cell's model and optimizer on the CPU; make it, and use it, inside FakeTensorMode."""

    def __init__(self, cell: AnyCell) -> None:
        self.cell = cell.model_copy(update={"device": "cpu"})
        self.counts_scratch = cell.device == "cpu"
        with SkipInitialisation():
            self.model = model_of(cell, task_of(cell))
        self.optimizer = make_optimizer(self.model, LEARNING_RATE, WEIGHT_DECAY)

        # One step makes the optimizer's state, which stays alive from then on.
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def train(self, batch: Batch) -> None:
        """Take one training step."""
        training_step(self.model.train(), self.optimizer, batch, self.cell, LEARNING_RATE)

    def evaluate(self, batch: Batch) -> None:
        """Compute the logits of a batch without training on it."""
        with torch.no_grad():
            logits_and_targets(self.model.eval(), batch, self.cell)

    def measure(self, run: Callable[[], None]) -> tuple[int, int]:
        """Return the operations of a call, and the most bytes that are alive during it."""
        live = FakeBytes(alive_in(self.model, self.optimizer), self.counts_scratch)
        with live, equal_segments_once(live):
            run()
        return live.flops, live.peak


@dataclass(frozen=True)
class FakeBatch(Batch):
    """A batch without numbers that asks for `count` answers."""

    count: int = 0

    def target_indices(self) -> Tensor:
        """Return `count` indices without numbers, with the storage that `nonzero` makes."""
        return torch.empty(self.count, 1, dtype=torch.int64).squeeze(1)


def fake_batch_maker(cell: AnyCell, length: int) -> Callable[[int], FakeBatch]:
    """Return a function that makes a batch of n sequences inside FakeTensorMode.

    Shapes are those of a real example, so call this outside FakeTensorMode. If the task's data are
    absent, every position is taken to be asked.
    """
    task = task_of(cell)
    try:
        example = task.batch("train", 0, 0, 1, length)
    except AbsentCorpusError:
        shape = (length,) if task.sequences_per_example == 1 else (2, length)
        tokens = torch.zeros(1, *shape, dtype=torch.int64)
        example = Batch(tokens, tokens[:, 0] if task.classes else tokens)
    shapes = {
        name: None if tensor is None else tensor.shape[1:]
        for name, tensor in vars(example).items()
        if name != "distances"
    }
    answers = len(example.target_indices())

    def make(rows: int) -> FakeBatch:
        tensors: dict[str, Any] = {}
        for name, shape in shapes.items():
            if shape is not None:
                tensors[name] = torch.zeros(rows, *shape, dtype=torch.int64)
        return FakeBatch(**tensors, count=rows * answers)

    return make


class FakeBytes(LiveBytes):
    """LiveBytes for tensors without numbers, which counts operations, too.

    Code that reads a number to choose its path reads 0. `flops` follows the formulas of torch's
    FlopCounterMode, whose module hooks would keep gradients alive and so change the bytes.

    Args:
        alive: tensors that count from the start, as for LiveBytes.
        scratch: count what custom operators written in Python allocate inside, too.
    """

    def __init__(self, alive: Any, scratch: bool) -> None:
        super().__init__(alive)
        self.scratch = scratch
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is READ_DEVICE:
            return func(*args)
        if func in READ_NUMBER:
            return 0.0 if args[0].is_floating_point() else 0
        if _writes_in_place(func, args):
            return args[0]  # fake tensors hold no numbers, so there is nothing to do

        before = self.now
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket in FORMULAS:
            formula = FORMULAS[func.overloadpacket]
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        if self.scratch and func.name() in OPDEFS:
            self.peak = max(self.peak, before + _scratch_bytes(func, args, kwargs or {}))
        if func is LSTM and args[-1]:  # in training; the fake operator's workspace is empty
            length, batch_size, input_width = args[0].shape
            size = _lstm_workspace_bytes(length * batch_size, input_width, width=args[10])
            workspace = torch.empty(size, dtype=torch.uint8)
            result = (*result[:3], workspace)
            self._count(workspace)
        return result

    def _looks_inside(self, args: Any) -> bool:
        return False


def _writes_in_place(func: Any, args: Any) -> bool:
    name = func.overloadpacket.__name__
    changes_shape = torch.Tag.inplace_view in func.tags
    return name.endswith("_") and isinstance(args[0], Tensor) and not changes_shape


SCRATCH: dict[Any, int] = {}  # (operator, shapes) -> bytes that it has alive at most, results too


def _scratch_bytes(func: Any, args: Any, kwargs: Any) -> int:
    """Run a custom operator's Python code on fake tensors, once for each combination of shapes."""
    key = _shapes(func, args, kwargs)
    if key not in SCRATCH:
        live = FakeBytes((args, kwargs), scratch=True)
        before = live.now
        with live, few_tiles():
            OPDEFS[func.name()]._init_fn(*args, **kwargs)
        SCRATCH[key] = live.peak - before
    return SCRATCH[key]


@contextmanager
def few_tiles() -> Iterator[None]:
    """Let WKV visit three tiles of a sequence: thousands would take no more memory."""

    tiles = tiled.tiles

    def first_and_last(k: Tensor) -> list[slice]:
        everything = tiles(k)
        return everything if len(everything) <= 3 else [*everything[:2], everything[-1]]

    try:
        tiled.tiles = first_and_last
        yield
    finally:
        tiled.tiles = tiles


NEEDS: dict[Any, tuple[int, int, Any]] = {}  # (function, shapes) -> what a call took


@contextmanager
def equal_segments_once(live: FakeBytes) -> Iterator[None]:
    """Let matrix_state compute one segment of each shape, and count its equals like it.

    Long sequences have many, and every operation on a fake tensor takes 0.1 ms.
    """

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if torch.is_grad_enabled():  # results without a graph would not do
                return function(*arguments)
            key = _shapes(function, arguments)
            if key not in NEEDS:
                inner = FakeBytes(arguments, scratch=False)
                before = inner.now
                with inner:
                    results = function(*arguments)
                makers = tree_map_only(Tensor, _maker, results)
                NEEDS[key] = inner.flops, inner.peak - before, makers
                return results
            flops, scratch, makers = NEEDS[key]
            live.flops += flops
            live.peak = max(live.peak, live.now + scratch)
            return tree_map_only(partial, lambda make: make(), makers)

        return call

    functions = chunked.compute_segment, chunked.segment_gradients
    try:
        chunked.compute_segment = once(chunked.compute_segment)
        chunked.segment_gradients = once(chunked.segment_gradients)
        yield
    finally:
        chunked.compute_segment, chunked.segment_gradients = functions


def _maker(tensor: Tensor) -> partial[Tensor]:
    """Return a function that makes an empty tensor of the same shape and dtype."""
    return partial(torch.empty, tensor.shape, dtype=tensor.dtype)


def _shapes(*values: Any) -> tuple[Any, ...]:
    """Return shapes and dtypes in place of tensors, and everything else as it is."""
    leaves = tree_leaves(values)
    return tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)


SHORT, LONG = 64, 320  # positions


@cache
def _lstm_workspace_bytes(positions: int, input_width: int, width: int) -> int:
    """Return the bytes that the LSTM operator keeps for its backward pass.

    They grow linearly with positions, so two short sequences give those of every length.
    """
    workspaces = []
    with _disable_current_modes():  # real tensors, in spite of FakeTensorMode
        for length in (SHORT, LONG):
            x = torch.zeros(length, 1, input_width)
            weights = torch.zeros(4 * width, input_width), torch.zeros(4 * width, width)
            biases = torch.zeros(4 * width), torch.zeros(4 * width)
            state = torch.zeros(1, 1, width), torch.zeros(1, 1, width)
            options: Any = (False, [], 2, width, 1, True, False, False, True)
            workspaces.append(LSTM(x, *weights, *biases, *state, *options)[3].nbytes)
    short, long = workspaces
    return short + (positions - SHORT) * (long - short) // (LONG - SHORT)
