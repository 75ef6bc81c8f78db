"""Causal Transformer as a reviewer would accept it today.

Pre-norm, rotary positions, a gated layer, and torch's fused attention. In one layer:

    q, k, v = W_qkv norm(x)                          of each head; q and k rotated by their position
    x_t    <- x_t + W_o attention(q_t, k_1..t, v_1..t)
    g, u    = W_gu norm(x)
    x_t    <- x_t + W_d ( silu(g_t) * u_t )

Vaswani et al. 2017 (arXiv 1706.03762); RoPE: Su et al. 2021 (arXiv 2104.09864); SwiGLU: Shazeer
2020 (arXiv 2002.05202). The gated layer is 3 widths wide, which gives a block the 13 width^2
weights of RWKV-4's block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from lookback.models.model import register_model, small_normal

CACHE_PAGE = 256  # positions


class KeyValueCache(NamedTuple):
    """Rotated keys, and values, of past positions: (batch, 2, heads, capacity, head width).

    The first `length` positions of the capacity are filled. The cache grows by whole pages of
    CACHE_PAGE positions. Doubling its capacity instead would save copies, but the copies move less
    than a hundredth of the bytes that attention reads, and doubling would waste up to half of the
    memory, which is what the cost pages measure.
    """

    memory: Tensor
    length: int

    def append(self, key: Tensor, value: Tensor) -> KeyValueCache:
        """Add positions, (batch, heads, new, head width) each, in place where there is room."""
        memory = self.memory
        length = self.length + key.shape[2]
        if length > memory.shape[3]:
            capacity = -(-length // CACHE_PAGE) * CACHE_PAGE  # rounded up to whole pages
            memory = key.new_empty(*memory.shape[:3], capacity, memory.shape[4])
            memory[:, :, :, : self.length] = self.memory[:, :, :, : self.length]

        memory[:, 0, :, self.length : length] = key
        memory[:, 1, :, self.length : length] = value
        return KeyValueCache(memory, length)


def rotate(x: Tensor, first_position: int = 0) -> Tensor:
    """Rotary positions: rotate pairs of features by an angle proportional to the position.

    x is (..., length, head width); feature j is paired with feature j + head width / 2. Its first
    position has the number `first_position`. Angles are computed in float32, with base 10000.
    """
    length = x.shape[-2]
    half = x.shape[-1] // 2
    rate = 10000 ** -(torch.arange(half, device=x.device) / half)
    position = torch.arange(first_position, first_position + length, device=x.device)
    angle = position[:, None] * rate  # (length, half)
    cos = angle.cos().to(x.dtype)
    sin = angle.sin().to(x.dtype)

    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


@register_model("transformer")
class TransformerBlock(nn.Module):
    """One layer: attention, then the gated layer, each after its norm.

    heads: number of attention heads; by default one per 64 of width, and at least two.
    """

    def __init__(self, width: int, layer: int, depth: int, *, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or max(2, width // 64)
        if self.heads < 1 or width % (2 * self.heads):
            raise ValueError(
                f"transformer of width {width} with {self.heads} heads: "
                "expected an even width a head"
            )
        self.attention_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.gate_and_value = nn.Linear(width, 6 * width, bias=False)
        self.mlp_output = nn.Linear(3 * width, width, bias=False)

        small_normal(self.query_key_value.weight)
        small_normal(self.gate_and_value.weight)
        for output in (self.attention_output, self.mlp_output):
            small_normal(output.weight)
            # the residual stream is the sum of 2 depth such outputs
            output.weight.data.div_((2 * depth) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        query, key, value = self.project(x)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.finish(x, mixed)

    def prefill(self, x: Tensor) -> tuple[Tensor, KeyValueCache]:
        query, key, value = self.project(x)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        cache = self.initial_state(x.shape[0], x.device, key.dtype).append(key, value)
        return self.finish(x, mixed), cache

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        head_width = self.attention_output.in_features // self.heads
        memory = torch.empty(batch_size, 2, self.heads, 0, head_width, device=device, dtype=dtype)
        return KeyValueCache(memory, 0)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        x = x[:, None]  # (batch, 1, width)
        query, key, value = self.project(x, state.length)
        cache = state.append(key, value)
        keys, values = cache.memory[:, :, :, : cache.length].unbind(1)
        mixed = scaled_dot_product_attention(query, keys, values)
        return self.finish(x, mixed)[:, 0], cache

    def project(self, x: Tensor, first_position: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values: (batch, heads, length, head width) each."""
        projected = self.query_key_value(self.attention_norm(x))
        per_head = projected.unflatten(-1, (3, self.heads, -1))  # (b, t, 3, h, d)
        query, key, value = per_head.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        return rotate(query, first_position), rotate(key, first_position), value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the output of attention, (batch, heads, length, head width), and the gated layer."""
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        gate, value = self.gate_and_value(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_output(silu(gate) * value)
