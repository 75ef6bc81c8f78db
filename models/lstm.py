"""LSTM (Hochreiter and Schmidhuber 1997), torch's own, in a pre-norm residual stack.

After the recurrence comes a GELU layer 2.5 widths wide, which gives a block the 13 width^2 weights
of the other models' blocks. In one layer:

    x_t <- x_t + lstm(norm(x))_t
    x_t <- x_t + W_2 gelu(W_1 norm(x_t) + b_1) + b_2
"""

import torch
from torch import Tensor, nn

from lookback.models.model import register_model

LSTMState = tuple[Tensor, Tensor]  # hidden and cell, each (1, batch, width) as torch has them


@register_model("lstm")
class LSTMBlock(nn.Module):
    """One layer: the recurrence, then the GELU layer, each after its norm. It has no options."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
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

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, LSTMState]:
        return self.read(x, None)

    def step(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        y, state = self.read(x[:, None], state)
        return y[:, 0], state

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LSTMState:
        hidden = torch.zeros(1, batch_size, self.recurrence.hidden_size, device=device, dtype=dtype)
        return hidden, hidden.clone()

    def read(self, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """Read x, (batch, length, width), after what the state has seen; None for nothing."""
        # CUDA's autocast would make the recurrence float16, whatever dtype it was asked for, and
        # the loss is not scaled for float16.
        with torch.autocast(x.device.type, enabled=False):
            h = self.recurrence_norm(x).to(self.recurrence.weight_ih_l0.dtype)
            hidden, state = self.recurrence(h, state)

        x = x + hidden
        return x + self.mlp(self.mlp_norm(x)), state
