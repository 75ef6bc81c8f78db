"""Copying: read symbols, wait, then say them again. The plainest test of how far back a model can
look.
"""

import torch
from torch import Tensor

from lookback.tasks.task import IGNORE, Batch, register_task

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def letters(symbols: int, alphabet: int) -> list[str]:
    """Readable tokens: the alphabet, the blank `_`, and the marker `>` that asks for the copy."""
    return [chr(ord("a") + i) if alphabet <= 26 else f"s{i}" for i in range(alphabet)] + ["_", ">"]


def _check(symbols: int, alphabet: int) -> None:
    if symbols < 1 or alphabet < 2:
        raise ValueError(
            f"copying {symbols} symbols of {alphabet}: expected at least 1 symbol of an alphabet of 2"
        )


def _shortest(symbols: int, alphabet: int) -> int:
    _check(symbols, alphabet)
    return 2 * symbols


def _ask_for(symbols: Tensor, where: Tensor, length: int, alphabet: int) -> Batch:
    """Write `symbols` (batch, count) at positions `where` (batch, count) among blanks, and ask for
    them at the end.
    """
    batch_size, count = symbols.shape
    tokens = torch.full((batch_size, length), alphabet)
    tokens.scatter_(1, where, symbols)
    tokens[:, length - count] = alphabet + 1
    tokens[:, length - count + 1 :] = symbols[:, :-1]

    targets = torch.full((batch_size, length), IGNORE)
    targets[:, length - count :] = symbols
    distances = torch.zeros((batch_size, length), dtype=torch.int64)
    distances[:, length - count :] = torch.arange(length - count, length) - where
    return Batch(tokens, targets, distances)


@register_task(
    "copy",
    vocabulary=lambda symbols, alphabet: alphabet + 2,
    baseline_score=lambda symbols, alphabet: 1 / alphabet,
    lengths=LENGTHS,
    shortest=_shortest,
    symbols=letters,
    source="Copying memory: Hochreiter and Schmidhuber 1997, Arjovsky et al. 2016 (arXiv 1511.06464); next-token form",
)
def sample_copy(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    symbols: int = 10,
    alphabet: int = 8,
) -> Batch:
    """Symbols, a gap that fills the length, then the same symbols again. Each lies `length -
    symbols` back.

    tokens     a  c  b  _  _  _  _  >  a  c
    targets    .  .  .  .  .  .  .  a  c  b
    distances  .  .  .  .  .  .  .  7  7  7

    `symbols` are to be copied, drawn from an `alphabet` of so many. Distance: from where a symbol
    is asked back to where it stood. Symbols already said are given, which tells a model how far the
    answer has come.

    Tests whether symbols survive a wait of known length, in order. Does not test what to keep: what
    comes is always to be kept, at the same places, so that a model may learn positions instead of
    content.
    """
    drawn = torch.randint(alphabet, (batch_size, symbols), generator=generator)
    where = torch.arange(symbols).expand(batch_size, -1)
    return _ask_for(drawn, where, length, alphabet)


@register_task(
    "selective_copy",
    vocabulary=lambda symbols, alphabet: alphabet + 2,
    baseline_score=lambda symbols, alphabet: 1 / alphabet,
    lengths=LENGTHS,
    shortest=_shortest,
    symbols=letters,
    source="Selective copying: Jing et al. 2019; Gu and Dao 2023 (arXiv 2312.00752, section 4.1.1), in next-token form",
)
def sample_selective_copy(
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    symbols: int = 10,
    alphabet: int = 8,
) -> Batch:
    """Symbols strewn evenly over the input, then asked for in order: the model must choose what to
    keep.

    tokens     _  a  _  c  b  _  _  >  a  c
    targets    .  .  .  .  .  .  .  a  c  b
    distances  .  .  .  .  .  .  .  6  5  5

    `symbols` and `alphabet` as in copy; every set of places is equally likely. Distance: back to
    where a symbol stood.

    Tests choosing by content and keeping order, at distances that differ within a sequence. Does
    not test looking up: the order is the only key, and the number of symbols does not grow with the
    length.
    """
    drawn = torch.randint(alphabet, (batch_size, symbols), generator=generator)
    chance = torch.rand((batch_size, length - symbols), generator=generator)
    where = chance.topk(symbols, dim=1, sorted=False).indices.sort(dim=1).values
    return _ask_for(drawn, where, length, alphabet)
