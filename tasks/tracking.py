"""State tracking: the answer changes with every token, and every token back to the first one
counts.

Asking at every position is training on all shorter lengths at once, as the published tasks do by
drawing lengths. The distance of a position is that to the first token: what it asks depends on
everything from there on.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from lookback.tasks.task import Batch, register_task

ELEMENTS = 5


def _distances(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()


@register_task(
    "parity",
    vocabulary=2,
    baseline_score=0.5,
    lengths=(40, 80, 160, 320),
    symbols=lambda: ["0", "1"],
    source="Parity check: Deletang et al. 2022 (arXiv 2207.02098), asked at every position",
)
def sample_parity(batch_size: int, length: int, generator: torch.Generator) -> Batch:
    """Is the number of ones so far odd?

    tokens     0  1  1  0  1
    targets    0  1  0  0  1
    distances  0  1  2  3  4

    Tests a state of one bit that every token may turn, carried over lengths never trained at. Does
    not test memory of content: nothing has to be found again. A score of a half at long distances
    is chance.
    """
    tokens = torch.randint(2, (batch_size, length), generator=generator)
    return Batch(tokens, tokens.cumsum(1) % 2, _distances(tokens))


@cache
def _group() -> tuple[list[tuple[int, ...]], Tensor]:
    """The permutations of five things, and the table of products: table[p, q] is p first, then q."""
    elements = list(permutations(range(ELEMENTS)))
    number = {element: i for i, element in enumerate(elements)}
    table = [[number[tuple(p[i] for i in q)] for q in elements] for p in elements]
    return elements, torch.tensor(table)


def _running_product(tokens: Tensor, table: Tensor) -> Tensor:
    """Product of all tokens up to each position, (batch, length), in log2(length) passes (products
    associate).
    """
    product, reach = tokens.clone(), 1
    while reach < tokens.shape[1]:
        joined = table[product[:, :-reach], product[:, reach:]]
        product = torch.cat([product[:, :reach], joined], dim=1)
        reach *= 2
    return product


@register_task(
    "permutations",
    vocabulary=120,
    baseline_score=1 / 120,
    lengths=(16, 32, 64, 128, 256),
    symbols=lambda: ["".join(map(str, p)) for p in _group()[0]],
    source="Word problem of S5: Merrill et al. 2024 (arXiv 2404.08819), after Barrington 1989",
)
def sample_permutations(batch_size: int, length: int, generator: torch.Generator) -> Batch:
    """Permutations of five things, applied one after the other: in what order do the things lie
    now?

    tokens     10234  01243  43210
    targets    10234  10243  34201
    distances      0      1      2

    Tests tracking a state of 120 values in which order matters: NC1-complete, so that circuits of
    constant depth are not believed to do it. Does not test memory of content, nor long reach for
    its own sake: one mistake spoils all that follows.
    """
    elements, table = _group()
    tokens = torch.randint(len(elements), (batch_size, length), generator=generator)
    return Batch(tokens, _running_product(tokens, table), _distances(tokens))
