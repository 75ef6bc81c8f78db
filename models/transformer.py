"""Causal Transformer as a reviewer would accept it today: pre-norm, rotary positions, SwiGLU, fused
attention.

Vaswani et al. 2017 (arXiv 1706.03762); RoPE: Su et al. 2021 (arXiv 2104.09864); SwiGLU: Shazeer
2020 (arXiv 2002.05202). The gated layer is 3 widths wide, which gives a block the 13 width^2
weights of RWKV-4's.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from lookback.models.lean import normed, parts, product
from lookback.models.model import register_model, small_normal

CACHE_PAGE = 256  # positions


class KeyValueCache(NamedTuple):
    """Keys and values of past positions, (batch, 2, heads, capacity, head width), of which `length`
    are filled.

    It grows by whole pages of CACHE_PAGE positions, so that it holds what was read and little more.
    To copy it once a page moves less than a hundredth of the bytes that attention to it reads in
    the steps of that page, at any length; doubling it instead would save that, and keep up to twice
    the memory.
    """

    memory: Tensor
    length: int


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: turns each pair of features of (..., length, head width) by an angle that
    grows with position.

    Positions count from 0. Angles are computed in float32, base 10000.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    rate = 10000 ** -(torch.arange(half, device=x.device) / half)
    angle = torch.arange(length, device=x.device)[:, None] * rate  # (length, half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


@register_model("transformer")
class TransformerBlock(nn.Module):
    """Options: `heads`, the number of attention heads; by default one for every 64 of width, two at
    least.
    """

    turns: Tensor

    def __init__(self, width: int, layer: int, depth: int, *, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or max(2, width // 64)
        if self.heads < 1 or width % (2 * self.heads):
            raise ValueError(
                f"transformer of width {width} with {self.heads} heads: expected an even width a head"
            )
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.gate_and_value = nn.Linear(width, 6 * width, bias=False)
        self.mlp_output = nn.Linear(3 * width, width, bias=False)
        for linear in (
            self.query_key_value,
            self.gate_and_value,
            self.attention_output,
            self.mlp_output,
        ):
            small_normal(linear.weight)
        for linear in (self.attention_output, self.mlp_output):
            linear.weight.data.div_((2 * depth) ** 0.5)  # the residual stream adds 2 depth of them
        self.register_buffer("turns", _turns(width // self.heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        query, key, value = self.project(x)
        mixed = scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.finish(x, mixed)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, (batch, heads, length, head width) each."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(
            -1, (3, self.heads, -1)
        )  # (b, t, 3, h, d)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        return query, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add what attention gave, (batch, heads, length, head width), and what the gated layer
        gives.
        """
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        gate, value = self.gate_and_value(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_output(silu(gate) * value)

    def prefill(self, x: Tensor) -> tuple[Tensor, KeyValueCache]:
        query, key, value = self.project(x)
        key = rotate(key)
        mixed = scaled_dot_product_attention(rotate(query), key, value, is_causal=True)
        cache = _append(self.initial_state(x.shape[0], x.device, key.dtype), key, value)
        return self.finish(x, mixed), cache

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        head_width = self.attention_output.in_features // self.heads
        return KeyValueCache(
            torch.empty(batch_size, 2, self.heads, 0, head_width, device=device, dtype=dtype), 0
        )

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        layers, position = parts(self), state.length
        heads = product(layers["query_key_value"], normed(layers["attention_norm"], x))
        heads = heads.unflatten(-1, (3, self.heads, -1))  # (batch, 3, heads, head width)
        angle = self.turns.float() * position  # as `rotate` turns query and key
        other_half = heads.roll(heads.shape[-1] // 2, -1)
        turned = torch.addcmul(
            heads * angle.cos().to(heads.dtype), other_half, angle.sin().to(heads.dtype)
        )
        cache = _with_room(state, position + 1, turned)
        cache.memory[:, :, :, position] = turned[:, 1:]
        keys, values = cache.memory[:, :, :, : position + 1].unbind(1)
        mixed = scaled_dot_product_attention(
            turned[:, 0].unsqueeze(2), keys, values
        )  # (batch, heads, 1, head width)
        x = x + product(layers["attention_output"], mixed.flatten(1))
        gate, value = product(layers["gate_and_value"], normed(layers["mlp_norm"], x)).chunk(
            2, dim=-1
        )
        return x + product(layers["mlp_output"], silu(gate) * value), cache


def _turns(head_width: int) -> Tensor:
    """What a position turns each feature of query, key and value by, (3, 1, head width).

    The first half turns backwards, which gives the sines their signs, and values do not turn:
    `rotate` is then one product and one sum over all three.
    """
    half = head_width // 2
    rate = 10000 ** -(torch.arange(half) / half)
    both = torch.cat([-rate, rate])
    return torch.stack([both, both, torch.zeros_like(both)])[:, None]


def _append(cache: KeyValueCache, key: Tensor, value: Tensor) -> KeyValueCache:
    """Write keys and values (batch, heads, new, head width) behind those of the cache, in place
    where there is room.
    """
    grown = _with_room(cache, cache.length + key.shape[2], key)
    grown.memory[:, 0, :, cache.length : grown.length] = key
    grown.memory[:, 1, :, cache.length : grown.length] = value
    return grown


def _with_room(cache: KeyValueCache, length: int, like: Tensor) -> KeyValueCache:
    """The cache with room for `length` positions, of `like`'s dtype where it had to grow."""
    memory = cache.memory
    if length > memory.shape[3]:
        pages = -(-length // CACHE_PAGE) * CACHE_PAGE
        memory = like.new_empty(*memory.shape[:3], pages, memory.shape[4])
        memory[:, :, :, : cache.length] = cache.memory[:, :, :, : cache.length]
    return KeyValueCache(memory, length)
