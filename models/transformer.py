"""Causal Transformer as a reviewer would accept it today: pre-norm, rotary positions, SwiGLU, fused attention.

Vaswani et al. 2017 (arXiv 1706.03762); RoPE: Su et al. 2021 (arXiv 2104.09864); SwiGLU: Shazeer 2020 (arXiv
2002.05202). The gated layer is 3 widths wide, which gives a block the 13 width^2 weights of RWKV-4's.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from models.model import register_model, small_normal

CACHE_PAGE = 256  # positions; the cache grows by whole pages, so that few steps copy it


class KeyValueCache(NamedTuple):
    """Keys and values of past positions, (batch, 2, heads, capacity, head width), of which `length` are filled."""

    memory: Tensor
    length: int


def rotate(x: Tensor, first: int = 0) -> Tensor:
    """Rotary positions: turns each pair of features of (..., length, head width) by an angle that grows with position.

    Position of x[..., 0, :] is `first`. Angles are computed in float32, base 10000.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    rate = 10000 ** -(torch.arange(half, device=x.device) / half)
    angle = torch.arange(first, first + length, device=x.device)[:, None] * rate  # (length, half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


@register_model("transformer")
class TransformerBlock(nn.Module):
    """Options: `heads`, the number of attention heads; by default one for every 64 of width, two at least."""

    def __init__(self, width: int, layer: int, depth: int, *, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or max(2, width // 64)
        if self.heads < 1 or width % (2 * self.heads):
            raise ValueError(f"transformer of width {width} with {self.heads} heads: expected an even width a head")
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.gate_and_value = nn.Linear(width, 6 * width, bias=False)
        self.mlp_output = nn.Linear(3 * width, width, bias=False)
        for linear in (self.query_key_value, self.gate_and_value, self.attention_output, self.mlp_output):
            small_normal(linear.weight)
        for linear in (self.attention_output, self.mlp_output):
            linear.weight.data.div_((2 * depth) ** 0.5)  # the residual stream adds 2 depth of them

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        query, key, value = self.project(x)
        mixed = scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.finish(x, mixed)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))  # (b, t, 3, h, d)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        return query, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        gate, value = self.gate_and_value(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_output(silu(gate) * value)

    def prefill(self, x: Tensor) -> tuple[Tensor, KeyValueCache]:
        query, key, value = self.project(x)
        key = rotate(key)
        mixed = scaled_dot_product_attention(rotate(query), key, value, is_causal=True)
        cache = _append(self.initial_state(x.shape[0], x.device, key.dtype), key, value)
        return self.finish(x, mixed), cache

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> KeyValueCache:
        head_width = self.attention_output.in_features // self.heads
        return KeyValueCache(torch.empty(batch_size, 2, self.heads, 0, head_width, device=device, dtype=dtype), 0)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        query, key, value = self.project(x[:, None])  # (batch, heads, 1, head width)
        query, key = rotate(query, state.length), rotate(key, state.length)
        cache = _append(state, key, value)
        keys, values = cache.memory[:, :, :, : cache.length].unbind(1)
        mixed = scaled_dot_product_attention(query, keys, values)
        return self.finish(x[:, None], mixed)[:, 0], cache


def _append(cache: KeyValueCache, key: Tensor, value: Tensor) -> KeyValueCache:
    """Write keys and values (batch, heads, new, head width) behind those of the cache, in place where there is room."""
    length = cache.length + key.shape[2]
    memory = cache.memory
    if length > memory.shape[3]:
        pages = -(-length // CACHE_PAGE) * CACHE_PAGE
        memory = key.new_empty(*memory.shape[:3], pages, memory.shape[4])
        memory[:, :, :, : cache.length] = cache.memory[:, :, :, : cache.length]
    memory[:, 0, :, cache.length : length] = key
    memory[:, 1, :, cache.length : length] = value
    return KeyValueCache(memory, length)
