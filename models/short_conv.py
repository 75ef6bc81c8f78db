"""A short causal convolution ahead of a mixer: what it sees of the previous tokens.

RWKV's token shift is one of width 2. Without it, a comparison of mixers also compares who sees the
previous token (arXiv 2508.19029, 2512.17351).
"""

from typing import Any

import torch
from torch import Tensor, nn

TAPS = 4


class ShortConvolution(nn.Module):
    """For each channel, a weighted sum of the present input and the TAPS - 1 before it.

    y_t = sum over i of w_i * x_{t - TAPS + 1 + i} + bias      with x = 0 before the first position
    """

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__()
        bound = TAPS**-0.5  # as nn.Conv1d, whose inputs per output are TAPS
        self.taps = nn.Parameter(torch.empty(TAPS, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the inputs before the first position: zeros, (batch, TAPS - 1, width)."""
        return torch.zeros(batch_size, TAPS - 1, self.taps.shape[1], device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs, (batch, length, width) like x, and the state after them.

        The state holds the last TAPS - 1 inputs, (batch, TAPS - 1, width); None before the first.
        """
        if state is None:
            state = self.initial_state(x.shape[0], x.device, x.dtype)
        padded = torch.cat([state.to(x.dtype), x], dim=1)
        length = x.shape[1]
        y = torch.zeros_like(x)
        for tap in range(TAPS):
            y = torch.addcmul(y, self.taps[tap].to(x.dtype), padded[:, tap : tap + length])
        if self.bias is not None:
            y = y + self.bias
        return y, padded[:, length:].clone()  # a view would keep all inputs alive


class NoConvolution(nn.Module):
    """In place of a short convolution that is switched off: its output is its input."""

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        """Return no state."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return the input, and no state."""
        return x, None


def optional_convolution(is_on: bool, width: int, bias: bool = False) -> Any:
    """Return a short convolution, or what stands in its place."""
    return ShortConvolution(width, bias) if is_on else NoConvolution()


class Convolved(nn.Module):
    """A mixer that reads its input through a short convolution.

    The mixer has `prefill`, `initial_state` and `step`, as a block does.
    """

    def __init__(self, width: int, mixer: Any) -> None:
        super().__init__()
        self.mixer = mixer
        self.convolution = ShortConvolution(width)

    def prefill(self, h: Tensor) -> tuple[Tensor, Any]:
        h, inputs = self.convolution(h)
        mixed, state = self.mixer.prefill(h)
        return mixed, (inputs, state)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        inputs = self.convolution.initial_state(batch_size, device, dtype)
        return inputs, self.mixer.initial_state(batch_size, device, dtype)

    def step(self, h: Tensor, state: Any) -> tuple[Tensor, Any]:
        inputs, mixer_state = state
        h, inputs = self.convolution(h[:, None], inputs)
        mixed, mixer_state = self.mixer.step(h[:, 0], mixer_state)
        return mixed, (inputs, mixer_state)
