"""LSTM (Hochreiter and Schmidhuber 1997), torch's own, in a pre-norm residual stack: the recurrent
net everybody knows.

Behind the recurrence stands a layer 2.5 widths wide, so that a block has the 13 width^2 weights of
the other models'.
"""

import torch
from torch import Tensor, nn

from lookback.models.lean import normed, own, parts, product
from lookback.models.model import register_model

LSTMState = tuple[Tensor, Tensor]  # hidden and cell, each (batch, width)


@register_model("lstm")
class LSTMBlock(nn.Module):
    """A layer: recurrence, then a layer of 2.5 widths, each behind its norm. It has no options."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.recurrence_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.recurrence = nn.LSTM(width, width, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 5 * width // 2), nn.GELU(), nn.Linear(5 * width // 2, width)
        )
        with torch.no_grad():
            forget = self.recurrence.get_parameter("bias_ih_l0")[width : 2 * width]
            forget.fill_(1.0)  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, LSTMState]:
        # CUDA's autocast would make it float16, whatever it is asked for, and no loss is scaled for
        # that
        with torch.autocast(x.device.type, enabled=False):
            mixed, (hidden, cell) = self.recurrence(
                self.recurrence_norm(x).to(self.recurrence.weight_ih_l0.dtype)
            )
        return self.finish(x, mixed), (hidden[0], cell[0])

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add what the recurrence gave, and what the layer behind it gives: (batch, length, width)
        -> same.
        """
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x))

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LSTMState:
        zeros = torch.zeros(batch_size, self.recurrence.hidden_size, device=device, dtype=dtype)
        return zeros, zeros.clone()

    def step(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        layers = parts(self)
        hidden, cell = torch.lstm_cell(
            normed(layers["recurrence_norm"], x), state, *own(layers["recurrence"]).values()
        )
        x = x + hidden
        widen, activation, narrow = parts(layers["mlp"]).values()
        return x + product(narrow, activation(product(widen, normed(layers["mlp_norm"], x)))), (
            hidden,
            cell,
        )
