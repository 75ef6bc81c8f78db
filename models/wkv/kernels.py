"""The Triton kernels of WKV-4: one program a chunk of positions and a block of channels, each lane
its own channel.

A sum is kept as (a, b) 2^{p} with p = top - age w: the exponent of the summand that was the
largest, and how many steps ago that came. So the past is multiplied by exactly 1 while it stays the
largest, and nothing drifts with the length, as it would if p were rounded at every step. All
exponents are to base 2, which is what the hardware has; w, u and k are multiplied by log2(e) when
they are loaded.

The width is known when a kernel is compiled, so that the rows of a chunk lie at constant distances
and need no arithmetic of their own. Lanes beyond the last channel compute what nobody stores;
positions beyond the last have k = -inf, which adds nothing.
"""

# mypy: ignore-errors
# This is Triton's language, whose types are not Python's.

import os

import torch
import triton
import triton.language as tl

from lookback.models.wkv.state import EMPTY_EXPONENT

EMPTY = tl.constexpr(EMPTY_EXPONENT)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Without these tl.exp2 and a quotient spend six instructions on numbers too small to matter here.
NVIDIA = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)


@triton.jit
def _exp2(x):
    if NVIDIA:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _inverse(x):
    if NVIDIA:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1.0 / x
    return y


@triton.jit
def _weights(difference):
    """For 2^{old} + 2^{new}, with difference = new - old: what each is, divided by the larger."""
    smaller = _exp2(-tl.abs(difference))
    newer = difference > 0
    return tl.where(newer, smaller, 1.0), tl.where(newer, 1.0, smaller)


@triton.jit
def _append(a, b, top, age, steps, w, new_a, new_b, new):
    """The sums `steps` later, with (new_a, new_b) 2^{new} added."""
    age += steps
    difference = new - tl.fma(-age, w, top)
    kept, added = _weights(difference)
    newer = difference > 0
    a = a * kept + added * new_a
    b = b * kept + added * new_b
    return a, b, tl.where(newer, new, top), tl.where(newer, 0.0, age)


@triton.jit
def _settle(a, b, top, age, w):
    """The same sums with one number for their exponent; what its rounding leaves goes into a and b."""
    p = tl.fma(-age, w, top)
    left = tl.fma(-age, w, top - p)
    return a + a * (left * LN2), b + b * (left * LN2), p


@triton.jit
def _load(pointer, inside, t, length, OTHER: tl.constexpr, FULL: tl.constexpr):
    x = (
        tl.load(pointer, mask=inside)
        if FULL
        else tl.load(pointer, mask=inside & (t < length), other=OTHER)
    )
    return x.to(tl.float32)


@triton.jit
def _load_sums(pointer, part, inside):
    return (
        tl.load(pointer, mask=inside),
        tl.load(pointer + part, mask=inside),
        tl.load(pointer + 2 * part, mask=inside),
    )


@triton.jit
def _store_sums(pointer, part, a, b, p, inside):
    tl.store(pointer, a, mask=inside)
    tl.store(pointer + part, b, mask=inside)
    tl.store(pointer + 2 * part, p, mask=inside)


@triton.jit
def _block(CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The channels of this program, and which of them there are."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return c, c < CHANNELS


@triton.jit
def summaries(
    w_ptr,
    k_ptr,
    v_ptr,
    sums_ptr,
    part,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """What each chunk but the last adds to the sums: into sums (3, batch, chunks, channels)."""
    c, inside = _block(CHANNELS, BLOCK)
    chunk, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    age = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    for t in range(0, CHUNK, UNROLL):
        ks = ()
        vs = ()
        for i in tl.static_range(UNROLL):  # all loads before the first use
            ks += (tl.load(k_ptr + start + (t + i) * CHANNELS, mask=inside).to(tl.float32) * LOG2E,)
            vs += (tl.load(v_ptr + start + (t + i) * CHANNELS, mask=inside).to(tl.float32),)
        for i in tl.static_range(UNROLL):
            a, b, top, age = _append(a, b, top, age, 1.0, w, vs[i], 1.0, ks[i])
    a, b, p = _settle(a, b, top, age, w)
    _store_sums(sums_ptr + (batch * chunks + chunk) * CHANNELS + c, part, a, b, p, inside)


@triton.jit
def carry_forward(
    w_ptr,
    a_ptr,
    b_ptr,
    p_ptr,
    sums_ptr,
    part,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STATE: tl.constexpr,
):
    """Replaces each chunk's summary by the sums before the chunk, starting from the incoming state."""
    c, inside = _block(CHANNELS, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    age = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    if STATE:
        a = tl.load(a_ptr + batch * CHANNELS + c, mask=inside)
        b = tl.load(b_ptr + batch * CHANNELS + c, mask=inside)
        top = tl.load(p_ptr + batch * CHANNELS + c, mask=inside) * LOG2E
    start = sums_ptr + batch * chunks * CHANNELS + c
    for first in range(0, GROUPS * GROUP, GROUP):
        new_as = ()
        new_bs = ()
        new_ps = ()
        for i in tl.static_range(GROUP):
            there = inside & (first + i < chunks - 1)
            pointer = start + (first + i) * CHANNELS
            new_as += (tl.load(pointer, mask=there, other=0.0),)
            new_bs += (tl.load(pointer + part, mask=there, other=0.0),)
            new_ps += (tl.load(pointer + 2 * part, mask=there, other=float("-inf")),)
        for i in tl.static_range(GROUP):
            carry_a, carry_b, carry_p = _settle(a, b, top, age, w)
            pointer = start + (first + i) * CHANNELS
            _store_sums(pointer, part, carry_a, carry_b, carry_p, inside & (first + i < chunks))
            a, b, top, age = _append(
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
    part,
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
    """y, from the sums before each chunk; and from the last chunk the outgoing state."""
    c, inside = _block(CHANNELS, BLOCK)
    chunk, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    u = tl.load(u_ptr + c, mask=inside).to(tl.float32) * LOG2E
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    age = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    if CARRIED:
        a, b, top = _load_sums(sums_ptr + (batch * chunks + chunk) * CHANNELS + c, part, inside)
    for t in range(0, CHUNK, UNROLL):
        ks = ()
        vs = ()
        for i in tl.static_range(UNROLL):
            at = start + (t + i) * CHANNELS
            ks += (
                _load(k_ptr + at, inside, chunk * CHUNK + t + i, length, float("-inf"), FULL)
                * LOG2E,
            )
            vs += (_load(v_ptr + at, inside, chunk * CHUNK + t + i, length, 0.0, FULL),)
        for i in tl.static_range(UNROLL):
            past, present = _weights(u + ks[i] - tl.fma(-age, w, top))
            y = (past * a + present * vs[i]) * _inverse(past * b + present)
            there = inside if FULL else inside & (chunk * CHUNK + t + i < length)
            tl.store(y_ptr + start + (t + i) * CHANNELS, y.to(y_ptr.dtype.element_ty), mask=there)
            a, b, top, age = _append(a, b, top, age, 1.0, w, vs[i], 1.0, ks[i])
    if chunk == chunks - 1:
        if not FULL:
            age -= chunks * CHUNK - length  # the positions that were not there
        a, b, p = _settle(a, b, top, age, w)
        natural = p * LN2
        left = _exp2(tl.fma(-natural, LOG2E, p))
        tl.store(a_ptr + batch * CHANNELS + c, a * left, mask=inside)
        tl.store(b_ptr + batch * CHANNELS + c, b * left, mask=inside)
        tl.store(p_ptr + batch * CHANNELS + c, natural, mask=inside)


@triton.jit
def adjoint_summaries(
    w_ptr,
    u_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    sums_ptr,
    part,
    inner_ptr,
    inner_part,
    z_ptr,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SUB: tl.constexpr,
    CARRIED: tl.constexpr,
    FULL: tl.constexpr,
):
    """What each chunk adds to the adjoint of the sums before it: into z (3, batch, chunks,
    channels).

    With G_t = (g_t / D_t) (1, -y_t) that is sum_j e^{-j w} G_j, which needs no loop backwards. On
    the way the sums before every SUB positions are kept for `gradients`, in inner (3, batch, chunks
    * CHUNK / SUB, channels).
    """
    c, inside = _block(CHANNELS, BLOCK)
    chunk, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    u = tl.load(u_ptr + c, mask=inside).to(tl.float32) * LOG2E
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    inner = inner_ptr + (batch * chunks + chunk) * (CHUNK // SUB) * CHANNELS + c
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    if CARRIED:
        a, b, top = _load_sums(sums_ptr + (batch * chunks + chunk) * CHANNELS + c, part, inside)
    age = tl.zeros([BLOCK], tl.float32)
    z0 = tl.zeros([BLOCK], tl.float32)
    z1 = tl.zeros([BLOCK], tl.float32)
    z_log = tl.full([BLOCK], EMPTY, tl.float32)
    for t in range(0, CHUNK, SUB):
        settled_a, settled_b, settled_p = _settle(a, b, top, age, w)
        _store_sums(
            inner + (t // SUB) * CHANNELS, inner_part, settled_a, settled_b, settled_p, inside
        )
        ks = ()
        vs = ()
        gs = ()
        for i in tl.static_range(SUB):
            at = start + (t + i) * CHANNELS
            ks += (
                _load(k_ptr + at, inside, chunk * CHUNK + t + i, length, float("-inf"), FULL)
                * LOG2E,
            )
            vs += (_load(v_ptr + at, inside, chunk * CHUNK + t + i, length, 0.0, FULL),)
            gs += (_load(grad_ptr + at, inside, chunk * CHUNK + t + i, length, 0.0, FULL),)
        for i in tl.static_range(SUB):
            p = tl.fma(-age, w, top)
            past, present = _weights(u + ks[i] - p)
            inverse = _inverse(past * b + present)  # of D, which is at least 1
            gn = gs[i] * inverse
            y = (past * a + present * vs[i]) * inverse
            # the true D is that times 2^{q}, so its exponent enters the adjoint with the other sign
            new = tl.fma(-((t + i) * 1.0), w, -tl.maximum(p, u + ks[i]))
            difference = new - z_log
            kept, added = _weights(difference)
            gn *= added
            z0 = z0 * kept + gn
            z1 = z1 * kept - gn * y
            z_log = tl.maximum(z_log, new)
            a, b, top, age = _append(a, b, top, age, 1.0, w, vs[i], 1.0, ks[i])
    _store_sums(z_ptr + (batch * chunks + chunk) * CHANNELS + c, part, z0, z1, z_log, inside)


@triton.jit
def carry_backward(
    w_ptr,
    ga_ptr,
    gb_ptr,
    p_ptr,
    z_ptr,
    part,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STATE: tl.constexpr,
):
    """Replaces what each chunk adds to the adjoint by the adjoint after the chunk, from that of the
    outgoing state.
    """
    c, inside = _block(CHANNELS, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    z0 = tl.zeros([BLOCK], tl.float32)
    z1 = tl.zeros([BLOCK], tl.float32)
    age = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    if STATE:
        z0 = tl.load(ga_ptr + batch * CHANNELS + c, mask=inside)
        z1 = tl.load(gb_ptr + batch * CHANNELS + c, mask=inside)
        top = -tl.load(p_ptr + batch * CHANNELS + c, mask=inside) * LOG2E
    start = z_ptr + batch * chunks * CHANNELS + c
    for first in range(0, GROUPS * GROUP, GROUP):
        new_z0s = ()
        new_z1s = ()
        new_logs = ()
        for i in tl.static_range(GROUP):
            chunk = chunks - 1 - first - i
            there = inside & (chunk >= 0)
            new_z0s += (tl.load(start + chunk * CHANNELS, mask=there, other=0.0),)
            new_z1s += (tl.load(start + chunk * CHANNELS + part, mask=there, other=0.0),)
            new_logs += (tl.load(start + chunk * CHANNELS + 2 * part, mask=there, other=0.0),)
        for i in tl.static_range(GROUP):
            chunk = chunks - 1 - first - i
            carry_0, carry_1, carry_log = _settle(z0, z1, top, age, w)
            _store_sums(
                start + chunk * CHANNELS, part, carry_0, carry_1, carry_log, inside & (chunk >= 0)
            )
            steps = tl.minimum(length - chunk * CHUNK, CHUNK) * 1.0
            z0, z1, top, age = _append(
                z0, z1, top, age, steps, w, new_z0s[i], new_z1s[i], new_logs[i]
            )


@triton.jit
def gradients(
    w_ptr,
    u_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    inner_ptr,
    inner_part,
    z_ptr,
    part,
    grad_k_ptr,
    grad_v_ptr,
    sum_ptr,
    sum_part,
    a_ptr,
    b_ptr,
    p_ptr,
    grad_state_ptr,
    state_part,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SUB: tl.constexpr,
    STATE: tl.constexpr,
    FULL: tl.constexpr,
):
    """grad_k, grad_v; the chunk's part of the gradients of w and u; and from the first chunk those
    of the state.

    From the last SUB positions to the first: forwards through them from their stored sums, keeping
    in registers what the way back needs, then back.
    """
    c, inside = _block(CHANNELS, BLOCK)
    chunk, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    w = tl.load(w_ptr + c, mask=inside).to(tl.float32) * LOG2E
    u = tl.load(u_ptr + c, mask=inside).to(tl.float32) * LOG2E
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    inner = inner_ptr + (batch * chunks + chunk) * (CHUNK // SUB) * CHANNELS + c
    z0, z1, z_top = _load_sums(z_ptr + (batch * chunks + chunk) * CHANNELS + c, part, inside)
    z_age = tl.zeros([BLOCK], tl.float32)
    if not FULL:
        z_age -= tl.maximum(
            (chunk + 1) * CHUNK - length, 0
        )  # positions that are not there will count as steps
    grad_w = tl.zeros([BLOCK], tl.float32)
    grad_u = tl.zeros([BLOCK], tl.float32)
    for back in range(0, CHUNK, SUB):
        t = CHUNK - SUB - back
        a, b, top = _load_sums(inner + (t // SUB) * CHANNELS, inner_part, inside)
        age = tl.zeros([BLOCK], tl.float32)
        ks = ()
        vs = ()
        gs = ()
        for i in tl.static_range(SUB):
            at = start + (t + i) * CHANNELS
            ks += (
                _load(k_ptr + at, inside, chunk * CHUNK + t + i, length, float("-inf"), FULL)
                * LOG2E,
            )
            vs += (_load(v_ptr + at, inside, chunk * CHUNK + t + i, length, 0.0, FULL),)
            gs += (_load(grad_ptr + at, inside, chunk * CHUNK + t + i, length, 0.0, FULL),)
        kept_as = ()
        kept_bs = ()
        addeds = ()
        logs = ()
        qs = ()
        gns = ()
        bonuses = ()
        differences = ()
        for i in tl.static_range(SUB):
            p = tl.fma(-age, w, top)
            past, present = _weights(u + ks[i] - p)
            inverse = _inverse(past * b + present)  # of D, which is at least 1
            gns += (gs[i] * inverse,)
            bonuses += (present * gns[i],)
            # v - y, without the loss where this position is nearly all of y
            differences += (past * inverse * tl.fma(b, vs[i], -a),)
            q = tl.maximum(p, u + ks[i])
            qs += (q if FULL else tl.where(chunk * CHUNK + t + i < length, q, float("inf")),)
            age += 1.0
            decayed = tl.fma(-age, w, top)
            kept, added = _weights(ks[i] - decayed)
            newer = ks[i] > decayed
            kept_as += (a * kept,)
            kept_bs += (b * kept,)
            addeds += (added,)
            logs += (tl.maximum(ks[i], decayed),)
            a = kept_as[i] + added * vs[i]
            b = kept_bs[i] + added
            top = tl.where(newer, ks[i], top)
            age = tl.where(newer, 0.0, age)
        for i in tl.static_range(SUB - 1, -1, -1):
            there = inside if FULL else inside & (chunk * CHUNK + t + i < length)
            # at most 1: whatever read the sums after position i has them in its denominator
            joint = _exp2(logs[i] + tl.fma(-z_age, w, z_top))
            through_w = joint * (z0 * kept_as[i] + z1 * kept_bs[i])
            grad_w -= through_w if FULL else tl.where(there, through_w, 0.0)
            joint *= addeds[i]
            through_bonus = bonuses[i] * differences[i]
            grad_u += through_bonus
            grad_v = bonuses[i] + joint * z0
            grad_k = through_bonus + joint * (vs[i] * z0 + z1)
            at = start + (t + i) * CHANNELS
            tl.store(grad_v_ptr + at, grad_v.to(grad_v_ptr.dtype.element_ty), mask=there)
            tl.store(grad_k_ptr + at, grad_k.to(grad_k_ptr.dtype.element_ty), mask=there)
            y = vs[i] - differences[i]
            z0, z1, z_top, z_age = _append(
                z0, z1, z_top, z_age, 1.0, w, gns[i], -gns[i] * y, -qs[i]
            )
    at = (batch * chunks + chunk) * CHANNELS + c
    tl.store(sum_ptr + at, grad_w, mask=inside)
    tl.store(sum_ptr + sum_part + at, grad_u, mask=inside)
    if STATE:  # noqa: SIM102  (one is known when the kernel is compiled, the other when it runs)
        if chunk == 0:  # the adjoint has arrived at the incoming state
            at = batch * CHANNELS + c
            a = tl.load(a_ptr + at, mask=inside)
            b = tl.load(b_ptr + at, mask=inside)
            scale = _exp2(tl.load(p_ptr + at, mask=inside) * LOG2E + tl.fma(-z_age, w, z_top))
            _store_sums(
                grad_state_ptr + at,
                state_part,
                scale * z0,
                scale * z1,
                scale * (z0 * a + z1 * b),
                inside,
            )
