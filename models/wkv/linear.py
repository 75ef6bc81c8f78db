"""WKV in linear space, float64: the fast CPU form, for keys whose spread exp() can hold (see
`tiled.linear_shift`).

    a_t = lam a_{t-1} + e^{k_t} v_t      b_t = lam b_{t-1} + e^{k_t}      lam = e^{-w}
    y_t = (a_{t-1} + e^{u + k_t} v_t) / (b_{t-1} + e^{u + k_t})

The backward pass recomputes a tile's sums from what was carried into it. With g the gradient of y,
D the denominator:

    G_t = (g_t / D_t) (1, -y_t)    Z_t = G_t + lam Z_{t+1}, from the gradient of the outgoing state
    r_t = e^{u + k_t} G_t[0]       gv_t = r_t + e^{k_t} Z_{t+1}[0]
    gu = sum r_t (v_t - y_t)       gk_t = r_t (v_t - y_t) + e^{k_t} (v_t Z_{t+1}[0] + Z_{t+1}[1])
                                   gw = -lam sum (a, b)_{t-1} . Z_{t+1}
"""

import torch
from torch import Tensor

from lookback.models.wkv.tiles import decay_powers, scan_, tile_length, tiles

FLOAT = torch.float64


def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    shift: float,
    y: Tensor,
    carries: Tensor,
) -> Tensor:
    """Fills y (b, t, c) and, where it has rows, carries (tiles, 2, b, c); returns the outgoing sums
    (2, b, c).

    `sums` and what is returned are the numerator and denominator times exp(-shift).
    """
    batch_size, length, channels = k.shape
    size = tile_length(length, batch_size * channels)
    powers = decay_powers((-w.to(FLOAT)).exp(), batch_size, size)
    bonus = u.to(FLOAT).exp()
    x = torch.empty(size + 1, 2, batch_size, channels, dtype=FLOAT)
    terms = torch.empty_like(x[1:])
    x[0] = sums
    for number, tile, n in tiles(length, batch_size * channels):
        if len(carries):
            carries[number] = x[0]
        _load(k[:, tile], v[:, tile], shift, x[1 : n + 1])
        fraction = torch.mul(x[1 : n + 1], bonus, out=terms[:n])
        scan_(x[: n + 1], powers)
        fraction += x[:n]
        y[:, tile] = torch.div(fraction[:, 0], fraction[:, 1], out=fraction[:, 0]).transpose(0, 1)
        x[0] = x[n]
    return x[0]


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    shift: float,
    grad_sums: Tensor,
    grad_y: Tensor,
    carries: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fills grad_k and grad_v; returns the gradients of w (c,), u (c,) and the incoming sums (2, b,
    c).
    """
    batch_size, length, channels = k.shape
    size = tile_length(length, batch_size * channels)
    decay = (-w.to(FLOAT)).exp()
    powers = decay_powers(decay, batch_size, size)
    bonus = u.to(FLOAT).exp()
    x, z = (torch.empty(size + 1, 2, batch_size, channels, dtype=FLOAT) for _ in range(2))
    spare = torch.empty_like(x[1:])
    key, value = (torch.empty(size, batch_size, channels, dtype=FLOAT) for _ in range(2))
    grad_w, grad_u = (torch.zeros(channels, dtype=FLOAT) for _ in range(2))
    z[-1] = grad_sums
    for number, tile, n in reversed(list(tiles(length, batch_size * channels))):
        # few buffers, each used for several things in turn, because the cache holds no more
        e, values, sums, adjoint = key[:n], value[:n], x[: n + 1], z[size - n :]
        before, after, fraction, weighted = sums[:-1], sums[1:], adjoint[:-1], spare[:n]
        sums[0] = carries[number]
        _load(k[:, tile], v[:, tile], shift, after, values)
        e.copy_(after[:, 1])
        torch.mul(after, bonus, out=weighted)  # e^{u + k} (v, 1)
        scan_(sums, powers)
        torch.add(weighted, before, out=fraction)
        y = torch.div(fraction[:, 0], fraction[:, 1], out=weighted[:, 0])
        _grad_fraction(grad_y[:, tile], y, fraction)  # becomes G
        bonus_v = weighted[:, 1].mul_(fraction[:, 0])  # r
        bonus_k = torch.sub(values, y, out=y).mul_(bonus_v)
        grad_u += bonus_k.sum((0, 1))
        scan_(adjoint, powers, reverse=True)  # G becomes Z
        grad_w -= before.mul_(adjoint[1:]).sum((0, 1, 2))
        past = torch.mul(adjoint[1:], e.unsqueeze(1), out=before)
        grad_v[:, tile] = bonus_v.add_(past[:, 0]).transpose(0, 1)
        grad_k[:, tile] = bonus_k.add_(past[:, 1]).addcmul_(past[:, 0], values).transpose(0, 1)
        z[-1] = adjoint[0]
    return grad_w * decay, grad_u, z[-1]


def _load(k: Tensor, v: Tensor, shift: float, x: Tensor, values: Tensor | None = None) -> None:
    """x becomes e^{k - shift} (v, 1), time first."""
    torch.exp(x[:, 1].copy_(k.transpose(0, 1)).sub_(shift), out=x[:, 1])
    values = x[:, 0].copy_(v.transpose(0, 1)) if values is None else values.copy_(v.transpose(0, 1))
    torch.mul(values, x[:, 1], out=x[:, 0])


def _grad_fraction(grad_y: Tensor, y: Tensor, fraction: Tensor) -> None:
    """N and D become g / D and -y g / D."""
    numerator, denominator = fraction.unbind(1)
    torch.div(numerator.copy_(grad_y.transpose(0, 1)), denominator, out=numerator)
    torch.mul(numerator, y, out=denominator).neg_()
