"""The definition of WKV-4 as a loop over positions: the form to read, and the one the others are
checked against.

Formula: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", appendix D (the stable
form).
"""

import torch
from torch import Tensor

from lookback.models.wkv.state import WKVState, empty_state, state_dtype

LARGEST_LOG_WEIGHT = 80.0  # exp(80) is finite in float32, and beside it a weight of 1 is nothing


def wkv_reference(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """One `wkv_step` a position, differentiated by autograd; computes in the state's dtype."""
    state = state or empty_state(k.shape[0], k.shape[2], k.device, state_dtype(k))
    outputs = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):  # each (batch, channels)
        y, state = wkv_step(w, u, key, value, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def wkv_step(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState
) -> tuple[Tensor, WKVState]:
    """One position: k, v (batch, channels) and the state before it give y (batch, channels) and the
    state after it.

    Computes in the state's dtype. In float32 the weight of a position n steps back is right to
    about n times 6e-8; a float64 state forgets nothing. Arguments are not checked, because this is
    the inner loop of decoding; `wkv` says what they must be.
    """
    numerator, denominator, exponent = state
    dtype, asked = exponent.dtype, v.dtype
    key = k if k.dtype == dtype else k.to(dtype)  # to ask is cheaper than to convert to the same
    value = v if asked == dtype else v.to(dtype)
    weight = (
        (key + u - exponent).clamp_max(LARGEST_LOG_WEIGHT).exp()
    )  # of this position against the past
    y = torch.addcmul(numerator, weight, value) / (denominator + weight)

    largest = torch.maximum(exponent - w, key)
    # The past is multiplied by what is left of exp(-w) after `largest` was rounded. Taking that for
    # 1 where the past wins, as other kernels do, lets the rounding of exponent - w add up over
    # thousands of positions.
    kept = (exponent - largest - w).exp()
    added = (key - largest).exp()
    numerator = torch.addcmul(numerator * kept, added, value)
    return y if asked == dtype else y.to(asked), WKVState(
        numerator, torch.addcmul(added, denominator, kept), largest
    )
