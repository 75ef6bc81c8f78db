"""Answers without learning that look at the input: the floor that a model must leave.

A model that only names the commonest value in sight beats any constant answer, and has recalled
nothing. The best of a task's references and its constant baseline is the *sighted floor*.
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.task import Batch, Options, Reference

NGRAM_BYTES = 8_000_000  # of the training text that n-grams are counted in, at most
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # sorted keys, and a number for each


def value_references(
    first: Callable[[Options], int], last: Callable[[Options], int]
) -> Mapping[str, Reference]:
    """Return the references of a task whose answers are tokens that it has shown.

    Args:
        first, last: the tokens that can be answers, inclusive, as functions of the options.
    """

    def reference(choose: Callable[[Tensor], int]) -> Reference:
        def is_right(batch: Batch, options: Options) -> Tensor:
            length = batch.tokens.shape[-1]
            answers = []
            for index in batch.target_indices().tolist():
                seen = batch.tokens[index // length, : index % length + 1]
                answers.append(choose(seen[(seen >= first(options)) & (seen <= last(options))]))
            return torch.tensor(answers) == asked(batch)

        return is_right

    return {
        "commonest value in sight": reference(
            lambda values: int(values.bincount(minlength=1).argmax())
        ),
        "last value": reference(lambda values: int(values[-1]) if len(values) else -1),
    }


def asked(batch: Batch) -> Tensor:
    """Return the targets that are asked: (targets,)."""
    return batch.targets.flatten()[batch.target_indices()]


def ngram_references(text: Callable[[], NDArray[np.uint8]]) -> Mapping[str, Reference]:
    """Return the references of a text: n-grams of orders 3 and 5, counted in the training text."""

    def reference(order: int) -> Reference:
        @cache
        def model() -> NGram:
            return NGram(text()[:NGRAM_BYTES], order)

        return lambda batch, options: model().losses(batch)

    return {f"{order}-gram": reference(order) for order in (3, 5)}


class NGram:
    """Predicts a byte from those before it, by interpolated counts (Witten and Bell 1991).

    P_k(b | c) = (n(c b) + d(c) P_{k-1}(b | c')) / (n(c) + d(c)), where c' is c without its first
    byte, n counts and d(c) is the number of distinct bytes that followed c; P_0 is 1 / 256.
    """

    def __init__(self, text: NDArray[np.uint8], order: int) -> None:
        self.order = order
        self.followed: list[Counts] = []  # by length of the context: occurrences of c b
        self.contexts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        codes = text.astype(np.int64)
        keys = np.zeros(len(text) + 1, dtype=np.int64)
        for size in range(order):
            # A context of `size` bytes and the byte after it; the oldest byte is the highest.
            keys = (keys[:-1] << 8) + codes[size:]
            seen, counts = np.unique(keys, return_counts=True)
            self.followed.append((seen, counts))
            # The followers of one context are neighbours in the sorted keys.
            contexts, starts, distinct = np.unique(seen >> 8, return_index=True, return_counts=True)
            totals = np.add.reduceat(counts, starts)
            self.contexts.append((contexts, totals, distinct))

    def losses(self, batch: Batch) -> Tensor:
        """Return the loss of each target that is asked, in nats: (targets,) float64."""
        length = batch.tokens.shape[-1]
        tokens = batch.tokens.numpy()
        targets = asked(batch).numpy()
        indices = batch.target_indices().numpy()
        rows, positions = indices // length, indices % length

        share = np.full(len(targets), 1 / 256)
        context = np.zeros(len(targets), dtype=np.int64)
        for size in range(self.order):
            if size:
                at = positions - size + 1
                context += tokens[rows, np.maximum(at, 0)] << 8 * (size - 1)
            known = positions + 1 >= size  # the first positions have fewer bytes before them
            contexts, totals, distinct = self.contexts[size]
            total = look_up(contexts, totals, context)
            novel = look_up(contexts, distinct, context)
            count = look_up(*self.followed[size], (context << 8) + targets)
            mixed = (count + novel * share) / np.maximum(1, total + novel)
            share = np.where(known & (total > 0), mixed, share)
        return torch.from_numpy(-np.log(share))


def look_up(
    keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the value of each wanted key among sorted keys, or 0 where it is not among them."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
