"""What the two CPU forms share: cutting a sequence into tiles, and the running sums within a tile.

Both keep their sums in float64 tensors of shape (positions + 1, 2, batch, channels): numerator and
denominator are index 0 and 1 of the second dimension, and the extra row holds what is carried in
from the neighbouring tile. Time comes first so that one position is one contiguous row, and a step
of the recurrence is one in-place `addcmul_` on it.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

TILE_ELEMENTS = (
    65536  # positions x batch x channels: the float64 buffers of a tile then stay in the cache
)
SHORTEST_TILE = 8
SHORT_ROW = 1024  # batch x channels below which a step costs more to call than to compute
BLOCK = 16  # positions a block, where rows are short


def tile_length(length: int, row: int) -> int:
    """Positions a tile, for rows of batch x channels elements."""
    return min(length, max(SHORTEST_TILE, TILE_ELEMENTS // max(row, 1)))


def tiles(length: int, row: int) -> Iterator[tuple[int, slice, int]]:
    """(number, slice, positions) of every tile in order; the last may be shorter."""
    size = tile_length(length, row)
    for number, start in enumerate(range(0, length, size)):
        stop = min(start + size, length)
        yield number, slice(start, stop), stop - start


def tile_count(length: int, row: int) -> int:
    """How many tiles `tiles` yields."""
    return -(-length // tile_length(length, row))


def decay_powers(decay: Tensor, batch_size: int, positions: int) -> list[Tensor]:
    """decay ** 1, ..., decay ** n, each (2, batch, channels); n is the block length of `scan_`, 1
    means no blocks.

    Written out to the shape of a row, because `addcmul_` is slower where it has to broadcast.
    """
    row = (2, batch_size, decay.numel())
    size = BLOCK if batch_size * decay.numel() < SHORT_ROW and positions > 2 * BLOCK else 1
    return [(decay**exponent).expand(row).contiguous() for exponent in range(1, size + 1)]


def scan_(sums: Tensor, powers: list[Tensor], reverse: bool = False) -> None:
    """sums[t] += decay * sums[t - 1] from the second row on, in place; reversed, sums[t] += decay *
    sums[t + 1].

    Where rows are short, all blocks are stepped at once, then the blocks' ends; then each block
    gets what came before.
    """
    rows = sums.unbind(0)[:: -1 if reverse else 1]
    block = len(powers)
    blocks = (len(rows) - 1) // block if block > 1 else 0
    if blocks:
        steps = [_every(sums, block, blocks, offset, reverse) for offset in range(block + 1)]
        _step_rows_(steps[1:], powers[0])
        _step_rows_(rows[: blocks * block + 1 : block], powers[-1])
        for step, power in zip(steps[1:-1], powers[:-1], strict=True):
            step.addcmul_(steps[0], power)
    _step_rows_(rows[blocks * block :], powers[0])


def _every(sums: Tensor, block: int, blocks: int, offset: int, reverse: bool) -> Tensor:
    """The row `offset` places after the start of each block, seen in the direction of the scan:
    (blocks, 2, b, c).
    """
    span = (blocks - 1) * block
    first = len(sums) - 1 - offset - span if reverse else offset
    return sums[first : first + span + 1 : block]


def _step_rows_(rows: list[Tensor] | tuple[Tensor, ...], decay: Tensor) -> None:
    for earlier, later in pairwise(rows):
        later.addcmul_(earlier, decay)
