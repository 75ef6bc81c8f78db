"""Copying: read symbols, wait, repeat them. The simplest test of how far back a model looks."""

import torch
from torch import Tensor

from lookback.tasks.references import value_references
from lookback.tasks.task import Batch, Options, ask, register_task

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def readable_symbols(options: Options) -> list[str]:
    """Return the letters of the alphabet, the blank `_`, and the marker `>` before the copy."""
    if options.alphabet <= 26:
        letters = [chr(ord("a") + i) for i in range(options.alphabet)]
    else:
        letters = [f"s{i}" for i in range(options.alphabet)]
    return [*letters, "_", ">"]


def shortest_length(options: Options) -> int:
    """Return the length without a gap; raises ValueError if there is nothing to copy."""
    symbols, alphabet = options.symbols, options.alphabet
    if symbols < 1 or alphabet < 2:
        raise ValueError(
            f"copying {symbols} symbols of {alphabet}: expected at least 1 symbol, "
            "of an alphabet of at least 2"
        )
    return 2 if getattr(options, "fill", False) else 2 * symbols


def write_and_ask(symbols: Tensor, positions: Tensor, length: int, alphabet: int) -> Batch:
    """Write `symbols` (batch, count) at `positions` (batch, count) among blanks, and ask for them.

    The last `count` positions of the sequence ask for the symbols in order. The marker is at the
    first of them; after it the model reads the symbols that it should already have output.
    """
    batch_size, count = symbols.shape
    blank, marker = alphabet, alphabet + 1
    start = length - count  # of the answer

    tokens = torch.full((batch_size, length), blank)
    tokens.scatter_(1, positions, symbols)
    tokens[:, start] = marker
    tokens[:, start + 1 :] = symbols[:, :-1]

    return ask(tokens, torch.arange(start, length), symbols, positions)


@register_task(
    "copy",
    vocabulary=lambda options: options.alphabet + 2,
    baseline_score=lambda options: 1 / options.alphabet,
    lengths=LENGTHS,
    shortest=shortest_length,
    symbols=readable_symbols,
    references=value_references(lambda options: 0, lambda options: options.alphabet - 1),
    source="Copying memory: Hochreiter and Schmidhuber 1997, Arjovsky et al. 2016 "
    "(arXiv 1511.06464); next-token form",
)
def sample_copy(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    symbols: int = 10,
    alphabet: int = 8,
    fill: bool = False,
) -> Batch:
    """Symbols, a gap that fills the length, then the same symbols again.

        tokens     a  c  b  _  _  _  _  >  a  c
        targets    .  .  .  .  .  .  .  a  c  b
        distances  .  .  .  .  .  .  .  7  7  7

    `symbols` is the number of symbols to copy, `alphabet` the number of different symbols; with
    `fill` there are as many symbols as fit, and no gap. The distance runs from the question back to
    the symbol; it is `length - symbols` for all. While it answers, the model reads the symbols
    before the one asked, which shows how far the answer has come.

    Tests whether symbols survive a wait of known length, in order. Does not test choosing what to
    keep: every symbol must be kept, and all are at the same positions, so that a model may learn
    positions instead of content.
    """
    count = length // 2 if fill else symbols
    drawn = torch.randint(alphabet, (batch_size, count), generator=generator)
    positions = torch.arange(count).expand(batch_size, -1)
    return write_and_ask(drawn, positions, length, alphabet)


@register_task(
    "selective_copy",
    vocabulary=lambda options: options.alphabet + 2,
    baseline_score=lambda options: 1 / options.alphabet,
    lengths=LENGTHS,
    shortest=shortest_length,
    symbols=readable_symbols,
    references=value_references(lambda options: 0, lambda options: options.alphabet - 1),
    source="Selective copying: Jing et al. 2019; Gu and Dao 2023 (arXiv 2312.00752, section "
    "4.1.1), in next-token form",
)
def sample_selective_copy(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    symbols: int = 10,
    alphabet: int = 8,
) -> Batch:
    """Symbols scattered evenly over the input, then asked in order: the model chooses what to keep.

        tokens     _  a  _  c  b  _  _  >  a  c
        targets    .  .  .  .  .  .  .  a  c  b
        distances  .  .  .  .  .  .  .  6  5  5

    `symbols` and `alphabet` are those of copy; every set of positions is equally likely. The
    distance runs from the question back to the symbol.

    Tests selecting by content and keeping the order, at distances that differ within a sequence.
    Does not test lookup: the order is the only key, and the number of symbols does not grow with
    the length.
    """
    drawn = torch.randint(alphabet, (batch_size, symbols), generator=generator)
    # The largest of random numbers mark a random set of positions.
    priority = torch.rand((batch_size, length - symbols), generator=generator)
    positions = priority.topk(symbols, dim=1, sorted=False).indices.sort(dim=1).values
    return write_and_ask(drawn, positions, length, alphabet)
