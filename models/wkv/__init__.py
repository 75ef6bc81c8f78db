"""WKV-4, the recurrence of RWKV: per channel, a weighted mean of all values up to the present.

    y_t = ( sum_{i<t} exp(k_i - (t-1-i) w) v_i + exp(u + k_t) v_t ) / ( the same without v )

    w  (channels,)                 decay rate: each step multiplies the past by exp(-w), w >= 0
    u  (channels,)                 bonus of the current position
    k  (batch, length, channels)   keys: the logarithm of the weight of each position
    v  (batch, length, channels)   values

Numerator and denominator are recurrences, a_t = e^-w a_{t-1} + e^{k_t} v_t and b_t = e^-w b_{t-1} +
e^{k_t}, which make up the state. `wkv` chooses among three implementations of the same function:

    reference   a loop over positions, differentiated by autograd, on any device
    tiled       CPU: tiles of the sequence, float64 inside, recomputes in its backward pass
    triton      GPU: parallel over time too, float32 inside, recomputes in its backward pass

`reference.py` has the definition, `linear.py` the derivation of the gradients. Source: Peng et al.
2023, "RWKV: Reinventing RNNs for the Transformer Era" (arXiv 2305.13048).
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from lookback.models.wkv.reference import (
    WKVState,
    empty_state,
    state_dtype,
    wkv_reference,
    wkv_step,
)
from lookback.models.wkv.tiled import wkv_tiled
from lookback.models.wkv.triton import interpreted, wkv_triton

__all__ = ["BACKENDS", "WKVState", "empty_state", "resolve_backend", "wkv", "wkv_step"]

BACKENDS = ("auto", "reference", "tiled", "triton")
HAS_TRITON = find_spec("triton") is not None


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None = None, backend: str = "auto"
) -> tuple[Tensor, WKVState]:
    """Return y (batch, length, channels) in v's dtype, and the state after the last position.

    w and u are (channels,), k and v (batch, length, channels), in any floating dtype. `state` is
    what an earlier call returned, or None for the empty past. Every tensor can be differentiated
    once, those of the state too. Raises ValueError for wrong shapes, dtypes, devices or backends.
    """
    _check_inputs(w, u, k, v)
    chosen = resolve_backend(backend, k)
    if state is not None:
        _check_state(state, k)
    if chosen == "tiled":
        return wkv_tiled(w, u, k, v, state)
    if chosen == "triton":
        return wkv_triton(w, u, k, v, state)
    return wkv_reference(w, u, k, v, state)


def resolve_backend(backend: str, k: Tensor) -> str:
    """Return the implementation that `wkv` would run on these keys: reference, tiled or triton.

    Raises ValueError if `backend` is unknown or cannot run on k's device and dtype.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown wkv backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    device = k.device.type
    if backend == "auto":
        if device == "cpu":
            return "tiled"
        triton_runs = device == "cuda" and HAS_TRITON and k.dtype != torch.float64
        return "triton" if triton_runs else "reference"
    if backend == "tiled" and device != "cpu":
        raise ValueError(
            f"wkv backend 'tiled' runs on the CPU only; expected CPU tensors, got {device}"
        )
    if backend == "triton":
        _check_triton(k)
    return backend


def _check_triton(k: Tensor) -> None:
    if not HAS_TRITON:
        raise ValueError("wkv backend 'triton' needs the package triton, which is not installed")
    if k.dtype == torch.float64:
        raise ValueError(
            "wkv backend 'triton' computes in float32; expected k of at most that, "
            "got torch.float64"
        )
    device = k.device.type
    if device != "cuda" and not (device == "cpu" and interpreted()):
        raise ValueError(
            f"wkv backend 'triton' runs on a GPU only; expected CUDA tensors, got {device}"
        )


def _check_inputs(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    shape = tuple(k.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"wkv expected k of shape (batch, length, channels), none of them 0, got {shape}"
        )
    row = shape[2:]
    for name, tensor, expected in (("w", w, row), ("u", u, row), ("k", k, shape), ("v", v, shape)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"wkv expected {name} of shape {expected}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"wkv expected {name} of a floating dtype, got {tensor.dtype}")
        if tensor.device != k.device:
            raise ValueError(f"wkv expected {name} on {k.device}, where k is, got {tensor.device}")


def _check_state(state: WKVState, k: Tensor) -> None:
    if len(state) != 3:
        raise ValueError(
            f"wkv expected a state of numerator, denominator and exponent, got {len(state)} parts"
        )
    expected = (k.shape[0], k.shape[2]), state_dtype(k), k.device
    for name, tensor in zip(WKVState._fields, state, strict=True):
        actual = tuple(tensor.shape), tensor.dtype, tensor.device
        if actual != expected:
            raise ValueError(
                f"wkv expected the state's {name} of shape {expected[0]}, {expected[1]}, "
                f"on {expected[2]}, got {actual[0]}, {actual[1]}, {actual[2]}"
            )
