"""Causal Transformer as a reviewer would accept it today.

Pre-norm, rotary positions, a gated layer, and torch's fused attention. In one layer:

    q, k, v = W_qkv norm(x)                          of each head; q and k rotated by their position
    x_t    <- x_t + W_o attention(q_t, k_1..t, v_1..t)
    g, u    = W_gu norm(x)
    x_t    <- x_t + W_d ( silu(g_t) * u_t )

Vaswani et al. 2017 (arXiv 1706.03762); RoPE: Su et al. 2021 (arXiv 2104.09864); SwiGLU: Shazeer
2020 (arXiv 2002.05202). The gated layer is 3 widths wide, which gives a block the 13 width^2
weights of RWKV-4's block.

Options for controls: a sliding window, whose reach is known (window x depth); other positions; and
a short convolution, which sees the previous tokens as RWKV's token shift does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from lookback.models.block import GatedLayer
from lookback.models.model import register_model, small_normal
from lookback.models.short_conv import optional_convolution

CACHE_PAGE = 256  # positions
QUERY_CHUNK = 512  # queries whose biases are in memory at once
POSITIONS = ("rope", "none", "alibi", "absolute")


class KeyValueCache(NamedTuple):
    """Keys as attention reads them, and values: (batch, 2, heads, capacity, head width).

    The first `length` positions of the capacity are filled. The cache grows by whole pages of
    CACHE_PAGE positions. Doubling its capacity instead would save copies, but the copies move less
    than a hundredth of the bytes that attention reads, and doubling would waste up to half of the
    memory, which is what the cost pages measure.
    """

    memory: Tensor
    length: int

    def append_within(self, key: Tensor, value: Tensor, window: int) -> KeyValueCache:
        """Add positions, and keep the last `window` alone; `length` counts the dropped ones too."""
        both = torch.cat([self.memory, torch.stack([key, value], dim=1)], dim=3)
        return KeyValueCache(both[:, :, :, -window:].clone(), self.length + key.shape[2])

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


class TransformerState(NamedTuple):
    """What a layer remembers: its cache, and the last inputs of its short convolution."""

    cache: KeyValueCache
    inputs: Tensor | None  # (batch, TAPS - 1, width); None without a convolution


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


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Causal attention to the last `window` positions, the present one included.

    All are (batch, heads, length, head width). Time and memory are linear in the length: each block
    of `window` queries attends to its own block of keys and the one before, under a mask.
    """
    length = query.shape[2]
    if length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True)
    missing = -length % window

    def blocks(x: Tensor) -> Tensor:  # (batch, heads, blocks, window, head width)
        return pad(x, (0, 0, 0, missing)).unflatten(2, (-1, window))

    def with_previous(x: Tensor) -> Tensor:  # (batch, heads, blocks, 2 window, head width)
        own = blocks(x)
        return torch.cat([pad(own, (0, 0, 0, 0, 1, 0))[:, :, :-1], own], dim=3)

    queries = torch.arange(window, device=query.device)[:, None]
    keys = torch.arange(-window, window, device=query.device)
    visible = (keys <= queries) & (keys > queries - window)
    count = (length + missing) // window
    mask = visible.repeat(count, 1, 1)  # (blocks, window, 2 window)
    mask[0, :, :window] = False  # there is nothing before the first block
    mixed = scaled_dot_product_attention(
        blocks(query), with_previous(key), with_previous(value), attn_mask=mask
    )
    return mixed.flatten(2, 3)[:, :, :length]


def alibi_bias(heads: int, first_query: int, queries: int, keys: int, like: Tensor) -> Tensor:
    """Return ALiBi's biases, (heads, queries, keys): -slope x distance, -inf for later keys.

    The slopes are 2^(-8 i / heads), i = 1..heads: Press et al. 2021 (arXiv 2108.12409).
    """
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device=like.device) / heads)
    query_at = torch.arange(first_query, first_query + queries, device=like.device)[:, None]
    distance = query_at - torch.arange(keys, device=like.device)
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, -torch.inf).to(like.dtype)


def alibi_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with ALiBi's biases; (batch, heads, length, head width) each."""
    outputs = []
    for first in range(0, query.shape[2], QUERY_CHUNK):
        chunk = query[:, :, first : first + QUERY_CHUNK]
        last = first + chunk.shape[2]
        bias = alibi_bias(query.shape[1], first, chunk.shape[2], last, query)
        mixed = scaled_dot_product_attention(
            chunk, key[:, :, :last], value[:, :, :last], attn_mask=bias
        )
        outputs.append(mixed)
    return torch.cat(outputs, dim=2)


def sinusoids(first_position: int, length: int, width: int, like: Tensor) -> Tensor:
    """Return the sines and cosines of positions, (length, width); Vaswani et al. 2017."""
    half = -(-width // 2)
    rate = 10000 ** -(torch.arange(half, device=like.device) / half)
    angle = (
        torch.arange(first_position, first_position + length, device=like.device)[:, None] * rate
    )
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].to(like.dtype)


@register_model("transformer")
class TransformerBlock(nn.Module):
    """One layer: attention, then the gated layer, each after its norm.

    heads: number of attention heads; by default one per 64 of width, and at least two.
    window: how many of the last positions attention sees, the present one included; 0: all.
    positions: "rope"; "none"; "alibi", biases of attention; or "absolute", sinusoids that are added
        before the first layer.
    short_conv: whether a causal convolution of width 4 comes between the norm and the projections.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        heads: int | None = None,
        window: int = 0,
        positions: str = "rope",
        short_conv: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads or max(2, width // 64)
        if positions not in POSITIONS or window < 0 or (window and positions == "alibi"):
            raise ValueError(
                f"transformer with positions = {positions!r} and window = {window}: expected "
                f"{' or '.join(POSITIONS)}, and a window of at least 0, of 0 with alibi"
            )
        self.window = window
        self.positions = positions
        self.adds_positions = positions == "absolute" and layer == 0
        if self.heads < 1 or width % (2 * self.heads):
            raise ValueError(
                f"transformer of width {width} with {self.heads} heads: "
                "expected an even width a head"
            )
        self.attention_norm = nn.LayerNorm(width)
        self.short_conv = optional_convolution(short_conv, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.mlp = GatedLayer(width, 3 * width)

        small_normal(self.query_key_value.weight)
        small_normal(self.mlp.gate_and_value.weight)
        for output in (self.attention_output, self.mlp.output):
            small_normal(output.weight)
            # the residual stream is the sum of 2 depth such outputs
            output.weight.data.div_((2 * depth) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        x = self.add_positions(x)
        query, key, value, _ = self.project(x)
        return self.finish(x, self.attend(query, key, value))

    def prefill(self, x: Tensor) -> tuple[Tensor, TransformerState]:
        x = self.add_positions(x)
        query, key, value, inputs = self.project(x)
        empty = self.initial_state(x.shape[0], x.device, key.dtype)
        cache = self.remember(empty.cache, key, value)
        return self.finish(x, self.attend(query, key, value)), TransformerState(cache, inputs)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> TransformerState:
        width = self.attention_output.in_features
        shape = (batch_size, 2, self.heads, 0, width // self.heads)
        cache = KeyValueCache(torch.empty(shape, device=device, dtype=dtype), 0)
        inputs = self.short_conv.initial_state(batch_size, device, dtype)
        return TransformerState(cache, inputs)

    def step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        first = state.cache.length
        x = self.add_positions(x[:, None], first)  # (batch, 1, width)
        query, key, value, inputs = self.project(x, first, state.inputs)
        cache = self.remember(state.cache, key, value)
        keys, values = cache.memory[:, :, :, : cache.length].unbind(1)
        bias = None
        if self.positions == "alibi":
            bias = alibi_bias(self.heads, first, 1, cache.length, query)
        mixed = scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        return self.finish(x, mixed)[:, 0], TransformerState(cache, inputs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention from the first position on: (batch, heads, length, head width) each."""
        if self.window:
            return windowed_attention(query, key, value, self.window)
        if self.positions == "alibi":
            return alibi_attention(query, key, value)
        return scaled_dot_product_attention(query, key, value, is_causal=True)

    def remember(self, cache: KeyValueCache, key: Tensor, value: Tensor) -> KeyValueCache:
        """Add positions to a cache, which a window bounds."""
        if self.window:
            return cache.append_within(key, value, self.window)
        return cache.append(key, value)

    def add_positions(self, x: Tensor, first_position: int = 0) -> Tensor:
        """Add absolute positions to the input of the first layer: (batch, length, width)."""
        if not self.adds_positions:
            return x
        return x + sinusoids(first_position, x.shape[1], x.shape[2], x)

    def project(
        self, x: Tensor, first_position: int = 0, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values, and the state of the short convolution after x.

        The first three are (batch, heads, length, head width) each, rotated if positions are.
        """
        h, inputs = self.short_conv(self.attention_norm(x), inputs)
        per_head = self.query_key_value(h).unflatten(-1, (3, self.heads, -1))  # (b, t, 3, h, d)
        query, key, value = per_head.permute(2, 0, 3, 1, 4)  # each (b, h, t, d)
        if self.positions == "rope":
            query, key = rotate(query, first_position), rotate(key, first_position)
        return query, key, value, inputs

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the output of attention, (batch, heads, length, head width), and the gated layer."""
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))
