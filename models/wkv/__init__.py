"""WKV-4, the recurrence at the heart of RWKV: a decayed, exponentially weighted average of the
past, by channel.

    y_t = ( sum_{i<t} exp(k_i - (t-1-i) w) v_i + exp(u + k_t) v_t ) / ( the same without v )

One door, `wkv`, and behind it three forms of the same function:

    reference   a loop over positions, differentiated by autograd; any device
    tiled       CPU: tiles of the sequence, float64 inside, a backward pass that recomputes
    triton      GPU: parallel over time as well, float32 inside, a backward pass that recomputes

Formula: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", equations 16 to 18.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from lookback.models.wkv.reference import wkv_reference, wkv_step
from lookback.models.wkv.state import WKVState, empty_state, state_dtype
from lookback.models.wkv.tiled import wkv_tiled
from lookback.models.wkv.triton import interpreted, wkv_triton

__all__ = ["BACKENDS", "WKVState", "empty_state", "resolve_backend", "wkv", "wkv_step"]

BACKENDS = ("auto", "reference", "tiled", "triton")
HAS_TRITON = find_spec("triton") is not None


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None = None, backend: str = "auto"
) -> tuple[Tensor, WKVState]:
    """The outputs y (batch, length, channels), in v's dtype, and the state after the last position.

    w (channels,) is the decay rate, at least 0: a step multiplies the past by exp(-w). u
    (channels,) is the bonus of the current position. k, v are (batch, length, channels), in any
    floating dtype. `state` is what an earlier call returned; None is the empty past. All tensors
    are differentiable once, the state too. A wrong argument is a ValueError.
    """
    _check(w, u, k, v)
    form = resolve_backend(backend, k)
    if state is not None:
        _check_state(state, k)
    if form == "tiled":
        return wkv_tiled(w, u, k, v, state)
    if form == "triton":
        return wkv_triton(w, u, k, v, state)
    return wkv_reference(w, u, k, v, state)


def resolve_backend(backend: str, k: Tensor) -> str:
    """The form that `wkv` would run on these keys: "reference", "tiled" or "triton". ValueError
    where none can.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown wkv backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    device = k.device.type
    if backend == "auto":
        on_gpu = "triton" if HAS_TRITON and k.dtype != torch.float64 else "reference"
        return {"cpu": "tiled", "cuda": on_gpu}.get(device, "reference")
    if backend == "tiled" and device != "cpu":
        raise ValueError(
            f"wkv backend 'tiled' runs on the CPU only; expected CPU tensors, got {device}"
        )
    if backend == "triton":
        _check_triton(k)
    return backend


def _check_triton(k: Tensor) -> None:
    if not HAS_TRITON:
        raise ValueError(
            "wkv backend 'triton' needs the package triton; expected it to be installed"
        )
    if k.dtype == torch.float64:
        raise ValueError(
            "wkv backend 'triton' computes in float32; expected k of at most that, got torch.float64"
        )
    if k.device.type != "cuda" and not (k.device.type == "cpu" and interpreted()):
        raise ValueError(
            f"wkv backend 'triton' runs on a GPU only; expected CUDA tensors, got {k.device.type}"
        )


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.ndim != 3 or 0 in k.shape:
        raise ValueError(
            f"wkv expected k of shape (batch, length, channels), none of them 0, got {tuple(k.shape)}"
        )
    shapes = {"w": (k.shape[2],), "u": (k.shape[2],), "v": tuple(k.shape)}
    for name, tensor in (("w", w), ("u", u), ("k", k), ("v", v)):
        if tuple(tensor.shape) != shapes.get(name, tuple(k.shape)):
            raise ValueError(
                f"wkv expected {name} of shape {shapes[name]}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"wkv expected {name} of a floating dtype, got {tensor.dtype}")
        if tensor.device != k.device:
            raise ValueError(f"wkv expected {name} on {k.device}, where k is, got {tensor.device}")


def _check_state(state: WKVState, k: Tensor) -> None:
    shape, dtype = (k.shape[0], k.shape[2]), state_dtype(k)
    if len(state) != 3:
        raise ValueError(
            f"wkv expected a state of numerator, denominator and exponent, got {len(state)} parts"
        )
    for name, part in zip(WKVState._fields, state, strict=True):
        if tuple(part.shape) != shape or part.dtype != dtype or part.device != k.device:
            expected = f"shape {shape}, {dtype}, on {k.device}"
            raise ValueError(
                f"wkv expected the state's {name} of {expected}, got {tuple(part.shape)}, {part.dtype}, {part.device}"
            )
