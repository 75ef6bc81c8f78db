"""What the registered forms share in differentiating the state.

Their backward passes hold the exponents constant, which is right for whatever depends on the sums alone, numerator
times exp(exponent) and the same with the denominator. The rest is here: a use that depends on the exponent by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.wkv.state import WKVState


def save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    """Keeps (w, u, k, v, *state) and all outputs but y; what follows y and the state has no gradient."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*inputs[:7], *output[1:])


def differentiate(backward: Callable[..., tuple[Tensor, ...]], ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """The gradients of (w, u, k, v, *state, keep) from those of y and the outgoing state (None where nothing used it).

    `backward` takes the gradients of y, numerator and denominator, then w, u, k, v, both exponents and what else was
    saved; it returns the gradients of w, u, k, v and of the incoming sums stacked, at constant exponents.
    """
    w, u, k, v, *rest = ctx.saved_tensors
    before, after, extra = WKVState(*rest[:3]), WKVState(*rest[3:6]), rest[6:]
    grad_y = torch.zeros_like(v) if grads[0] is None else grads[0]
    parts = zip(grads[1:4], after, strict=True)
    grad_after = WKVState(*(torch.zeros_like(part) if grad is None else grad for grad, part in parts))
    grad_w, grad_u, grad_k, grad_v, (grad_numerator, grad_denominator) = backward(
        grad_y, grad_after.numerator, grad_after.denominator, w, u, k, v, before.exponent, after.exponent, *extra
    )
    grad_exponent = grad_numerator * before.numerator + grad_denominator * before.denominator
    if any(grad is not None for grad in grads[1:4]):
        more_w, more_k, more_exponent = _through_maximum(w, k, before, after, grad_after)
        grad_w, grad_k, grad_exponent = grad_w + more_w, grad_k + more_k, grad_exponent + more_exponent
    return grad_w.to(w.dtype), grad_u, grad_k.to(k.dtype), grad_v, grad_numerator, grad_denominator, grad_exponent, None


def _through_maximum(
    w: Tensor, k: Tensor, before: WKVState, after: WKVState, grad_after: WKVState
) -> tuple[Tensor, Tensor, Tensor]:
    """What w (c,), k (b, t, c) and the incoming exponent (b, c) get because the outgoing exponent is a maximum.

    The gradient of the exponent at constant sums goes to the one summand that is the largest, k_i - (T - 1 - i) w or
    the incoming exponent less T w. It is zero, up to rounding, where the state was only passed on to `wkv`.
    """
    length = k.shape[1]
    rest = grad_after.exponent - grad_after.numerator * after.numerator - grad_after.denominator * after.denominator
    ages = torch.arange(length - 1, -1, -1, device=k.device, dtype=rest.dtype).unsqueeze(1)
    largest, index = (k - ages * w).max(dim=1, keepdim=True)  # (b, 1, c)
    from_keys = largest.squeeze(1) > before.exponent - length * w
    steps = torch.where(from_keys, length - 1 - index.squeeze(1), length)
    grad_k = torch.zeros_like(k, dtype=rest.dtype).scatter_(1, index, (rest * from_keys).unsqueeze(1))
    return -(rest * steps).sum(0), grad_k, rest * ~from_keys
