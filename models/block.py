"""What blocks share: reading positions by one method, a gated layer, and the token shift."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lookback.models.model import State


class Block(nn.Module):
    """A block written as one method, `read`: `forward`, `prefill` and `step` follow from it."""

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return the state before the first position."""
        raise NotImplementedError

    def read(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read x, (batch, length, width), after what the state has seen; return y and the state."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        return self.read(x, self.initial_state(x.shape[0], x.device, x.dtype))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # (batch, width) -> same
        y, state = self.read(x[:, None], state)
        return y[:, 0], state


class GatedLayer(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): W_d ( silu(W_g x) * W_u x ), without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> same
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.output(silu(gate) * value)


def last_position(x: Tensor) -> Tensor:
    """Copy the last position, (batch, length, width) -> (batch, width).

    A view would keep all of x alive for as long as the state lives.
    """
    return x[:, -1].clone()


def shift(x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input one position earlier, (batch, length, width), and the last of x.

    `last` is the input before x, (batch, width).
    """
    previous = torch.cat([last[:, None].to(x.dtype), x[:, :-1]], dim=1)
    return previous, last_position(x)


def inverse_softplus(x: Tensor) -> Tensor:
    """Return y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))


def time_steps(heads: int) -> Tensor:
    """Draw Mamba's initial step sizes, log-uniform in (0.001, 0.1), as inputs of softplus."""
    low, high = torch.tensor([1e-3, 1e-1]).log()
    steps = torch.empty(heads).uniform_(0, 1) * (high - low) + low
    return inverse_softplus(steps.exp().clamp(min=1e-4))
