"""State tracking: the answer changes with every token, and depends on all tokens from the first on.

Every position is asked, which trains on all shorter lengths at once; the published tasks draw
lengths instead. The distance of a position is that to the first token, because its answer depends
on everything since then.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from lookback.tasks.task import IGNORE, Batch, Options, register_task

ELEMENTS = list(permutations(range(5)))
"""The permutations of five objects, the group S5."""

GENERATORS = [
    (1, 0, 2, 3, 4),
    (0, 2, 1, 3, 4),
    (0, 1, 3, 2, 4),
    (0, 1, 2, 4, 3),
    (1, 2, 3, 4, 0),
    (0, 1, 2, 3, 4),
]
"""The swaps of neighbours, a rotation and nothing: together they generate S5."""


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


def check_words(options: Options) -> int:
    """Return the shortest length; raises ValueError unless `words` is known."""
    if options.words not in ("all", "generators"):
        raise ValueError(f"permutations with words = {options.words!r}: expected all or generators")
    return 1


@register_task(
    "permutations",
    vocabulary=120,
    baseline_score=1 / 120,
    lengths=(16, 32, 64, 128, 256),
    shortest=check_words,
    symbols=["".join(map(str, element)) for element in ELEMENTS],
    source="Word problem of S5: Merrill et al. 2024 (arXiv 2404.08819), after Barrington 1989",
)
def sample_permutations(
    batch_size: int, length: int, generator: torch.Generator, *, words: str = "all"
) -> Batch:
    """Permutations of five objects, applied one after the other: how are the objects ordered now?

        tokens     10234  01243  43210
        targets    10234  10243  34201
        distances      0      1      2

    The tokens are all 120 permutations, or with `words` = "generators" only six of them: the four
    swaps of neighbours, a rotation, and nothing. The answers are of all 120 in both cases.

    Tests tracking a state of 120 values in which order matters. The problem is NC1-complete, so
    circuits of constant depth are not believed to solve it. Does not test memory of content, nor
    long reach for its own sake: one mistake spoils all later answers.
    """
    if words == "all":
        tokens = torch.randint(len(ELEMENTS), (batch_size, length), generator=generator)
    else:
        numbers = torch.tensor([ELEMENTS.index(element) for element in GENERATORS])
        tokens = numbers[torch.randint(len(numbers), (batch_size, length), generator=generator)]
    return Batch(tokens, running_product(tokens, product_table()), distances_to_first(tokens))


def leads_the_last_quarter(batch: Batch, options: Options) -> Tensor:
    """Say of each target whether the commonest symbol of the last quarter is right: (targets,)."""
    counts = torch.nn.functional.one_hot(batch.tokens, options.symbols).cumsum(1)
    span = batch.tokens.shape[1] // 4
    recent = torch.cat([counts[:, :span], counts[:, span:] - counts[:, :-span]], dim=1)
    return (recent.argmax(-1) == batch.targets).flatten()[batch.target_indices()]


@register_task(
    "majority",
    vocabulary=lambda options: options.symbols,
    baseline_score=lambda options: 1 / options.symbols,
    lengths=(64, 256, 1024, 4096),
    shortest=lambda options: 8 * options.symbols,
    references={"commonest of the last quarter": leads_the_last_quarter},
    source="Lookback's own, after the majority function of circuit complexity, with a margin",
)
def sample_majority(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    symbols: int = 4,
    margin: float = 0.1,
) -> Batch:
    """Which symbol has occurred most often so far? Asked in the last quarter of the input.

        tokens     2  0  2  1  2  3  2  0
        targets    .  .  .  .  .  .  2  2

    One symbol, drawn for each sequence, has a probability that exceeds that of the others by
    `margin`; the answer is what was counted, which need not be that symbol. Where two lead
    together, nothing is asked. The distance is that to the first token.

    Tests whether a model integrates over everything it has read: no token may be skipped, the
    opposite of a needle. Does not test memory of content or order.
    """
    favourite = torch.randint(symbols, (batch_size, 1), generator=generator)
    is_favourite = torch.rand(batch_size, length, generator=generator) < margin
    tokens = torch.randint(symbols, (batch_size, length), generator=generator)
    tokens = torch.where(is_favourite, favourite, tokens)

    counts = torch.nn.functional.one_hot(tokens, symbols).cumsum(1)
    leading, _ = counts.topk(2, dim=-1)
    targets = counts.argmax(-1).where(leading[..., 0] > leading[..., 1], IGNORE)
    targets[:, : 3 * length // 4] = IGNORE
    return Batch(tokens, targets, distances_to_first(tokens))
