"""What the registered forms share in differentiating the state.

Their backward passes hold the outgoing exponent constant, which is right for whatever depends on
the sums alone, numerator times exp(exponent) and the same with the denominator. The rest is here: a
use of the exponent by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lookback.models.wkv.state import EMPTY_EXPONENT, WKVState

NOISE = 16  # roundings


def save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    """Keeps (w, u, k, v, *state) and all outputs but y; what follows y and the state has no
    gradient.
    """
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*inputs[:7], *output[1:])


def differentiate(
    backward: Callable[..., tuple[Tensor, ...]], ctx: Any, *grads: Tensor | None
) -> tuple[Any, ...]:
    """The gradients of the inputs, from those of y and the outgoing state (None where nothing used
    them).

    `backward` takes the gradients of y, numerator and denominator, then w, u, k, v, the incoming
    state, the outgoing exponent and what else was saved; it returns the gradients of w, u, k, v and
    the incoming state stacked, all with the outgoing exponent held constant.
    """
    w, u, k, v, *rest = ctx.saved_tensors
    before, after, extra = rest[:3], WKVState(*rest[3:6]), rest[6:]
    grad_y = torch.zeros_like(v) if grads[0] is None else grads[0]
    used = any(grad is not None for grad in grads[1:4])
    parts = zip(grads[1:4], after, strict=True)
    grad_after = (
        [torch.zeros_like(part) if grad is None else grad for grad, part in parts]
        if used
        else [None, None]
    )
    grad_w, grad_u, grad_k, grad_v, grad_state = backward(
        grad_y, grad_after[0], grad_after[1], w, u, k, v, *before, after.exponent, *extra
    )
    if used:
        more_w, more_exponent = _through_maximum(
            w, k, before[2], after, WKVState(*grad_after), grad_k
        )
        grad_w = (grad_w + more_w).to(w.dtype)
        if before[2] is not None:
            grad_state = torch.stack((*grad_state[:2], grad_state[2] + more_exponent))
    nothing = [None] * (len(ctx.needs_input_grad) - 7)
    return (
        grad_w,
        grad_u,
        grad_k,
        grad_v,
        *(grad_state if before[0] is not None else [None] * 3),
        *nothing,
    )


def _through_maximum(
    w: Tensor,
    k: Tensor,
    before_exponent: Tensor | None,
    after: WKVState,
    grad_after: WKVState,
    grad_k: Tensor,
) -> tuple[Tensor, Tensor]:
    """What comes through the outgoing exponent: added to grad_k, returned for w (c,) and the
    incoming exponent (b, c).

    It is a maximum, so its gradient at constant sums goes to the one summand that is the largest,
    k_i - (T - 1 - i) w or the incoming exponent less T w. That is zero where the state was only
    passed on to `wkv`; what rounding makes of such a zero is dropped, because w gets it multiplied
    by T.
    """
    length, dtype = k.shape[1], after.exponent.dtype
    held = (
        grad_after.exponent,
        -grad_after.numerator * after.numerator,
        -grad_after.denominator * after.denominator,
    )
    parts = torch.stack(held).double()
    rest = parts.sum(0)
    rest = rest * (rest.abs() > NOISE * torch.finfo(dtype).eps * parts.abs().sum(0))
    ages = torch.arange(length - 1, -1, -1, device=k.device, dtype=dtype).unsqueeze(1)
    largest, index = (k - ages * w).max(dim=1, keepdim=True)  # (b, 1, c)
    from_state = EMPTY_EXPONENT if before_exponent is None else before_exponent - length * w
    from_keys = largest.squeeze(1) > from_state
    steps = torch.where(from_keys, length - 1 - index.squeeze(1), length)
    grad_k.scatter_add_(1, index, (rest * from_keys).to(k.dtype).unsqueeze(1))
    return -(rest * steps).sum(0), (rest * ~from_keys).to(dtype)
