"""WKV-4 by its definition: the state, one step of the recurrence, and a loop over positions.

This is the form to read, and the one the others are tested against. Its sums share an exponent that
is factored out, as in RWKV's published kernels, so that no key is too large for exp().
"""

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY_EXPONENT = -1e38  # not -inf: the difference of two infinities is nan
LARGEST_LOG_WEIGHT = 80.0  # exp(80) is finite in float32, and beside it a weight of 1 vanishes


class WKVState(NamedTuple):
    """Two decayed sums over the past, each to be multiplied by exp(exponent).

    All three have shape (batch, channels) and are float32, or float64 where the keys are float64.
    The exponent is the largest exponent of any summand, so neither sum overflows, whatever the
    keys.
    """

    numerator: Tensor  # sum of exp(k) v
    denominator: Tensor  # sum of exp(k)
    exponent: Tensor


def empty_state(
    batch_size: int,
    channels: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> WKVState:
    """Return the state before the first position. `dtype` is float32 or float64."""
    zeros = torch.zeros(2, batch_size, channels, device=device, dtype=dtype)
    exponent = torch.full((batch_size, channels), EMPTY_EXPONENT, device=device, dtype=dtype)
    return WKVState(zeros[0], zeros[1], exponent)


def state_dtype(k: Tensor) -> torch.dtype:
    """float64 for float64 keys, float32 for every other precision."""
    return torch.float64 if k.dtype == torch.float64 else torch.float32


def wkv_reference(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """`wkv` as one `wkv_step` per position, differentiated by autograd, in the state's dtype."""
    state = state or empty_state(k.shape[0], k.shape[2], k.device, state_dtype(k))
    outputs = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):  # each (batch, channels)
        y, state = wkv_step(w, u, key, value, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def wkv_step(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState
) -> tuple[Tensor, WKVState]:
    """Return y (batch, channels) of one position, and the state after it.

    w and u are (channels,), k and v (batch, channels). Computes in the state's dtype: in float32
    the weight of a position n steps back has a relative error of about n times 6e-8. Arguments are
    not checked, because this is the inner loop of decoding; see `wkv` for what they must be.
    """
    numerator, denominator, exponent = state
    dtype = exponent.dtype
    # comparing dtypes is cheaper than a conversion that changes nothing
    key = k if k.dtype == dtype else k.to(dtype)
    value = v if v.dtype == dtype else v.to(dtype)

    # the weight of this position relative to exp(exponent), the scale of both sums
    weight = (key + u - exponent).clamp_max(LARGEST_LOG_WEIGHT).exp()
    y = torch.addcmul(numerator, weight, value) / (denominator + weight)

    # Decay the sums, add this position, and scale by the new largest exponent. Where the past stays
    # the largest, `kept` is nearly 1, and other kernels take 1; but then the rounding errors of
    # exponent - w add up over thousands of positions.
    largest = torch.maximum(exponent - w, key)
    kept = (exponent - largest - w).exp()
    added = (key - largest).exp()
    numerator = torch.addcmul(numerator * kept, added, value)
    denominator = torch.addcmul(added, denominator, kept)
    y = y if v.dtype == dtype else y.to(v.dtype)
    return y, WKVState(numerator, denominator, largest)
