"""Floating-point operations, by torch's own counter with formulas for operators that it lacks.

A multiplication and an addition are two operations. Attention counts all positions, masked or not,
as in torch's own formulas.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]
ATEN = torch.ops.aten


def counter() -> FlopCounterMode:
    """Return a context that counts the operations inside; read its `get_total_flops()`."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


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


FORMULAS: dict[Any, Any] = {
    ATEN.linalg_solve_triangular: _triangular_solve,
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    ATEN.mkldnn_rnn_layer: _lstm,
    ATEN.mkldnn_rnn_layer_backward: _lstm_backward,
    ATEN._cudnn_rnn: _cudnn_lstm,
    ATEN._cudnn_rnn_backward: _cudnn_lstm_backward,
}
