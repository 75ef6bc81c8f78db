"""Floating-point operations counted by torch's own counter, taught the operators it has no formula
for.

A multiplication and an addition are two. Attention counts whole, masked or not, as torch counts its
other forms of it.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]
ATEN = torch.ops.aten


def counter() -> FlopCounterMode:
    """A context that counts what is computed inside: `get_total_flops()` of it."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(out, query, key, value)


def _layer(x: Shape, into: Shape, again: Shape, *_: Any, **__: Any) -> int:
    """A recurrent layer over x (..., width): its two matrices at every position."""
    return 2 * prod(x[:-1]) * (prod(into) + prod(again))


def _layer_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _layer(*args, **kwargs)  # gradients of the input and of the weights


def _cudnn(x: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _cudnn_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _cudnn(*args, **kwargs)


FORMULAS: dict[Any, Any] = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    ATEN.mkldnn_rnn_layer: _layer,
    ATEN.mkldnn_rnn_layer_backward: _layer_backward,
    ATEN._cudnn_rnn: _cudnn,
    ATEN._cudnn_rnn_backward: _cudnn_backward,
}
