"""WKV on a GPU as registered operators, `lookback::wkv_triton` and its backward pass.

They launch the kernels of `forward_kernels.py` and `backward_kernels.py`, parallel over time as
well as over batch and channels: what each chunk of positions adds, a scan over the chunks, then
every chunk from the sums before it. The backward pass does the same from the end. Importing this
module needs no GPU. Running it needs one, or Triton's interpreter (TRITON_INTERPRET=1 before triton
is imported).
"""

import os
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookback.models.wkv.autograd import count_flops, differentiate, save
from lookback.models.wkv.reference import WKVState

ENOUGH_PROGRAMS = 2000  # about fifteen warps on each of an H200's 132 multiprocessors
LONGEST_CHUNK, SHORTEST_CHUNK = 256, 32
GROUP = 16  # chunks whose summaries are loaded before the scan needs the first of them
FORWARD_FLOPS = 24  # per position and channel: every sum twice, once for its chunk's summary
BACKWARD_FLOPS = 72


class Plan(NamedTuple):
    """How a call is divided among programs."""

    chunk: int  # positions per program
    unroll: int  # positions loaded at a time, forwards
    sub: int  # positions between two checkpoints of the backward pass, and loaded at a time
    block: int  # channels per program
    chunks: int  # chunks in the sequence

    @property
    def groups(self) -> int:
        """Groups of chunks in the scan: a power of two, so that few lengths are compiled anew."""
        return _next_power_of_two(-(-self.chunks // GROUP))


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=256)
def plan(batch_size: int, length: int, channels: int) -> Plan:
    """Return the longest chunks that give the GPU enough programs.

    A chunk's summary costs as much as a position, hence long chunks; each program is sequential,
    hence many of them.
    """
    block = _next_power_of_two(channels) if interpreted() else 64
    columns = batch_size * -(-channels // block)
    chunk = LONGEST_CHUNK
    while chunk > SHORTEST_CHUNK and columns * -(-length // chunk) < ENOUGH_PROGRAMS:
        chunk //= 2
    chunk = min(chunk, _next_power_of_two(length))
    unroll = min(8, chunk)
    return Plan(chunk, unroll, unroll, block, -(-length // chunk))


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def wkv_triton(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState | None
) -> tuple[Tensor, WKVState]:
    """`wkv` on a GPU; its arguments are checked already."""
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
    """Return y, the outgoing state, and for the backward pass the sums before each chunk.

    The latter are (3, batch, chunks, channels): numerator, denominator and exponent to base 2.
    """
    from lookback.models.wkv import forward_kernels as kernels

    w, u, k, v = (x.contiguous() for x in (w, u, k, v))
    before = _contiguous(numerator, denominator, exponent)
    y, *after, sums = _allocate_outputs(w, u, k, v, *before)

    batch_size, length, channels = k.shape
    cut = plan(*k.shape)
    has_state = numerator is not None
    carried = has_state or cut.chunks > 1
    plane = sums.stride(0)
    columns = -(-channels // cut.block)
    constants = _constants(cut, channels)
    with _device_of(k):
        if cut.chunks > 1:
            kernels.summaries[columns, cut.chunks - 1, batch_size](
                w, k, v, sums, plane, length, cut.chunks, UNROLL=cut.unroll, **constants
            )
        if carried:
            kernels.carry_forward[columns, batch_size](
                w,
                *before,
                sums,
                plane,
                cut.chunks,
                GROUPS=cut.groups,
                GROUP=GROUP,
                STATE=has_state,
                **constants,
            )
        kernels.outputs[columns, cut.chunks, batch_size](
            w,
            u,
            k,
            v,
            y,
            sums,
            plane,
            *after,
            length,
            cut.chunks,
            UNROLL=cut.unroll,
            CARRIED=carried,
            FULL=length % cut.chunk == 0,
            **constants,
        )
    return y, *after, sums


@forward.register_fake
def _allocate_outputs(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    numerator: Tensor | None,
    denominator: Tensor | None,
    exponent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # int() also of a traced size: the plan depends on its value
    batch_size, length, channels = (int(size) for size in k.shape)
    chunks = plan(batch_size, length, channels).chunks
    if chunks == 1 and numerator is None:
        chunks = 0  # one chunk and an empty past: there are no sums before it
    a, b, p = (k.new_empty(batch_size, channels, dtype=torch.float32) for _ in range(3))
    sums = k.new_empty(3, batch_size, chunks, channels, dtype=torch.float32)
    return v.new_empty(v.shape), a, b, p, sums


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
    """Return the gradients of w, u, k, v and the incoming state, (3, batch, channels) or empty.

    See `autograd.differentiate`, which calls it.
    """
    from lookback.models.wkv import backward_kernels as kernels

    w, u, k, v, grad_y = (x.contiguous() for x in (w, u, k, v, grad_y))
    before = _contiguous(numerator, denominator, exponent)
    grad_after = _contiguous(grad_numerator, grad_denominator)

    batch_size, length, channels = k.shape
    cut = plan(*k.shape)
    has_state = numerator is not None
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    grad_state = k.new_empty(3 if has_state else 0, batch_size, channels, dtype=torch.float32)
    adjoint = sums.new_empty(3, batch_size, cut.chunks, channels)
    checkpoints = sums.new_empty(3, batch_size, cut.chunks * cut.chunk // cut.sub, channels)
    partial_sums = sums.new_empty(2, batch_size * cut.chunks, channels)  # of grad_w and grad_u

    plane = adjoint.stride(0)
    columns = -(-channels // cut.block)
    constants = _constants(cut, channels)
    full = length % cut.chunk == 0
    with _device_of(k):
        kernels.adjoint_summaries[columns, cut.chunks, batch_size](
            w,
            u,
            k,
            v,
            grad_y,
            sums,
            plane,
            checkpoints,
            checkpoints.stride(0),
            adjoint,
            length,
            cut.chunks,
            SUB=cut.sub,
            CARRIED=has_state or cut.chunks > 1,
            FULL=full,
            **constants,
        )
        kernels.carry_backward[columns, batch_size](
            w,
            *grad_after,
            after_exponent,
            adjoint,
            plane,
            length,
            cut.chunks,
            GROUPS=cut.groups,
            GROUP=GROUP,
            STATE=grad_numerator is not None,
            **constants,
        )
        kernels.gradients[columns, cut.chunks, batch_size](
            w,
            u,
            k,
            v,
            grad_y,
            checkpoints,
            checkpoints.stride(0),
            adjoint,
            plane,
            grad_k,
            grad_v,
            partial_sums,
            partial_sums.stride(0),
            *before,
            grad_state,
            grad_state.stride(0),
            length,
            cut.chunks,
            SUB=cut.sub,
            STATE=has_state,
            FULL=full,
            **constants,
        )
    grad_w, grad_u = partial_sums.sum(1)
    return grad_w.to(w.dtype, copy=True), grad_u.to(u.dtype, copy=True), grad_k, grad_v, grad_state


@backward.register_fake
def _allocate_gradients(grad_y: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    w, u, k, v, numerator = arguments[2:7]
    batch_size, _, channels = k.shape
    grad_w, grad_u, grad_k, grad_v = (x.new_empty(x.shape) for x in (w, u, k, v))
    state_rows = 0 if numerator is None else 3
    grad_state = k.new_empty(state_rows, batch_size, channels, dtype=torch.float32)
    return grad_w, grad_u, grad_k, grad_v, grad_state


forward.register_autograd(partial(differentiate, backward), setup_context=save)
count_flops(torch.ops.lookback.wkv_triton, FORWARD_FLOPS, argument=2)  # k
count_flops(torch.ops.lookback.wkv_triton_backward, BACKWARD_FLOPS, argument=0)  # grad_y


def _constants(cut: Plan, channels: int) -> dict[str, int]:
    """What every kernel is compiled for."""
    return {"CHANNELS": channels, "CHUNK": cut.chunk, "BLOCK": cut.block, "num_warps": 1}


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _device_of(k: Tensor) -> Any:
    """Select k's device: kernels start on the current one, which may be another."""
    return torch.cuda.device(k.device) if k.is_cuda else torch.no_grad()
