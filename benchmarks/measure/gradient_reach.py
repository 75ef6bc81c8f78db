"""Gradient reach: how much of the gradient of an output arrives n positions earlier.

A recurrent model carries information from n tokens back through n steps, a Transformer looks at it
directly, and RRWKV is meant to shorten the path by its mediums. The gradient at the end of the path
is all that learning can use:

    r(n)^2   = mean over examples and positions t of || d y_t / d x_{t-n} ||^2         (Frobenius)
    share(n) = r(n) / r(0)

x is the embedding as the first block reads it. y is the logits minus their mean, because a shift of
all logits changes no answer. Information that a model carries but never uses does not count. All
models have a head of the same shape, and the scales of head and embedding cancel in the share.

The norm is estimated: || J ||^2 = E || J^T u ||^2 for u of independent random signs (Hutchinson
1990). Every example has its own position and its own u, so one backward pass per example is enough.
Other examples and signs changed shares by 5 to 12 %, and by their own size where few examples carry
the gradient far (an LSTM beyond its reach).

In float32: products of many factors keep their relative error, and shares down to 1e-10 were within
2e-6 of those in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from lookback.benchmarks.measure.evaluate import half_octaves
from lookback.benchmarks.record import LearnCell, ReachBin
from lookback.models.model import SequenceModel
from lookback.tasks.task import IGNORE, Batch, Task

EXAMPLES = 128  # validation sequences, the same for every model
POSITION_CHOICES = 8  # positions of the output, from the middle of a sequence's targets to the last
TOKENS = 16384  # most tokens that go through a model at once
SEED = 0


def reach(model: SequenceModel, cell: LearnCell, task: Task) -> tuple[ReachBin, ...]:
    """Return the share of each bin of distances, at the longest length that the cell uses.

    Without autocast and dropout. Model and random state are left as they were. Empty if a share is
    not finite. Raises ValueError for cells whose output belongs to no single position.
    """
    is_single = task.sequences_per_example == 1
    if cell.pooling != "last" or cell.direction != "causal" or not is_single:
        raise ValueError(
            "reach is measured back from one position:"
            " expected pooling 'last', direction 'causal' and one sequence per example"
        )

    length = max((cell.length, *cell.test_lengths))
    batch = task.batch("validation", SEED, 0, EXAMPLES, length)
    positions = output_positions(batch)
    generator = torch.Generator().manual_seed(SEED)
    with evaluation_mode(model):
        squares = squared_gradients(model, batch.tokens, positions, generator)
    return bin_shares(squares, positions)


@contextlib.contextmanager
def evaluation_mode(model: SequenceModel) -> Iterator[None]:
    """Turn off dropout, and cuDNN, whose LSTM has gradients in training mode only."""
    was_training = model.training
    was_enabled = torch.backends.cudnn.enabled
    model.eval()
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        model.train(was_training)
        torch.backends.cudnn.enabled = was_enabled


def output_positions(batch: Batch) -> Tensor:
    """Return a position with a target for each example: (batch,) int64.

    With one label per sequence, it is the last valid position.
    """
    if batch.targets.ndim == 1:
        if batch.lengths is not None:
            return batch.lengths - 1
        return torch.full_like(batch.targets, batch.tokens.shape[1] - 1)

    # Example i uses the target at 1, 15/16, ..., 9/16 of its targets, and then again from 1.
    has_target = batch.targets != IGNORE  # (batch, length)
    number = torch.arange(len(has_target)) % POSITION_CHOICES
    share = 1 - number / (2 * POSITION_CHOICES)
    rank = (has_target.sum(1) * share).ceil().clamp_min(1)
    return (has_target.cumsum(1) >= rank[:, None]).int().argmax(1)


def squared_gradients(
    model: SequenceModel, tokens: Tensor, positions: Tensor, generator: torch.Generator
) -> Tensor:
    """Return || J^T u ||^2 of each example's output by input position, on the CPU.

    Args:
        tokens: (batch, length) int64.
        positions: (batch,) int64, of the outputs.

    Returns:
        (batch, length) float64.
    """
    rows = max(1, TOKENS // tokens.shape[1])
    device = model.embedding.weight.device
    squares = []
    for row_tokens, row_positions in zip(tokens.split(rows), positions.split(rows), strict=True):
        x = model.embed(row_tokens.to(device)).detach().requires_grad_()  # (rows, length, width)
        encoded = model.run_blocks(model.blocks, x)
        logits = model.logits(encoded[torch.arange(len(x)), row_positions])  # (rows, vocabulary)

        signs = torch.randint(2, logits.shape, generator=generator).to(logits) * 2 - 1
        centred = signs - signs.mean(1, keepdim=True)
        (gradient,) = torch.autograd.grad((logits * centred).sum(), x)
        squares.append(gradient.double().square().sum(2).cpu())
    return torch.cat(squares)


def bin_shares(squares: Tensor, positions: Tensor) -> tuple[ReachBin, ...]:
    """Return root mean squares in bins of distance, relative to that at distance 0.

    Args:
        squares: (batch, length) float64, by input position.
        positions: (batch,) int64, of the outputs; later inputs are left out.
    """
    distances = positions[:, None] - torch.arange(squares.shape[1])
    is_past = distances >= 0
    bins, edges = half_octaves(distances[is_past])
    mean_squares = torch.bincount(bins, weights=squares[is_past]) / torch.bincount(bins)
    shares = mean_squares.sqrt()
    shares = shares / shares[0]
    if not shares.isfinite().all():
        return ()

    highs = (edges[1 : len(shares) + 1] - 1).clamp_max(int(positions.max()))
    lows = edges[: len(shares)]
    reach_bins = []
    for low, high, share in zip(lows.tolist(), highs.tolist(), shares.tolist(), strict=True):
        reach_bins.append(ReachBin(low=low, high=high, share=share))
    return tuple(reach_bins)
