"""The matrix-state operator: the generalised delta rule of RWKV-7, Gated DeltaNet and Mamba-2.

Each head keeps a matrix h, (key size, value size). With column vectors and ' for transposition:

    h_t = diag(e^{w_t}) h_{t-1} + b_t (a_t' h_{t-1}) + k_t v_t'
    o_t = q_t' h_t

    q, k, a, b  (batch, length, heads, key size)       query, key; what is read and where it goes
    v           (batch, length, heads, value size)     value
    w           (batch, length, heads, key size or 1)  logarithm of the decay, at most 0

    model            q             k       v       w             a             b
    RWKV-7           r             k~      v       per channel   -kappa        kappa * eta
    Gated DeltaNet   q / sqrt(dk)  k       beta v  g, per head   -beta e^g k   k (none is given)
    Mamba-2          C             B       dt x    per head      none          none

Without a and b it is gated linear attention (Yang et al. 2023, arXiv 2312.06635); with a alone, b
is k, the delta rule (Yang et al. 2024, arXiv 2406.06484). `chunked.py` has the derivation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lookback.models.matrix_state.chunked import run_segments

__all__ = ["empty_state", "matrix_state"]

CHUNK = 32
LARGEST_EXPONENT = 80.0  # e^80 is far from float32's largest number, e^88
LOWEST = -40.0  # log decay of a channel: e^-40 of a state is nothing beside it in float32
LOWEST_OF_HEAD = -1e4  # of a head, whose differences cannot overflow; -inf would give inf - inf


def matrix_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    lowest: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return o, (batch, length, heads, value size), and the state after the last position.

    Time and memory are linear in the length. Inside, everything is float32, or float64 if v is; o
    has v's dtype. Every tensor can be differentiated once, the state too.

    Args:
        q: queries; shapes of all tensors as in the module's docstring, in any floating dtype.
        k: keys.
        v: values.
        w: logarithm of the decay, at most 0; -inf forgets everything before.
        a: what is read of the state before its decay; None reads nothing.
        b: where what was read goes; None for k.
        state: (batch, heads, key size, value size) that an earlier call returned; None for zeros.
        chunk: positions that are computed at once.
        lowest: a number that no w is below, for a decay per channel. Without it w is searched,
            because strong decays need smaller chunks; on a GPU that waits for the device.

    Raises:
        ValueError: for wrong shapes or dtypes, and for b without a.
    """
    _check(q, k, v, w, a, b, state)
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    if state is None:
        state = empty_state(v.shape[0], v.shape[2], k.shape[3], v.shape[3], v.device, dtype)
    if v.shape[1] == 1:
        return _step(q, k, v, w, a, b, state.to(dtype))

    per_head = w.shape[3] == 1
    if not per_head:
        chunk = _safe_chunk(w, chunk, lowest)
    w = w.clamp(min=LOWEST_OF_HEAD if per_head else LOWEST)
    return run_segments((q, k, v, w, a, b), state.to(dtype), chunk)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Read one position, by the definition: as `matrix_state` with a length of 1."""
    dtype = state.dtype
    with torch.autocast(v.device.type, enabled=False):
        query, key, value, decay = (x[:, 0, :, :, None].to(dtype) for x in (q, k, v, w))
        h = decay.exp() * state + key * value.mT  # (batch, heads, key size, value size)
        if a is not None:
            read = a[:, 0, :, None, :].to(dtype) @ state  # (batch, heads, 1, value size)
            target = key if b is None else b[:, 0, :, :, None].to(dtype)
            h = h + target * read
        output = (query.mT @ h).squeeze(2)  # (batch, heads, value size)
    return output[:, None].to(v.dtype), h


def empty_state(
    batch_size: int,
    heads: int,
    key_size: int,
    value_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the state before the first position: zeros, in float32 unless dtype is float64."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.zeros(batch_size, heads, key_size, value_size, device=device, dtype=dtype)


def _safe_chunk(w: Tensor, chunk: int, lowest: float | None) -> int:
    """Halve a chunk until half the sum of its decays cannot overflow as an exponent."""
    if lowest is None:
        lowest = max(float(w.detach().min()), LOWEST)
    while chunk > 1 and -lowest * chunk / 2 > LARGEST_EXPONENT:
        chunk //= 2
    return chunk


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    state: Tensor | None,
) -> None:
    if k.ndim != 4 or v.ndim != 4 or 0 in (*k.shape, *v.shape):
        raise ValueError(
            "matrix_state expected k of shape (batch, length, heads, key size) and v alike, "
            f"none of them 0, got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if b is not None and a is None:
        raise ValueError("matrix_state expected a too: b says where what a reads goes")

    shape = tuple(k.shape)
    expected = {"q": (q, [shape]), "w": (w, [shape, (*shape[:3], 1)])}
    expected["v"] = (v, [(*shape[:3], v.shape[3])])
    for name, tensor in (("a", a), ("b", b)):
        if tensor is not None:
            expected[name] = (tensor, [shape])
    if state is not None:
        expected["state"] = (state, [(shape[0], shape[2], shape[3], v.shape[3])])
    for name, (tensor, shapes) in expected.items():
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(
                f"matrix_state expected {name} of shape {wanted}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"matrix_state expected {name} of a floating dtype, got {tensor.dtype}"
            )
