"""What the operators `lookback::wkv_tiled` and `lookback::wkv_triton` share: autograd and FLOPs.

Both operators take (w, u, k, v, numerator, denominator, exponent, ...) and return (y, numerator,
denominator, exponent, ...). Their backward operators hold the outgoing exponent p constant. That
is right for anything computed from the sums themselves, e^p numerator and e^p denominator, which do
not depend on the choice of p. `differentiate` adds the gradient of a use of p by itself.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lookback.models.wkv.reference import EMPTY_EXPONENT, WKVState

INPUTS = 7  # w, u, k, v and the incoming state
OUTPUTS = 4  # y and the outgoing state
ROUNDING_ERRORS = 16  # a sum smaller than this many rounding errors of its summands counts as zero


def save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    """Save the inputs and all outputs but y; outputs behind the state have no gradient."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[OUTPUTS:])
    ctx.save_for_backward(*inputs[:INPUTS], *output[1:])


def differentiate(
    backward: Callable[..., tuple[Tensor, ...]], ctx: Any, *grads: Tensor | None
) -> tuple[Any, ...]:
    """Return the gradients of all inputs, from those of the outputs (None for an unused output).

    `backward(grad_y, grad_numerator, grad_denominator, w, u, k, v, *incoming state, outgoing
    exponent, *extra outputs)` returns the gradients of w, u, k, v, and those of the incoming state
    stacked, all with the outgoing exponent held constant.
    """
    w, u, k, v, *saved = ctx.saved_tensors
    before = saved[:3]
    after = WKVState(*saved[3:6])
    extra = saved[6:]

    grad_y = _or_zeros(grads[0], v)
    grad_after = None
    if any(grad is not None for grad in grads[1:OUTPUTS]):
        grad_after = WKVState(*map(_or_zeros, grads[1:OUTPUTS], after))
    grad_sums = grad_after[:2] if grad_after else (None, None)
    grad_w, grad_u, grad_k, grad_v, grad_state = backward(
        grad_y, *grad_sums, w, u, k, v, *before, after.exponent, *extra
    )

    has_state = before[0] is not None
    if grad_after:
        through_w, through_exponent = _through_maximum(w, k, before[2], after, grad_after, grad_k)
        grad_w = (grad_w + through_w).to(w.dtype)
        if has_state:
            grad_state = torch.stack((*grad_state[:2], grad_state[2] + through_exponent))
    grad_before = grad_state if has_state else [None] * 3
    unused = [None] * (len(ctx.needs_input_grad) - INPUTS)
    return grad_w, grad_u, grad_k, grad_v, *grad_before, *unused


def count_flops(operator: Any, flops: int, argument: int) -> None:
    """Tell FlopCounterMode that `operator` takes `flops` per element of an argument, by index."""

    @register_flop_formula(operator)
    def formula(*shapes: Any, **_: Any) -> int:
        return flops * prod(shapes[argument])


def _or_zeros(grad: Tensor | None, output: Tensor) -> Tensor:
    return torch.zeros_like(output) if grad is None else grad


def _through_maximum(
    w: Tensor,
    k: Tensor,
    before_exponent: Tensor | None,
    after: WKVState,
    grad_after: WKVState,
    grad_k: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient that passes through the outgoing exponent while the sums stay constant.

    Adds that of k to grad_k, in place; returns those of w (channels,) and of the incoming exponent
    (batch, channels). The outgoing exponent is the largest of

        k_i - (T - 1 - i) w  for each position i,   and   incoming exponent - T w,

    so the gradient goes to that one alone. With the sums constant, numerator and denominator are
    functions of the exponent: each is a constant times e^-p, hence the two products subtracted.
    """
    length = k.shape[1]
    dtype = after.exponent.dtype
    summands = torch.stack(
        (
            grad_after.exponent,
            -grad_after.numerator * after.numerator,
            -grad_after.denominator * after.denominator,
        )
    ).double()
    grad_exponent = summands.sum(0)
    # A state that is only passed on to `wkv` gives zero here, up to rounding. Drop the rounding
    # error, because w receives it times T.
    tolerance = ROUNDING_ERRORS * torch.finfo(dtype).eps * summands.abs().sum(0)
    grad_exponent = grad_exponent * (grad_exponent.abs() > tolerance)

    ages = torch.arange(length - 1, -1, -1, device=k.device, dtype=dtype).unsqueeze(1)
    largest, index = (k - ages * w).max(dim=1, keepdim=True)  # (batch, 1, channels)
    from_state = EMPTY_EXPONENT if before_exponent is None else before_exponent - length * w
    is_key = largest.squeeze(1) > from_state  # (batch, channels)
    steps = torch.where(is_key, length - 1 - index.squeeze(1), length)
    grad_k.scatter_add_(1, index, (grad_exponent * is_key).to(k.dtype).unsqueeze(1))
    return -(grad_exponent * steps).sum(0), (grad_exponent * ~is_key).to(dtype)
