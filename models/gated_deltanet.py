"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464).

In one layer, for each head, with h = norm(x) and conv a short causal convolution:

    q, k    = silu(conv(W_q h)), silu(conv(W_k h))          each divided by its length
    v       = silu(conv(W_v h))
    beta    = sigmoid(W_beta h)                             how much of the old value is replaced
    alpha   = exp(-e^{A_log} softplus(W_alpha h + dt_bias)) how much of the state is kept
    S_t     = alpha_t S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t'
    o_t     = S_t q_t / sqrt(key size)
    x_t    <- x_t + W_o ( norm(o_t) * silu(W_g h_t) )
    x_t    <- x_t + gated layer of norm(x_t)

Options make it DeltaNet (Yang et al. 2024, arXiv 2406.06484), whose alpha is 1, and let beta reach
2, which gives the transition negative eigenvalues (Grazzi et al. 2024, arXiv 2411.12537).
`lookback.models.matrix_state` has the operator; its state is S transposed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu, softplus

from lookback.models.block import Block, GatedLayer, time_steps
from lookback.models.matrix_state import empty_state, matrix_state
from lookback.models.model import ArchitectureSpec, register_model
from lookback.models.short_conv import optional_convolution

EPSILON = 1e-5  # of the norms
MULTIPLE = 8  # of the gated layer's width


class DeltaNetState(NamedTuple):
    """What a layer remembers."""

    inputs: Tensor | None  # of the convolution, (batch, TAPS - 1, channels)
    matrix: Tensor  # (batch, heads, key size, value size)


def small_weights(weight: Tensor) -> None:
    """Fill a weight from a normal distribution of standard deviation 0.02."""
    nn.init.normal_(weight, std=0.02)


def rms_norm(width: int) -> nn.RMSNorm:
    """Return the norm without a mean, which these models use throughout."""
    return nn.RMSNorm(width, eps=EPSILON)


SPEC = ArchitectureSpec(embedding_init=small_weights, head_init=small_weights, norm=rms_norm)


@register_model("gated_deltanet", SPEC)
class GatedDeltaNetBlock(Block):
    """One layer: the delta rule, then the gated layer, each after its norm.

    heads: by default one per 256 of width, and at least two; keys are 3/4 width in all, and values
        twice as wide.
    decay: whether the state decays; without, the layer is DeltaNet.
    negative_eigenvalues: let beta reach 2 in place of 1.
    short_conv: whether queries, keys and values see the three tokens before.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        heads: int | None = None,
        decay: bool = True,
        negative_eigenvalues: bool = False,
        short_conv: bool = True,
    ) -> None:
        super().__init__()
        self.heads = max(2, width // 256) if heads is None else heads
        self.key_size = 3 * width // (4 * self.heads) if self.heads > 0 else 0
        if self.key_size < 1:
            raise ValueError(
                f"gated_deltanet of width {width} with {self.heads} heads: "
                "expected at least one head, and a width of 4/3 a head"
            )
        self.value_size = 2 * self.key_size
        self.largest_beta = 2.0 if negative_eigenvalues else 1.0

        key_width = self.heads * self.key_size
        value_width = self.heads * self.value_size
        self.widths = [key_width, key_width, value_width]
        self.mixer_norm = rms_norm(width)
        self.query_key_value = nn.Linear(width, sum(self.widths), bias=False)
        self.convolution = optional_convolution(short_conv, sum(self.widths))
        self.beta = nn.Linear(width, self.heads, bias=False)
        self.gate = nn.Linear(width, value_width, bias=False)
        self.output_norm = rms_norm(self.value_size)
        self.output = nn.Linear(value_width, width, bias=False)
        self.mlp_norm = rms_norm(width)
        hidden = -(-8 * width // (3 * MULTIPLE)) * MULTIPLE
        self.mlp = GatedLayer(width, hidden)

        self.decays = decay
        if decay:
            self.alpha = nn.Linear(width, self.heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1e-3, 16).log())
            self.dt_bias = nn.Parameter(time_steps(self.heads))

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> DeltaNetState:
        inputs = self.convolution.initial_state(batch_size, device, dtype)
        sizes = (self.heads, self.key_size, self.value_size)
        return DeltaNetState(inputs, empty_state(batch_size, *sizes, device, dtype))

    def read(self, x: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        mixed, state = self.mix(self.mixer_norm(x), state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state

    def mix(self, h: Tensor, state: DeltaNetState) -> tuple[Tensor, DeltaNetState]:
        """Apply the delta rule to h, (batch, length, width)."""
        projected, inputs = self.convolution(self.query_key_value(h), state.inputs)
        query, key, value = silu(projected).split(self.widths, dim=-1)
        query = normalize(self.per_head(query), dim=-1) * self.key_size**-0.5
        key = normalize(self.per_head(key), dim=-1)
        value = self.per_head(value)

        beta = self.largest_beta * self.beta(h).sigmoid()[..., None]  # (batch, length, heads, 1)
        decay = torch.zeros_like(beta)
        if self.decays:
            step = softplus((self.alpha(h) + self.dt_bias).float())
            decay = -(self.A_log.float().exp() * step)[..., None]

        read = -beta * decay.exp() * key
        mixed, matrix = matrix_state(query, key, beta * value, decay, read, state=state.matrix)
        mixed = self.output_norm(mixed) * silu(self.per_head(self.gate(h)))
        return self.output(mixed.flatten(2)), DeltaNetState(inputs, matrix)

    def per_head(self, x: Tensor) -> Tensor:
        """(batch, length, heads x size) -> (batch, length, heads, size)."""
        return x.unflatten(-1, (self.heads, -1))
