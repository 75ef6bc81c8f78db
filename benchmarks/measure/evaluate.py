"""Scores a model on examples it has not seen: over all answers, by distance, and by position in the
context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.step import logits_and_targets, precision, rows_of
from lookback.benchmarks.record import DistanceScore, LearnCell, PositionScore, Score
from lookback.models.model import SequenceModel
from lookback.tasks.task import Batch, Task

EVALUATION_BATCH = 32  # sequences; fixed, so that the test examples are the same for every cell
EVALUATION_TOKENS = 65536  # at most so many go through a model at once
EVALUATION_SEED = 0
FORMS_TOKENS = 256  # at most so many are read both ways
HASH = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number whose powers spread over 64 bits


def fingerprints(tokens: Tensor) -> Tensor:
    """A 64-bit number for every sequence of a batch, (batch,), equal for equal sequences."""
    tokens = tokens.flatten(1)
    power = torch.full((tokens.shape[1],), HASH).cumprod(0)  # wraps around, as it should
    return (tokens * power).sum(1)


@torch.no_grad()
def evaluate(
    model: SequenceModel,
    cell: LearnCell,
    task: Task,
    split: str,
    length: int,
    examples: int,
    seen: list[Tensor] | None = None,
) -> Score:
    """Score `examples` sequences of a split, or all where it has no more; the same ones for every
    model and seed.

    `seen` holds fingerprints of the training examples: how many of those scored stood among them is
    counted.
    """
    model.eval()
    examples = min(examples, task.sizes.get(split, examples))
    before = torch.cat(seen) if seen else None
    found = {}
    for index in range(parallel.rank(), -(-examples // EVALUATION_BATCH), parallel.count()):
        batch = task.batch(split, EVALUATION_SEED, index, EVALUATION_BATCH, length)
        batch = rows_of(batch, 0, min(EVALUATION_BATCH, examples - index * EVALUATION_BATCH))
        found[index] = _answered(model, cell, batch, before)
    model.train()
    everything = sorted(
        (index, part) for parts in parallel.gather(found) for index, part in parts.items()
    )
    return parallel.broadcast(
        lambda: _score(task, length, examples, [part for _, part in everything])
    )


class Answered(NamedTuple):
    """How a model answered a batch, an entry an answer; tensors on the CPU."""

    losses: Tensor  # float32
    correct: Tensor  # bool
    positions: Tensor
    distances: Tensor | None
    doubles: int  # examples that also stood in a training batch


def _answered(model: SequenceModel, cell: LearnCell, batch: Batch, seen: Tensor | None) -> Answered:
    losses, correct = [], []
    rows = max(1, EVALUATION_TOKENS // batch.tokens[0].numel())
    for first in range(0, len(batch.tokens), rows):
        logits, targets = logits_and_targets(model, rows_of(batch, first, first + rows), cell)
        losses.append(cross_entropy(logits, targets, reduction="none").cpu())
        correct.append((logits.argmax(-1) == targets).cpu())
    asked = batch.target_indices()
    return Answered(
        torch.cat(losses),
        torch.cat(correct),
        asked % batch.tokens.shape[-1],
        None if batch.distances is None else batch.distances.flatten()[asked],
        0 if seen is None else int(torch.isin(fingerprints(batch.tokens), seen).sum()),
    )


def _score(task: Task, length: int, examples: int, parts: Sequence[Answered]) -> Score:
    losses = torch.cat([part.losses for part in parts]).double()
    right = torch.cat([part.correct for part in parts])
    positions = torch.cat([part.positions for part in parts])
    distances = [part.distances for part in parts if part.distances is not None]
    loss = losses.mean().item()
    accuracy = right.double().mean().item()
    finite = math.isfinite(loss)
    return Score(
        length=length,
        examples=examples,
        count=len(right),
        correct=int(right.sum()),
        loss=loss if finite else None,
        score=accuracy if task.score == "accuracy" else loss / math.log(2) if finite else None,
        seen_in_training=sum(part.doubles for part in parts),
        by_distance=by_distance(right, torch.cat(distances)) if distances else (),
        by_position=by_position(losses, positions) if task.score != "accuracy" and finite else (),
    )


def half_octaves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of each value, (n,) int64, and the lowest value of every bin: 0, 1, 2, 3, 4, 6, 8,
    12, 16, ...
    """
    octaves = torch.arange(1, 40)
    edges = torch.cat(
        [
            torch.tensor([0, 1]),
            torch.stack([2**octaves, 2**octaves + 2 ** (octaves - 1)], 1).flatten(),
        ]
    )
    return torch.bucketize(values, edges, right=True) - 1, edges


def by_distance(correct: Tensor, distances: Tensor) -> tuple[DistanceScore, ...]:
    """Right answers counted in bins of distance: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ... two to an
    octave.
    """
    bins, edges = half_octaves(distances)
    count = torch.bincount(bins, minlength=len(edges))
    right = torch.bincount(bins, weights=correct.double(), minlength=len(edges)).long()
    return tuple(
        DistanceScore(
            low=int(edges[i]),
            high=int(edges[i + 1]) - 1,
            correct=int(right[i]),
            count=int(count[i]),
        )
        for i in count.nonzero().flatten().tolist()
    )


def by_position(losses: Tensor, positions: Tensor) -> tuple[PositionScore, ...]:
    """Mean loss in bins of position, the same as of distance; the last ends at the last position
    there is.
    """
    bins, edges = half_octaves(positions)
    count = torch.bincount(bins, minlength=len(edges))
    total = torch.bincount(bins, weights=losses, minlength=len(edges))
    last = int(positions.max())
    return tuple(
        PositionScore(
            low=int(edges[i]),
            high=min(last, int(edges[i + 1]) - 1),
            loss=float(total[i] / count[i]),
            count=int(count[i]),
        )
        for i in count.nonzero().flatten().tolist()
    )


@torch.no_grad()
def parallel_recurrent_difference(
    model: SequenceModel, cell: LearnCell, task: Task
) -> float | None:
    """How far a model's parallel and its recurrent form are apart: 0 where they are one function,
    exactly computed.

    The largest difference between the logits of a test sequence read at once and token by token
    from an empty state, over the largest of these logits; of its first FORMS_TOKENS tokens, in the
    cell's precision. None where a model has no recurrent form, or none that begins with an empty
    state, where a task asks for one label a sequence, and where logits are not finite.
    """
    if task.classes is not None or not all(hasattr(block, "step") for block in model.blocks):
        return None
    model.eval()
    try:
        state = model.initial_state(1)
    except ValueError:  # an interval that only the length tells
        return None
    read = (
        task.batch("test", EVALUATION_SEED, 0, 1, cell.length)
        .tokens[:, :FORMS_TOKENS]
        .to(cell.device)
    )
    one_by_one = []
    with precision(cell):
        at_once = model(read).float()
        for token in read.unbind(1):
            logits, state = model.step(token, state)
            one_by_one.append(logits.float())
    apart = float((at_once - torch.stack(one_by_one, 1)).abs().max() / at_once.abs().max())
    return apart if math.isfinite(apart) else None
