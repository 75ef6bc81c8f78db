"""Triton kernels of the forward pass of WKV-4, and the arithmetic that both passes use.

The sequence is cut into chunks. Three kernels, parallel over chunks, batch and channels:

    summaries      what each chunk by itself adds to the sums      one program: one chunk
    carry_forward  the sums before each chunk, a scan over chunks  one program: all chunks
    outputs        y, position by position from those sums         one program: one chunk

A program handles BLOCK channels, one lane each, so every vector below has shape (BLOCK,).

How a pair of sums is stored. The numerator a and the denominator b overflow unless an exponent is
factored out, and that exponent has to decay by w at every step. Rounding it at every step would let
the error grow with the length, so a program keeps it as two numbers:

    sums  = (a, b) 2^(top - age w)
    top     exponent of the largest summand so far, as it was when it was added
    age     how many steps ago that was

While the largest summand stays the largest, only `age` changes, and a and b are multiplied by
exactly 1. In memory there is one exponent, p = top - age w; see `join_exponent`. All exponents are
to base 2, the hardware's own: w, u and k are multiplied by log2(e) when they are loaded.

CHANNELS is a constant of the compilation, so that rows lie at constant distances and need no
address arithmetic. Lanes beyond the last channel compute values that are never stored. Positions
beyond the last have k = -inf, which adds nothing to a sum.
"""

# mypy: ignore-errors
# This is Triton's language, whose types are not Python's.

import os

import torch
import triton
import triton.language as tl

from lookback.models.wkv.reference import EMPTY_EXPONENT

EMPTY = tl.constexpr(EMPTY_EXPONENT)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NO_KEY = tl.constexpr(float("-inf"))
NVIDIA = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)


@triton.jit
def exp2(x):
    """2^x in one instruction; tl.exp2 spends six, on subnormal results that do not matter here."""
    if NVIDIA:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def reciprocal(x):
    """1 / x in one instruction, for x that is at least 1."""
    if NVIDIA:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1.0 / x
    return y


@triton.jit
def relative_weights(difference):
    """Return 2^old and 2^new divided by the larger of the two, given difference = new - old."""
    smaller = exp2(-tl.abs(difference))
    new_is_larger = difference > 0
    return tl.where(new_is_larger, smaller, 1.0), tl.where(new_is_larger, 1.0, smaller)


@triton.jit
def decay_and_add(a, b, top, age, steps, w, new_a, new_b, new_top):
    """Decay the sums by `steps` steps, then adds (new_a, new_b) 2^new_top."""
    age += steps
    difference = new_top - tl.fma(-age, w, top)
    kept, added = relative_weights(difference)
    new_is_larger = difference > 0
    a = a * kept + added * new_a
    b = b * kept + added * new_b
    return a, b, tl.where(new_is_larger, new_top, top), tl.where(new_is_larger, 0.0, age)


@triton.jit
def join_exponent(a, b, top, age, w):
    """Return the same sums with one exponent p = top - age w.

    The rounding error of p goes into a and b, by 2^error = 1 + error ln 2.
    """
    p = tl.fma(-age, w, top)
    error = tl.fma(-age, w, top - p)
    return a + a * (error * LN2), b + b * (error * LN2), p


@triton.jit
def empty_sums(BLOCK: tl.constexpr):
    """a, b, top and age of sums over nothing."""
    zero = tl.zeros([BLOCK], tl.float32)
    return zero, zero, tl.full([BLOCK], EMPTY, tl.float32), zero


@triton.jit
def channel_block(CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The channels of this program, and a mask of those that exist."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return c, c < CHANNELS


@triton.jit
def load_log2(pointer, inside):
    """A natural logarithm in memory, as a logarithm to base 2."""
    return tl.load(pointer, mask=inside).to(tl.float32) * LOG2E


@triton.jit
def load_rows(
    pointer,
    inside,
    first,
    length,
    OTHER: tl.constexpr,
    COUNT: tl.constexpr,
    CHANNELS: tl.constexpr,
    FULL: tl.constexpr,
):
    """The rows of positions first, ..., first + COUNT - 1 as a tuple of vectors, from `pointer` on.

    Several at a time, because loads that are issued together wait for memory together. Positions
    at or beyond `length` read as OTHER; FULL says that there are none.
    """
    rows = ()
    for i in tl.static_range(COUNT):
        if FULL:
            row = tl.load(pointer + i * CHANNELS, mask=inside)
        else:
            exists = inside & (first + i < length)
            row = tl.load(pointer + i * CHANNELS, mask=exists, other=OTHER)
        rows += (row.to(tl.float32),)
    return rows


@triton.jit
def load_sums(pointer, plane, inside):
    """a, b and p, which lie `plane` elements apart."""
    a = tl.load(pointer, mask=inside)
    b = tl.load(pointer + plane, mask=inside)
    p = tl.load(pointer + 2 * plane, mask=inside)
    return a, b, p


@triton.jit
def store_sums(pointer, plane, a, b, p, inside):
    """The counterpart of `load_sums`."""
    tl.store(pointer, a, mask=inside)
    tl.store(pointer + plane, b, mask=inside)
    tl.store(pointer + 2 * plane, p, mask=inside)


@triton.jit
def summaries(
    w_ptr,
    k_ptr,
    v_ptr,
    sums_ptr,
    plane,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Write what each chunk but the last adds to the sums, as if nothing came before it.

    One program: one chunk of CHUNK positions, all of which exist. Grid: (channel blocks,
    chunks - 1, batch). Writes sums (3, batch, chunks, channels), whose three planes are a, b and p.
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    w = load_log2(w_ptr + c, inside)
    start = (batch * length + chunk * CHUNK) * CHANNELS + c

    a, b, top, age = empty_sums(BLOCK)
    for t in range(0, CHUNK, UNROLL):
        row = start + t * CHANNELS
        keys = load_rows(k_ptr + row, inside, 0, 0, NO_KEY, UNROLL, CHANNELS, True)
        values = load_rows(v_ptr + row, inside, 0, 0, 0.0, UNROLL, CHANNELS, True)
        for i in tl.static_range(UNROLL):
            k = keys[i] * LOG2E
            a, b, top, age = decay_and_add(a, b, top, age, 1.0, w, values[i], 1.0, k)

    a, b, p = join_exponent(a, b, top, age, w)
    store_sums(sums_ptr + (batch * chunks + chunk) * CHANNELS + c, plane, a, b, p, inside)


@triton.jit
def carry_forward(
    w_ptr,
    a_ptr,
    b_ptr,
    p_ptr,
    sums_ptr,
    plane,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STATE: tl.constexpr,
):
    """Replace each chunk's summary in `sums` by the sums before that chunk.

    One program: all chunks in order, GROUP of them loaded at a time. Grid: (channel blocks, batch).
    With STATE the scan starts from the incoming state (a, b, p), each (batch, channels) and p a
    natural logarithm; without, from the empty past.
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    w = load_log2(w_ptr + c, inside)

    a, b, top, age = empty_sums(BLOCK)
    if STATE:
        at = batch * CHANNELS + c
        a = tl.load(a_ptr + at, mask=inside)
        b = tl.load(b_ptr + at, mask=inside)
        top = load_log2(p_ptr + at, inside)

    start = sums_ptr + batch * chunks * CHANNELS + c
    for first in range(0, GROUPS * GROUP, GROUP):
        row = start + first * CHANNELS
        # the last chunk has no summary, because nothing comes after it
        last = chunks - 1
        new_as = load_rows(row, inside, first, last, 0.0, GROUP, CHANNELS, False)
        new_bs = load_rows(row + plane, inside, first, last, 0.0, GROUP, CHANNELS, False)
        new_ps = load_rows(row + 2 * plane, inside, first, last, NO_KEY, GROUP, CHANNELS, False)
        for i in tl.static_range(GROUP):
            before_a, before_b, before_p = join_exponent(a, b, top, age, w)
            exists = inside & (first + i < chunks)
            store_sums(row + i * CHANNELS, plane, before_a, before_b, before_p, exists)
            a, b, top, age = decay_and_add(
                a, b, top, age, CHUNK * 1.0, w, new_as[i], new_bs[i], new_ps[i]
            )


@triton.jit
def outputs(
    w_ptr,
    u_ptr,
    k_ptr,
    v_ptr,
    y_ptr,
    sums_ptr,
    plane,
    a_ptr,
    b_ptr,
    p_ptr,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
    CARRIED: tl.constexpr,
    FULL: tl.constexpr,
):
    """Write y (batch, length, channels), and from the last chunk the outgoing state.

        y_t = (a_{t-1} + 2^(u + k_t) v_t) / (b_{t-1} + 2^(u + k_t))

    One program: one chunk, from the sums before it (CARRIED) or from the empty past. Grid: (channel
    blocks, chunks, batch). FULL: the length is a multiple of CHUNK. The state is (a, b, p), each
    (batch, channels), p a natural logarithm.
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    w = load_log2(w_ptr + c, inside)
    u = load_log2(u_ptr + c, inside)
    start = (batch * length + chunk * CHUNK) * CHANNELS + c

    a, b, top, age = empty_sums(BLOCK)
    if CARRIED:
        a, b, top = load_sums(sums_ptr + (batch * chunks + chunk) * CHANNELS + c, plane, inside)

    for t in range(0, CHUNK, UNROLL):
        row = start + t * CHANNELS
        position = chunk * CHUNK + t
        keys = load_rows(k_ptr + row, inside, position, length, NO_KEY, UNROLL, CHANNELS, FULL)
        values = load_rows(v_ptr + row, inside, position, length, 0.0, UNROLL, CHANNELS, FULL)
        for i in tl.static_range(UNROLL):
            k = keys[i] * LOG2E
            past, present = relative_weights(u + k - tl.fma(-age, w, top))
            y = (past * a + present * values[i]) * reciprocal(past * b + present)
            exists = inside if FULL else inside & (position + i < length)
            tl.store(y_ptr + row + i * CHANNELS, y.to(y_ptr.dtype.element_ty), mask=exists)
            a, b, top, age = decay_and_add(a, b, top, age, 1.0, w, values[i], 1.0, k)

    if chunk == chunks - 1:
        if not FULL:
            age -= chunks * CHUNK - length  # steps over positions that do not exist
        a, b, p = join_exponent(a, b, top, age, w)
        natural_p = p * LN2
        error = exp2(tl.fma(-natural_p, LOG2E, p))  # of rounding natural_p
        at = batch * CHANNELS + c
        tl.store(a_ptr + at, a * error, mask=inside)
        tl.store(b_ptr + at, b * error, mask=inside)
        tl.store(p_ptr + at, natural_p, mask=inside)
