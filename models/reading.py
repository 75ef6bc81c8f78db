"""How a sequence becomes one answer: the order in which it is read, and what is kept of it.

Sequences end in padding; `lengths` counts the tokens that are valid. Nothing that comes out depends
on what the padding holds or how much of it there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("last", "mean")
DIRECTIONS = ("causal", "bidirectional")


def reverse_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The valid part of each sequence back to front, its padding left where it is: (batch, length,
    width) -> same.

    a b c _ _   ->   c b a _ _
    """
    if lengths is None:
        return x.flip(1)
    position = torch.arange(x.shape[1], device=x.device)
    behind = lengths[:, None] - 1 - position  # negative in the padding
    return x.gather(1, torch.where(behind >= 0, behind, position)[:, :, None].expand_as(x))


def pool(x: Tensor, lengths: Tensor | None, pooling: str) -> Tensor:
    """One vector a sequence, (batch, length, width) -> (batch, width): its last valid one, or the
    mean of all valid.
    """
    if lengths is None:
        return x[:, -1] if pooling == "last" else x.mean(1)
    if pooling == "last":
        return x[torch.arange(len(x), device=x.device), lengths - 1]
    valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(valid[:, :, None], x, 0).sum(1) / lengths[:, None]


def pair_features(features: Tensor) -> Tensor:
    """Features of two documents, (batch, 2, width), as one vector: both, their product, their
    difference (4 widths).
    """
    a, b = features.unbind(1)
    return torch.cat([a, b, a * b, a - b], dim=-1)
