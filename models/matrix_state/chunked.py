"""The matrix-state operator in chunks: parallel within a chunk, recurrent from chunk to chunk.

A chunk has C positions; g_i is the sum of its w up to position i, included, and h its incoming
state. Unrolled within the chunk, the definition says

    h_i = e^{g_i} h + sum over j <= i of e^{g_i - g_j} (k_j v_j' + b_j u_j'),     u_j = h_{j-1}' a_j

where e^{...} scales rows. Write P(x, y)_ij = sum over channels d of x_id y_jd e^{g_id - g_jd} for
j <= i, and 0 above the diagonal; where x is a, which reads the state before its decay, the exponent
is g_{i-1} - g_j and j < i. With the u_j' as the rows of U, the v_j' as those of V, and likewise A,
Q, K and B,

    U      = P(a,b) U + P(a,k) V + (A e^{g-}) h      unit triangular: one solve for all chunks
    h_next = e^{g_C} h + (K e^{g_C - g})' V + (B e^{g_C - g})' U
    O      = (Q e^g) h + P(q,k) V + P(q,b) U

The solve gives U = Y + Z h, so that only h_next and Z h are left to the loop over chunks. The delta
rule has b = k: P(a,k) V becomes V, U holds v + u, and the terms in V drop out.

A segment is some chunks. `Segments` keeps the inputs and the state before each segment, and
computes a segment again in the backward pass: memory is that of the inputs, and no formula is
differentiated by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

SEGMENT_ROWS = 2048  # batch x heads x positions


def run_segments(
    inputs: Sequence[Tensor | None], state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return o and the last state, as `matrix_state` does; inputs are q, k, v, w, a and b."""
    values: Any = inputs[2]
    batch_size, length, heads, _ = values.shape
    chunks = max(1, SEGMENT_ROWS // (batch_size * heads * chunk))
    return Segments.apply(*inputs, state, min(chunk, length), chunks * chunk)


class Segments(torch.autograd.Function):
    """The operator over segments, each computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Compute segment after segment; arguments as in `run_segments`, then the segment."""
        *inputs, state, chunk, segment = arguments
        outputs = []
        states = []
        with torch.autocast(state.device.type, enabled=False):
            for parts in split(inputs, segment):
                states.append(state)
                output, state = compute_segment(parts, state, chunk)
                outputs.append(output)

        ctx.sizes = chunk, segment
        ctx.save_for_backward(*inputs, torch.stack(states))
        return torch.cat(outputs, 1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_state: Tensor) -> tuple[Any, ...]:
        """Differentiate segment after segment, from the last to the first."""
        *inputs, states = ctx.saved_tensors
        chunk, segment = ctx.sizes
        grads = [None if x is None else torch.empty_like(x) for x in inputs]

        pieces = list(
            zip(
                split(inputs, segment),
                split(grads, segment),
                grad_output.split(segment, 1),
                states.unbind(0),
                strict=True,
            )
        )
        with torch.autocast(states.device.type, enabled=False):
            for parts, grad_parts, grad_part, state in reversed(pieces):
                part_grads, grad_state = segment_gradients(
                    parts, state, (grad_part, grad_state), chunk
                )
                for place, grad in zip(grad_parts, part_grads, strict=True):
                    if place is not None:
                        place.copy_(grad)
        return (*grads, grad_state, None, None)


def split(tensors: Sequence[Tensor | None], segment: int) -> list[tuple[Tensor | None, ...]]:
    """Split tensors along their positions; a missing tensor is missing in every segment."""
    parts = [None if x is None else x.split(segment, 1) for x in tensors]
    count = max(len(part) for part in parts if part is not None)
    return [tuple(None if part is None else part[i] for part in parts) for i in range(count)]


def compute_segment(
    inputs: Sequence[Tensor | None], state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return o of a segment, (batch, positions, heads, value size), and the state after it.

    inputs are q, k, v, w, a and b of its positions.
    """
    values: Any = inputs[2]
    length, dtype = values.shape[1], values.dtype
    batch_size, heads = state.shape[:2]
    q: Any
    k: Any
    v: Any
    w: Any
    q, k, v, w, a, b = (None if x is None else in_chunks(x, chunk, state.dtype) for x in inputs)
    decay: Any = ChannelDecay(w) if w.shape[-1] > 1 else HeadDecay(w)

    # In what follows, n counts chunks: (batch x heads, n, C, size).
    reads = None  # of a, and where they go
    within = decay.scores(q, k)  # P(q,k)
    if a is None:
        added = decay.to_end(k).mT @ v
    elif b is None:
        added = None
        reads = solve(decay.scores_before(a, k), v, decay.from_start_before(a)), decay.to_end(k)
    else:
        added = decay.to_end(k).mT @ v
        from_inputs = decay.scores_before(a, k) @ v  # P(a,k) V
        solved = solve(decay.scores_before(a, b), from_inputs, decay.from_start_before(a))
        reads = solved, decay.to_end(b)
    incoming, u, state = recur(decay.total(), added, reads, state.flatten(0, 1))

    output = decay.from_start(q) @ incoming
    if a is None:
        output = output + within @ v
    elif b is None:
        output = output + within @ u
    else:
        output = output + within @ v + decay.scores(q, b) @ u
    output = output.flatten(1, 2)[:, :length].unflatten(0, (batch_size, heads)).transpose(1, 2)
    return output.to(dtype), state.unflatten(0, (batch_size, heads))


def segment_gradients(
    inputs: Sequence[Tensor | None],
    state: Tensor,
    grads: tuple[Tensor, Tensor],
    chunk: int,
) -> tuple[list[Any], Tensor]:
    """Return the gradients of a segment's inputs, None for missing ones, and of its first state.

    grads are those of what `compute_segment` returns; it is computed again.
    """
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    state = state.detach().requires_grad_()
    with torch.enable_grad():
        results = compute_segment(leaves, state, chunk)
    present = [x for x in leaves if x is not None]
    *found, grad_state = torch.autograd.grad(results, (*present, state), grads)
    remaining = iter(found)
    return [None if x is None else next(remaining) for x in leaves], grad_state


def in_chunks(x: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """Cut positions into chunks, zeros at the end: (batch, length, heads, size) -> above."""
    missing = -x.shape[1] % chunk
    if missing:  # padding by nothing would copy
        x = pad(x, (0, 0, 0, 0, 0, missing))
    return x.to(dtype).transpose(1, 2).reshape(-1, x.shape[1] // chunk, chunk, x.shape[3])


def solve(lower: Tensor, constant: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Return Y and Z of U = Y + Z h, the solution of U = lower U + constant + linear h."""
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    right = torch.cat([constant, linear], -1)
    solved = torch.linalg.solve_triangular(identity - lower, right, upper=False, unitriangular=True)
    value_size = constant.shape[-1]
    return solved.split([value_size, right.shape[-1] - value_size], -1)


def recur(
    total: Tensor,
    added: Tensor | None,
    reads: tuple[tuple[Tensor, Tensor], Tensor] | None,
    state: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the state before each chunk, U, and the state after the last.

    total is e^{g_C}, (batch x heads, n, key size or 1, 1); added is what the inputs add to the
    state in a chunk, (batch x heads, n, key size, value size); reads are Y and Z, and
    B e^{g_C - g}.
    """
    # Indexing in the loop would write a full-size gradient of zeros for each chunk.
    totals = total.unbind(1)
    additions = [None] * len(totals) if added is None else added.unbind(1)
    states, us = [], []
    if reads is not None:
        (constants, linears), targets = reads
        chunks = zip(constants.unbind(1), linears.unbind(1), targets.unbind(1), strict=True)
    for decay, addition in zip(totals, additions, strict=True):
        states.append(state)
        following = decay * state
        if addition is not None:
            following = following + addition
        if reads is not None:
            constant, linear, target = next(chunks)
            u = torch.baddbmm(constant, linear, state)
            us.append(u)
            following = torch.baddbmm(following, target.mT, u)
        state = following
    return torch.stack(states, 1), torch.stack(us, 1) if us else None, state


class ChannelDecay:
    """Decays of a chunk by channel, from w (batch x heads, n, C, key size).

    Rows are scaled by e^{g - m} and columns by e^{m - g}, where m is half of g_C: with e^{-g} alone
    a chunk could be half as long.
    """

    def __init__(self, w: Tensor) -> None:
        g = w.cumsum(2)
        before = pad(g[:, :, :-1], (0, 0, 1, 0))  # g_{i-1}; g - w would round differently
        last = g[:, :, -1:]
        middle = (last / 2).detach()  # it cancels, and so has no gradient
        self.last = last
        self.rows = (g - middle).exp()
        self.rows_before = (before - middle).exp()
        self.columns = (middle - g).exp()
        self.start = middle.exp()
        self.end = (last - middle).exp()

    def total(self) -> Tensor:
        """e^{g_C}, which a state decays by."""
        return self.last.exp().mT

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """P(x, y), (batch x heads, n, C, C)."""
        return ((x * self.rows) @ (y * self.columns).mT).tril()

    def scores_before(self, x: Tensor, y: Tensor) -> Tensor:
        """P(x, y) of an x that reads the state before its decay."""
        return ((x * self.rows_before) @ (y * self.columns).mT).tril(-1)

    def from_start(self, x: Tensor) -> Tensor:
        """x e^g, which reads the incoming state."""
        return x * (self.rows * self.start)

    def from_start_before(self, x: Tensor) -> Tensor:
        """x e^{g-}, which reads the incoming state before its decay."""
        return x * (self.rows_before * self.start)

    def to_end(self, y: Tensor) -> Tensor:
        """y e^{g_C - g}, which goes into the outgoing state."""
        return y * (self.columns * self.end)


class HeadDecay:
    """Decays of a chunk by head, from w (batch x heads, n, C, 1); methods as of ChannelDecay.

    The difference of every pair of sums is taken before exp, so nothing overflows. Sums are
    float64, because the differences of long sums matter.
    """

    def __init__(self, w: Tensor) -> None:
        g = w.double().cumsum(2)
        later = torch.ones(w.shape[2], w.shape[2], dtype=torch.bool, device=w.device).triu(1)
        differences = (g - g.mT).masked_fill(later, -torch.inf)
        last = g[:, :, -1:]
        self.pairs = differences.exp().to(w.dtype)
        self.pairs_before = pad(self.pairs[:, :, :-1], (0, 0, 1, 0))  # e^{g_{i-1} - g_j}
        self.start = g.exp().to(w.dtype)
        self.start_before = pad(self.start[:, :, :-1], (0, 0, 1, 0), value=1.0)
        self.end = (last - g).exp().to(w.dtype)
        self.last = last.exp().to(w.dtype)

    def total(self) -> Tensor:
        """e^{g_C}, which a state decays by."""
        return self.last

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """P(x, y), (batch x heads, n, C, C)."""
        return (x @ y.mT) * self.pairs

    def scores_before(self, x: Tensor, y: Tensor) -> Tensor:
        """P(x, y) of an x that reads the state before its decay."""
        return (x @ y.mT) * self.pairs_before

    def from_start(self, x: Tensor) -> Tensor:
        """x e^g, which reads the incoming state."""
        return x * self.start

    def from_start_before(self, x: Tensor) -> Tensor:
        """x e^{g-}, which reads the incoming state before its decay."""
        return x * self.start_before

    def to_end(self, y: Tensor) -> Tensor:
        """y e^{g_C - g}, which goes into the outgoing state."""
        return y * self.end
