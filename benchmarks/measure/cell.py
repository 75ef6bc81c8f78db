"""Measures one cell: checks it, trains or times it, and returns the outcome."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from lookback.benchmarks.measure.cost import cost
from lookback.benchmarks.measure.evaluate import planned_tests
from lookback.benchmarks.measure.memory import LiveBytes, describe_error
from lookback.benchmarks.measure.step import (
    Progress,
    logits_and_targets,
    make_model,
    meta_model,
    precision,
)
from lookback.benchmarks.measure.train import InterruptedRunError, NotFiniteError, learn
from lookback.benchmarks.record import (
    AnyCell,
    CostNumbers,
    LearnNumbers,
    Outcome,
    Record,
    ResolvedOptions,
    Status,
    TaskFacts,
    make_cell,
)
from lookback.models.contract import check_contract
from lookback.models.model import find_architecture, model_options, parameter_count
from lookback.tasks.contract import check_task
from lookback.tasks.task import AbsentCorpusError, Task, get_task

KERNEL_TOKENS = 1024  # most tokens read to see which operators a cost cell calls


def check(cell: AnyCell, here: bool = True) -> int:
    """Return the number of parameters of a cell's model.

    If the cell is to be measured `here`, this machine must have its device.

    Raises ValueError if the cell asks for a task, model, option, length or device that does not
    exist.
    """
    task = get_task(cell.task, cell.task_options)
    for length in _training_lengths(cell):
        task.check_length(length)
    if cell.kind == "learn":
        tests = list(planned_tests(cell, task))
        for test in tests:
            if test.task.vocabulary != task.vocabulary:
                raise ValueError(
                    f"test_options {test.options}: expected the vocabulary of training"
                )
            test.task.check_length(test.length)
        for length in set(cell.test_lengths) - {test.length for test in tests}:
            tests[0].task.check_length(length)  # too short for all options

    if here:
        _check_device(cell)
    if cell.kind == "cost" and task.sequences_per_example > 1:
        raise ValueError(
            f"task {task.name!r} asks about pairs: a `cost` cell measures one sequence at a time"
        )
    if cell.kind == "learn" and cell.processes > cell.batch_size:
        raise ValueError(
            f"processes = {cell.processes}: expected at most one for each of the "
            f"{cell.batch_size} sequences of a batch"
        )

    model = meta_model(cell, task)
    model.check_length(max([cell.length, *getattr(cell, "test_lengths", ())]))
    return parameter_count(model)


def _check_device(cell: AnyCell) -> None:
    """Raise ValueError if this machine lacks a cell's device, or its model cannot run on it."""
    if cell.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the torch installed here sees no CUDA GPU: use --device cpu")
    gpus = torch.cuda.device_count()
    if cell.device == "cuda" and cell.kind == "learn" and cell.processes > gpus:
        raise ValueError(
            f"processes = {cell.processes}: expected at most one for each of the {gpus} GPUs "
            "that torch sees here"
        )
    spec = find_architecture(cell.model).spec_with(cell.model_options)
    if cell.device == "cpu" and spec.needs_gpu:
        raise ValueError(
            f"model {cell.model!r} needs a GPU, which its library's kernels are written for; "
            "--dry-run and describe work without one"
        )


def _training_lengths(cell: AnyCell) -> list[int]:
    """Return the longest and the shortest length that a cell trains on."""
    if cell.kind == "learn" and cell.start_length:
        return [cell.length, cell.start_length]
    return [cell.length]


def check_tasks(cells: Iterable[AnyCell]) -> None:
    """Check the batches of each task of a plug-in, at the shortest length that it is used at.

    Raises ValueError if one breaks the contract.
    """
    shortest: dict[str, AnyCell] = {}
    for cell in cells:
        key = json.dumps([cell.task, cell.task_options], sort_keys=True)
        if key not in shortest or min(_training_lengths(cell)) < min(
            _training_lengths(shortest[key])
        ):
            shortest[key] = cell
    for cell in shortest.values():
        check_task(get_task(cell.task, cell.task_options), min(_training_lengths(cell)))


def repeating_cell(record: Record) -> AnyCell | None:
    """Return the cell that repeats a record here; None without its data, device or options.

    If a default has changed since, the cell spells out every option that the record ran with.
    """
    try:
        cell = record.cell
        if not resolve_options(cell).repeat(record.options):
            options = {
                "task_options": {**record.options.task, **cell.task_options},
                "model_options": {**record.options.model, **cell.model_options},
            }
            cell = make_cell({**cell.model_dump(mode="json"), **options})
        check(cell)
    except ValueError:
        return None
    return None if absent_data([cell]) else cell


def resolve_options(cell: AnyCell) -> ResolvedOptions:
    """Return every option of a cell's task and model, defaults included."""
    return ResolvedOptions(
        task=get_task(cell.task, cell.task_options).options,
        model={**model_options(cell.model), **cell.model_options},
    )


def absent_data(cells: Iterable[AnyCell]) -> dict[AnyCell, str]:
    """Return the cells whose data are not on this machine, each with how to get them."""
    messages: dict[str, str] = {}  # by task and options, since looking may take a while
    absent = {}
    for cell in cells:
        key = json.dumps([cell.task, cell.task_options], sort_keys=True)
        if key not in messages:
            messages[key] = ""
            try:
                _ = get_task(cell.task, cell.task_options).data
            except AbsentCorpusError as error:
                messages[key] = str(error)
        if messages[key]:
            absent[cell] = messages[key]
    return absent


def measure(cell: AnyCell, folder: Path, progress: Progress, stop: list[bool]) -> Outcome:
    """Measure a cell and return its outcome; an error is an outcome too.

    Args:
        folder: where a learning cell keeps its checkpoints.
        stop: its only entry becomes True when the cell is asked to stop.

    Raises InterruptedRunError if the cell was stopped.
    """
    facts: TaskFacts | None = None
    kernels: set[str] = set()
    learn_numbers: LearnNumbers | None = None
    cost_numbers: CostNumbers | None = None
    status: Status = "ok"
    message = ""
    try:
        task = get_task(cell.task, cell.task_options)
        facts = task_facts(task)
        with precision(cell):
            check_contract(cell.model, cell.width, cell.depth, cell.model_options, cell.device)
        kernels.update(kernels_of(cell, task))

        if cell.kind == "learn":
            learn_numbers = learn(cell, task, folder, progress, lambda: stop[0])
            for failed in learn_numbers.failed_tests[:1]:
                status = failed.status
                message = f"test at {failed.length} tokens: {failed.message}"
        else:
            cost_numbers = cost(cell, task, progress, kernels)
            status = next(iter(cost_numbers.failed.values()), "ok")
    except InterruptedRunError:
        raise
    except NotFiniteError as error:
        status = "nan"
        message = str(error)
    except Exception as error:
        status, message = describe_error(error)
    return Outcome(
        status=status,
        message=message,
        task=facts,
        learn=learn_numbers,
        cost=cost_numbers,
        kernels=tuple(sorted(kernels)),
    )


def debug(cell: AnyCell, folder: Path) -> None:
    """Measure a cell in this process, without catching exceptions as `measure` does."""
    task = get_task(cell.task, cell.task_options)
    check_contract(cell.model, cell.width, cell.depth, cell.model_options, cell.device)

    def report(done: int, total: int, description: str) -> None:
        print(f"{done}/{total} {description}", flush=True)

    if cell.kind == "learn":
        learn(cell, task, folder, report, lambda: False)
    else:
        cost(cell, task, report, set())


def task_facts(task: Task) -> TaskFacts:
    """Return the facts of a task that a record states."""
    return TaskFacts(
        vocabulary=task.vocabulary,
        classes=task.classes,
        score=task.score,
        baseline_score=task.baseline_score,
        source=task.source,
        data=task.data,
    )


def kernels_of(cell: AnyCell, task: Task) -> tuple[str, ...]:
    """Return the operators for attention, WKV and LSTM that one forward pass calls, sorted."""
    batch = task.batch("train", cell.seed, 0, 1, cell.length)
    model = make_model(cell, task)
    with LiveBytes() as live, torch.no_grad():
        if cell.kind == "learn":
            logits_and_targets(model, batch, cell)
        else:
            # A long sequence may not fit in memory; its first tokens call the same operators.
            tokens = batch.tokens[:, :KERNEL_TOKENS].to(cell.device)
            with contextlib.suppress(MemoryError, RuntimeError), precision(cell):
                model(tokens)
    return tuple(sorted(live.kernels))
