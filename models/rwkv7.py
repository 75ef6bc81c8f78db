"""RWKV-7 "Goose" (Peng et al. 2025, arXiv 2503.14456), after the authors' code.

In one layer, with h = norm(x), y = norm(x) after the time-mix, m_c(h) = h_t + (h_{t-1} - h_t) mu_c
the token shift, and for each head of the time-mix:

    r, k, v = W m_c(h)                                        for c in r, k, v
    w       = -e^{-1/2} sigmoid(w0 + tanh(m_w(h) W1) W2)      logarithm of the decay, per channel
    eta     = sigmoid(a0 + m_a(h) A1 A2)                      in-context learning rate
    gate    = sigmoid(m_g(h) G1) G2
    v       = v + (v_first - v) sigmoid(v0 + m_v(h) V1 V2)    v_first: the first layer's v
    kappa   = k * k_k, divided by its length
    k~      = k (1 + (eta - 1) k_a)
    S_t     = S_{t-1} (diag(e^w) - kappa (kappa * eta)') + v k~'
    o_t     = groupnorm(S_t r) + (sum over a head of r k~ r_k) v
    x_t    <- x_t + W_o (o_t * gate)

    x_t    <- x_t + W_v relu(W_k m_c(y))^2                    channel-mix

`lookback.models.matrix_state` has the operator; its state is S transposed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lookback.models.block import shift
from lookback.models.matrix_state import empty_state, matrix_state
from lookback.models.model import register_model
from lookback.models.rwkv import SPEC as RWKV4_SPEC
from lookback.models.short_conv import optional_convolution

HEAD_SIZE = 64
SLOWEST = -math.exp(-0.5)  # what no log decay is below
LOW_RANK = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")


class TimeMixState(NamedTuple):
    """What a time-mix remembers."""

    last_input: Tensor  # (batch, width)
    matrix: Tensor  # (batch, heads, head size, head size)
    inputs: Tensor | None  # of the short convolution


def rank(width: int, factor: float) -> int:
    """Return the rank of a low-rank matrix: factor sqrt(width) in steps of 32, as the authors have.

    At least 32; of widths below 128 a quarter, as in the authors' smallest models.
    """
    if width < 128:
        return max(1, width // 4)
    return max(32, 32 * round(factor * width**0.5 / 32))


def mix_share(width: int, power: float) -> nn.Parameter:
    """Share of the input before in the token shift, by channel i: 1 - (i / width)^power."""
    return nn.Parameter(1 - (torch.arange(width) / width) ** power)


def orthogonal(*shape: int, gain: float) -> nn.Parameter:
    """Return an orthogonal matrix times a gain."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(shape), gain=gain))


class TimeMix(nn.Module):
    """Mixes positions: token shift, the generalised delta rule, and a gate."""

    def __init__(self, width: int, layer: int, depth: int, heads: int, short_conv: bool) -> None:
        super().__init__()
        self.heads = heads
        size = width // heads
        progress = layer / (depth - 1) if depth > 1 else 0.0  # 0 in the first layer, 1 in the last
        remaining = 1 - layer / depth
        self.mix_r = mix_share(width, 0.2 * remaining)
        self.mix_w = mix_share(width, 0.9 * remaining)
        self.mix_k = mix_share(width, 0.7 * remaining)
        self.mix_v = mix_share(width, 0.7 * remaining)
        self.mix_a = mix_share(width, 0.9 * remaining)
        self.mix_g = mix_share(width, 0.2 * remaining)

        channel = torch.arange(width) / max(1, width - 1)  # 0 to 1
        within = torch.arange(size) / max(1, size - 1) * 2 - 1  # -1 to 1 in each head
        zigzag = (within * within.abs()).repeat(heads)
        centred = channel - 0.5
        self.w0 = nn.Parameter(-6 + 6 * channel ** (1 + progress**0.3) + 0.5 + 2.5 * zigzag)
        self.a0 = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * centred)
        self.w1, self.w2 = self.low_rank(width, rank(width, 2.5))
        self.a1, self.a2 = self.low_rank(width, rank(width, 2.5))
        self.g1, self.g2 = self.low_rank(width, rank(width, 5))
        self.mixes_first_value = layer > 0
        if self.mixes_first_value:
            self.v0 = nn.Parameter(0.73 - 0.4 * centred)
            self.v1, self.v2 = self.low_rank(width, rank(width, 1.7))
        self.k_k = nn.Parameter(0.71 - 0.1 * centred)
        self.k_a = nn.Parameter(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((heads, size), -0.04))

        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, gain=0.1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)
        self.head_norm = nn.GroupNorm(heads, width, eps=1e-5 * size)
        nn.init.constant_(self.head_norm.weight, ((1 + layer) / depth) ** 0.7)
        self.convolution = optional_convolution(short_conv, width)

    @staticmethod
    def low_rank(width: int, inner: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the two factors of a low-rank matrix, the first zero."""
        return nn.Parameter(torch.zeros(width, inner)), orthogonal(inner, width, gain=0.1)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> TimeMixState:
        width = len(self.w0)
        size = width // self.heads
        inputs = self.convolution.initial_state(batch_size, device, dtype)
        last_input = torch.zeros(batch_size, width, device=device, dtype=dtype)
        matrix = empty_state(batch_size, self.heads, size, size, device, dtype)
        return TimeMixState(last_input, matrix, inputs)

    def read(
        self, h: Tensor, state: TimeMixState, first_value: Tensor | None
    ) -> tuple[Tensor, TimeMixState, Tensor]:
        """Return the output, the state, and the first layer's value; (batch, length, width)."""
        h, inputs = self.convolution(h, state.inputs)
        previous, last_input = shift(h, state.last_input)

        def shifted(share: Tensor) -> Tensor:
            return torch.lerp(h, previous, share.to(h.dtype))

        receptance = self.receptance(shifted(self.mix_r))
        key = self.key(shifted(self.mix_k))
        value_input = shifted(self.mix_v)
        value = self.value(value_input)
        if self.mixes_first_value and first_value is not None:
            share = (self.v0 + value_input @ self.v1 @ self.v2).sigmoid()
            value = torch.lerp(value, first_value, share)
        elif first_value is None:
            first_value = value

        decay = self.w0 + (shifted(self.mix_w) @ self.w1).tanh() @ self.w2
        decay = SLOWEST * decay.float().sigmoid()
        rate = (self.a0 + shifted(self.mix_a) @ self.a1 @ self.a2).sigmoid()  # eta
        gate = (shifted(self.mix_g) @ self.g1).sigmoid() @ self.g2
        removed = normalize(self.per_head(key * self.k_k), dim=-1)  # kappa
        key = self.per_head(torch.addcmul(key, key * (rate - 1), self.k_a))  # k~
        receptance = self.per_head(receptance)
        per_head_value = self.per_head(value)

        mixed, matrix = matrix_state(
            receptance,
            key,
            per_head_value,
            self.per_head(decay),
            -removed,
            removed * self.per_head(rate),
            state.matrix,
            lowest=SLOWEST,
        )
        mixed = self.head_norm(mixed.flatten(0, 1).flatten(1)).view_as(value)
        bonus = (receptance * key * self.r_k).sum(-1, keepdim=True) * per_head_value
        output = self.output((mixed + bonus.flatten(2)) * gate)
        return output, TimeMixState(last_input, matrix, inputs), first_value

    def per_head(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, length, heads, head size)."""
        return x.unflatten(-1, (self.heads, -1))


class ChannelMix(nn.Module):
    """Mixes channels: token shift and a squared ReLU four widths wide."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.mix_k = mix_share(width, (1 - layer / depth) ** 4)
        self.key = nn.Linear(width, 4 * width, bias=False)
        self.value = nn.Linear(4 * width, width, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def read(self, y: Tensor, last_input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, (batch, length, width), and the last input, (batch, width)."""
        previous, last_input = shift(y, last_input)
        hidden = self.key(torch.lerp(y, previous, self.mix_k.to(y.dtype)))
        return self.value(hidden.relu().square()), last_input


SPEC = replace(
    RWKV4_SPEC,  # embedding, its norm, and head are the same
    learning_rate_scale={"w0": 2.0},
    no_weight_decay=frozenset({*LOW_RANK, "r_k"}),
    has_side_input=True,
)


@register_model("rwkv7", SPEC)
class RWKV7Block(nn.Module):
    """One layer: time-mix, then channel-mix, each after its norm.

    heads: by default one per 64 of width, and at least two.
    short_conv: whether a causal convolution of width 4 comes ahead of the time-mix.

    The first layer's values go to the later layers beside x; see `ArchitectureSpec`.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        heads: int | None = None,
        short_conv: bool = False,
    ) -> None:
        super().__init__()
        heads = max(2, width // HEAD_SIZE) if heads is None else heads
        if heads < 1 or width % heads:
            raise ValueError(
                f"rwkv7 of width {width} with {heads} heads: expected heads that divide the width"
            )
        self.time_norm = nn.LayerNorm(width)
        self.channel_norm = nn.LayerNorm(width)
        self.time_mix = TimeMix(width, layer, depth, heads, short_conv)
        self.channel_mix = ChannelMix(width, layer, depth)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        time_state = self.time_mix.initial_state(batch_size, device, dtype)
        return time_state, torch.zeros_like(time_state.last_input)

    def forward(self, x: Tensor, first_value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, first_value, _ = self.prefill(x, first_value)
        return y, first_value

    def prefill(self, x: Tensor, first_value: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
        state = self.initial_state(x.shape[0], x.device, x.dtype)
        return self.read(x, state, first_value)

    def step(
        self, x: Tensor, state: Any, first_value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        before = None if first_value is None else first_value[:, None]
        y, first_value, state = self.read(x[:, None], state, before)
        return y[:, 0], first_value[:, 0], state

    def read(self, x: Tensor, state: Any, first_value: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Read x, (batch, length, width); return y, the first layer's value, and the state."""
        time_state, channel_state = state
        mixed, time_state, first_value = self.time_mix.read(
            self.time_norm(x), time_state, first_value
        )
        x = x + mixed
        mixed, channel_state = self.channel_mix.read(self.channel_norm(x), channel_state)
        return x + mixed, first_value, (time_state, channel_state)
