"""LSTM (Hochreiter and Schmidhuber 1997), torch's own, in a pre-norm residual stack.

After the recurrence comes a GELU layer 2.5 widths wide, which gives a block the 13 width^2 weights
of the other models' blocks. In one layer:

    x_t <- x_t + lstm(norm(x))_t
    x_t <- x_t + W_2 gelu(W_1 norm(x_t) + b_1) + b_2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookback.models.block import Block
from lookback.models.model import register_model
from lookback.models.short_conv import optional_convolution


class LSTMState(NamedTuple):
    """What a layer remembers: hidden and cell, each (1, batch, width) as torch has them."""

    hidden: Tensor
    cell: Tensor
    inputs: Tensor | None  # of the short convolution


@register_model("lstm")
class LSTMBlock(Block):
    """One layer: the recurrence, then the GELU layer, each after its norm.

    short_conv: whether a causal convolution of width 4 comes ahead of the recurrence.
    """

    def __init__(self, width: int, layer: int, depth: int, *, short_conv: bool = False) -> None:
        super().__init__()
        self.recurrence_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.recurrence = nn.LSTM(width, width, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 5 * width // 2),
            nn.GELU(),
            nn.Linear(5 * width // 2, width),
        )
        with torch.no_grad():
            forget_bias = self.recurrence.get_parameter("bias_ih_l0")[width : 2 * width]
            forget_bias.fill_(1.0)  # remember at first (Jozefowicz et al. 2015)
        self.convolution = optional_convolution(short_conv, width)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LSTMState:
        hidden = torch.zeros(1, batch_size, self.recurrence.hidden_size, device=device, dtype=dtype)
        inputs = self.convolution.initial_state(batch_size, device, dtype)
        return LSTMState(hidden, hidden.clone(), inputs)

    def read(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        h, inputs = self.convolution(self.recurrence_norm(x), state.inputs)
        # CUDA's autocast would make the recurrence float16, whatever dtype it was asked for, and
        # the loss is not scaled for float16.
        with torch.autocast(x.device.type, enabled=False):
            dtype = next(self.recurrence.parameters()).dtype
            before = state.hidden.to(dtype), state.cell.to(dtype)
            mixed, (hidden, cell) = self.recurrence(h.to(dtype), before)

        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), LSTMState(hidden, cell, inputs)
