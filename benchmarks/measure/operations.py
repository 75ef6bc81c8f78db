"""Floating-point operations, by torch's own counter with formulas for operators that it lacks.

A multiplication and an addition are two operations. Attention counts the pairs of positions that
its kernel computes: one that is told to be causal skips the others, one that is given a mask does
not. (torch's own formulas count all pairs.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]
ATEN = torch.ops.aten


def counter() -> FlopCounterMode:
    """Return a context that counts the operations inside; read its `get_total_flops()`."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


def _attention(
    count: Callable[..., int], tensors: int, causal_at: int, *args: Any, **_: Any
) -> int:
    """Return `count` of the first `tensors` shapes; of a causal kernel, its part that is computed.

    The last three of them are query, key and value; `args[causal_at]` may be left out.
    """
    shapes = args[:tensors]
    query, key, _value = shapes[-3:]
    is_causal = any(args[causal_at : causal_at + 1])
    return count(*shapes) * (query[-2] + 1) // (2 * key[-2]) if is_causal else count(*shapes)


def _lstm(x: Shape, input_weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
    """Count an LSTM layer over x (..., width): two matrix products at every position."""
    return 2 * prod(x[:-1]) * (prod(input_weight) + prod(hidden_weight))


def _lstm_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _lstm(*args, **kwargs)  # gradients of the input and of the weights


def _cudnn_lstm(x: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    matrices = [weight for weight in weights if len(weight) == 2]  # the others are biases
    return 2 * prod(x[:-1]) * sum(prod(matrix) for matrix in matrices)


def _cudnn_lstm_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _cudnn_lstm(*args, **kwargs)


def _triangular_solve(matrix: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return prod(right) * matrix[-1]  # half of a product of these shapes


# Operators of attention, and the place of `is_causal` among their arguments.
FORWARD = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: 4,
    ATEN._scaled_dot_product_flash_attention: 4,
    ATEN._scaled_dot_product_efficient_attention: 6,
    ATEN._scaled_dot_product_cudnn_attention: 6,
}
BACKWARD = {
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: 7,
    ATEN._scaled_dot_product_flash_attention_backward: 11,
    ATEN._scaled_dot_product_efficient_attention_backward: 11,
    ATEN._scaled_dot_product_cudnn_attention_backward: 14,
}
FORMULAS: dict[Any, Any] = {
    **{op: partial(_attention, sdpa_flop_count, 3, place) for op, place in FORWARD.items()},
    **{
        op: partial(_attention, sdpa_backward_flop_count, 4, place)
        for op, place in BACKWARD.items()
    },
    ATEN.linalg_solve_triangular: _triangular_solve,
    ATEN.mkldnn_rnn_layer: _lstm,
    ATEN.mkldnn_rnn_layer_backward: _lstm_backward,
    ATEN._cudnn_rnn: _cudnn_lstm,
    ATEN._cudnn_rnn_backward: _cudnn_lstm_backward,
}
