"""Scores a model on examples it has not seen: over all answers, by distance, and by position in the context."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.record import Cell, DistanceScore, PositionScore, Score
from benchmarks.step import answers
from models.model import SequenceModel
from tasks.task import Batch, Task

EVALUATION_BATCH = 32  # sequences; fixed, so that the test examples are the same for every cell
EVALUATION_TOKENS = 65536  # at most so many go through a model at once
EVALUATION_SEED = 0
HASH = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number whose powers spread over 64 bits


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
    losses, correct, distances, positions, doubles = [], [], [], [], 0
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
            positions.append(part.asked() % length)
            if part.distances is not None:
                distances.append(part.distances.flatten()[part.asked()])
    model.train()
    every_loss, right = torch.cat(losses).double(), torch.cat(correct)
    loss = every_loss.mean().item()
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
        by_position=by_position(every_loss, torch.cat(positions)) if task.score != "accuracy" and finite else (),
    )


def _rows(batch: Batch, first: int, last: int) -> Batch:
    rows: dict[str, Any] = {name: x if x is None else x[first:last] for name, x in vars(batch).items()}
    return Batch(**rows)


def half_octaves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of each value, (n,) int64, and the lowest value of every bin: 0, 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    octaves = torch.arange(1, 40)
    edges = torch.cat([torch.tensor([0, 1]), torch.stack([2**octaves, 2**octaves + 2 ** (octaves - 1)], 1).flatten()])
    return torch.bucketize(values, edges, right=True) - 1, edges


def by_distance(correct: Tensor, distances: Tensor) -> tuple[DistanceScore, ...]:
    """Right answers counted in bins of distance: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ... two to an octave."""
    bins, edges = half_octaves(distances)
    count = torch.bincount(bins, minlength=len(edges))
    right = torch.bincount(bins, weights=correct.double(), minlength=len(edges)).long()
    return tuple(
        DistanceScore(low=int(edges[i]), high=int(edges[i + 1]) - 1, correct=int(right[i]), count=int(count[i]))
        for i in count.nonzero().flatten().tolist()
    )


def by_position(losses: Tensor, positions: Tensor) -> tuple[PositionScore, ...]:
    """Mean loss in bins of position, the same as of distance; the last ends at the last position there is."""
    bins, edges = half_octaves(positions)
    count = torch.bincount(bins, minlength=len(edges))
    total = torch.bincount(bins, weights=losses, minlength=len(edges))
    last = int(positions.max())
    return tuple(
        PositionScore(
            low=int(edges[i]), high=min(last, int(edges[i + 1]) - 1), loss=float(total[i] / count[i]),
            count=int(count[i]),
        )
        for i in count.nonzero().flatten().tolist()
    )  # fmt: skip
