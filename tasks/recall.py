"""Associative recall: read key-value pairs, then answer what followed each queried key."""

import torch
from torch import Tensor

from lookback.tasks.task import IGNORE, Batch, register_task


def _distinct(
    batch_size: int, count: int, low: int, high: int, generator: torch.Generator
) -> Tensor:
    """Integers of [low, high), each row without repetition, every such row equally likely: (batch,
    count).

    Redraws what repeats an earlier entry of its row. The rule treats all values alike, so that no
    row is favoured.
    """
    drawn = torch.randint(low, high, (batch_size, count), generator=generator)
    while True:
        ordered, order = drawn.sort(dim=1, stable=True)
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        if not repeated.any():
            return drawn
        drawn[repeated] = torch.randint(low, high, (int(repeated.sum()),), generator=generator)


def _shuffled(batch_size: int, count: int, chosen: int, generator: torch.Generator) -> Tensor:
    """`chosen` of the numbers 0..count-1 in random order, for each row: (batch, chosen)."""
    return torch.rand((batch_size, count), generator=generator).topk(chosen, dim=1).indices


def _mqar_symbols(pairs: int, vocabulary: int, power: float, random_filler: bool) -> list[str]:
    half = vocabulary // 2
    return ["_"] + [f"k{i}" for i in range(1, half)] + [f"v{i}" for i in range(half, vocabulary)]


def _mqar_shortest(pairs: int, vocabulary: int, power: float, random_filler: bool) -> int:
    if (
        pairs < 1
        or vocabulary < 4
        or vocabulary % 2
        or pairs > vocabulary // 2 - 1
        or not power > 0
    ):
        raise ValueError(
            f"mqar with pairs={pairs}, vocabulary={vocabulary}, power={power}: expected an even vocabulary, "
            "1 <= pairs <= vocabulary/2 - 1 and power > 0"
        )
    return 4 * pairs


@register_task(
    "mqar",
    vocabulary=lambda pairs, vocabulary, power, random_filler: vocabulary,
    baseline_score=lambda pairs, vocabulary, power, random_filler: 2 / vocabulary,
    lengths=(64, 128, 256, 512),
    shortest=_mqar_shortest,
    multiple=2,
    symbols=_mqar_symbols,
    source="Multi-query associative recall: Arora et al. 2023 (arXiv 2312.04927), the rule of HazyResearch/zoology",
)
def sample_mqar(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    pairs: int = 4,
    vocabulary: int = 8192,
    power: float = 0.01,
    random_filler: bool = False,
) -> Batch:
    """Pairs first; then every key once more, more often soon than late (a gap of k slots with
    weight k^(power-1)).

        tokens    k7 v9 k2 v5 k2  _  _  _ k7  _
        targets    .  .  .  . v5  .  .  . v9  .

    Published grid of (length, pairs): (64, 4), (128, 8), (256, 16), (512, 64). Keys are
    1..vocabulary/2-1, values the upper half, both without replacement. The published code trains on
    100000 examples and picks on the test set. `random_filler` puts random tokens where else 0
    stands. Distance: from the key asked back to its value.

    Tests looking up by content, many keys at once; as `pairs` grow, how much a state can hold.
    Hardly tests reach: with the published `power` most questions come soon (half of them within 14
    tokens at a length of 64).
    """
    keys = _distinct(batch_size, pairs, 1, vocabulary // 2, generator)
    values = _distinct(batch_size, pairs, vocabulary // 2, vocabulary, generator)
    slots = torch.arange(1, (length - 2 * pairs) // 2 + 1)
    # Drawing without replacement in proportion to weights is taking the largest log-weights plus
    # Gumbel noise.
    noise = torch.empty(batch_size, len(slots)).exponential_(generator=generator).log_()
    asked_at = 2 * pairs + 2 * ((power - 1) * slots.log() - noise).topk(pairs, dim=1).indices

    tokens = torch.zeros(batch_size, length, dtype=torch.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    tokens.scatter_(1, asked_at, keys)
    targets = torch.full((batch_size, length), IGNORE).scatter_(1, asked_at, values)
    value_at = torch.arange(1, 2 * pairs, 2)
    distances = torch.zeros_like(tokens).scatter_(1, asked_at, asked_at - value_at)
    if random_filler:
        filler = torch.randint(vocabulary, tokens.shape, generator=generator)
        tokens = torch.where(tokens == 0, filler, tokens)
    return Batch(tokens, targets, distances)


def _recall_symbols(pairs: int, alphabet: int) -> list[str]:
    return [f"k{i}" for i in range(alphabet)] + [f"v{i}" for i in range(alphabet)] + ["_"]


def _recall_shortest(pairs: int, alphabet: int) -> int:
    if not 1 <= pairs <= alphabet:
        raise ValueError(
            f"recall of {pairs} pairs with {alphabet} keys: expected 1 <= pairs <= alphabet"
        )
    return 3 * pairs


@register_task(
    "recall",
    vocabulary=lambda pairs, alphabet: 2 * alphabet + 1,
    baseline_score=lambda pairs, alphabet: 1 / alphabet,
    lengths=(64, 128, 256, 512, 1024, 2048, 4096),
    shortest=_recall_shortest,
    symbols=_recall_symbols,
    source="Lookback's own: multi-query associative recall with distances drawn evenly over the whole length",
)
def sample_recall(
    batch_size: int, length: int, generator: torch.Generator, *, pairs: int = 8, alphabet: int = 32
) -> Batch:
    """A fixed number of pairs strewn evenly over the input; at its end every key is asked once, in
    random order.

        tokens     _  _ k1 v4  _  _ k5 v2  _  _ k1 k5
        targets    .  .  .  .  .  .  .  .  .  . v4 v2
        distances  .  .  .  .  .  .  .  .  .  .  7  4

    The number of pairs does not grow with the length: what a longer sequence asks is reach, not
    capacity. `pairs` of `alphabet` keys and as many values; keys differ within a sequence, values
    need not. Distance: back to the value.

    Tests looking up by content, far back. Near by, to say the value seen last is often right, with
    nothing looked up: at 512, more often than half-way to always, up to a distance of 47 with 8
    pairs of 16, and of 95 with 4 pairs of 8. Does not test composing what was found, nor meaning:
    keys and values are signs, and between them stands only a blank, which is easy to pass over.
    """
    slots = (length - pairs) // 2
    keys = _shuffled(batch_size, alphabet, pairs, generator)
    values = alphabet + torch.randint(alphabet, (batch_size, pairs), generator=generator)
    key_at = 2 * _shuffled(batch_size, slots, pairs, generator)

    # Both draws above are in random order already, so asking in the order drawn is asking in random
    # order.
    tokens = torch.full((batch_size, length), 2 * alphabet)
    tokens.scatter_(1, key_at, keys).scatter_(1, key_at + 1, values)
    tokens[:, length - pairs :] = keys
    targets = torch.full((batch_size, length), IGNORE)
    targets[:, length - pairs :] = values
    distances = torch.zeros_like(tokens)
    distances[:, length - pairs :] = torch.arange(length - pairs, length) - (key_at + 1)
    return Batch(tokens, targets, distances)


@register_task(
    "needle",
    vocabulary=lambda alphabet: alphabet + 1,
    baseline_score=lambda alphabet: 1 / alphabet,
    lengths=(64, 128, 256, 512, 1024, 2048, 4096),
    shortest=3,
    symbols=lambda alphabet: [f"v{i}" for i in range(alphabet)] + ["?"],
    source="Needle in a haystack: Hsieh et al. 2024 (RULER, arXiv 2404.06654), a form to train from scratch",
)
def sample_needle(
    batch_size: int, length: int, generator: torch.Generator, *, alphabet: int = 32
) -> Batch:
    """One marked pair anywhere in a haystack of random values, asked at the end.

    tokens    v3 v8  ? v5 v8 v1 v2  ?
    targets    .  .  .  .  .  .  . v5
    distances  .  .  .  .  .  .  .  4

    `alphabet` is the number of values. Distance: from the question back to the value behind the
    first mark.

    Tests finding one thing among much that looks like it, wherever it stands. One question a
    sequence: little to learn from, and wide intervals. Does not test several needles, nor language:
    the haystack is noise.
    """
    tokens = torch.randint(alphabet, (batch_size, length), generator=generator)
    marker_at = torch.randint(length - 2, (batch_size, 1), generator=generator)
    tokens.scatter_(1, marker_at, alphabet)
    tokens[:, -1] = alphabet
    targets = torch.full((batch_size, length), IGNORE)
    targets[:, -1:] = tokens.gather(1, marker_at + 1)
    distances = torch.zeros_like(tokens)
    distances[:, -1:] = length - 1 - (marker_at + 1)
    return Batch(tokens, targets, distances)
