"""Triton kernels of the backward pass of WKV-4: the three steps of the forward pass, from the end.

    adjoint_summaries  what each chunk by itself adds to the adjoint     one program: one chunk
    carry_backward     the adjoint after each chunk, a scan from the end one program: all chunks
    gradients          the gradients, position by position               one program: one chunk

The adjoint is the gradient of the loss with respect to the two sums (see `linear.py`, which derives
it). With g_t the gradient of y_t, and D_t the denominator of y_t:

    gN_t = g_t / D_t                         alpha_t = gN_{t+1} + 2^-w alpha_{t+1}
    gD_t = -gN_t y_t                         beta_t  = gD_{t+1} + 2^-w beta_{t+1}

    r_t  = 2^(u + k_t) gN_t (v_t - y_t)      gk_t = r_t + 2^k_t (v_t alpha_t + beta_t)
    gu   = sum_t r_t                         gv_t = 2^(u + k_t) gN_t + 2^k_t alpha_t
                                             gw   = -sum_t 2^-w (alpha_t a_{t-1} + beta_t b_{t-1})

It decays as the sums do, so it is stored as they are, as (alpha, beta) 2^(top - age w). Its
exponents have the other sign: where the sums are large, D is large and the adjoint small. In memory
it is (3, batch, chunks, channels): alpha, beta and the exponent.

Nothing was saved at every position. `adjoint_summaries` goes through the sums anyway and writes a
checkpoint of them every SUB positions; `gradients` recomputes the positions between from there.
"""

# mypy: ignore-errors
# This is Triton's language, whose types are not Python's.

import triton
import triton.language as tl

from lookback.models.wkv.forward_kernels import (
    LOG2E,
    NO_KEY,
    channel_block,
    decay_and_add,
    empty_sums,
    exp2,
    join_exponent,
    load_log2,
    load_rows,
    load_sums,
    reciprocal,
    relative_weights,
    store_sums,
)


@triton.jit
def adjoint_summaries(
    w_ptr,
    u_ptr,
    k_ptr,
    v_ptr,
    grad_y_ptr,
    sums_ptr,
    plane,
    checkpoints_ptr,
    checkpoint_plane,
    adjoint_ptr,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SUB: tl.constexpr,
    CARRIED: tl.constexpr,
    FULL: tl.constexpr,
):
    """Write what each chunk adds to the adjoint before it, and checkpoints of the sums.

    Position j of a chunk adds 2^(-j w) (gN_j, gD_j), a sum that can be taken forwards, together
    with the sums that gN_j needs. One program: one chunk. Grid: (channel blocks, chunks, batch).
    Writes adjoint (3, batch, chunks, channels) and checkpoints (3, batch, chunks * CHUNK / SUB,
    channels), the sums before every SUB positions.
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    w = load_log2(w_ptr + c, inside)
    u = load_log2(u_ptr + c, inside)
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    chunk_row = (batch * chunks + chunk) * CHANNELS + c
    checkpoint = checkpoints_ptr + (batch * chunks + chunk) * (CHUNK // SUB) * CHANNELS + c

    a, b, top, age = empty_sums(BLOCK)
    if CARRIED:
        a, b, top = load_sums(sums_ptr + chunk_row, plane, inside)
    alpha, beta, adjoint_exponent, _ = empty_sums(BLOCK)

    for t in range(0, CHUNK, SUB):
        saved_a, saved_b, saved_p = join_exponent(a, b, top, age, w)
        at = checkpoint + (t // SUB) * CHANNELS
        store_sums(at, checkpoint_plane, saved_a, saved_b, saved_p, inside)

        row = start + t * CHANNELS
        position = chunk * CHUNK + t
        keys = load_rows(k_ptr + row, inside, position, length, NO_KEY, SUB, CHANNELS, FULL)
        values = load_rows(v_ptr + row, inside, position, length, 0.0, SUB, CHANNELS, FULL)
        grads = load_rows(grad_y_ptr + row, inside, position, length, 0.0, SUB, CHANNELS, FULL)
        for i in tl.static_range(SUB):
            k = keys[i] * LOG2E
            p = tl.fma(-age, w, top)
            past, present = relative_weights(u + k - p)
            inverse = reciprocal(past * b + present)
            grad_numerator = grads[i] * inverse
            y = (past * a + present * values[i]) * inverse

            # D is 2^max(p, u + k) times what `inverse` inverts, and decays for t + i steps more
            exponent = tl.fma(-((t + i) * 1.0), w, -tl.maximum(p, u + k))
            kept, added = relative_weights(exponent - adjoint_exponent)
            grad_numerator *= added
            alpha = alpha * kept + grad_numerator
            beta = beta * kept - grad_numerator * y
            adjoint_exponent = tl.maximum(adjoint_exponent, exponent)

            a, b, top, age = decay_and_add(a, b, top, age, 1.0, w, values[i], 1.0, k)

    store_sums(adjoint_ptr + chunk_row, plane, alpha, beta, adjoint_exponent, inside)


@triton.jit
def carry_backward(
    w_ptr,
    grad_a_ptr,
    grad_b_ptr,
    p_ptr,
    adjoint_ptr,
    plane,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STATE: tl.constexpr,
):
    """Replace each chunk's summary in `adjoint` by the adjoint after that chunk.

    One program: all chunks from the last to the first, GROUP of them loaded at a time. Grid:
    (channel blocks, batch). With STATE the scan starts from the gradients of the outgoing numerator
    and denominator, each (batch, channels), to be divided by exp(p).
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    w = load_log2(w_ptr + c, inside)

    alpha, beta, top, age = empty_sums(BLOCK)
    if STATE:
        at = batch * CHANNELS + c
        alpha = tl.load(grad_a_ptr + at, mask=inside)
        beta = tl.load(grad_b_ptr + at, mask=inside)
        top = -load_log2(p_ptr + at, inside)

    start = adjoint_ptr + batch * chunks * CHANNELS + c
    for first in range(0, GROUPS * GROUP, GROUP):
        new_alphas = ()
        new_betas = ()
        new_exponents = ()
        for i in tl.static_range(GROUP):
            chunk = chunks - 1 - first - i
            exists = inside & (chunk >= 0)
            row = start + chunk * CHANNELS
            new_alphas += (tl.load(row, mask=exists, other=0.0),)
            new_betas += (tl.load(row + plane, mask=exists, other=0.0),)
            new_exponents += (tl.load(row + 2 * plane, mask=exists, other=0.0),)
        for i in tl.static_range(GROUP):
            chunk = chunks - 1 - first - i
            exists = inside & (chunk >= 0)
            after_alpha, after_beta, after_exponent = join_exponent(alpha, beta, top, age, w)
            row = start + chunk * CHANNELS
            store_sums(row, plane, after_alpha, after_beta, after_exponent, exists)
            steps = tl.minimum(length - chunk * CHUNK, CHUNK) * 1.0
            alpha, beta, top, age = decay_and_add(
                alpha, beta, top, age, steps, w, new_alphas[i], new_betas[i], new_exponents[i]
            )


@triton.jit
def gradients(
    w_ptr,
    u_ptr,
    k_ptr,
    v_ptr,
    grad_y_ptr,
    checkpoints_ptr,
    checkpoint_plane,
    adjoint_ptr,
    plane,
    grad_k_ptr,
    grad_v_ptr,
    partial_ptr,
    partial_plane,
    a_ptr,
    b_ptr,
    p_ptr,
    grad_state_ptr,
    state_plane,
    length,
    chunks,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SUB: tl.constexpr,
    STATE: tl.constexpr,
    FULL: tl.constexpr,
):
    """Write the gradients of k, v and the incoming state, and each chunk's share of those of w, u.

    One program: one chunk, from its last SUB positions to its first. Grid: (channel blocks, chunks,
    batch). Within SUB positions it goes forwards from their checkpoint, keeping in registers what
    the way back needs, then backwards with the adjoint. Writes partial (2, batch * chunks,
    channels), to be summed over its rows, and from the first chunk, with STATE, grad_state (3,
    batch, channels).
    """
    c, inside = channel_block(CHANNELS, BLOCK)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    w = load_log2(w_ptr + c, inside)
    u = load_log2(u_ptr + c, inside)
    start = (batch * length + chunk * CHUNK) * CHANNELS + c
    chunk_row = (batch * chunks + chunk) * CHANNELS + c
    checkpoint = checkpoints_ptr + (batch * chunks + chunk) * (CHUNK // SUB) * CHANNELS + c

    alpha, beta, adjoint_top = load_sums(adjoint_ptr + chunk_row, plane, inside)
    adjoint_age = tl.zeros([BLOCK], tl.float32)
    if not FULL:
        # positions that do not exist will count as steps, so start that many steps earlier
        adjoint_age -= tl.maximum((chunk + 1) * CHUNK - length, 0)
    grad_w = tl.zeros([BLOCK], tl.float32)
    grad_u = tl.zeros([BLOCK], tl.float32)

    for back in range(0, CHUNK, SUB):
        t = CHUNK - SUB - back
        row = start + t * CHANNELS
        position = chunk * CHUNK + t
        a, b, top = load_sums(checkpoint + (t // SUB) * CHANNELS, checkpoint_plane, inside)
        age = tl.zeros([BLOCK], tl.float32)
        keys = load_rows(k_ptr + row, inside, position, length, NO_KEY, SUB, CHANNELS, FULL)
        values = load_rows(v_ptr + row, inside, position, length, 0.0, SUB, CHANNELS, FULL)
        grads = load_rows(grad_y_ptr + row, inside, position, length, 0.0, SUB, CHANNELS, FULL)

        # Forwards: SUB entries each
        grad_numerators = ()  # gN, times 2^output_exponent
        output_exponents = ()  # max(p, u + k)
        bonus_grads = ()  # 2^(u + k) gN
        residuals = ()  # v - y
        decayed_as = ()  # 2^-w a_{t-1}, divided by 2^sum_exponent
        decayed_bs = ()
        key_weights = ()  # 2^k, divided by 2^sum_exponent
        sum_exponents = ()  # max(p - w, k)
        for i in tl.static_range(SUB):
            k = keys[i] * LOG2E
            p = tl.fma(-age, w, top)
            past, present = relative_weights(u + k - p)
            inverse = reciprocal(past * b + present)
            grad_numerators += (grads[i] * inverse,)
            bonus_grads += (present * grad_numerators[i],)
            # (b v - a) / D: v - y itself would cancel where this position is nearly all of y
            residuals += (past * inverse * tl.fma(b, values[i], -a),)
            exponent = tl.maximum(p, u + k)
            if not FULL:
                exponent = tl.where(position + i < length, exponent, float("inf"))
            output_exponents += (exponent,)

            # the step of `decay_and_add`, in pieces that the way back needs
            age += 1.0
            decayed_p = tl.fma(-age, w, top)
            kept, added = relative_weights(k - decayed_p)
            key_is_larger = k > decayed_p
            decayed_as += (a * kept,)
            decayed_bs += (b * kept,)
            key_weights += (added,)
            sum_exponents += (tl.maximum(k, decayed_p),)
            a = decayed_as[i] + added * values[i]
            b = decayed_bs[i] + added
            top = tl.where(key_is_larger, k, top)
            age = tl.where(key_is_larger, 0.0, age)

        # Backwards: (alpha, beta) is the adjoint of the sums after position i
        for i in tl.static_range(SUB - 1, -1, -1):
            exists = inside if FULL else inside & (position + i < length)
            # at most 1: every later output that reads these sums has them in its denominator
            scale = exp2(sum_exponents[i] + tl.fma(-adjoint_age, w, adjoint_top))
            through_decay = scale * (alpha * decayed_as[i] + beta * decayed_bs[i])
            grad_w -= through_decay if FULL else tl.where(exists, through_decay, 0.0)

            scale *= key_weights[i]
            through_bonus = bonus_grads[i] * residuals[i]
            grad_u += through_bonus
            grad_v = bonus_grads[i] + scale * alpha
            grad_k = through_bonus + scale * (values[i] * alpha + beta)
            at = row + i * CHANNELS
            tl.store(grad_v_ptr + at, grad_v.to(grad_v_ptr.dtype.element_ty), mask=exists)
            tl.store(grad_k_ptr + at, grad_k.to(grad_k_ptr.dtype.element_ty), mask=exists)

            grad_numerator = grad_numerators[i]
            grad_denominator = -grad_numerator * (values[i] - residuals[i])
            alpha, beta, adjoint_top, adjoint_age = decay_and_add(
                alpha,
                beta,
                adjoint_top,
                adjoint_age,
                1.0,
                w,
                grad_numerator,
                grad_denominator,
                -output_exponents[i],
            )

    tl.store(partial_ptr + chunk_row, grad_w, mask=inside)
    tl.store(partial_ptr + partial_plane + chunk_row, grad_u, mask=inside)
    if STATE:  # noqa: SIM102  (one is known when the kernel is compiled, the other when it runs)
        if chunk == 0:
            # (alpha, beta) has arrived at the sums before position 0, which are e^p (a, b)
            at = batch * CHANNELS + c
            a = tl.load(a_ptr + at, mask=inside)
            b = tl.load(b_ptr + at, mask=inside)
            p = load_log2(p_ptr + at, inside)
            scale = exp2(p + tl.fma(-adjoint_age, w, adjoint_top))
            grad_p = scale * (alpha * a + beta * b)
            grad_state = grad_state_ptr + at
            store_sums(grad_state, state_plane, scale * alpha, scale * beta, grad_p, inside)
