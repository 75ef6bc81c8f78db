"""RWKV-4 as published (Peng et al. 2023, arXiv 2305.13048).

In one layer, with h = norm(x), y = norm(x) after the first line, mu shares by channel, and zeros
before the first position:

    time-mix      x_t <- x_t + W_o ( sigmoid(W_r x^r_t) * wkv(W_k x^k, W_v x^v)_t )
                  x^c_t = mu_c h_t + (1 - mu_c) h_{t-1}                        for c in r, k, v

    channel-mix   x_t <- x_t + sigmoid(W_r x^r_t) * W_v relu(W_k x^k_t)^2
                  x^c_t = mu_c y_t + (1 - mu_c) y_{t-1}                        for c in r, k

The weights of the channel-mix are its own. `lookback.models.wkv` has the operator wkv.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookback.models.block import last_position
from lookback.models.model import ArchitectureSpec, register_model
from lookback.models.short_conv import Convolved
from lookback.models.wkv import WKVState, empty_state, wkv, wkv_step


class TimeMixState(NamedTuple):
    """The last input of a time-mix, (batch, width), and the state of its WKV."""

    last_input: Tensor
    wkv: WKVState


def previous_inputs(x: Tensor) -> Tensor:
    """Shift each sequence by one position, zeros first: (batch, length, width) -> same."""
    return nn.functional.pad(x, (0, 0, 1, -1))


def orthogonal(linear: nn.Linear) -> None:
    """Fill a matrix orthogonally, with a gain where it widens, as RWKV-4 does."""
    outputs, inputs = linear.weight.shape
    nn.init.orthogonal_(linear.weight, gain=max(1.0, outputs / inputs) ** 0.5)


def _mix_share(width: int, power: float, offset: float = 0.0) -> nn.Parameter:
    """Share of the present input in the token shift, by channel i: (i / width)^power + offset."""
    return nn.Parameter((torch.arange(width) / width) ** power + offset)


class TimeMix(nn.Module):
    """Mixes positions: token shift, WKV, and a gate."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        progress = layer / (depth - 1) if depth > 1 else 0.0  # 0 in the first layer, 1 in the last
        remaining = 1 - layer / depth
        self.mix_key = _mix_share(width, remaining)
        self.mix_value = _mix_share(width, remaining, 0.3 * progress)
        self.mix_receptance = _mix_share(width, remaining / 2)

        channel = torch.arange(width)
        speed = (channel / max(1, width - 1)) ** (0.7 + 1.3 * progress)
        zigzag = (channel + 1) % 3 - 1
        self.decay = nn.Parameter(-5 + 8 * speed)
        self.bonus = nn.Parameter(torch.full((width,), 0.3).log() + 0.5 * zigzag)

        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        orthogonal(self.value)
        for linear in (self.key, self.receptance, self.output):
            nn.init.zeros_(linear.weight)

    def token_shift(self, h: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of receptance, key and value, (..., width) each.

        h is (..., width), and `previous` is h one position earlier.
        """
        return (
            torch.lerp(previous, h, self.mix_receptance),
            torch.lerp(previous, h, self.mix_key),
            torch.lerp(previous, h, self.mix_value),
        )

    def project(
        self, receptance_input: Tensor, key_input: Tensor, value_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return receptance, key and value, (..., width) each."""
        return self.receptance(receptance_input), self.key(key_input), self.value(value_input)

    def prefill(self, h: Tensor) -> tuple[Tensor, TimeMixState]:
        receptance, key, value = self.project(*self.token_shift(h, previous_inputs(h)))
        average, wkv_state = wkv(self.decay.exp(), self.bonus, key, value)
        mixed = self.output(receptance.sigmoid() * average)
        return mixed, TimeMixState(last_position(h), wkv_state)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> TimeMixState:
        width = len(self.decay)
        zeros = torch.zeros(batch_size, width, device=device, dtype=dtype)
        return TimeMixState(zeros, empty_state(batch_size, width, device))

    def step(self, h: Tensor, state: TimeMixState) -> tuple[Tensor, TimeMixState]:
        receptance, key, value = self.project(*self.token_shift(h, state.last_input))
        average, wkv_state = wkv_step(self.decay.exp(), self.bonus, key, value, state.wkv)
        return self.output(receptance.sigmoid() * average), TimeMixState(h, wkv_state)


class ChannelMix(nn.Module):
    """Mixes channels: token shift, a squared ReLU 4 widths wide, and a gate.

    Its state is its last input, (batch, width).
    """

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        remaining = 1 - layer / depth
        self.mix_key = _mix_share(width, remaining)
        self.mix_receptance = _mix_share(width, remaining)
        self.key = nn.Linear(width, 4 * width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(4 * width, width, bias=False)
        orthogonal(self.key)
        for linear in (self.receptance, self.value):
            nn.init.zeros_(linear.weight)

    def token_shift(self, y: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of receptance and key; `previous` is y one position earlier."""
        return (
            torch.lerp(previous, y, self.mix_receptance),
            torch.lerp(previous, y, self.mix_key),
        )

    def gated_layer(self, receptance_input: Tensor, key_input: Tensor) -> Tensor:
        """Apply the gated squared ReLU, (..., width) -> same."""
        gate = self.receptance(receptance_input).sigmoid()
        hidden = self.key(key_input).relu().square()  # (..., 4 width)
        return gate * self.value(hidden)

    def prefill(self, y: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.token_shift(y, previous_inputs(y))
        return self.gated_layer(*inputs), last_position(y)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch_size, self.receptance.in_features, device=device, dtype=dtype)

    def step(self, y: Tensor, last_input: Tensor) -> tuple[Tensor, Tensor]:
        return self.gated_layer(*self.token_shift(y, last_input)), y


def _embedding_init(weight: Tensor) -> None:
    nn.init.uniform_(weight, -1e-4, 1e-4)  # nearly zero: the norm behind it scales it up


def _head_init(weight: Tensor) -> None:
    outputs, inputs = weight.shape
    nn.init.orthogonal_(weight, gain=0.5 * max(1.0, outputs / inputs) ** 0.5)


SPEC = ArchitectureSpec(
    embedding_norm=True,
    embedding_init=_embedding_init,
    head_init=_head_init,
    learning_rate_scale={"decay": 2.0, "bonus": 3.0},
)

RWKVState = tuple[Any, Any]  # of the time-mix and of the channel-mix


@register_model("rwkv", SPEC)
class RWKVBlock(nn.Module):
    """One layer: time-mix, then channel-mix, each after its norm.

    short_conv: whether a causal convolution of width 4 comes ahead of the time-mix.
    """

    time_mix: Any
    channel_mix: Any

    def __init__(self, width: int, layer: int, depth: int, *, short_conv: bool = False) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(width)
        self.channel_norm = nn.LayerNorm(width)
        self.time_mix = TimeMix(width, layer, depth)
        self.channel_mix = ChannelMix(width, layer, depth)
        if short_conv:
            self.time_mix = Convolved(width, self.time_mix)

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, RWKVState]:
        mixed, time_state = self.time_mix.prefill(self.time_norm(x))
        x = x + mixed
        mixed, channel_state = self.channel_mix.prefill(self.channel_norm(x))
        return x + mixed, (time_state, channel_state)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> RWKVState:
        time_state = self.time_mix.initial_state(batch_size, device, dtype)
        channel_state = self.channel_mix.initial_state(batch_size, device, dtype)
        return time_state, channel_state

    def step(self, x: Tensor, state: RWKVState) -> tuple[Tensor, RWKVState]:
        time_state, channel_state = state
        mixed, time_state = self.time_mix.step(self.time_norm(x), time_state)
        x = x + mixed
        mixed, channel_state = self.channel_mix.step(self.channel_norm(x), channel_state)
        return x + mixed, (time_state, channel_state)
