"""State tracking: the answer changes with every token, and depends on all tokens from the first on.

Every position is asked, which trains on all shorter lengths at once; the published tasks draw
lengths instead. The distance of a position is that to the first token, because its answer depends
on everything since then.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from lookback.tasks.task import Batch, register_task

ELEMENTS = list(permutations(range(5)))
"""The permutations of five objects, the group S5."""


def distances_to_first(tokens: Tensor) -> Tensor:
    """Return the distance of each position to the first token: (batch, length)."""
    return torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()


@register_task(
    "parity",
    vocabulary=2,
    baseline_score=0.5,
    lengths=(40, 80, 160, 320),
    source="Parity check: Deletang et al. 2022 (arXiv 2207.02098), asked at every position",
)
def sample_parity(batch_size: int, length: int, generator: torch.Generator) -> Batch:
    """Is the number of ones so far odd?

        tokens     0  1  1  0  1
        targets    0  1  0  0  1
        distances  0  1  2  3  4

    Tests a state of one bit that every token may flip, at lengths beyond those of training. Does
    not test memory of content: nothing has to be found again. A score of one half at long distances
    is chance.
    """
    tokens = torch.randint(2, (batch_size, length), generator=generator)
    return Batch(tokens, tokens.cumsum(1) % 2, distances_to_first(tokens))


@cache
def product_table() -> Tensor:
    """Return the products of all permutations, (120, 120): table[p, q] is p first, then q."""
    number = {element: i for i, element in enumerate(ELEMENTS)}
    table = torch.empty(len(ELEMENTS), len(ELEMENTS), dtype=torch.int64)
    for i, p in enumerate(ELEMENTS):
        for j, q in enumerate(ELEMENTS):
            table[i, j] = number[tuple(p[k] for k in q)]
    return table


def running_product(tokens: Tensor, table: Tensor) -> Tensor:
    """Return the product of all tokens up to each position: (batch, length).

    Because products associate, log2(length) passes suffice: each pass doubles the number of tokens
    that an entry covers.
    """
    product = tokens.clone()
    covered = 1
    while covered < tokens.shape[1]:
        combined = table[product[:, :-covered], product[:, covered:]]
        product = torch.cat([product[:, :covered], combined], dim=1)
        covered *= 2
    return product


@register_task(
    "permutations",
    vocabulary=120,
    baseline_score=1 / 120,
    lengths=(16, 32, 64, 128, 256),
    symbols=["".join(map(str, element)) for element in ELEMENTS],
    source="Word problem of S5: Merrill et al. 2024 (arXiv 2404.08819), after Barrington 1989",
)
def sample_permutations(batch_size: int, length: int, generator: torch.Generator) -> Batch:
    """Permutations of five objects, applied one after the other: how are the objects ordered now?

        tokens     10234  01243  43210
        targets    10234  10243  34201
        distances      0      1      2

    Tests tracking a state of 120 values in which order matters. The problem is NC1-complete, so
    circuits of constant depth are not believed to solve it. Does not test memory of content, nor
    long reach for its own sake: one mistake spoils all later answers.
    """
    tokens = torch.randint(len(ELEMENTS), (batch_size, length), generator=generator)
    return Batch(tokens, running_product(tokens, product_table()), distances_to_first(tokens))
