"""Hybrids: layers of several models in one stack, by a pattern that is repeated over the depth.

"rwkv+rwkv+transformer" at depth 6 has two layers of RWKV-4, one of the Transformer, and the same
again. Any registered model may stand in a pattern, those of plug-ins and libraries included. The
embedding and head are initialised as the first model of the pattern declares, and a norm follows
the embedding if any of them needs it. A model of a library brings one layer and its own last norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lookback.models.model import (
    ArchitectureSpec,
    State,
    find_architecture,
    register_model,
    step_through,
)

PATTERN = "rwkv+transformer"
Options = Mapping[str, Mapping[str, Any]]  # of the models in a pattern, by their names


def models_of(pattern: str) -> list[str]:
    """Return the names in a pattern; raises ValueError if it is none, or names a hybrid."""
    names = pattern.split("+") if isinstance(pattern, str) else []
    if not all(names) or not names or "hybrid" in names:
        raise ValueError(
            f"hybrid pattern {pattern!r}: expected names of other models joined by '+', "
            f"such as {PATTERN!r}"
        )
    return names


def hybrid_spec(pattern: str = PATTERN, options: Options | None = None) -> ArchitectureSpec:
    """Return what the models of a pattern declare together."""
    names = models_of(pattern)
    specs = [find_architecture(name).spec_with((options or {}).get(name, {})) for name in names]
    scales: dict[str, float] = {}
    for spec in specs:
        scales.update(spec.learning_rate_scale)
    return replace(
        specs[0],
        embedding_norm=any(spec.embedding_norm for spec in specs),
        learning_rate_scale=scales,
        no_weight_decay=frozenset().union(*(spec.no_weight_decay for spec in specs)),
        is_full_stack=False,
        has_side_input=True,
        parts=tuple(dict.fromkeys(names)),
        needs_gpu=any(spec.needs_gpu for spec in specs),
    )


@register_model("hybrid", hybrid_spec)
class HybridBlock(nn.Module):
    """One layer: that of the pattern's model whose turn it is.

    pattern: names of models joined by "+". options: of these models, by their names.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        pattern: str = PATTERN,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        names = models_of(pattern)
        name = names[layer % len(names)]
        unused = sorted(set(options or {}) - set(names))
        if unused:
            raise ValueError(f"hybrid options of {unused[0]!r}: expected a model of {pattern!r}")

        architecture = find_architecture(name)
        model_options = architecture.checked((options or {}).get(name, {}), name)
        spec = architecture.spec_with(model_options)
        self.takes_side_input = spec.has_side_input
        is_first = layer < len(names) and name not in names[:layer]
        if spec.is_full_stack:
            layer, depth = 0, 1
        elif spec.has_side_input and is_first:
            layer = 0  # no layer before it makes its side input
        self.block: Any = architecture.block(width, layer, depth, **model_options)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        return self.block.initial_state(batch_size, device, dtype)

    def forward(self, x: Tensor, side: Any = None) -> tuple[Tensor, Any]:
        if self.takes_side_input:
            return self.block(x, side)
        return self.block(x), side

    def prefill(self, x: Tensor, side: Any = None) -> tuple[Tensor, Any, State]:
        if self.takes_side_input:
            return self.block.prefill(x, side)
        if hasattr(self.block, "prefill"):
            y, state = self.block.prefill(x)
        else:
            y, state = step_through(self.block, x)
        return y, side, state

    def step(self, x: Tensor, state: State, side: Any = None) -> tuple[Tensor, Any, State]:
        if self.takes_side_input:
            return self.block.step(x, state, side)
        y, state = self.block.step(x, state)
        return y, side, state
