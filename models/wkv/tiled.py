"""WKV on the CPU as registered operators, `lookback::wkv_tiled` and its backward pass.

Being registered, torch.compile, FakeTensorMode and FlopCounterMode see each as one operator. Both
compute in float64, whatever the dtype of the inputs: in linear space (`linear.py`) where float64
holds the exponentials of the keys, otherwise with a running exponent (`logspace.py`). Both go
through the sequence tile by tile.
"""

import math
from functools import partial

import torch
from torch import Tensor

from lookback.models.wkv import linear, logspace
from lookback.models.wkv.autograd import count_flops, differentiate, save
from lookback.models.wkv.linear import positions
from lookback.models.wkv.reference import WKVState, empty_state, state_dtype

TILE_ELEMENTS = 65536  # positions x batch x channels whose float64 buffers stay in the cache
SHORTEST_TILE = 8
LARGEST_EXPONENT = 300.0  # exp(300) squared is finite in float64
FORWARD_FLOPS = 12  # per position and channel: sums, products, quotients and exponentials
BACKWARD_FLOPS = 36  # the same, including the forward sums computed again


def wkv_tiled(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """`wkv` on the CPU; its arguments are checked already."""
    state = state or empty_state(k.shape[0], k.shape[2], k.device, state_dtype(k))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (w, u, k, v, *state))
    y, numerator, denominator, exponent, _, _ = forward(w, u, k, v, *state, keep)
    return y, WKVState(numerator, denominator, exponent)


def tile_length(k: Tensor) -> int:
    """Positions per tile; the last tile may be shorter."""
    batch_size, length, channels = k.shape
    return min(length, max(SHORTEST_TILE, TILE_ELEMENTS // max(batch_size * channels, 1)))


def tiles(k: Tensor) -> list[slice]:
    """The tiles of a sequence, in order, as slices of its positions.

    An estimate of memory that runs these operators with fake tensors may replace this function by
    one that returns fewer tiles: every tile but the last takes the same memory.
    """
    length = k.shape[1]
    size = tile_length(k)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def linear_shift(w: Tensor, u: Tensor, k: Tensor, exponent: Tensor) -> float:
    """Return what to subtract from every key so that linear space holds their exponentials.

    That is 0 where possible, otherwise the middle of the keys' range, or nan where no number would
    do: then the keys need `logspace`.
    """
    lowest, highest = (float(bound) for bound in k.aminmax())
    highest = max(highest, float(exponent.max()))
    near_zero = max(-lowest, highest) <= LARGEST_EXPONENT / 2
    shift = 0.0 if near_zero else (lowest + highest) / 2
    largest = max(shift - lowest, highest - shift) + float(u.abs().max())
    return shift if largest <= LARGEST_EXPONENT and float(w.min()) >= 0 else math.nan


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
    """Return y, the outgoing state, and for the backward pass the carries and the shift.

    The carries (tiles, 2, batch, channels) are the sums before each tile, or empty unless `keep`.
    """
    y, after_numerator, after_denominator, after_exponent, carries, shift = _allocate_outputs(
        w, u, k, v, numerator, denominator, exponent, keep
    )
    sums = torch.stack((numerator, denominator)).double()  # to be multiplied by exp(scale)
    scale = exponent.double()
    shift.fill_(linear_shift(w, u, k, exponent))
    if math.isnan(float(shift)):
        sums, scale = logspace.forward(w, u, k, v, sums, scale, tiles(k), y, carries)
        after_exponent.copy_(scale)
    else:
        sums = sums * (scale - shift).exp()
        sums = linear.forward(w, u, k, v, sums, float(shift), tiles(k), y, carries)
        scale = shift
        after_exponent.copy_(outgoing_exponent(w, k, exponent))
    sums = sums * (scale - after_exponent.double()).exp()
    after_numerator.copy_(sums[0])
    after_denominator.copy_(sums[1])
    return y, after_numerator, after_denominator, after_exponent, carries, shift


@forward.register_fake
def _allocate_outputs(
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
    tile_count = -(-length // tile_length(k)) if keep else 0
    carries = k.new_empty(tile_count, 2, batch_size, channels, dtype=torch.float64)
    shift = k.new_empty((), dtype=torch.float64)
    a, b, p = (torch.empty_like(part) for part in (numerator, denominator, exponent))
    return v.new_empty(v.shape), a, b, p, carries, shift


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
    """Return the gradients of w, u, k, v and the incoming state, stacked (3, batch, channels).

    See `autograd.differentiate`, which calls it.
    """
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    grad_after = k.new_zeros(2, *exponent.shape, dtype=torch.float64)
    if grad_numerator is not None and grad_denominator is not None:
        grad_after[0] = grad_numerator
        grad_after[1] = grad_denominator
    before_exponent = exponent.double()
    arguments = (tiles(k), grad_after, grad_y, carries, grad_k, grad_v)
    if math.isnan(float(shift)):
        grad_w, grad_u, grad_sums = logspace.backward(
            w, u, k, v, before_exponent, after_exponent.double(), *arguments
        )
    else:
        grad_after *= (shift - after_exponent.double()).exp()
        grad_w, grad_u, grad_sums = linear.backward(w, u, k, v, float(shift), *arguments)
        grad_sums = grad_sums * (before_exponent - shift).exp()

    # the sums enter as e^exponent (numerator, denominator), whose derivative is itself
    grad_exponent = grad_sums[0] * numerator + grad_sums[1] * denominator
    grad_state = torch.stack((*grad_sums, grad_exponent)).to(exponent.dtype)
    return grad_w.to(w.dtype), grad_u.to(u.dtype), grad_k, grad_v, grad_state


@backward.register_fake
def _allocate_gradients(grad_y: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    w, u, k, v, numerator = arguments[2:7]
    grad_w, grad_u, grad_k, grad_v = (x.new_empty(x.shape) for x in (w, u, k, v))
    return grad_w, grad_u, grad_k, grad_v, numerator.new_empty(3, *numerator.shape)


forward.register_autograd(partial(differentiate, backward), setup_context=save)
count_flops(torch.ops.lookback.wkv_tiled, FORWARD_FLOPS, argument=2)  # k
count_flops(torch.ops.lookback.wkv_tiled_backward, BACKWARD_FLOPS, argument=0)  # grad_y


def outgoing_exponent(w: Tensor, k: Tensor, exponent: Tensor) -> Tensor:
    """The largest exponent of any summand after the last position: (batch, channels).

    That is the maximum over positions i of k_i - (T - 1 - i) w, and of the incoming exponent less
    T w.
    """
    ages = torch.arange(tile_length(k) - 1, -1, -1, dtype=exponent.dtype)
    aging = ages.unsqueeze(1) * w  # (positions, channels)
    for tile in tiles(k):
        n = positions(tile)
        newest = (k[:, tile] - aging[-n:]).amax(1)
        exponent = torch.maximum(exponent - n * w, newest)
    return exponent
