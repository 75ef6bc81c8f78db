"""Try a plug-in: check the contracts of its tasks and models, train each briefly, measure costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lookback.benchmarks.measure.job import ignore_progress
from lookback.benchmarks.measure.step import (
    logits_and_targets,
    make_model,
    make_optimizer,
    training_step,
)
from lookback.benchmarks.measure.train import InterruptedRunError, NotFiniteError, learn
from lookback.benchmarks.plugins import load_plugins
from lookback.benchmarks.record import LearnCell
from lookback.models.contract import check_contract
from lookback.models.model import SequenceModel, model_names, parameter_count, state_bytes
from lookback.tasks.contract import check_task
from lookback.tasks.task import Task, get_task, task_names

WIDTH = 64
DEPTH = 2
TASK = "copy"  # that a model is tried on
MODEL = "transformer"  # that a task is tried with, and a model is set beside
SECONDS = 60.0  # for each training
TIMED_STEPS = 5
STATE_LENGTHS = (64, 256)  # tokens after which the bytes of a state are counted


def try_plugin(file: str) -> Iterator[str]:
    """Check every task and model that a file registers; yield each finding, then what to type next.

    Raises ValueError at the first that breaks its contract, or if the file registers nothing.
    """
    known_tasks = set(task_names())
    known_models = set(model_names())
    load_plugins([file])
    torch.set_num_threads(1)  # as in cells that learn
    tasks = sorted(set(task_names()) - known_tasks)
    models = sorted(set(model_names()) - known_models)
    if not tasks and not models:
        raise ValueError(f"{file}: expected a file that registers a task or a model")

    for name in tasks:
        yield from try_task(get_task(name))
    for name in models:
        yield from try_model(name)
    chosen = [f"--task {name}" for name in tasks] + [f"--model {name}" for name in models]
    yield f"next: lookback run quick --plugin {file} {' '.join(chosen)}"


def try_task(task: Task) -> Iterator[str]:
    """Check a task's batches at its shortest and its first usual length, and train a Transformer.

    Raises ValueError if a batch breaks the contract.
    """
    length = task.lengths[0]
    shortest = length if task.exact else -(-task.shortest // task.multiple) * task.multiple
    lengths = sorted({shortest, length})
    for each in lengths:
        check_task(task, each)
    numbers = " and ".join(map(str, lengths))
    yield f"task {task.name}: batches of {numbers} tokens keep the contract in all splits"
    yield f"task {task.name}: {trained(task, MODEL, length)}"


def try_model(name: str) -> Iterator[str]:
    """Check a model's block, count its state, time it and train it.

    Raises ValueError if the block breaks the contract, or if a parameter has no gradient.
    """
    check_contract(name, WIDTH, DEPTH, {}, "cpu")
    yield f"model {name}: causal, and its step, position by position, is its forward"

    task = get_task(TASK)
    length = task.lengths[0]
    cell = small_cell(task, name, length)
    model = make_model(cell, task)
    useless = no_gradient(model, task, cell)
    if useless:
        raise ValueError(f"model {name!r}: the loss does not depend on {', '.join(useless)}")
    yield f"model {name}: {parameter_count(model):,} parameters at width {WIDTH}, depth {DEPTH}"

    with torch.no_grad():
        few, many = (
            state_bytes(model.prefill(torch.zeros(1, tokens, dtype=torch.int64))[1])
            for tokens in STATE_LENGTHS
        )
    growth = "constant" if few == many else f"and {many:,} after {STATE_LENGTHS[1]}"
    yield f"model {name}: a state of {few:,} bytes after {STATE_LENGTHS[0]} tokens, {growth}"

    speeds = [tokens_per_second(task, each, length) for each in (name, MODEL)]
    yield (
        f"model {name}: trains {speeds[0]:,.0f} tokens a second at length {length}; "
        f"{MODEL}: {speeds[1]:,.0f}"
    )
    yield f"model {name}: {trained(task, name, length)}"


def small_cell(task: Task, model: str, length: int) -> LearnCell:
    """Return a cell that trains in seconds."""
    return LearnCell(
        kind="learn",
        task=task.name,
        model=model,
        width=WIDTH,
        depth=DEPTH,
        length=length,
        batch_size=16,
        steps=300,
        validations=3,
        test_examples=128,
        learning_rate=3e-3,
    )


def no_gradient(model: SequenceModel, task: Task, cell: LearnCell) -> list[str]:
    """Return the names of the parameters that the loss of a batch does not depend on."""
    batch = task.batch("train", 0, 0, cell.batch_size, cell.length)
    cross_entropy(*logits_and_targets(model, batch, cell)).backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def tokens_per_second(task: Task, name: str, length: int) -> float:
    """Return the tokens of training steps per second, after one step to warm up."""
    cell = small_cell(task, name, length)
    model = make_model(cell, task)
    optimizer = make_optimizer(model, cell.learning_rate, cell.weight_decay)
    batch = task.batch("train", 0, 0, cell.batch_size, length)
    training_step(model, optimizer, batch, cell, cell.learning_rate)
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        training_step(model, optimizer, batch, cell, cell.learning_rate)
    return TIMED_STEPS * batch.tokens.numel() / (time.perf_counter() - began)


def trained(task: Task, name: str, length: int) -> str:
    """Train a model on a task for at most SECONDS, and say its score beside the baseline."""
    cell = small_cell(task, name, length)
    deadline = time.monotonic() + SECONDS
    try:
        with tempfile.TemporaryDirectory() as folder:
            numbers = learn(
                cell,
                task,
                Path(folder),
                ignore_progress,
                lambda: time.monotonic() > deadline,
            )
    except InterruptedRunError:
        return f"{name} was not trained to the end within {SECONDS:.0f} seconds"
    except NotFiniteError as error:
        return f"{name} cannot be trained at rate {cell.learning_rate:g}: {error}"
    result = f"{name} scores {numbers.tests[0].score:.3f} {task.score} at length {length}"
    training = f"{numbers.steps} steps of {task.name}, {numbers.seconds:.0f} s"
    return f"{result} after {training}; the constant baseline scores {task.baseline_score:.3f}"
