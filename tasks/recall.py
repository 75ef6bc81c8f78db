"""Associative recall: read key-value pairs, then answer with the value that followed a key."""

import torch
from torch import Tensor

from lookback.tasks.references import value_references
from lookback.tasks.task import Batch, Options, ask, register_task

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
FILLERS = ("blank", "noise")
NOISE = 8  # symbols of recall's noise


def check_filler(task: str, filler: str) -> None:
    """Raise ValueError unless a task knows this filler."""
    if filler not in FILLERS:
        raise ValueError(f"{task} with filler = {filler!r}: expected {' or '.join(FILLERS)}")


def distinct_integers(
    batch_size: int, count: int, low: int, high: int, generator: torch.Generator
) -> Tensor:
    """Return integers of [low, high), (batch, count), without repetition within a row.

    Entries that repeat an earlier one of their row are drawn again. All values are treated alike,
    so that every row without repetition is equally likely.
    """
    drawn = torch.randint(low, high, (batch_size, count), generator=generator)
    while True:
        # A stable sort puts equal entries side by side, the earliest first.
        ordered, order = drawn.sort(dim=1, stable=True)
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        if not repeated.any():
            return drawn
        drawn[repeated] = torch.randint(low, high, (int(repeated.sum()),), generator=generator)


def random_order(batch_size: int, count: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Return `chosen` of the numbers 0..count-1 in random order for each row: (batch, chosen)."""
    return torch.rand((batch_size, count), generator=generator).topk(chosen, dim=1).indices


def mqar_symbols(options: Options) -> list[str]:
    """Return the blank, the keys (lower half of the vocabulary) and the values (upper half)."""
    half = options.vocabulary // 2
    keys = [f"k{i}" for i in range(1, half)]
    values = [f"v{i}" for i in range(half, options.vocabulary)]
    return ["_", *keys, *values]


def mqar_shortest(options: Options) -> int:
    """Return the length that holds all pairs, each asked once; ValueError for wrong options."""
    check_filler("mqar", options.filler)
    pairs, vocabulary, power = options.pairs, options.vocabulary, options.power
    valid_vocabulary = vocabulary >= 4 and vocabulary % 2 == 0
    if not (valid_vocabulary and 1 <= pairs <= vocabulary // 2 - 1 and power > 0):
        raise ValueError(
            f"mqar with pairs={pairs}, vocabulary={vocabulary}, power={power}: expected an even "
            "vocabulary, 1 <= pairs <= vocabulary/2 - 1 and power > 0"
        )
    return 4 * pairs


@register_task(
    "mqar",
    vocabulary=lambda options: options.vocabulary,
    baseline_score=lambda options: 2 / options.vocabulary,
    lengths=(64, 128, 256, 512),
    shortest=mqar_shortest,
    multiple=2,
    symbols=mqar_symbols,
    references=value_references(
        lambda options: options.vocabulary // 2, lambda options: options.vocabulary - 1
    ),
    source="Multi-query associative recall: Arora et al. 2023 (arXiv 2312.04927), the rule of "
    "HazyResearch/zoology",
)
def sample_mqar(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    pairs: int = 4,
    vocabulary: int = 8192,
    power: float = 0.01,
    questions: int = 1,
    filler: str = "blank",
) -> Batch:
    """Key-value pairs; then every key once more, asking for its value, more often soon than late.

        tokens    k7 v9 k2 v5 k2  _  _  _ k7  _
        targets    .  .  .  . v5  .  .  . v9  .

    Questions lie in slots of two positions behind the pairs; slot k is drawn with a weight of
    k^(power-1). Keys are 1..vocabulary/2-1, values the upper half, both without replacement. Each
    key is asked `questions` times, or less often where the slots do not suffice. The filler is 0,
    or with `filler` = "noise" any token. The distance runs from the question back to the value.
    Published grid of (length, pairs): (64, 4), (128, 8), (256, 16), (512, 64). The published code
    trains on 100000 examples and selects models on the test set.

    Tests lookup by content with many keys at once; as `pairs` grow, the capacity of a state. Hardly
    tests reach: with the published `power` most questions come soon, half of them within 14 tokens
    at a length of 64.
    """
    keys = distinct_integers(batch_size, pairs, 1, vocabulary // 2, generator)
    values = distinct_integers(batch_size, pairs, vocabulary // 2, vocabulary, generator)

    # Gumbel top-k: the largest log-weights plus Gumbel noise are a draw without replacement in
    # proportion to the weights.
    slots = torch.arange(1, (length - 2 * pairs) // 2 + 1)
    noise = torch.empty(batch_size, len(slots)).exponential_(generator=generator).log_()
    times = max(1, min(questions, len(slots) // pairs))
    chosen_slots = ((power - 1) * slots.log() - noise).topk(times * pairs, dim=1).indices
    question_at = 2 * pairs + 2 * chosen_slots

    tokens = torch.zeros(batch_size, length, dtype=torch.int64)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    tokens.scatter_(1, question_at, keys.repeat(1, times))

    if filler == "noise":
        drawn = torch.randint(vocabulary, tokens.shape, generator=generator)
        tokens = torch.where(tokens == 0, drawn, tokens)
    value_at = torch.arange(1, 2 * pairs, 2).repeat(times)
    return ask(tokens, question_at, values.repeat(1, times), value_at)


def recall_symbols(options: Options) -> list[str]:
    """Return the keys, the values and the filler."""
    keys = [f"k{i}" for i in range(options.alphabet)]
    values = [f"v{i}" for i in range(options.alphabet)]
    noise = [f"n{i}" for i in range(NOISE)]
    return [*keys, *values, *(noise if options.filler == "noise" else ["_"])]


def recall_shortest(options: Options) -> int:
    """Return the length that holds all pairs, each asked once; ValueError for wrong options."""
    check_filler("recall", options.filler)
    if not 1 <= options.pairs <= options.alphabet:
        raise ValueError(
            f"recall of {options.pairs} pairs with {options.alphabet} keys: "
            "expected 1 <= pairs <= alphabet"
        )
    return 3 * options.pairs


@register_task(
    "recall",
    vocabulary=lambda options: len(recall_symbols(options)),
    baseline_score=lambda options: 1 / options.alphabet,
    lengths=LENGTHS,
    shortest=recall_shortest,
    symbols=recall_symbols,
    references=value_references(
        lambda options: options.alphabet, lambda options: 2 * options.alphabet - 1
    ),
    source="Lookback's own: multi-query associative recall with distances drawn evenly over the "
    "whole length",
)
def sample_recall(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    pairs: int = 8,
    alphabet: int = 32,
    questions: int = 1,
    filler: str = "blank",
) -> Batch:
    """A fixed number of pairs scattered evenly over the input; at its end every key is asked.

        tokens     _  _ k1 v4  _  _ k5 v2  _  _ k1 k5
        targets    .  .  .  .  .  .  .  .  .  . v4 v2
        distances  .  .  .  .  .  .  .  .  .  .  7  4

    `pairs` is the number of pairs, `alphabet` the number of possible keys, and of values. Keys
    differ within a sequence, values may repeat. Every key is asked `questions` times, or less often
    where they would take more than half of what the pairs leave, in rounds of one random order.
    Between the pairs are blanks, or with `filler` = "noise" eight other symbols. The distance runs
    from the question back to the value. Because the number of pairs does not grow with the length,
    a longer sequence asks for more reach, not for more capacity.

    Tests lookup by content, far back. At short distances the value seen last is often right without
    any lookup. At a length of 512 that rule passes the half-way score up to a distance of 47 with 8
    pairs and an alphabet of 16, and up to 95 with 4 pairs and an alphabet of 8. Does not test
    combining several values, nor meaning: keys and values are arbitrary signs, and what lies
    between them is easy to pass over.
    """
    times = max(1, min(questions, (length - 2 * pairs) // (2 * pairs)))
    asked = times * pairs
    slots = (length - asked) // 2
    keys = random_order(batch_size, alphabet, pairs, generator)
    values = alphabet + torch.randint(alphabet, (batch_size, pairs), generator=generator)
    key_at = 2 * random_order(batch_size, slots, pairs, generator)
    value_at = key_at + 1

    # Keys and slots are in random order already, so the questions simply follow that order.
    tokens = torch.full((batch_size, length), 2 * alphabet)
    if filler == "noise":
        tokens += torch.randint(NOISE, tokens.shape, generator=generator)
    tokens.scatter_(1, key_at, keys).scatter_(1, value_at, values)
    tokens[:, length - asked :] = keys.repeat(1, times)

    question_at = torch.arange(length - asked, length)
    return ask(tokens, question_at, values.repeat(1, times), value_at.repeat(1, times))


@register_task(
    "needle",
    vocabulary=lambda options: options.alphabet + 1,
    baseline_score=lambda options: 1 / options.alphabet,
    lengths=LENGTHS,
    shortest=3,
    symbols=lambda options: [*(f"v{i}" for i in range(options.alphabet)), "?"],
    references=value_references(lambda options: 0, lambda options: options.alphabet - 1),
    source="Needle in a haystack: Hsieh et al. 2024 (RULER, arXiv 2404.06654), a form to train "
    "from scratch",
)
def sample_needle(
    batch_size: int, length: int, generator: torch.Generator, *, alphabet: int = 32
) -> Batch:
    """One marked value anywhere in a haystack of random values, asked at the end.

        tokens    v3 v8  ? v5 v8 v1 v2  ?
        targets    .  .  .  .  .  .  . v5
        distances  .  .  .  .  .  .  .  4

    `alphabet` is the number of values. The distance runs from the question back to the value behind
    the first mark.

    Tests finding one item among many that look like it, wherever it lies. Each sequence asks one
    question, which gives little to learn from, and wide intervals. Does not test several needles,
    nor language: the haystack is noise.
    """
    tokens = torch.randint(alphabet, (batch_size, length), generator=generator)
    marker_at = torch.randint(length - 2, (batch_size, 1), generator=generator)
    tokens.scatter_(1, marker_at, alphabet)
    tokens[:, -1] = alphabet

    value_at = marker_at + 1
    return ask(tokens, torch.tensor(length - 1), tokens.gather(1, value_at), value_at)


@register_task(
    "induction",
    vocabulary=lambda options: options.alphabet,
    baseline_score=lambda options: 1 / (options.alphabet - 1),
    lengths=(256, *LENGTHS[3:], 8192, 16384),
    shortest=4,
    symbols=lambda options: [*(f"s{i}" for i in range(options.alphabet - 1)), "?"],
    references=value_references(lambda options: 0, lambda options: options.alphabet - 2),
    source="Induction heads: Gu and Dao 2023 (arXiv 2312.00752), section 4.1.2 and Table 11",
)
def sample_induction(
    batch_size: int, length: int, generator: torch.Generator, *, alphabet: int = 16
) -> Batch:
    """Random symbols with one trigger among them; at the end the trigger again: what followed it?

        tokens    s3 s8  ? s5 s8 s1 s2  ?
        targets    .  .  .  .  .  .  . s5
        distances  .  .  .  .  .  .  .  4

    `alphabet` counts all symbols, the trigger included; it is 16 in the paper, which trains at 256
    and reads up to 2^20. The symbol behind the trigger may stand elsewhere, too.

    Tests the simplest lookup by content, at lengths beyond those of training. Each sequence asks
    one question. It is needle with the paper's vocabulary.
    """
    return sample_needle(batch_size, length, generator, alphabet=alphabet - 1)
