"""Trains and scores one cell. It can be stopped at any step and goes on as if it had not been."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.record import Cell, CurvePoint, DistanceScore, LearnNumbers, Score
from benchmarks.step import answers, make_model, make_optimizer, training_step
from models.model import SequenceModel, parameter_count
from tasks.task import Batch, Task

EVALUATION_BATCH = 32  # sequences; fixed, so that the test examples are the same for every cell
EVALUATION_TOKENS = 65536  # at most so many go through a model at once
EVALUATION_SEED = 0
CHECKPOINT_SECONDS = 60.0
HASH = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number whose powers spread over 64 bits

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and a word on it."""


class NotFiniteError(ArithmeticError):
    """The loss is no longer a number."""


class InterruptedRunError(Exception):
    """Asked to stop; everything needed to go on is saved."""


@dataclass
class State:
    """Where a training run stands, besides model and optimizer."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: Tensor | float = 0.0
    loss_count: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)


def learn(cell: Cell, task: Task, folder: Path, progress: Progress, stop: Callable[[], bool]) -> LearnNumbers:
    """Train the cell's model, validating on the way, and test it once, at the end, at every test length.

    Args:
        folder: where checkpoints lie while the cell is not finished.
        stop: asked after every step; when it says yes, the state is saved and InterruptedRunError raised.

    Raises NotFiniteError when the loss is not finite, and whatever torch raises, out of memory among it.
    """
    model = make_model(cell, task)
    optimizer = make_optimizer(model, cell)
    state = load(folder, model, optimizer, cell)
    _train(cell, task, model, optimizer, state, folder, progress, stop)
    lengths = cell.test_lengths or (cell.length,)
    tests = []
    for done, length in enumerate(lengths):
        progress(cell.steps, cell.steps, f"test {done + 1}/{len(lengths)}")
        tests.append(evaluate(model, cell, task, "test", length, cell.test_examples, state.seen))
    return LearnNumbers(
        parameters=parameter_count(model),
        steps=state.step,
        seconds=state.seconds,
        curve=tuple(CurvePoint(**point) for point in state.curve),
        validation=evaluate(model, cell, task, "validation", cell.length, cell.validation_examples),
        tests=tuple(tests),
    )


def _train(
    cell: Cell, task: Task, model: SequenceModel, optimizer: torch.optim.Optimizer, state: State, folder: Path,
    progress: Progress, stop: Callable[[], bool],
) -> None:  # fmt: skip
    points = {round(cell.steps * (i + 1) / cell.validations) for i in range(cell.validations)}
    saved = time.monotonic()
    started = time.perf_counter()
    while state.step < cell.steps:
        batch = task.batch("train", cell.seed, state.step, cell.batch_size, cell.length)
        state.loss_sum = state.loss_sum + training_step(model, optimizer, batch, cell, state.step)
        state.loss_count += 1
        state.seen.append(fingerprints(batch.tokens))
        state.step += 1
        progress(state.step, cell.steps, f"step {state.step}")
        at_point, stopping = state.step in points, stop()
        if at_point or stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
            state.seconds += elapsed(started, cell.device)
            if at_point:
                _close_segment(cell, task, model, state)
            save(folder, model, optimizer, state)
            if stopping:
                raise InterruptedRunError(f"stopped after step {state.step} of {cell.steps}")
            saved, started = time.monotonic(), time.perf_counter()


def _close_segment(cell: Cell, task: Task, model: SequenceModel, state: State) -> None:
    """Add a point to the curve: the mean loss since the last one, and a validation."""
    loss = float(state.loss_sum) / state.loss_count
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss} at step {state.step}")
    score = evaluate(model, cell, task, "validation", cell.length, cell.validation_examples).score
    if score is None:
        raise NotFiniteError(f"the validation loss is not finite at step {state.step}")
    state.curve.append({"step": state.step, "loss": loss, "validation": score})
    state.loss_sum, state.loss_count = 0.0, 0


def elapsed(started: float, device: str) -> float:
    """Seconds since `started` (time.perf_counter), with all work on the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def fingerprints(tokens: Tensor) -> Tensor:
    """A 64-bit number for every sequence of a batch, (batch,), equal for equal sequences."""
    tokens = tokens.flatten(1)
    power = torch.full((tokens.shape[1],), HASH).cumprod(0)  # wraps around, as it should
    return (tokens * power).sum(1)


@torch.no_grad()
def evaluate(
    model: SequenceModel,
    cell: Cell,
    task: Task,
    split: str,
    length: int,
    examples: int,
    seen: list[Tensor] | None = None,
) -> Score:
    """Score `examples` sequences of a split, or all where it has no more; the same ones for every model and seed.

    `seen` holds fingerprints of the training examples: how many of those scored stood among them is counted.
    """
    model.eval()
    examples = min(examples, task.sizes.get(split, examples))
    losses, correct, distances, doubles = [], [], [], 0
    for index in range(-(-examples // EVALUATION_BATCH)):
        batch = task.batch(split, EVALUATION_SEED, index, EVALUATION_BATCH, length)
        batch = _rows(batch, 0, min(EVALUATION_BATCH, examples - index * EVALUATION_BATCH))
        if seen:
            doubles += int(torch.isin(fingerprints(batch.tokens), torch.cat(seen)).sum())
        rows = max(1, EVALUATION_TOKENS // batch.tokens[0].numel())
        for first in range(0, len(batch.tokens), rows):
            part = _rows(batch, first, first + rows)
            logits, targets = answers(model, part, cell)
            losses.append(cross_entropy(logits, targets, reduction="none").cpu())
            correct.append((logits.argmax(-1) == targets).cpu())
            if part.distances is not None:
                distances.append(part.distances.flatten()[part.asked()])
    model.train()
    loss, right = torch.cat(losses).double().mean().item(), torch.cat(correct)
    accuracy = right.double().mean().item()
    finite = math.isfinite(loss)
    return Score(
        length=length,
        examples=examples,
        count=len(right),
        correct=int(right.sum()),
        loss=loss if finite else None,
        score=accuracy if task.score == "accuracy" else loss / math.log(2) if finite else None,
        seen_in_training=doubles,
        by_distance=by_distance(right, torch.cat(distances)) if distances else (),
    )


def _rows(batch: Batch, first: int, last: int) -> Batch:
    rows: dict[str, Any] = {name: x if x is None else x[first:last] for name, x in vars(batch).items()}
    return Batch(**rows)


def by_distance(correct: Tensor, distances: Tensor) -> tuple[DistanceScore, ...]:
    """Right answers counted in bins of distance: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ... two to an octave."""
    octaves = torch.arange(1, 40)
    edges = torch.cat([torch.tensor([0, 1]), torch.stack([2**octaves, 2**octaves + 2 ** (octaves - 1)], 1).flatten()])
    bins = torch.bucketize(distances, edges, right=True) - 1
    count = torch.bincount(bins, minlength=len(edges))
    right = torch.bincount(bins, weights=correct.double(), minlength=len(edges)).long()
    return tuple(
        DistanceScore(low=int(edges[i]), high=int(edges[i + 1]) - 1, correct=int(right[i]), count=int(count[i]))
        for i in count.nonzero().flatten().tolist()
    )


def save(folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write a checkpoint, keeping the one before it, which serves when this one turns out torn."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "state": {**vars(state), "loss_sum": float(state.loss_sum), "seen": torch.cat(state.seen)},
    }
    fresh, newest = folder / "checkpoint.tmp", folder / "checkpoint.pt"
    torch.save(content, fresh)
    if newest.exists():
        newest.replace(folder / "checkpoint.before.pt")
    fresh.replace(newest)


def load(folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, cell: Cell) -> State:
    """Go on from the newest checkpoint that can be read and fits the model, or from the beginning."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        try:
            content = torch.load(folder / name, map_location=cell.device, weights_only=True)
            fits = {name: tensor.shape for name, tensor in content["model"].items()} == shapes
        except FileNotFoundError:
            continue
        except Exception:  # torn, or no checkpoint at all: whatever it is, it is nothing to go on from
            fits = False
        if fits:
            return _resume(content, model, optimizer)
    return State()


def _resume(content: dict[str, Any], model: SequenceModel, optimizer: torch.optim.Optimizer) -> State:
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"].cpu())
    if content["random_cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in content["random_cuda"]])
    return State(**{**content["state"], "seen": [content["state"]["seen"].cpu()]})
