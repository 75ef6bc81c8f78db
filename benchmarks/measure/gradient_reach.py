"""Reach: how much of the gradient of an output arrives n positions back.

A recurrent model carries what lies n tokens back through n steps, a Transformer looks at it
directly, RRWKV is to have a shorter path by its mediums. What is left at the end of the path is all
that learning has to go on:

    r(n)^2   = mean over examples and positions t of || d answer_t / d x_{t-n} ||^2         (Frobenius)
    share(n) = r(n) / r(0)

x is the embedding as the first block reads it. The answer is the logits less their mean: what a
model carries along and never answers with does not count, nor does a shift of all logits, which
changes no answer. The head has one shape in all models, and the scales of head and embedding cancel
in the share.

The norm is estimated: || J ||^2 = E || J^T u ||^2 for u of independent signs (Hutchinson 1990).
Every example brings a position and a u of its own, so that one backward pass an example is all it
takes. Other draws of examples and signs moved shares by 5 to 12 %; where few examples carry the
gradient far (an LSTM beyond its reach), by as much as they are.

In float32: products of many factors keep their relative error, and shares down to 1e-10 were within
2e-6 of float64's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from lookback.benchmarks.measure.evaluate import half_octaves
from lookback.benchmarks.record import LearnCell, ReachBin
from lookback.models.classifier import SequenceClassifier
from lookback.models.model import SequenceModel
from lookback.tasks.task import IGNORE, Batch, Task

EXAMPLES = 128  # validation sequences, the same for every model
PLACES = 8  # positions of an example that ask, from the middle of those it has to the last
TOKENS = 16384  # at most so many go through a model at once
SEED = 0


def reach(model: SequenceModel, cell: LearnCell, task: Task) -> tuple[ReachBin, ...]:
    """The share of each bin of distances, at the longest length that the cell tests or trains at.

    Without autocast and dropout; the model and torch's generator are left as they were. () where
    the share is not a number. Raises ValueError for models whose answer has no one position: pooled
    by mean, bidirectional, of two documents.
    """
    _check(model)
    length = max((cell.length, *cell.test_lengths))
    batch = task.batch("validation", SEED, 0, EXAMPLES, length)
    positions = answering(batch)
    with undisturbed(model):
        squares = squared_gradients(
            model, batch.tokens, positions, torch.Generator().manual_seed(SEED)
        )
    return in_bins(squares, positions)


@contextlib.contextmanager
def undisturbed(model: SequenceModel) -> Iterator[None]:
    """The model without dropout, and without cuDNN, whose LSTM is differentiable in training alone."""
    training, cudnn = model.training, torch.backends.cudnn.enabled
    model.eval()
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        model.train(training)
        torch.backends.cudnn.enabled = cudnn


def _check(model: SequenceModel) -> None:
    if isinstance(model, SequenceClassifier) and not model.is_streamable:
        raise ValueError(
            "reach is measured back from one position: expected pooling 'last', direction 'causal' and one document"
        )


def answering(batch: Batch) -> Tensor:
    """A position at which each example is asked something, (batch,): of one label a sequence, its
    last valid one.
    """
    if batch.targets.ndim == 1:
        return (
            torch.full_like(batch.targets, batch.tokens.shape[1])
            if batch.lengths is None
            else batch.lengths
        ) - 1
    asked = batch.targets != IGNORE
    share = 1 - torch.arange(len(asked)) % PLACES / (
        2 * PLACES
    )  # from 1, the last asked, down to a half
    rank = (asked.sum(1) * share).ceil().clamp_min(1)
    return (asked.cumsum(1) >= rank[:, None]).int().argmax(1)


def squared_gradients(
    model: SequenceModel, tokens: Tensor, positions: Tensor, generator: torch.Generator
) -> Tensor:
    """|| J^T u ||^2 of the answer at each example's position, by input: (batch, length) float64, on
    the CPU.
    """
    rows = max(1, TOKENS // tokens.shape[1])
    device = model.embedding.weight.device
    parts = []
    for some, where in zip(tokens.split(rows), positions.split(rows), strict=True):
        x = model.embed(some.to(device)).detach().requires_grad_()  # (rows, length, width)
        read = model.run_blocks(model.blocks, x)
        answer = model.logits(read[torch.arange(len(x)), where])  # (rows, vocabulary or classes)
        signs = torch.randint(2, answer.shape, generator=generator).to(answer) * 2 - 1
        unshifted = signs - signs.mean(1, keepdim=True)
        (gradient,) = torch.autograd.grad((answer * unshifted).sum(), x)
        parts.append(gradient.double().square().sum(2).cpu())
    return torch.cat(parts)


def in_bins(squares: Tensor, positions: Tensor) -> tuple[ReachBin, ...]:
    """Root mean squares in bins of half an octave, relative to that at distance 0; squares are
    (batch, length).
    """
    distances = positions[:, None] - torch.arange(squares.shape[1])
    seen = distances >= 0
    bins, edges = half_octaves(distances[seen])
    shares = (torch.bincount(bins, weights=squares[seen]) / torch.bincount(bins)).sqrt()
    shares = shares / shares[0]
    if not shares.isfinite().all():
        return ()
    highs = (edges[1 : len(shares) + 1] - 1).clamp_max(int(positions.max()))
    parts = zip(edges.tolist(), highs.tolist(), shares.tolist(), strict=False)
    return tuple(ReachBin(low=low, high=high, share=share) for low, high, share in parts)
