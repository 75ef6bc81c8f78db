"""Trains and scores one cell. It can be stopped at any step and goes on as if it had not been.

Of several processes (see parallel.py) all do the same, each on its rows; the first keeps the
checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookback.benchmarks.machine import joules
from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.checkpoint import State, load, save
from lookback.benchmarks.measure.evaluate import (
    evaluate,
    fingerprints,
    parallel_recurrent_difference,
)
from lookback.benchmarks.measure.gradient_reach import reach
from lookback.benchmarks.measure.step import (
    Progress,
    learning_rate,
    make_model,
    make_optimizer,
    training_step,
)
from lookback.benchmarks.record import CurvePoint, LearnCell, LearnNumbers, ReachBin, Reached, Trial
from lookback.models.model import SequenceModel, parameter_count
from lookback.tasks.task import Batch, Task

CHECKPOINT_SECONDS = 60.0
SAVING = 0.1  # of the time, at most, on average
GOALS = (0.9, 0.99)  # accuracies whose price is recorded


class NotFiniteError(ArithmeticError):
    """The loss is no longer a number."""


class InterruptedRunError(Exception):
    """Asked to stop; everything needed to go on is saved."""


class Run(NamedTuple):
    """A finished training at one learning rate."""

    cell: LearnCell
    model: SequenceModel
    state: State


def learn(
    cell: LearnCell, task: Task, folder: Path, progress: Progress, stop: Callable[[], bool]
) -> LearnNumbers:
    """Train the cell's model, validating on the way, and test it once, at the end, at every test
    length.

    Of several learning rates each is tried from the same weights and on the same batches; the one
    that validates best at its end is tested, and of equals the one that took fewest steps.

    Args:
        folder: where checkpoints lie while the cell is not finished. stop: asked after every step;
        when it says yes, the state is saved and InterruptedRunError raised.

    Raises NotFiniteError when the loss is finite at none of the rates, and whatever torch raises,
    out of memory too.
    """
    before = reach(make_model(cell, task), cell, task) if cell.reach else ()
    rates = cell.learning_rates or (cell.learning_rate,)
    best, trials = None, []
    for number, rate in enumerate(rates):
        here = Here(
            number * cell.steps,
            len(rates) * cell.steps,
            f" at rate {rate:g}" if len(rates) > 1 else "",
        )
        trial = cell.model_copy(update={"learning_rate": rate, "learning_rates": ()})
        run = _train(trial, task, folder / f"rate-{number}", here, progress, stop)
        trials.append(_trial(run))
        if not run.state.failure and (best is None or _goodness(run, task) > _goodness(best, task)):
            best = run
        failure = run.state.failure
    if best is None:
        raise NotFiniteError(failure)
    if any(parallel.broadcast_flags(stop())):
        raise InterruptedRunError("stopped before the tests")
    progress(1, 1, "tests")
    return _numbers(cell, task, best, tuple(trials) if len(rates) > 1 else (), before)


class Here(NamedTuple):
    """Where a training run stands among those of its cell, for whoever watches."""

    before: int  # steps of the runs before it
    total: int  # steps of all
    word: str


def _trial(run: Run) -> Trial:
    last = None if run.state.failure else run.state.curve[-1]["validation"]
    return Trial(
        learning_rate=run.cell.learning_rate,
        steps=run.state.step,
        seconds=run.state.seconds,
        validation=last,
    )


def _goodness(run: Run, task: Task) -> tuple[float, int]:
    """Greater is better: the last validation, then fewer steps."""
    last = run.state.curve[-1]["validation"]
    return (last if task.score == "accuracy" else -last), -run.state.step


def _numbers(
    cell: LearnCell, task: Task, run: Run, trials: tuple[Trial, ...], before: tuple[ReachBin, ...]
) -> LearnNumbers:
    model, state = run.model, run.state
    lengths = cell.test_lengths or (cell.length,)
    return LearnNumbers(
        parameters=parameter_count(model),
        steps=state.step,
        seconds=state.seconds,
        waiting=state.waiting,
        joules=state.joules,
        learning_rate=run.cell.learning_rate,
        trials=trials,
        reached=_reached(run, task),
        curve=tuple(CurvePoint(**point) for point in state.curve),
        validation=evaluate(model, cell, task, "validation", cell.length, cell.validation_examples),
        tests=tuple(
            evaluate(model, cell, task, "test", n, cell.test_examples, state.seen) for n in lengths
        ),
        reach_before=before,
        reach_after=reach(model, cell, task) if cell.reach else (),
        parallel_recurrent_difference=parallel_recurrent_difference(model, cell, task),
    )


def _reached(run: Run, task: Task) -> tuple[Reached, ...]:
    """What each of the goals had cost at the validation that first met it; goals are of accuracy."""
    found = []
    for goal in GOALS if task.score == "accuracy" else ():
        there = [point for point in run.state.curve if point["validation"] >= goal]
        if there:
            spent = {key: there[0][key] for key in ("step", "seconds", "joules")}
            found.append(
                Reached(score=goal, tokens=_tokens(run.cell, task, spent["step"]), **spent)
            )
    return tuple(found)


def _tokens(cell: LearnCell, task: Task, steps: int) -> int:
    """What so many steps have read."""
    return (
        cell.batch_size
        * task.sequences_per_example
        * sum(length_at(cell, task, step) for step in range(steps))
    )


def _train(
    cell: LearnCell,
    task: Task,
    folder: Path,
    here: Here,
    progress: Progress,
    stop: Callable[[], bool],
) -> Run:
    """Train at one learning rate, or go on with it, to its end."""
    model = make_model(cell, task)
    trained = parallel.wrap_model(model)
    optimizer = make_optimizer(model, cell.learning_rate, cell.weight_decay)
    state = load(folder, model, optimizer, cell)
    parallel.check_alike(state.step)
    saving = 0.0  # seconds that the last checkpoint took
    points = {round(cell.steps * (i + 1) / cell.validations) for i in range(cell.validations)}
    clock = Clock(cell.device)
    for batch, prints in () if state.finished else batches(cell, task, state.step):
        parallel.seed(cell.seed, state.step)
        with clock:
            loss = training_step(trained, optimizer, batch, cell, learning_rate(cell, state.step))
        state.loss_sum = state.loss_sum + loss
        state.loss_count += 1
        state.seen.append(prints)
        state.step += 1
        progress(here.before + state.step, here.total, f"step {state.step}{here.word}")
        at_point = state.step in points
        stopping, due = parallel.broadcast_flags(
            stop(), clock.since_start() > max(CHECKPOINT_SECONDS, saving / SAVING)
        )
        if at_point or stopping or due:
            clock.add_to(state)
            state.loss_sum = parallel.mean(state.loss_sum)
            if at_point:
                _close_segment(cell, task, model, state)
            began = time.perf_counter()
            save(folder, model, optimizer, state, cell)
            parallel.wait()
            saving = time.perf_counter() - began
            if state.finished:
                break
            if stopping:
                raise InterruptedRunError(f"stopped after step {state.step} of {cell.steps}")
            clock = Clock(cell.device)
    return Run(cell, model, state)


def batches(cell: LearnCell, task: Task, first: int) -> Iterator[tuple[Batch, Tensor]]:
    """Training batches from number `first` on with the fingerprints of their examples, each made a
    step ahead.
    """

    def make(index: int) -> tuple[Batch, Tensor]:
        batch = task.batch("train", cell.seed, index, cell.batch_size, length_at(cell, task, index))
        return batch, fingerprints(batch.tokens)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make, first)
        for index in range(first, cell.steps):
            made = following.result()
            if index + 1 < cell.steps:
                following = pool.submit(make, index + 1)
            yield made


def length_at(cell: LearnCell, task: Task, step: int) -> int:
    """Tokens of each sequence of a training step: growing over the first half of the steps, where
    the cell asks so.
    """
    if cell.start_length is None:
        return cell.length
    grown = min(1.0, 2 * step / cell.steps)
    return (
        cell.start_length
        + int((cell.length - cell.start_length) * grown) // task.multiple * task.multiple
    )


class Clock:
    """Seconds and joules from its making on, and how many of the seconds were spent outside the
    training step.

    Joules are of the GPUs of all processes together, seconds of this one.
    """

    def __init__(self, device: str) -> None:
        self.device, self.inside = device, 0.0
        self.joules = joules(device)
        self.started = time.perf_counter()

    def __enter__(self) -> None:
        self.entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.inside += time.perf_counter() - self.entered

    def since_start(self) -> float:
        return time.perf_counter() - self.started

    def add_to(self, state: State) -> None:
        """Add what has passed, all work on the device done, to that of the run.

        What a GPU still had to do when it was asked counts as inside: the host was ahead of it.
        """
        waited = time.perf_counter()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.inside += time.perf_counter() - waited
        seconds, now = self.since_start(), joules(self.device)
        state.seconds += seconds
        state.waiting += seconds - self.inside
        used = parallel.total(math.nan if now is None or self.joules is None else now - self.joules)
        if math.isfinite(used):
            state.joules = (state.joules or 0.0) + used


def _close_segment(cell: LearnCell, task: Task, model: SequenceModel, state: State) -> None:
    """Add a point to the curve: the mean loss since the last one, and a validation; see whether
    this was the end.
    """
    loss = float(state.loss_sum) / state.loss_count
    score = evaluate(model, cell, task, "validation", cell.length, cell.validation_examples).score
    if not math.isfinite(loss) or score is None:
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else "the validation loss is not finite"
        )
        state.failure = f"{what} at step {state.step}"
    else:
        point = {"step": state.step, "loss": loss, "validation": score}
        state.curve.append({**point, "seconds": state.seconds, "joules": state.joules})
    state.finished = bool(state.failure) or state.step >= cell.steps or _solved(cell, task, score)
    state.loss_sum, state.loss_count = 0.0, 0


def _solved(cell: LearnCell, task: Task, score: float | None) -> bool:
    if cell.target_score is None or score is None:
        return False
    return score >= cell.target_score if task.score == "accuracy" else score <= cell.target_score
