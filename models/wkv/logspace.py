"""WKV on the CPU with a running exponent, float64: for keys that linear space cannot hold.

As in `linear.py`, but a_t and b_t are kept divided by e^{p_t}, and N_t and D_t by e^{q_t}, where p
and q are the largest exponents in them, so that all four weights are at most 1:

    p_t = max(p_{t-1} - w, k_t)                       q_t = max(p_{t-1}, u + k_t)

    decay_t   = e^{p_{t-1} - w - p_t}                 carried_t = e^{p_{t-1} - q_t}
    added_t   = e^{k_t - p_t}                         bonus_t   = e^{u + k_t - q_t}

    a_t = decay_t a_{t-1} + added_t v_t               N_t = carried_t a_{t-1} + bonus_t v_t
    b_t = decay_t b_{t-1} + added_t                   D_t = carried_t b_{t-1} + bonus_t

y = N / D does not depend on the choice of p and q, so the backward pass holds them constant. With
gN_t = g_t / D_t, gD_t = -gN_t y_t and the gradients (alpha_t, beta_t) of (a_t, b_t):

    alpha_{t-1} = carried_t gN_t + decay_t alpha_t    beta_{t-1} = carried_t gD_t + decay_t beta_t

    gv_t = bonus_t gN_t + added_t alpha_t
    gk_t = bonus_t gN_t (v_t - y_t) + added_t (v_t alpha_t + beta_t)
    gu   = sum_t bonus_t gN_t (v_t - y_t)
    gw   = -sum_t decay_t (alpha_t a_{t-1} + beta_t b_{t-1})
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT = torch.float64


class Weights(NamedTuple):
    """The four weights of a tile, each (positions, batch, channels), and the exponent after it."""

    decay: Tensor
    added: Tensor
    carried: Tensor
    bonus: Tensor
    exponent: Tensor  # (batch, channels)


def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    exponent: Tensor,
    tiles: Sequence[slice],
    y: Tensor,
    carries: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill y and, unless it is empty, carries; returns the outgoing sums and their exponent.

    w, u (channels,); k, v, y (batch, length, channels); carries (tiles, 2, batch, channels); sums
    (2, batch, channels), to be multiplied by e^exponent, (batch, channels).
    """
    w, u, sums = w.to(FLOAT), u.to(FLOAT), sums.clone()
    for number, tile in enumerate(tiles):
        if len(carries):
            carries[number] = sums
        values = _load(v, tile)
        weights = _weights(w, u, _load(k, tile), exponent)
        before, sums = _sums(weights, values, sums)
        outputs, _ = _fraction(weights, values, before)
        y[:, tile] = outputs.transpose(0, 1)
        exponent = weights.exponent
    return sums, exponent


def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    exponent: Tensor,
    after_exponent: Tensor,
    tiles: Sequence[slice],
    grad_sums: Tensor,
    grad_y: Tensor,
    carries: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill grad_k and grad_v; returns the gradients of w, u and the incoming sums.

    grad_sums (2, batch, channels) is the gradient of the outgoing sums, for sums divided by
    e^after_exponent.
    """
    batch_size, _, channels = k.shape
    w, u = w.to(FLOAT), u.to(FLOAT)
    grad_w = torch.zeros(channels, dtype=FLOAT)
    grad_u = torch.zeros(channels, dtype=FLOAT)

    # The exponent that enters each tile: cheaper to recompute than to save
    entering = [exponent]
    for tile in tiles:
        entering.append(_exponents(w, _load(k, tile), entering[-1])[-1])

    grad_sums = grad_sums * (entering[-1] - after_exponent).exp()
    for number, tile in reversed(list(enumerate(tiles))):
        # Recompute the tile
        values = _load(v, tile)
        weights = _weights(w, u, _load(k, tile), entering[number])
        before, _ = _sums(weights, values, carries[number])
        y, denominator = _fraction(weights, values, before)

        # Row t of adjoint becomes (alpha_{t-1}, beta_{t-1}), from its last row to its first
        n = len(values)
        grad_numerator = _load(grad_y, tile) / denominator
        adjoint = torch.empty(n + 1, 2, batch_size, channels, dtype=FLOAT)
        adjoint[n] = grad_sums
        torch.stack((grad_numerator, -grad_numerator * y), dim=1, out=adjoint[:n])
        adjoint[:n] *= weights.carried.unsqueeze(1)
        for t in range(n - 1, -1, -1):
            adjoint[t].addcmul_(adjoint[t + 1], weights.decay[t])
        later, grad_sums = adjoint[1:], adjoint[0]

        bonus_v = weights.bonus * grad_numerator
        bonus_k = bonus_v * (values - y)
        past = later * weights.added.unsqueeze(1)  # added (alpha, beta)
        grad_u += bonus_k.sum((0, 1))
        grad_w -= (later * before * weights.decay.unsqueeze(1)).sum((0, 1, 2))
        grad_v[:, tile] = (bonus_v + past[:, 0]).transpose(0, 1)
        grad_k[:, tile] = (bonus_k + values * past[:, 0] + past[:, 1]).transpose(0, 1)
    return grad_w, grad_u, grad_sums.clone()


def _load(x: Tensor, tile: slice) -> Tensor:
    return x[:, tile].transpose(0, 1).to(FLOAT)  # (positions, batch, channels)


def _exponents(w: Tensor, k: Tensor, exponent: Tensor) -> Tensor:
    """p before the first position of a tile and after each: (positions + 1, batch, channels)."""
    exponents = torch.cat((exponent.unsqueeze(0), k))
    for earlier, later in pairwise(exponents.unbind(0)):
        torch.maximum(earlier - w, later, out=later)
    return exponents


def _weights(w: Tensor, u: Tensor, k: Tensor, exponent: Tensor) -> Weights:
    exponents = _exponents(w, k, exponent)
    before, after = exponents[:-1], exponents[1:]
    largest = torch.maximum(before, k + u)  # q
    return Weights(
        decay=(before - after - w).exp(),
        added=(k - after).exp(),
        carried=(before - largest).exp(),
        bonus=(k + u - largest).exp(),
        exponent=exponents[-1],
    )


def _sums(weights: Weights, v: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) before every position, (positions, 2, batch, channels), and after the last."""
    inputs = torch.stack((weights.added * v, weights.added), dim=1)
    rows = torch.cat((sums.unsqueeze(0), inputs))
    for t, decay in enumerate(weights.decay.unbind(0)):
        rows[t + 1].addcmul_(rows[t], decay)
    return rows[:-1], rows[-1]


def _fraction(weights: Weights, v: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """y and D, each (positions, batch, channels)."""
    numerator = torch.addcmul(weights.bonus * v, weights.carried, before[:, 0])
    denominator = torch.addcmul(weights.bonus, weights.carried, before[:, 1])
    return numerator / denominator, denominator
