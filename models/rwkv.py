"""RWKV-4 as published (Peng et al. 2023, arXiv 2305.13048): token shift, time-mix with WKV,
channel-mix.

One layer; h is x after the first norm, y after the second; mu are per-channel shares:

    time-mix      x^c_t = mu_c h_t + (1 - mu_c) h_{t-1}                for c in r, k, v
                  x_t  += W_o( sigmoid(W_r x^r_t) * wkv(W_k x^k, W_v x^v)_t )
    channel-mix   x_t  += sigmoid(W_r' x^r_t) * W_v' relu(W_k' x^k_t)^2        with x^r, x^k from y likewise
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookback.models.lean import normed, own, parts, product
from lookback.models.model import ArchitectureSpec, register_model
from lookback.models.wkv import WKVState, empty_state, wkv, wkv_step


class TimeMixState(NamedTuple):
    """The last input, (batch, width), and the state of WKV. The state of a channel-mix is its last
    input alone.
    """

    before: Tensor
    wkv: WKVState


def shift(x: Tensor) -> Tensor:
    """Each position sees the one before it, the first one zeros: (batch, length, width) -> same."""
    return nn.functional.pad(x, (0, 0, 1, -1))


def last(x: Tensor) -> Tensor:
    """The last position, (batch, length, width) -> (batch, width), in memory of its own: a view
    would keep all of x.
    """
    return x[:, -1].clone()


def orthogonal(linear: nn.Linear) -> None:
    """Fill a matrix orthogonally, larger where it widens, as RWKV-4 does."""
    out, into = linear.weight.shape
    nn.init.orthogonal_(linear.weight, gain=max(1.0, out / into) ** 0.5)


def _share(width: int, power: float, more: float = 0.0) -> nn.Parameter:
    """Share of the present in the token shift: (i / width)^power + more, growing over the channels."""
    return nn.Parameter((torch.arange(width) / width) ** power + more)


class TimeMix(nn.Module):
    """Mixes positions: token shift, WKV, and a gate; equations 11 to 13, 16 and 17 of the paper."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        progress = layer / (depth - 1) if depth > 1 else 0.0  # 0 in the first layer, 1 in the last
        remaining = 1 - layer / depth
        channel = torch.arange(width)
        self.mix_key = _share(width, remaining)
        self.mix_value = _share(width, remaining, 0.3 * progress)
        self.mix_receptance = _share(width, remaining / 2)
        self.decay = nn.Parameter(-5 + 8 * (channel / max(1, width - 1)) ** (0.7 + 1.3 * progress))
        self.bonus = nn.Parameter(torch.full((width,), 0.3).log() + 0.5 * ((channel + 1) % 3 - 1))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        orthogonal(self.value)
        for linear in (self.key, self.receptance, self.output):
            nn.init.zeros_(linear.weight)

    def mixed(self, h: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Inputs of receptance, key and value, from h (..., width) and `before`, h one position
        earlier.
        """
        shares = self.mix_receptance, self.mix_key, self.mix_value
        return tuple(torch.lerp(before, h, share) for share in shares)

    def project(
        self, for_receptance: Tensor, for_key: Tensor, for_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Receptance, key and value, (..., width) each."""
        return self.receptance(for_receptance), self.key(for_key), self.value(for_value)

    def prefill(self, h: Tensor) -> tuple[Tensor, TimeMixState]:
        receptance, key, value = self.project(*self.mixed(h, shift(h)))
        answer, state = wkv(self.decay.exp(), self.bonus, key, value)
        return self.output(receptance.sigmoid() * answer), TimeMixState(last(h), state)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> TimeMixState:
        width = len(self.decay)
        zeros = torch.zeros(batch_size, width, device=device, dtype=dtype)
        return TimeMixState(zeros, empty_state(batch_size, width, device))

    def step(self, h: Tensor, state: TimeMixState) -> tuple[Tensor, TimeMixState]:
        receptance, key, value = self.project_once(*self.mixed_once(h, state.before))
        answer, after = self.wkv_once(key, value, state.wkv)
        return product(parts(self)["output"], receptance.sigmoid() * answer), TimeMixState(h, after)

    def mixed_once(self, h: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`mixed` for `step`, and so on for what follows."""
        share = own(self)
        return (
            torch.lerp(before, h, share["mix_receptance"]),
            torch.lerp(before, h, share["mix_key"]),
            torch.lerp(before, h, share["mix_value"]),
        )

    def project_once(
        self, for_receptance: Tensor, for_key: Tensor, for_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`project` for `step`."""
        layers = parts(self)
        return (
            product(layers["receptance"], for_receptance),
            product(layers["key"], for_key),
            product(layers["value"], for_value),
        )

    def wkv_once(self, key: Tensor, value: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
        """WKV at one position, (batch, width), and its state after it."""
        weights = own(self)
        return wkv_step(weights["decay"].exp(), weights["bonus"], key, value, state)


class ChannelMix(nn.Module):
    """Mixes channels: token shift, a squared ReLU 4 widths wide, and a gate; equations 14, 15 and
    18.
    """

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        remaining = 1 - layer / depth
        self.mix_key, self.mix_receptance = _share(width, remaining), _share(width, remaining)
        self.key = nn.Linear(width, 4 * width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(4 * width, width, bias=False)
        orthogonal(self.key)
        for linear in (self.receptance, self.value):
            nn.init.zeros_(linear.weight)

    def mixed(self, y: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Inputs of receptance and key, from y (..., width) and `before`, y one position earlier."""
        return torch.lerp(before, y, self.mix_receptance), torch.lerp(before, y, self.mix_key)

    def respond(self, for_receptance: Tensor, for_key: Tensor) -> Tensor:
        """The gated layer, (..., width) -> same."""
        return self.receptance(for_receptance).sigmoid() * self.value(
            self.key(for_key).relu().square()
        )

    def prefill(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.respond(*self.mixed(y, shift(y))), last(y)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch_size, self.receptance.in_features, device=device, dtype=dtype)

    def step(self, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return self.respond_once(*self.mixed_once(y, before)), y

    def mixed_once(self, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """`mixed` for `step`."""
        share = own(self)
        return torch.lerp(before, y, share["mix_receptance"]), torch.lerp(
            before, y, share["mix_key"]
        )

    def respond_once(self, for_receptance: Tensor, for_key: Tensor) -> Tensor:
        """`respond` for `step`."""
        layers = parts(self)
        key = product(layers["key"], for_key).relu()
        return product(layers["receptance"], for_receptance).sigmoid() * product(
            layers["value"], key * key
        )


def _embedding_init(weight: Tensor) -> None:
    nn.init.uniform_(weight, -1e-4, 1e-4)  # next to nothing: the norm behind it makes it large


def _head_init(weight: Tensor) -> None:
    out, into = weight.shape
    nn.init.orthogonal_(weight, gain=0.5 * max(1.0, out / into) ** 0.5)


SPEC = ArchitectureSpec(
    embedding_norm=True,
    embedding_init=_embedding_init,
    head_init=_head_init,
    learning_rate_scale={"decay": 2.0, "bonus": 3.0},
)


RWKVState = tuple[Any, Any]  # of the time-mix and of the channel-mix


@register_model("rwkv", SPEC)
class RWKVBlock(nn.Module):
    """A layer: time-mix, then channel-mix, each behind its norm. It has no options."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.time_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time_mix, self.channel_mix = (
            TimeMix(width, layer, depth),
            ChannelMix(width, layer, depth),
        )

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, RWKVState]:
        mixed, time = self.time_mix.prefill(self.time_norm(x))
        x = x + mixed
        mixed, channel = self.channel_mix.prefill(self.channel_norm(x))
        return x + mixed, (time, channel)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> RWKVState:
        arguments = batch_size, device, dtype
        return self.time_mix.initial_state(*arguments), self.channel_mix.initial_state(*arguments)

    def step(self, x: Tensor, state: RWKVState) -> tuple[Tensor, RWKVState]:
        layers = parts(self)
        mixed, time = layers["time_mix"].step(normed(layers["time_norm"], x), state[0])
        x = x + mixed
        mixed, channel = layers["channel_mix"].step(normed(layers["channel_norm"], x), state[1])
        return x + mixed, (time, channel)
