"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060).

In one layer, with u = norm(x), conv a short causal convolution, and for each head:

    z, xBC, dt = W_in u
    x, B, C    = silu(conv(xBC))                    B and C are shared by all heads
    dt         = softplus(dt + dt_bias)
    h_t        = e^{-dt_t e^{A_log}} h_{t-1} + B_t (dt_t x_t)'
    y_t        = h_t' C_t + D x_t
    x_t       <- x_t + W_out norm( y_t * silu(z_t) )

There is no other layer in the block. `lookback.models.matrix_state` has the operator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from lookback.models.block import Block, time_steps
from lookback.models.gated_deltanet import SPEC, rms_norm
from lookback.models.matrix_state import empty_state, matrix_state
from lookback.models.model import register_model
from lookback.models.short_conv import optional_convolution

HEAD_SIZE = 64
LARGEST_STATE = 128  # as published; narrower models have as many channels of state as of width


class Mamba2State(NamedTuple):
    """What a layer remembers."""

    inputs: Tensor | None  # of the convolution, (batch, TAPS - 1, channels)
    matrix: Tensor  # (batch, heads, state size, head size)


@register_model("mamba2", SPEC)
class Mamba2Block(Block):
    """One layer, after its norm; inside, it is two widths wide.

    heads: by default one per 64 of the inner width, and at least two.
    state_size: channels of state, per channel of a head; by default the width, at most 128.
    short_conv: whether x, B and C see the three tokens before.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        heads: int | None = None,
        state_size: int | None = None,
        short_conv: bool = True,
    ) -> None:
        super().__init__()
        inner = 2 * width
        self.heads = default_heads(inner) if heads is None else heads
        self.state_size = min(LARGEST_STATE, width) if state_size is None else state_size
        if self.heads < 1 or inner % self.heads or self.state_size < 1:
            raise ValueError(
                f"mamba2 of width {width} with {self.heads} heads and a state of "
                f"{self.state_size}: expected heads that divide {inner}, and a state of 1 or more"
            )
        self.widths = [inner, self.state_size, self.state_size]
        self.norm = rms_norm(width)
        self.input = nn.Linear(width, inner + sum(self.widths) + self.heads, bias=False)
        self.convolution = optional_convolution(short_conv, sum(self.widths), bias=True)
        self.dt_bias = nn.Parameter(time_steps(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.output_norm = rms_norm(inner)
        self.output = nn.Linear(inner, width, bias=False)
        self.output.weight.data.div_(depth**0.5)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> Mamba2State:
        inputs = self.convolution.initial_state(batch_size, device, dtype)
        sizes = (self.heads, self.state_size, self.widths[0] // self.heads)
        return Mamba2State(inputs, empty_state(batch_size, *sizes, device, dtype))

    def read(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        projected = self.input(self.norm(x))
        gate, mixer_inputs, step = projected.split(
            [self.widths[0], sum(self.widths), self.heads], dim=-1
        )
        mixer_inputs, inputs = self.convolution(mixer_inputs, state.inputs)
        value, key, query = silu(mixer_inputs).split(self.widths, dim=-1)
        value = value.unflatten(-1, (self.heads, -1))  # x, (batch, length, heads, head size)
        key = key[:, :, None].expand(-1, -1, self.heads, -1)  # B, (batch, length, heads, state)
        query = query[:, :, None].expand(-1, -1, self.heads, -1)  # C

        step = softplus((step + self.dt_bias).float())[..., None]  # (batch, length, heads, 1)
        decay = -self.A_log.float().exp()[:, None] * step
        stepped = value * step.to(value.dtype)
        mixed, matrix = matrix_state(query, key, stepped, decay, state=state.matrix)
        mixed = (mixed + self.D[:, None] * value).flatten(2)
        output = self.output(self.output_norm(mixed * silu(gate)))
        return x + output, Mamba2State(inputs, matrix)


def default_heads(inner: int) -> int:
    """Return how many heads an inner width has: of about 64 channels, at least two."""
    for heads in range(max(2, inner // HEAD_SIZE), 1, -1):
        if inner % heads == 0:
            return heads
    return 1
