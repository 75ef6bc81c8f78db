"""WKV on the CPU in linear space, float64: the fast form, and the derivation of the gradients.

It keeps e^k itself, so it is for keys whose spread float64 can hold (see `tiled.linear_shift`).

Forward, with lam = e^-w, from the incoming sums a_0, b_0:

    a_t = lam a_{t-1} + e^{k_t} v_t              N_t = a_{t-1} + e^{u + k_t} v_t
    b_t = lam b_{t-1} + e^{k_t}                  D_t = b_{t-1} + e^{u + k_t}
                                                 y_t = N_t / D_t

Backward. Let g_t be the gradient of y_t, and write gx for the gradient of any other x:

    gN_t = g_t / D_t                             from y = N / D
    gD_t = -gN_t y_t

    alpha_t = gN_{t+1} + lam alpha_{t+1}         a_t is in N_{t+1} and a_{t+1}; for the last t,
    beta_t  = gD_{t+1} + lam beta_{t+1}          the gradients of the outgoing sums

    r_t  = e^{u + k_t} gN_t (v_t - y_t)          since v_t gN_t + gD_t = gN_t (v_t - y_t)
    gk_t = r_t + e^{k_t} (v_t alpha_t + beta_t)  k_t is in N_t, D_t, a_t and b_t
    gv_t = e^{u + k_t} gN_t + e^{k_t} alpha_t    v_t is in N_t and a_t
    gu   = sum_t r_t
    gw   = -lam sum_t (alpha_t a_{t-1} + beta_t b_{t-1})

The sequence is cut into tiles that fit the cache. The forward pass saves the sums carried into each
tile; the backward pass goes through the tiles from the last to the first and recomputes the rest.

Within a tile, (a, b) is one tensor of shape (positions + 1, 2, batch, channels). Its first row is
what is carried in; (alpha, beta) likewise, from its last row. Time comes first, so that a position
is one contiguous row and a step of the recurrence is one in-place `addcmul_`. A common `shift` is
subtracted from all keys, which multiplies a and b by e^-shift and leaves y as it is.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

FLOAT = torch.float64
SHORT_ROW = 1024  # batch x channels below which calling a step costs more than computing it
BLOCK = 16  # positions per block, where rows are short


def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    shift: float,
    tiles: Sequence[slice],
    y: Tensor,
    carries: Tensor,
) -> Tensor:
    """Fill y and, unless it is empty, carries; returns the outgoing sums (2, batch, channels).

    w, u (channels,); k, v, y (batch, length, channels); carries (tiles, 2, batch, channels). `sums`
    and the result are numerator and denominator times e^-shift.
    """
    batch_size, _, channels = k.shape
    size = positions(tiles[0])
    powers = decay_powers((-w.to(FLOAT)).exp(), batch_size, size)
    bonus = u.to(FLOAT).exp()
    rows = torch.empty(size + 1, 2, batch_size, channels, dtype=FLOAT)
    scratch = torch.empty_like(rows[1:])

    rows[0] = sums
    for number, tile in enumerate(tiles):
        n = positions(tile)
        if len(carries):
            carries[number] = rows[0]
        before, after = rows[:n], rows[1 : n + 1]  # (a, b) at t - 1 and at t

        _load(k[:, tile], v[:, tile], shift, after)
        fraction = torch.mul(after, bonus, out=scratch[:n])  # e^{u + k} (v, 1)
        scan_(rows[: n + 1], powers)
        fraction += before  # (N, D)
        outputs = torch.div(fraction[:, 0], fraction[:, 1], out=fraction[:, 0])
        y[:, tile] = outputs.transpose(0, 1)
        rows[0] = rows[n]
    return rows[0]


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    shift: float,
    tiles: Sequence[slice],
    grad_sums: Tensor,
    grad_y: Tensor,
    carries: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill grad_k and grad_v; returns the gradients of w, u and the incoming sums.

    grad_sums (2, batch, channels) is the gradient of the outgoing sums. Buffers are few and each
    holds several quantities in turn, because the cache holds no more: read the names, not the
    tensors behind them.
    """
    batch_size, _, channels = k.shape
    size = positions(tiles[0])
    decay = (-w.to(FLOAT)).exp()
    powers = decay_powers(decay, batch_size, size)
    bonus = u.to(FLOAT).exp()
    rows = torch.empty(size + 1, 2, batch_size, channels, dtype=FLOAT)
    adjoint_rows = torch.empty_like(rows)
    scratch = torch.empty_like(rows[1:])
    key_buffer = torch.empty(size, batch_size, channels, dtype=FLOAT)
    value_buffer = torch.empty_like(key_buffer)
    grad_w = torch.zeros(channels, dtype=FLOAT)
    grad_u = torch.zeros(channels, dtype=FLOAT)

    adjoint_rows[-1] = grad_sums
    for number, tile in reversed(list(enumerate(tiles))):
        n = positions(tile)
        exp_keys, values = key_buffer[:n], value_buffer[:n]
        sums, adjoint = rows[: n + 1], adjoint_rows[size - n :]
        before, after = sums[:-1], sums[1:]  # (a, b) at t - 1 and at t

        # Recompute the sums of the tile, N, D and y
        sums[0] = carries[number]
        _load(k[:, tile], v[:, tile], shift, after, values)
        exp_keys.copy_(after[:, 1])
        weighted = torch.mul(after, bonus, out=scratch[:n])  # e^{u + k} (v, 1)
        scan_(sums, powers)
        fraction = torch.add(weighted, before, out=adjoint[:-1])  # (N, D)
        numerator, denominator = fraction.unbind(1)
        y = torch.div(numerator, denominator, out=weighted[:, 0])

        # (N, D) becomes (gN, gD)
        grads = grad_y[:, tile].transpose(0, 1)
        grad_numerator = torch.div(numerator.copy_(grads), denominator, out=numerator)
        torch.mul(grad_numerator, y, out=denominator).neg_()

        # What passes through the bonus, before (gN, gD) is overwritten
        bonus_v = weighted[:, 1].mul_(grad_numerator)  # e^{u + k} gN
        bonus_k = torch.sub(values, y, out=y).mul_(bonus_v)  # r
        grad_u += bonus_k.sum((0, 1))

        # Row t of (gN, gD) becomes gN_t + lam alpha_t, so row t + 1 is (alpha_t, beta_t)
        scan_(adjoint, powers, reverse=True)
        later = adjoint[1:]
        grad_w -= before.mul_(later).sum((0, 1, 2))
        past = torch.mul(later, exp_keys.unsqueeze(1), out=before)  # e^k (alpha, beta)
        grad_v[:, tile] = bonus_v.add_(past[:, 0]).transpose(0, 1)
        grad_k[:, tile] = bonus_k.add_(past[:, 1]).addcmul_(past[:, 0], values).transpose(0, 1)
        adjoint_rows[-1] = adjoint[0]
    return grad_w * decay, grad_u, adjoint_rows[-1]


def positions(tile: slice) -> int:
    """How many positions a tile has."""
    length: int = tile.stop - tile.start
    return length


def _load(k: Tensor, v: Tensor, shift: float, rows: Tensor, values: Tensor | None = None) -> None:
    """Fill rows (positions, 2, batch, channels) with e^{k - shift} (v, 1), and `values` with v."""
    weighted_values, exp_keys = rows.unbind(1)
    torch.exp(exp_keys.copy_(k.transpose(0, 1)).sub_(shift), out=exp_keys)
    values = weighted_values if values is None else values
    torch.mul(values.copy_(v.transpose(0, 1)), exp_keys, out=weighted_values)


def decay_powers(decay: Tensor, batch_size: int, length: int) -> list[Tensor]:
    """Return decay^1, ..., decay^n, each (2, batch, channels), where n is `scan_`'s block length.

    n is 1 where blocks do not pay. The powers are expanded to the shape of a row, because
    `addcmul_` is slower when it has to broadcast.
    """
    row = (2, batch_size, decay.numel())
    use_blocks = batch_size * decay.numel() < SHORT_ROW and length > 2 * BLOCK
    block = BLOCK if use_blocks else 1
    return [(decay**exponent).expand(row).contiguous() for exponent in range(1, block + 1)]


def scan_(rows: Tensor, powers: list[Tensor], reverse: bool = False) -> None:
    """rows[t] += decay * rows[t - 1] for t = 1, 2, ... in place; reversed, from rows[t + 1].

    Short rows are scanned in blocks of len(powers) positions, which takes fewer and larger steps:
    all blocks at once, each by itself; then the last row of each block; then every other row of a
    block receives what came before the block. For blocks of 3 and rows 0 to 6:

        within blocks   1 -> 2 -> 3    4 -> 5 -> 6    times decay
        block ends      0 ------> 3 -------> 6        times decay^3
        into blocks     0 -> 1, 2      3 -> 4, 5      times decay, decay^2
    """
    ordered = rows.unbind(0)[:: -1 if reverse else 1]
    block = len(powers)
    blocks = (len(ordered) - 1) // block if block > 1 else 0
    if blocks:
        span = (blocks - 1) * block
        steps = []  # steps[j]: row j of every block, (blocks, 2, batch, channels)
        for offset in range(block + 1):
            first = len(rows) - 1 - offset - span if reverse else offset
            steps.append(rows[first : first + span + 1 : block])
        _accumulate_(steps[1:], powers[0])
        _accumulate_(ordered[: blocks * block + 1 : block], powers[-1])
        for step, power in zip(steps[1:-1], powers[:-1], strict=True):
            step.addcmul_(steps[0], power)
    _accumulate_(ordered[blocks * block :], powers[0])


def _accumulate_(rows: Sequence[Tensor], decay: Tensor) -> None:
    for earlier, later in pairwise(rows):
        later.addcmul_(earlier, decay)
