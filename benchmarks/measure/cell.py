"""Measures one cell: checks that it can be measured, then trains it or times it, and turns what
happens into an outcome.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from lookback.benchmarks.measure.cost import cost, out_of_memory
from lookback.benchmarks.measure.memory import LiveBytes
from lookback.benchmarks.measure.step import (
    Progress,
    logits_and_targets,
    make_model,
    model_of,
    precision,
)
from lookback.benchmarks.measure.train import InterruptedRunError, NotFiniteError, learn
from lookback.benchmarks.record import (
    AnyCell,
    Cell,
    LearnCell,
    Outcome,
    ResolvedOptions,
    Status,
    TaskFacts,
)
from lookback.models.contract import check_contract
from lookback.models.model import model_options, parameter_count
from lookback.tasks.task import AbsentCorpusError, Task, get_task

KERNEL_TOKENS = 1024  # read to see which operators a `cost` cell calls


def check(cell: AnyCell) -> int:
    """Return the number of parameters of a cell's model.

    Raises ValueError if the cell asks for a task, model, option, length or device that does not exist.
    """
    task = get_task(cell.task, cell.task_options)
    for length in _lengths(cell):
        task.check_length(length)
    if cell.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the torch installed here sees no CUDA GPU: use --device cpu")

    if cell.kind == "cost" and task.sequences_per_example > 1:
        raise ValueError(
            f"task {task.name!r} asks about pairs: a `cost` cell measures one sequence at a time"
        )
    if cell.kind == "learn":
        _check_processes(cell)

    with torch.device("meta"):
        return parameter_count(model_of(cell, task))


def _lengths(cell: AnyCell) -> list[int]:
    """Return every length that a cell draws sequences of."""
    lengths = [cell.length]
    if cell.kind == "learn":
        lengths += cell.test_lengths
        if cell.start_length:
            lengths.append(cell.start_length)
    return lengths


def _check_processes(cell: LearnCell) -> None:
    """Raise ValueError if this many processes cannot train the cell together."""
    message = f"processes = {cell.processes}: expected at most one"
    if cell.processes > cell.batch_size:
        raise ValueError(f"{message} for each of the {cell.batch_size} sequences of a batch")
    gpus = torch.cuda.device_count()
    if cell.device == "cuda" and cell.processes > gpus:
        raise ValueError(f"{message} for each of the {gpus} GPUs that torch sees here")


def resolve_options(cell: AnyCell) -> ResolvedOptions:
    """Return every option of a cell's task and model, defaults included."""
    return ResolvedOptions(
        task=get_task(cell.task, cell.task_options).options,
        model={**model_options(cell.model), **cell.model_options},
    )


def absent_data(cells: Iterable[AnyCell]) -> dict[AnyCell, str]:
    """The cells whose task's data are not on this machine, each with the line that says how to get
    them.
    """
    lines: dict[tuple[str, str], str] = {}
    absent = {}
    for cell in cells:
        key = cell.task, json.dumps(cell.task_options, sort_keys=True)
        if key not in lines:
            lines[key] = _how_to_get(cell)
        if lines[key]:
            absent[cell] = lines[key]
    return absent


def _how_to_get(cell: Cell) -> str:
    """What the task says where its data are absent; nothing where they are at hand."""
    try:
        _ = get_task(cell.task, cell.task_options).data
    except AbsentCorpusError as error:
        return str(error)
    return ""


def measure(cell: AnyCell, folder: Path, progress: Progress, stop: list[bool]) -> Outcome:
    """The outcome of a cell; everything that can happen to it, but an interruption, is one."""
    facts = None
    kernels: tuple[str, ...] = ()
    try:
        task = get_task(cell.task, cell.task_options)
        facts = _facts(task)
        with precision(cell):
            check_contract(cell.model, cell.width, cell.depth, cell.model_options, cell.device)
        kernels = kernels_of(cell, task)
        if cell.kind == "cost":
            costs = cost(cell, task, progress)
            status: Status = next(iter(costs.failed.values()), "ok")
            return Outcome(status=status, task=facts, cost=costs, kernels=kernels)
        numbers = learn(cell, task, folder, progress, lambda: stop[0])
        return Outcome(status="ok", task=facts, learn=numbers, kernels=kernels)
    except InterruptedRunError:
        raise
    except NotFiniteError as error:
        return Outcome(status="nan", message=str(error), task=facts, kernels=kernels)
    except Exception as error:
        if out_of_memory(error):
            return Outcome(status="oom", message=_first_line(error), task=facts, kernels=kernels)
        return Outcome(
            status="error", message=traceback.format_exc()[-2000:], task=facts, kernels=kernels
        )


def _first_line(error: Exception) -> str:
    """What an error says, briefly; Python's own MemoryError says nothing."""
    return (str(error).strip().splitlines() or ["no memory left"])[0]


def _facts(task: Task) -> TaskFacts:
    return TaskFacts(
        vocabulary=task.vocabulary,
        classes=task.classes,
        score=task.score,
        baseline_score=task.baseline_score,
        source=task.source,
        data=task.data,
    )


def kernels_of(cell: AnyCell, task: Task) -> tuple[str, ...]:
    """The operators for attention, WKV and LSTM that one forward pass of the cell really calls."""
    batch = task.batch("train", cell.seed, 0, 1, cell.length)
    model = make_model(cell, task)
    with LiveBytes() as watch, torch.no_grad():
        if cell.kind == "learn":
            logits_and_targets(model, batch, cell)
        else:  # a beginning will do: longer sequences are there to cost much
            with contextlib.suppress(MemoryError, RuntimeError), precision(cell):
                model(batch.tokens[:, :KERNEL_TOKENS].to(cell.device))
    return tuple(sorted(watch.kernels))
