"""What the WKV operator carries from one position to the next."""

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY_EXPONENT = -1e38  # not -inf: the difference of two infinities is nan


class WKVState(NamedTuple):
    """Two decayed sums over the past, both to be multiplied by exp(exponent); each (batch,
    channels).

    The numerator sums exp(k) v and the denominator exp(k). The exponent is the largest of the
    summands' exponents, so that neither sum overflows whatever the keys. float32, or float64 where
    the keys are float64.
    """

    numerator: Tensor
    denominator: Tensor
    exponent: Tensor


def empty_state(
    batch_size: int,
    channels: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> WKVState:
    """The state before the first position: sums of nothing. `dtype` is the state's own, float32 or
    float64.
    """
    zeros = torch.zeros(2, batch_size, channels, device=device, dtype=dtype)
    exponent = torch.full((batch_size, channels), EMPTY_EXPONENT, device=device, dtype=dtype)
    return WKVState(zeros[0], zeros[1], exponent)


def state_dtype(k: Tensor) -> torch.dtype:
    """float64 stays float64; every other precision carries its state in float32."""
    return torch.float64 if k.dtype == torch.float64 else torch.float32
