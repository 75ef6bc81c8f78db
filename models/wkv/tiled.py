"""The CPU form of WKV-4 as two registered operators, forward and backward, so that torch.compile,
FakeTensorMode and FlopCounterMode see them.

They compute in float64 whatever the inputs are: in linear space where exp() can hold the keys, else
in log space.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lookback.models.wkv import linear, logspace
from lookback.models.wkv.gradients import differentiate, save
from lookback.models.wkv.state import WKVState, empty_state, state_dtype
from lookback.models.wkv.tiles import tile_count, tile_length, tiles

LARGEST_EXPONENT = 300.0  # exp(300) squared is still finite in float64
FORWARD_FLOPS = (
    12  # a position and channel: the sums, products, quotients and exponentials of the formula
)
BACKWARD_FLOPS = 36  # the same, with the forward sums computed again


def wkv_tiled(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """The CPU form; arguments as `wkv` has checked them."""
    state = state or empty_state(k.shape[0], k.shape[2], k.device, state_dtype(k))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (w, u, k, v, *state))
    y, numerator, denominator, exponent, _, _ = forward(w, u, k, v, *state, keep)
    return y, WKVState(numerator, denominator, exponent)


def linear_shift(w: Tensor, u: Tensor, k: Tensor, exponent: Tensor) -> float:
    """What to subtract from every key for linear space to hold its exponential; nan where no number
    would do.
    """
    lowest, highest = (float(bound) for bound in k.aminmax())
    highest = max(highest, float(exponent.max()))
    shift = 0.0 if max(-lowest, highest) <= LARGEST_EXPONENT / 2 else (lowest + highest) / 2
    fits = max(shift - lowest, highest - shift) + float(u.abs().max()) <= LARGEST_EXPONENT
    return shift if fits and float(w.min()) >= 0 else math.nan


@torch.library.custom_op("lookback::wkv_tiled", mutates_args=(), device_types="cpu")
def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    exponent: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y and the outgoing state; for the backward pass also the sums carried into each tile, and the
    shift.
    """
    state = numerator, denominator, exponent
    y, after_numerator, after_denominator, after_exponent, carries, shift = _outputs(
        w, u, k, v, *state, keep
    )
    sums, scale = torch.stack((numerator, denominator)).double(), exponent.double()
    shift.fill_(linear_shift(w, u, k, exponent))
    if math.isnan(float(shift)):
        sums, scale = logspace.forward(w, u, k, v, sums, scale, y, carries)
        after_exponent.copy_(scale)
    else:
        sums = linear.forward(w, u, k, v, sums * (scale - shift).exp(), float(shift), y, carries)
        scale = shift
        after_exponent.copy_(outgoing_exponent(w, k, exponent))
    sums = sums * (scale - after_exponent.double()).exp()
    return (
        y,
        after_numerator.copy_(sums[0]),
        after_denominator.copy_(sums[1]),
        after_exponent,
        carries,
        shift,
    )


@forward.register_fake
def _outputs(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    exponent: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch_size, length, channels = k.shape
    rows = tile_count(length, batch_size * channels) if keep else 0
    carries = k.new_empty(rows, 2, batch_size, channels, dtype=torch.float64)
    a, b, p = (torch.empty_like(part) for part in (numerator, denominator, exponent))
    return v.new_empty(v.shape), a, b, p, carries, k.new_empty((), dtype=torch.float64)


@torch.library.custom_op("lookback::wkv_tiled_backward", mutates_args=(), device_types="cpu")
def backward(
    grad_y: Tensor,
    grad_numerator: Tensor | None,
    grad_denominator: Tensor | None,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    exponent: Tensor,
    after_exponent: Tensor,
    carries: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v and the incoming state stacked, (3, batch, channels); see
    `gradients.differentiate`.
    """
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    grad_after = k.new_zeros(2, *exponent.shape, dtype=torch.float64)
    if grad_numerator is not None and grad_denominator is not None:
        grad_after[0], grad_after[1] = grad_numerator, grad_denominator
    grads = (grad_y, carries, grad_k, grad_v)
    if math.isnan(float(shift)):
        grad_w, grad_u, grad_sums = logspace.backward(
            w, u, k, v, exponent.double(), after_exponent.double(), grad_after, *grads
        )
    else:
        grad_after *= (shift - after_exponent.double()).exp()
        grad_w, grad_u, grad_sums = linear.backward(w, u, k, v, float(shift), grad_after, *grads)
        grad_sums = grad_sums * (exponent.double() - shift).exp()
    grad_exponent = grad_sums[0] * numerator + grad_sums[1] * denominator
    grad_state = torch.stack((*grad_sums, grad_exponent)).to(exponent.dtype)
    return grad_w.to(w.dtype), grad_u.to(u.dtype), grad_k, grad_v, grad_state


@backward.register_fake
def _gradients(grad_y: Tensor, *args: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    w, u, k, v, numerator = args[2:7]
    grad_w, grad_u, grad_k, grad_v = (x.new_empty(x.shape) for x in (w, u, k, v))
    return grad_w, grad_u, grad_k, grad_v, numerator.new_empty(3, *numerator.shape)


forward.register_autograd(partial(differentiate, backward), setup_context=save)


@register_flop_formula(torch.ops.lookback.wkv_tiled)
def _forward_flops(w: Any, u: Any, k: tuple[int, ...], *_: Any, **__: Any) -> int:
    return FORWARD_FLOPS * math.prod(k)


@register_flop_formula(torch.ops.lookback.wkv_tiled_backward)
def _backward_flops(gy: tuple[int, ...], *_: Any, **__: Any) -> int:
    return BACKWARD_FLOPS * math.prod(gy)


def outgoing_exponent(w: Tensor, k: Tensor, exponent: Tensor) -> Tensor:
    """The largest exponent of any summand after the last position, max k_i - (T - 1 - i) w: (batch,
    channels).
    """
    batch_size, length, channels = k.shape
    ages = torch.arange(
        tile_length(length, batch_size * channels) - 1, -1, -1, dtype=exponent.dtype
    )
    aging = ages.unsqueeze(1) * w  # (positions, channels)
    for _, tile, n in tiles(length, batch_size * channels):
        newest = (k[:, tile] - aging[-n:]).amax(1)
        exponent = torch.maximum(exponent - n * w, newest)
    return exponent
