"""Trains and tests one cell.

A run can be stopped after any step, and resumes as if it had never been stopped. Several processes
(see parallel.py) all run this code, each on its own rows; rank 0 writes the checkpoints.
"""

from __future__ import annotations

import math
import time
from collections import Counter
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
    kept_bytes,
    parallel_recurrent_difference,
    planned_tests,
)
from lookback.benchmarks.measure.gradient_reach import reach
from lookback.benchmarks.measure.memory import describe_error
from lookback.benchmarks.measure.step import (
    Progress,
    learning_rate,
    make_model,
    make_optimizer,
    training_step,
)
from lookback.benchmarks.record import (
    GROWING,
    CurvePoint,
    FailedTest,
    LearnCell,
    LearnNumbers,
    Reached,
    Score,
    Trial,
)
from lookback.models.model import SequenceModel, parameter_count
from lookback.tasks.task import Batch, Task, draw_from, seeded_generator

CHECKPOINT_SECONDS = 60.0  # between checkpoints
SAVING_SHARE = 0.1  # most of the time that checkpoints may take, on average
GOALS = (0.9, 0.99)  # accuracies whose training cost is recorded


class NotFiniteError(ArithmeticError):
    """The loss is infinite or not a number."""


class InterruptedRunError(Exception):
    """The run was asked to stop, and has saved everything it needs to resume."""


class Run(NamedTuple):
    """A finished training run at one learning rate."""

    learning_rate: float
    model: SequenceModel
    state: State

    @property
    def validation(self) -> float | None:
        """The last validation score; None if training failed."""
        return None if self.state.failure else self.state.curve[-1]["validation"]

    def is_better(self, other: Run | None, task: Task) -> bool:
        """Whether the last validation is better."""
        if self.validation is None:
            return False
        if other is None or other.validation is None:
            return True
        if task.score == "accuracy":
            return self.validation > other.validation
        return self.validation < other.validation


def learn(
    cell: LearnCell, task: Task, folder: Path, progress: Progress, stop: Callable[[], bool]
) -> LearnNumbers:
    """Train the cell's model at every learning rate, and test the best one at every test length.

    All rates start from the same weights and train on the same batches, to the end. The best is the
    one with the best last validation and, among equals, the first.

    Args:
        folder: where checkpoints are kept while the cell is not finished.
        stop: called after every step; if it returns True, the state is saved and
            InterruptedRunError raised.

    Raises NotFiniteError if the loss stayed finite at no rate, and any error that torch raises,
    such as running out of memory.
    """
    reach_before = reach(make_model(cell, task), cell, task) if cell.reach else ()

    trials = []
    best = None
    for number in range(len(learning_rates(cell))):
        run = train(cell, number, task, folder, progress, stop)
        trials.append(
            Trial(
                learning_rate=run.learning_rate,
                steps=run.state.step,
                seconds=run.state.seconds,
                validation=run.validation,
            )
        )
        if run.is_better(best, task):
            best = run
    if best is None:
        raise NotFiniteError(run.state.failure)

    (stopping,) = parallel.broadcast_flags(stop())
    if stopping:
        raise InterruptedRunError("stopped before the tests")
    progress(1, 1, "tests")
    model = best.model
    state = best.state
    began = time.perf_counter()
    tests, failed_tests = run_tests(model, cell, task, state.seen)
    testing_seconds = time.perf_counter() - began
    trained = tokens_by_length(cell, task, state.step)
    return LearnNumbers(
        parameters=parameter_count(model),
        steps=state.step,
        tokens_trained=trained.total(),
        tokens_at_full_length=trained[cell.length],
        longest_trained=max(trained),
        seconds=state.seconds,
        waiting=state.waiting,
        evaluating=state.evaluating + testing_seconds,
        saving=state.saving,
        joules=state.joules,
        learning_rate=best.learning_rate,
        trials=tuple(trials) if len(trials) > 1 else (),
        reached=goals_reached(state, cell, task),
        curve=tuple(CurvePoint(**point) for point in state.curve),
        validation=evaluate(model, cell, task, "validation", cell.length, cell.validation_examples),
        tests=tests,
        failed_tests=failed_tests,
        reach_before=reach_before,
        reach_after=reach(model, cell, task) if cell.reach else (),
        state_bytes=kept_bytes(model, cell),
        parallel_recurrent_difference=parallel_recurrent_difference(model, cell, task),
    )


def run_tests(
    model: SequenceModel, cell: LearnCell, task: Task, seen: list[Tensor]
) -> tuple[tuple[Score, ...], tuple[FailedTest, ...]]:
    """Test a model at every length and with all options; an error ends one test, not the others."""
    tests = []
    failed = []
    for options, test_task, length in planned_tests(cell, task):
        try:
            score = evaluate(model, cell, test_task, "test", length, cell.test_examples, seen)
        except Exception as error:
            if parallel.world_size() > 1:  # the other processes wait for this one's answers
                raise
            status, message = describe_error(error)
            failed.append(
                FailedTest(length=length, options=options, status=status, message=message)
            )
        else:
            tests.append(score.model_copy(update={"options": options}))
    return tuple(tests), tuple(failed)


def learning_rates(cell: LearnCell) -> tuple[float, ...]:
    """Return the rates to try; a cell that lists none has one."""
    return cell.learning_rates or (cell.learning_rate,)


def train(
    cell: LearnCell,
    number: int,
    task: Task,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool],
) -> Run:
    """Train at the learning rate of this number, from its checkpoint if there is one."""
    rates = learning_rates(cell)
    rate = rates[number]
    suffix = f" at rate {rate:g}" if len(rates) > 1 else ""
    folder = folder / f"rate-{number}"
    cell = cell.model_copy(update={"learning_rate": rate, "learning_rates": ()})

    model = make_model(cell, task)
    trained_model = parallel.wrap_model(model)
    optimizer = make_optimizer(model, rate, cell.weight_decay)
    state = load(folder, model, optimizer, cell)
    parallel.check_same_step(state.step)
    if state.finished:
        return Run(rate, model, state)

    points = range(1, cell.validations + 1)
    validation_steps = {round(cell.steps * point / cell.validations) for point in points}

    saving_seconds = 0.0  # that the last checkpoint took
    timer = Timer(cell.device)
    for batch, batch_fingerprints in batches(cell, task, state.step):
        parallel.seed_step(cell.seed, state.step)
        with timer:
            step_rate = learning_rate(cell, state.step)
            loss = training_step(trained_model, optimizer, batch, cell, step_rate)
        state.loss_sum = state.loss_sum + loss
        state.loss_count += 1
        state.seen.append(batch_fingerprints)
        state.step += 1
        progress(
            number * cell.steps + state.step,
            len(rates) * cell.steps,
            f"step {state.step}{suffix}",
        )

        # The clocks of several processes differ, so rank 0 decides.
        interval = max(CHECKPOINT_SECONDS, saving_seconds / SAVING_SHARE)
        stopping, is_due = parallel.broadcast_flags(stop(), timer.seconds() > interval)
        is_validation = state.step in validation_steps
        if not (is_validation or stopping or is_due):
            continue

        timer.add_to(state)
        state.loss_sum = parallel.all_mean(state.loss_sum)
        if is_validation:
            began = time.perf_counter()
            validate(model, state, cell, task)
            state.evaluating += time.perf_counter() - began

        began = time.perf_counter()
        save(folder, model, optimizer, state, cell)
        parallel.barrier()
        saving_seconds = time.perf_counter() - began
        state.saving += saving_seconds

        if state.finished:
            break
        if stopping:
            raise InterruptedRunError(f"stopped after step {state.step} of {cell.steps}")
        timer = Timer(cell.device)  # validating and saving do not count
    return Run(rate, model, state)


def validate(model: SequenceModel, state: State, cell: LearnCell, task: Task) -> None:
    """Add a point to the curve, and decide whether training is finished.

    The point holds the mean training loss since the last one and a validation score. Training is
    finished after the last step, or when a loss is not finite.
    """
    loss = float(state.loss_sum) / state.loss_count
    state.loss_sum = 0.0
    state.loss_count = 0
    score = evaluate(model, cell, task, "validation", cell.length, cell.validation_examples).score

    if not math.isfinite(loss):
        state.failure = f"the loss is {loss} at step {state.step}"
    elif score is None:
        state.failure = f"the validation loss is not finite at step {state.step}"
    else:
        state.curve.append(
            {
                "step": state.step,
                "loss": loss,
                "validation": score,
                "seconds": state.seconds,
                "joules": state.joules,
            }
        )

    state.finished = bool(state.failure) or state.step >= cell.steps


def batches(cell: LearnCell, task: Task, first: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield training batches from number `first` on, with the fingerprints of their examples.

    Each batch is made in a thread while the one before it is trained on.
    """

    def make(index: int) -> tuple[Batch, Tensor]:
        batch = task.batch("train", cell.seed, index, *batch_at(cell, task, index))
        return batch, fingerprints(batch.tokens)

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make, first)
        for index in range(first, cell.steps):
            batch = pending.result()
            if index + 1 < cell.steps:
                pending = pool.submit(make, index + 1)
            yield batch


def batch_at(cell: LearnCell, task: Task, step: int) -> tuple[int, int]:
    """Return the sequences of a training step, and their length in tokens.

    With `start_length`, lengths grow geometrically over the first GROWING part of the steps, or are
    drawn evenly on a logarithmic scale; in multiples that the task has sequences of. Every batch
    has about as many tokens.
    """
    if cell.start_length is None:
        return cell.batch_size, cell.length
    if cell.lengths == "draw":
        generator = seeded_generator(["length", cell.seed, step])
        length = int(draw_from(cell.start_length, cell.length, generator))
    else:
        share = min(1.0, step / (GROWING * cell.steps))
        length = round(cell.start_length * (cell.length / cell.start_length) ** share)
    growth = (length - cell.start_length) // task.multiple * task.multiple
    length = cell.start_length + growth
    return max(1, cell.batch_size * cell.length // length), length


def tokens_by_length(cell: LearnCell, task: Task, steps: int) -> Counter[int]:
    """Count the tokens of the first steps of training by the length of their sequences."""
    tokens: Counter[int] = Counter()
    for step in range(steps):
        size, length = batch_at(cell, task, step)
        tokens[length] += size * length * task.sequences_per_example
    return tokens


def goals_reached(state: State, cell: LearnCell, task: Task) -> tuple[Reached, ...]:
    """Return the cost of training up to the first validation that met each accuracy in GOALS."""
    if task.score != "accuracy":
        return ()

    reached = []
    for goal in GOALS:
        point = next((point for point in state.curve if point["validation"] >= goal), None)
        if point is None:
            continue
        reached.append(
            Reached(
                score=goal,
                step=point["step"],
                seconds=point["seconds"],
                tokens=tokens_by_length(cell, task, point["step"]).total(),
                joules=point["joules"],
            )
        )
    return tuple(reached)


class Timer:
    """Measures seconds and joules since its construction, and the seconds spent inside `with`.

    With several processes, joules are summed over all GPUs; seconds are this process's own.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.inside = 0.0
        self.start_joules = joules(device)
        self.started = time.perf_counter()

    def __enter__(self) -> None:
        self.entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.inside += time.perf_counter() - self.entered

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def add_to(self, state: State) -> None:
        """Wait for the device, and add the time and energy since construction to a run's."""
        # A GPU that is still busy was not waiting for batches: this counts as inside.
        with self:
            if self.device == "cuda":
                torch.cuda.synchronize()
        seconds = self.seconds()
        state.seconds += seconds
        state.waiting += seconds - self.inside

        reading = joules(self.device)
        used = math.nan  # where no driver reports energy
        if reading is not None and self.start_joules is not None:
            used = reading - self.start_joules
        used = parallel.all_sum(used)
        if math.isfinite(used):
            state.joules = (state.joules or 0.0) + used
