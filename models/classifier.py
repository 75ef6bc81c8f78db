"""Models that give one label to a whole sequence, or to a pair of sequences.

Long Range Arena needs them. Sequences end in padding, and `lengths` counts the valid tokens before
it; neither the tokens in the padding nor their number changes the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lookback.models.model import ArchitectureSpec, SequenceModel, State

POOLINGS = ("last", "mean")
DIRECTIONS = ("causal", "bidirectional")


class SequenceClassifier(SequenceModel):
    """A model with one label per example, computed from one pooled vector per sequence.

    pooling: "last", the vector at the last valid position, or "mean", over all valid positions.
    direction: "bidirectional" adds the pooled vector of a second stack, which reads the sequence
    from its end to its beginning. sequences_per_example: 2 for pairs; the same blocks read both
    sequences, and the head reads the two vectors a and b as (a, b, a * b, a - b).
    """

    def __init__(
        self,
        block: type[nn.Module],
        spec: ArchitectureSpec,
        vocabulary: int,
        classes: int,
        width: int,
        depth: int,
        options: Mapping[str, Any],
        dropout: float = 0.0,
        *,
        pooling: str = "last",
        direction: str = "causal",
        sequences_per_example: int = 1,
    ) -> None:
        if pooling not in POOLINGS or direction not in DIRECTIONS:
            raise ValueError(
                f"pooling {pooling!r} and direction {direction!r}: expected one of "
                f"{', '.join(POOLINGS)}, and one of {', '.join(DIRECTIONS)}"
            )
        super().__init__(
            block,
            spec,
            vocabulary,
            width,
            depth,
            options,
            dropout,
            head_shape=(width if sequences_per_example == 1 else 4 * width, classes),
            bidirectional=direction == "bidirectional",
        )
        self.pooling = pooling
        self.direction = direction
        self.sequences_per_example = sequences_per_example

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits of each example, (batch, classes).

        Args:
            tokens: (batch, length) int64; (batch, 2, length) for pairs of sequences.
            lengths: valid tokens of each sequence, (batch,) or (batch, 2); all if None.
        """
        is_pair = self.sequences_per_example > 1
        if is_pair and lengths is not None:
            lengths = lengths.flatten()

        x = self.embed(tokens.flatten(0, -2))  # (sequences, length, width)
        features = self.encode(self.blocks, x, lengths)  # (sequences, width)
        if self.direction == "bidirectional":
            reversed_x = reverse_valid(x, lengths)
            features = features + self.encode(self.backward_blocks, reversed_x, lengths)
        if is_pair:
            features = pair_features(features.unflatten(0, (-1, self.sequences_per_example)))
        return self.head(features)

    def encode(self, blocks: nn.ModuleList, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Run a stack and pool its outputs: (sequences, length, width) -> (sequences, width)."""
        return pool(self.norm(self.run_blocks(blocks, x)), lengths, self.pooling)

    def initial_state(self, batch_size: int) -> list[State]:
        self._check_streamable()
        return super().initial_state(batch_size)

    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[State]]:
        self._check_streamable()
        return super().prefill(tokens)

    def _check_streamable(self) -> None:
        """Raise ValueError unless the label depends on one causal stream."""
        settings = (self.pooling, self.direction, self.sequences_per_example)
        if settings != ("last", "causal", 1):
            raise ValueError(
                "this model labels whole sequences (pooling 'mean', direction 'bidirectional' or "
                "pairs of sequences) and cannot read them position by position"
            )


def reverse_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each sequence and leave its padding: (batch, length, width) -> same.

    a b c _ _   ->   c b a _ _
    """
    if lengths is None:
        return x.flip(1)

    position = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths[:, None] - 1 - position  # (batch, length), negative in the padding
    source = torch.where(mirrored >= 0, mirrored, position)
    return x.gather(1, source[:, :, None].expand_as(x))


def pool(x: Tensor, lengths: Tensor | None, pooling: str) -> Tensor:
    """Reduce (batch, length, width) to (batch, width): the last valid vector, or their mean."""
    if lengths is None:
        return x[:, -1] if pooling == "last" else x.mean(1)
    if pooling == "last":
        return x[torch.arange(len(x), device=x.device), lengths - 1]

    is_valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (batch, length)
    total = torch.where(is_valid[:, :, None], x, 0).sum(1)
    return total / lengths[:, None]


def pair_features(features: Tensor) -> Tensor:
    """Join the vectors of two sequences: (batch, 2, width) -> (batch, 4 width)."""
    a, b = features.unbind(1)
    return torch.cat([a, b, a * b, a - b], dim=-1)
