"""The GPU form of WKV-4 as two registered operators, forward and backward, over the kernels of
`kernels.py`.

Parallel over time: what each chunk of positions adds, a scan over the chunks, then every chunk from
what it starts with. The backward pass does the same with the adjoint, from the end. Importing this
needs no GPU; running it needs one, or Triton's interpreter (TRITON_INTERPRET=1 before triton is
imported).
"""

import math
import os
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lookback.models.wkv.gradients import differentiate, save
from lookback.models.wkv.state import WKVState

ENOUGH_PROGRAMS = 2000  # about fifteen warps on each of an H200's 132 multiprocessors
GROUP = 16  # chunks whose summaries are loaded before the scan needs the first of them
FORWARD_FLOPS = 24  # a position and channel: every sum twice, once for its chunk's summary
BACKWARD_FLOPS = 72


class Plan(NamedTuple):
    """How a call is cut: positions a chunk, positions and channels a program holds in registers,
    chunks.
    """

    chunk: int
    unroll: int
    sub: int
    block: int
    chunks: int

    @property
    def groups(self) -> int:
        """Groups of the scan over chunks, a power of two so that few lengths need a compilation of
        their own.
        """
        return _power_of_two(-(-self.chunks // GROUP))


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=256)
def plan(batch_size: int, length: int, channels: int) -> Plan:
    """The longest chunks that leave the GPU enough programs, because a chunk's summary costs as
    much as a position.
    """
    block = 64 if not interpreted() else _power_of_two(channels)
    columns = batch_size * -(-channels // block)
    chunk = 256
    while chunk > 32 and columns * -(-length // chunk) < ENOUGH_PROGRAMS:
        chunk //= 2
    chunk = min(chunk, _power_of_two(length))
    return Plan(chunk, min(8, chunk), min(8, chunk), block, -(-length // chunk))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def wkv_triton(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """The GPU form; arguments as `wkv` has checked them."""
    y, numerator, denominator, exponent, _ = forward(w, u, k, v, *(state or (None, None, None)))
    return y, WKVState(numerator, denominator, exponent)


@torch.library.custom_op("lookback::wkv_triton", mutates_args=())
def forward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor | None,
    denominator: Tensor | None,
    exponent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the outgoing state, and for the backward pass the sums before each chunk, (3, batch,
    chunks, channels).
    """
    from lookback.models.wkv import kernels

    w, u, k, v = (x.contiguous() for x in (w, u, k, v))
    before = _contiguous(numerator, denominator, exponent)
    y, *after, sums = _outputs(w, u, k, v, *before)
    batch_size, length, channels = k.shape
    cut, part, given = plan(*k.shape), sums.stride(0), numerator is not None
    columns, shape = (
        -(-channels // cut.block),
        {"CHANNELS": channels, "CHUNK": cut.chunk, "BLOCK": cut.block, "num_warps": 1},
    )
    with _on(k):
        if cut.chunks > 1:
            kernels.summaries[(columns, cut.chunks - 1, batch_size)](
                w, k, v, sums, part, length, cut.chunks, UNROLL=cut.unroll, **shape
            )
        if cut.chunks > 1 or given:
            kernels.carry_forward[(columns, batch_size)](
                w,
                *before,
                sums,
                part,
                cut.chunks,
                GROUPS=cut.groups,
                GROUP=GROUP,
                STATE=given,
                **shape,
            )
        kernels.outputs[(columns, cut.chunks, batch_size)](
            w,
            u,
            k,
            v,
            y,
            sums,
            part,
            *after,
            length,
            cut.chunks,
            UNROLL=cut.unroll,
            CARRIED=given or cut.chunks > 1,
            FULL=length % cut.chunk == 0,
            **shape,
        )
    return y, *after, sums


@forward.register_fake
def _outputs(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor | None,
    denominator: Tensor | None,
    exponent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch_size, length, channels = (
        int(size) for size in k.shape
    )  # also of a traced shape: the plan depends on it
    row, chunks = (batch_size, channels), plan(batch_size, length, channels).chunks
    carried = (
        chunks if chunks > 1 or numerator is not None else 0
    )  # one chunk of an empty past starts with nothing
    numerator, denominator, exponent = (k.new_empty(row, dtype=torch.float32) for _ in range(3))
    sums = k.new_empty(3, batch_size, carried, channels, dtype=torch.float32)
    return v.new_empty(v.shape), numerator, denominator, exponent, sums


@torch.library.custom_op("lookback::wkv_triton_backward", mutates_args=())
def backward(
    grad_y: Tensor,
    grad_numerator: Tensor | None,
    grad_denominator: Tensor | None,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor | None,
    denominator: Tensor | None,
    exponent: Tensor | None,
    after_exponent: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v and of the incoming state, stacked where there is one; see
    `gradients.differentiate`.
    """
    from lookback.models.wkv import kernels

    w, u, k, v, grad_y = (x.contiguous() for x in (w, u, k, v, grad_y))
    before, grad_after = (
        _contiguous(numerator, denominator, exponent),
        (grad_numerator, grad_denominator),
    )
    batch_size, length, channels = k.shape
    cut, given = plan(*k.shape), numerator is not None
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    grad_state = k.new_empty(3 if given else 0, batch_size, channels, dtype=torch.float32)
    adjoint = sums.new_empty(3, batch_size, cut.chunks, channels)
    inner = sums.new_empty(3, batch_size, cut.chunks * cut.chunk // cut.sub, channels)
    part = adjoint.stride(0)
    parts = sums.new_empty(2, batch_size * cut.chunks, channels)
    columns, shape = (
        -(-channels // cut.block),
        {"CHANNELS": channels, "CHUNK": cut.chunk, "BLOCK": cut.block},
    )
    shape |= {"num_warps": 1}
    full = {"SUB": cut.sub, "FULL": length % cut.chunk == 0}
    size = (length, cut.chunks)
    with _on(k):
        kernels.adjoint_summaries[(columns, cut.chunks, batch_size)](
            w,
            u,
            k,
            v,
            grad_y,
            sums,
            part,
            inner,
            inner.stride(0),
            adjoint,
            *size,
            CARRIED=given or cut.chunks > 1,
            **shape,
            **full,
        )
        kernels.carry_backward[(columns, batch_size)](
            w,
            *_contiguous(*grad_after),
            after_exponent,
            adjoint,
            part,
            *size,
            GROUPS=cut.groups,
            GROUP=GROUP,
            STATE=grad_numerator is not None,
            **shape,
        )
        kernels.gradients[(columns, cut.chunks, batch_size)](
            w,
            u,
            k,
            v,
            grad_y,
            inner,
            inner.stride(0),
            adjoint,
            part,
            grad_k,
            grad_v,
            parts,
            parts.stride(0),
            *before,
            grad_state,
            grad_state.stride(0),
            *size,
            STATE=given,
            **shape,
            **full,
        )
    grad_w, grad_u = parts.sum(1)
    return grad_w.to(w.dtype, copy=True), grad_u.to(u.dtype, copy=True), grad_k, grad_v, grad_state


@backward.register_fake
def _gradients(grad_y: Tensor, *args: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    w, u, k, v, numerator = args[2:7]
    parts = 0 if numerator is None else 3
    grad_w, grad_u, grad_k, grad_v = (x.new_empty(x.shape) for x in (w, u, k, v))
    return (
        grad_w,
        grad_u,
        grad_k,
        grad_v,
        k.new_empty(parts, k.shape[0], k.shape[2], dtype=torch.float32),
    )


forward.register_autograd(partial(differentiate, backward), setup_context=save)


@register_flop_formula(torch.ops.lookback.wkv_triton)
def _forward_flops(w: Any, u: Any, k: tuple[int, ...], *_: Any, **__: Any) -> int:
    return FORWARD_FLOPS * math.prod(k)


@register_flop_formula(torch.ops.lookback.wkv_triton_backward)
def _backward_flops(grad_y: tuple[int, ...], *_: Any, **__: Any) -> int:
    return BACKWARD_FLOPS * math.prod(grad_y)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _on(k: Tensor) -> Any:
    """Kernels start on the current device, which need not be the tensors'."""
    return torch.cuda.device(k.device) if k.is_cuda else torch.no_grad()
