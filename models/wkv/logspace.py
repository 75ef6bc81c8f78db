"""WKV with every sum scaled by its own running exponent, float64: for keys of any size, where
linear space overflows.

With p_t = max(p_{t-1} - w, k_t), q_t = max(p_{t-1}, u + k_t) and a, b scaled by e^{-p}:

    d = e^{p_{t-1} - w - p_t}   e = e^{k_t - p_t}   c = e^{p_{t-1} - q_t}   f = e^{u + k_t - q_t}    (all at most 1)
    a_t = d a_{t-1} + e v_t     b_t = d b_{t-1} + e     y_t = (c a_{t-1} + f v_t) / (c b_{t-1} + f)

Any p and q give the same y, so the backward pass may hold them constant:

    G_t = (g_t / D_t) (1, -y_t)        Z_t = c G_t + d Z_{t+1}
    gv = f G[0] + e Z_{t+1}[0]         gk = f G[0] (v - y) + e (v Z_{t+1}[0] + Z_{t+1}[1])
    gu = sum f G[0] (v - y)            gw = -sum d (a, b)_{t-1} . Z_{t+1}
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lookback.models.wkv.tiles import tiles

FLOAT = torch.float64


class Weights(NamedTuple):
    """The four factors of a tile, each (positions, batch, channels), and the exponent after it
    (batch, channels).
    """

    decay: Tensor  # d
    added: Tensor  # e
    carried: Tensor  # c
    bonus: Tensor  # f
    exponent: Tensor


def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    exponent: Tensor,
    y: Tensor,
    carries: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills y and, where it has rows, carries; returns the outgoing sums (2, b, c) and their
    exponent (b, c).
    """
    batch_size, length, channels = k.shape
    w, u, sums = w.to(FLOAT), u.to(FLOAT), sums.clone()
    for number, tile, _ in tiles(length, batch_size * channels):
        if len(carries):
            carries[number] = sums
        values = _load(v, tile)
        weights = _weights(w, u, _load(k, tile), exponent)
        before, sums = _sums(weights, values, sums)
        y[:, tile] = _fraction(weights, values, before)[0].transpose(0, 1)
        exponent = weights.exponent
    return sums, exponent


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    exponent: Tensor,
    after_exponent: Tensor,
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
    w, u = w.to(FLOAT), u.to(FLOAT)
    grad_w, grad_u = (torch.zeros(channels, dtype=FLOAT) for _ in range(2))
    entering = _tile_exponents(w, k, exponent)
    grad_sums = grad_sums * (entering[-1] - after_exponent).exp()
    for number, tile, n in reversed(list(tiles(length, batch_size * channels))):
        values = _load(v, tile)
        weights = _weights(w, u, _load(k, tile), entering[number])
        before, _ = _sums(weights, values, carries[number])
        y, denominator = _fraction(weights, values, before)
        grad_numerator = _load(grad_y, tile) / denominator
        grad_sums_at = torch.empty(n + 1, 2, batch_size, channels, dtype=FLOAT)
        grad_sums_at[n] = grad_sums
        torch.stack((grad_numerator, -grad_numerator * y), dim=1, out=grad_sums_at[:n])
        grad_sums_at[:n] *= weights.carried.unsqueeze(1)
        for t in range(n - 1, -1, -1):
            grad_sums_at[t].addcmul_(grad_sums_at[t + 1], weights.decay[t])
        later, grad_sums = grad_sums_at[1:], grad_sums_at[0]
        through_bonus = weights.bonus * grad_numerator
        through_sums = later * weights.added.unsqueeze(1)
        grad_bonus = through_bonus * (values - y)
        grad_u += grad_bonus.sum((0, 1))
        grad_w -= (later * before * weights.decay.unsqueeze(1)).sum((0, 1, 2))
        grad_v[:, tile] = (through_bonus + through_sums[:, 0]).transpose(0, 1)
        grad_k[:, tile] = (grad_bonus + values * through_sums[:, 0] + through_sums[:, 1]).transpose(
            0, 1
        )
    return grad_w, grad_u, grad_sums.clone()


def _load(x: Tensor, tile: slice) -> Tensor:
    return x[:, tile].transpose(0, 1).to(FLOAT)  # (positions, batch, channels)


def _exponents(w: Tensor, k: Tensor, exponent: Tensor) -> Tensor:
    """The running exponent before, between and after the positions of a tile: (positions + 1,
    batch, channels).
    """
    exponents = torch.cat((exponent.unsqueeze(0), k))
    for earlier, later in pairwise(exponents.unbind(0)):
        torch.maximum(earlier - w, later, out=later)
    return exponents


def _tile_exponents(w: Tensor, k: Tensor, exponent: Tensor) -> list[Tensor]:
    """The exponent that enters each tile; cheaper to find again than to keep."""
    entering = [exponent]
    for _, tile, _ in tiles(k.shape[1], k.shape[0] * k.shape[2]):
        entering.append(_exponents(w, _load(k, tile), entering[-1])[-1])
    return entering


def _weights(w: Tensor, u: Tensor, k: Tensor, exponent: Tensor) -> Weights:
    exponents = _exponents(w, k, exponent)
    before, after = exponents[:-1], exponents[1:]
    largest = torch.maximum(before, k + u)
    return Weights(
        decay=(before - after - w).exp(),
        added=(k - after).exp(),
        carried=(before - largest).exp(),
        bonus=(k + u - largest).exp(),
        exponent=exponents[-1],
    )


def _sums(weights: Weights, v: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The sums before every position (positions, 2, batch, channels), and those after the last."""
    inputs = torch.stack((weights.added * v, weights.added), dim=1)
    rows = torch.cat((sums.unsqueeze(0), inputs))
    for (earlier, later), decay in zip(
        pairwise(rows.unbind(0)), weights.decay.unbind(0), strict=True
    ):
        later.addcmul_(earlier, decay)
    return rows[:-1], rows[-1]


def _fraction(weights: Weights, v: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """y and its denominator, each (positions, batch, channels)."""
    numerator = torch.addcmul(weights.bonus * v, weights.carried, before[:, 0])
    denominator = torch.addcmul(weights.bonus, weights.carried, before[:, 1])
    return numerator / denominator, denominator
