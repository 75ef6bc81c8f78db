"""Scores a model on unseen examples: overall, by distance, and by position in the sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.step import logits_and_targets, precision, rows_of
from lookback.benchmarks.record import (
    DistanceScore,
    LearnCell,
    PositionScore,
    Score,
    SequenceSums,
)
from lookback.models.model import SequenceModel, state_bytes
from lookback.tasks.task import Batch, Options, Task, get_task

EVALUATION_BATCH = 32  # sequences; fixed, so that every cell is tested on the same examples
EVALUATION_TOKENS = 65536  # most tokens that go through a model at once
EVALUATION_SEED = 0
COMPARED_TOKENS = 256  # that both forms of a model read
HASH = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number whose powers spread over 64 bits
OCTAVES = 39  # bins of distances and positions cover values below 2**40


def fingerprints(tokens: Tensor) -> Tensor:
    """Return a 64-bit hash of each sequence: (batch, ..., length) int64 -> (batch,) int64."""
    tokens = tokens.flatten(1)
    powers = torch.full((tokens.shape[1],), HASH).cumprod(0)  # modulo 2**64, as intended
    return (tokens * powers).sum(1)


class PlannedTest(NamedTuple):
    """A test of a cell: options in place of those in training, the task with them, and a length."""

    options: dict[str, Any]
    task: Task
    length: int


def planned_tests(cell: LearnCell, task: Task) -> Iterator[PlannedTest]:
    """Yield the tests of a cell: all options at all lengths, but for lengths too short for them.

    Raises ValueError for options that the task cannot have.
    """
    lengths = cell.test_lengths or (cell.length,)
    for options in cell.test_options or ({},):
        test_task = get_task(task.name, {**task.options, **options}) if options else task
        fitting = [length for length in lengths if length >= test_task.shortest]
        for length in fitting or lengths:
            yield PlannedTest(options, test_task, length)


class BatchResult(NamedTuple):
    """Answers of a model to one batch; tensors have one entry per target and lie on the CPU."""

    losses: Tensor  # float32, nats
    correct: Tensor  # bool
    positions: Tensor
    sequences: Tensor  # the number of each target's sequence in the batch
    distances: Tensor | None
    seen_in_training: int  # examples
    references: dict[str, Tensor]  # losses or correct answers of each


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
    """Score a model on the first `examples` sequences of a split, the same ones for every cell.

    A split of fewer examples is used whole. With several processes, each evaluates some batches.

    Args:
        seen: fingerprints of the training examples, to count those that are tested again.
    """
    model.eval()
    examples = min(examples, task.examples_in(split, length) or examples)
    batch_count = -(-examples // EVALUATION_BATCH)
    training_examples = torch.cat(seen) if seen else None

    local_results = []
    for index in range(parallel.rank(), batch_count, parallel.world_size()):
        batch = task.batch(split, EVALUATION_SEED, index, EVALUATION_BATCH, length)
        batch = rows_of(batch, 0, min(EVALUATION_BATCH, examples - index * EVALUATION_BATCH))
        result = _evaluate_batch(model, cell, batch, training_examples)
        if split == "test":
            options = Options(**task.options)
            for name, reference in task.references.items():
                result.references[name] = reference(batch, options)
        local_results.append((index, result))
    model.train()

    # Put batches back in order, so that sums are rounded as in one process.
    results = []
    for rank_results in parallel.gather(local_results):
        results += rank_results
    results.sort(key=lambda pair: pair[0])
    return parallel.broadcast(
        lambda: _score(task, length, examples, [result for _, result in results])
    )


def _evaluate_batch(
    model: SequenceModel, cell: LearnCell, batch: Batch, training_examples: Tensor | None
) -> BatchResult:
    losses = []
    correct = []
    rows = max(1, EVALUATION_TOKENS // batch.tokens[0].numel())
    for first in range(0, len(batch.tokens), rows):
        logits, targets = logits_and_targets(model, rows_of(batch, first, first + rows), cell)
        losses.append(cross_entropy(logits, targets, reduction="none").cpu())
        correct.append((logits.argmax(-1) == targets).cpu())

    indices = batch.target_indices()
    targets_per_row = 1 if batch.targets.ndim == 1 else batch.targets.shape[1]
    seen = 0
    if training_examples is not None:
        seen = int(torch.isin(fingerprints(batch.tokens), training_examples).sum())
    return BatchResult(
        losses=torch.cat(losses),
        correct=torch.cat(correct),
        positions=indices % batch.tokens.shape[-1],
        sequences=indices // targets_per_row,
        distances=None if batch.distances is None else batch.distances.flatten()[indices],
        seen_in_training=seen,
        references={},
    )


def _score(task: Task, length: int, examples: int, results: list[BatchResult]) -> Score:
    """Summarise the results of all batches; every target has the same weight."""
    losses = torch.cat([result.losses for result in results]).double()
    correct = torch.cat([result.correct for result in results])
    distances = [result.distances for result in results if result.distances is not None]
    loss = losses.mean().item()
    is_finite = math.isfinite(loss)

    by_positions: tuple[PositionScore, ...] = ()
    if task.score == "accuracy":
        score: float | None = correct.double().mean().item()
    elif is_finite:
        score = loss / math.log(2)  # bits per byte
        by_positions = by_position(losses, torch.cat([result.positions for result in results]))
    else:
        score = None

    return Score(
        length=length,
        examples=examples,
        count=len(correct),
        correct=int(correct.sum()),
        loss=loss if is_finite else None,
        score=score,
        seen_in_training=sum(result.seen_in_training for result in results),
        by_distance=by_distance(correct, torch.cat(distances)) if distances else (),
        by_position=by_positions,
        by_sequence=sums_of_sequences(task, results),
        references=reference_scores(task, results),
    )


def sums_of_sequences(task: Task, results: list[BatchResult]) -> SequenceSums:
    """Sum correct answers, or nats to three decimals, over each sequence."""
    decimals = 0 if task.score == "accuracy" else 3
    totals: list[str] = []
    counts: list[str] = []
    for result in results:
        values = result.correct if task.score == "accuracy" else result.losses
        sums = torch.bincount(result.sequences, weights=values.double())
        totals += [f"{total:.{decimals}f}" for total in sums.tolist()]
        counts += map(str, torch.bincount(result.sequences).tolist())
    if len(set(counts)) == 1:
        counts = counts[:1]
    return SequenceSums(totals=" ".join(totals), counts=" ".join(counts))


def reference_scores(task: Task, results: list[BatchResult]) -> dict[str, float | None]:
    """Return the score of each of the task's references, in the task's unit."""
    scores: dict[str, float | None] = {}
    for name in results[0].references:
        values = torch.cat([result.references[name] for result in results]).double()
        mean = values.mean().item()
        scores[name] = mean if task.score == "accuracy" else mean / math.log(2)
    return scores


def half_octaves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort values into bins that start at 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...

    Returns:
        the number of each value's bin, (n,) int64, and the lowest value of every bin.
    """
    powers = 2 ** torch.arange(1, OCTAVES + 1)
    middles = powers + powers // 2
    edges = torch.cat([torch.tensor([0, 1]), torch.stack([powers, middles], 1).flatten()])
    return torch.bucketize(values, edges, right=True) - 1, edges


def by_distance(correct: Tensor, distances: Tensor) -> tuple[DistanceScore, ...]:
    """Count correct answers, (n,) bool, in bins of their distances, (n,); see `half_octaves`."""
    bins, edges = half_octaves(distances)
    counts = torch.bincount(bins, minlength=len(edges))
    corrects = torch.bincount(bins, weights=correct.double(), minlength=len(edges)).long()

    scores = []
    for bin in counts.nonzero().flatten().tolist():
        scores.append(
            DistanceScore(
                low=int(edges[bin]),
                high=int(edges[bin + 1]) - 1,
                correct=int(corrects[bin]),
                count=int(counts[bin]),
            )
        )
    return tuple(scores)


def by_position(losses: Tensor, positions: Tensor) -> tuple[PositionScore, ...]:
    """Average losses, (n,), in bins of their positions, (n,); the last bin ends at the last one."""
    bins, edges = half_octaves(positions)
    counts = torch.bincount(bins, minlength=len(edges))
    totals = torch.bincount(bins, weights=losses, minlength=len(edges))
    last = int(positions.max())

    scores = []
    for bin in counts.nonzero().flatten().tolist():
        scores.append(
            PositionScore(
                low=int(edges[bin]),
                high=min(last, int(edges[bin + 1]) - 1),
                loss=float(totals[bin] / counts[bin]),
                count=int(counts[bin]),
            )
        )
    return tuple(scores)


def _reads_token_by_token(model: SequenceModel) -> bool:
    return all(hasattr(block, "step") for block in model.blocks)


@torch.no_grad()
def kept_bytes(model: SequenceModel, cell: LearnCell) -> int | None:
    """Return the bytes of the state after one sequence of the cell's length.

    None for a model that does not read token by token: without `step`, bidirectional, or pooled.
    """
    streams = cell.direction == "causal" and cell.pooling == "last"
    if not (streams and _reads_token_by_token(model)):
        return None
    tokens = torch.zeros(1, cell.length, dtype=torch.int64, device=cell.device)
    with precision(cell):
        return state_bytes(model.eval().prefill(tokens)[1])


@torch.no_grad()
def parallel_recurrent_difference(
    model: SequenceModel, cell: LearnCell, task: Task
) -> float | None:
    """Return how far the logits of `step` are from those of `forward`, relative to the largest.

    A test sequence is read at once, and token by token from an empty state; its first
    COMPARED_TOKENS tokens, in the cell's precision. Exact arithmetic would give 0.

    Returns:
        the largest absolute difference over the largest absolute logit; None for a task with one
        label per sequence, for a model without `step` or without an empty state, and if the logits
        are not finite.
    """
    if task.classes is not None or not _reads_token_by_token(model):
        return None
    model.eval()
    try:
        state = model.initial_state(1)
    except ValueError:  # RRWKV's interval may depend on the length
        return None

    batch = task.batch("test", EVALUATION_SEED, 0, 1, cell.length)
    tokens = batch.tokens[:, :COMPARED_TOKENS].to(cell.device)  # (1, length)
    stepped = []
    with precision(cell):
        at_once = model(tokens).float()  # (1, length, vocabulary)
        for token in tokens.unbind(1):
            logits, state = model.step(token, state)
            stepped.append(logits.float())

    difference = (at_once - torch.stack(stepped, 1)).abs().max() / at_once.abs().max()
    return float(difference) if difference.isfinite() else None
