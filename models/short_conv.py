"""A short causal convolution ahead of a mixer: what it sees of the previous tokens.

RWKV's token shift is one of width 2. Without it, a comparison of mixers also compares who sees the
previous token (arXiv 2508.19029, 2512.17351).
"""

import torch
from torch import Tensor, nn

TAPS = 4


class ShortConvolution(nn.Module):
    """For each channel, a weighted sum of the present input and the TAPS - 1 before it.

    y_t = sum over i of w_i * x_{t - TAPS + 1 + i}        with x = 0 before the first position
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = TAPS**-0.5  # as nn.Conv1d, whose inputs per output are TAPS
        self.taps = nn.Parameter(torch.empty(TAPS, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs, (batch, length, width) like x, and the state after them.

        The state holds the last TAPS - 1 inputs, (batch, TAPS - 1, width); None before the first.
        """
        if state is None:
            state = x.new_zeros(x.shape[0], TAPS - 1, x.shape[2])
        padded = torch.cat([state, x], dim=1)
        length = x.shape[1]
        y = torch.zeros_like(x)
        for tap in range(TAPS):
            y = y + self.taps[tap] * padded[:, tap : tap + length]
        return y, padded[:, length:].clone()  # a view would keep all inputs alive
