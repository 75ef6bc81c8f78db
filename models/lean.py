"""Layers at one position, without what calling a module costs: on a CPU, as much as a small matrix
product.

For `step` alone. Parameters are taken from where nn.Module keeps them, because its search for an
attribute takes as long as an operation on a few hundred numbers; hooks of the layers do not run.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def own(module: nn.Module) -> dict[str, Any]:
    """The parameters of a module itself, by name."""
    return module._parameters


def parts(module: nn.Module) -> dict[str, Any]:
    """The modules that a module consists of, by name."""
    return module._modules


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """What an nn.Linear gives, (..., width) -> (..., its width)."""
    weights = layer._parameters
    return linear(x, weights["weight"], weights["bias"])  # type: ignore[arg-type]


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """What an nn.LayerNorm gives, (..., width) -> same."""
    weights = norm._parameters
    # type: ignore[arg-type]
    return torch.layer_norm(x, norm.normalized_shape, weights["weight"], weights["bias"], norm.eps)
