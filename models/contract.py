"""Checks a block before it is measured: a model that reads ahead would win every table.

Tests check the blocks of this package. Blocks of plug-ins and models of other libraries are checked
here, on a few positions.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from lookback.models.model import find_architecture, step_through

POSITIONS = 8  # that a block is checked on
TOLERANCE = 5e-3  # relative to the largest output: GPUs may multiply with 11 bits
AUTOCAST_TOLERANCE = 5e-2  # bfloat16 has 8 bits


def check_contract(
    name: str, width: int, depth: int, options: dict[str, object], device: str
) -> None:
    """Raise ValueError if a block changes the shape, is not causal, or steps to other outputs.

    The check builds a block of its own, with fresh weights.
    """
    architecture = find_architecture(name)
    spec = architecture.spec_with(options)
    of_parts: Any = options.get("options") or {}
    for part in spec.parts:
        check_contract(part, width, 1, of_parts.get(part, {}), device)
    is_full_stack = spec.is_full_stack
    if architecture.block.__module__.startswith("lookback.models.") and not is_full_stack:
        return

    block: Any = architecture.block(width, 0, depth, **options).to(device).eval()
    with torch.no_grad():
        if is_full_stack:
            check_stack(name, block, width, device)
        else:
            check_block(name, block, width, device)


def check_block(name: str, block: Any, width: int, device: str) -> None:
    """Check one layer on two sequences, under autocast where that is on.

    The weights are moved away from their initialisation, because weights that start at zero hide
    what they do.
    """
    autocast = torch.is_autocast_enabled(device)
    tolerance = AUTOCAST_TOLERANCE if autocast else TOLERANCE
    x = wave((2, POSITIONS, width), device)
    for weight in block.parameters():
        weight.add_(0.1 * wave(weight.shape, device))

    check_shape(name, x, block(x), autocast)
    check_positions(name, block, x, tolerance)


def check_stack(name: str, stack: Any, width: int, device: str) -> None:
    """Check all layers of a library's model on one sequence, in full precision.

    One sequence, because some types read only one at a time token by token. It is as small as
    freshly drawn embeddings, so that what the stack adds to it, such as positions, matters. The
    weights stay as they are: larger ones in many layers would amplify rounding.
    """
    x = 0.02 * wave((1, POSITIONS, width), device)
    with torch.autocast(device, enabled=False):
        check_shape(name, x, stack(x), autocast=False)
        check_positions(name, stack, x, TOLERANCE)


def check_shape(name: str, x: Tensor, outputs: object, autocast: bool) -> None:
    """Raise ValueError if the outputs have another shape or type than x; autocast changes types."""
    prefix = f"model {name!r}: its block reads"
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{prefix} {tuple(x.shape)} and returns {type(outputs).__name__}: "
            "expected the same shape"
        )
    if outputs.shape != x.shape:
        raise ValueError(
            f"{prefix} {tuple(x.shape)} and returns {tuple(outputs.shape)}: expected the same shape"
        )
    if not autocast and outputs.dtype != x.dtype:
        raise ValueError(f"{prefix} {x.dtype} and returns {outputs.dtype}: expected the same")


def check_positions(name: str, block: Any, x: Tensor, tolerance: float) -> None:
    """Raise ValueError if a block reads ahead in x, or reads it differently in pieces."""
    outputs = block(x)
    half = x.shape[1] // 2
    changed = torch.cat([x[:, :half], -x[:, half:]], 1)
    if differs(block(changed)[:, :half], outputs[:, :half], tolerance):
        raise ValueError(
            f"model {name!r} is not causal: later positions change the outputs of earlier ones"
        )

    if hasattr(block, "step") and differs(step_through(block, x)[0], outputs, tolerance):
        raise ValueError(
            f"model {name!r}: the outputs of its `step`, position by position, differ from "
            "those of its `forward`"
        )

    if hasattr(block, "prefill"):
        prompt_outputs, state = block.prefill(x[:, :half])
        later_outputs, _ = step_through(block, x[:, half:], state)
        if differs(torch.cat([prompt_outputs, later_outputs], 1), outputs, tolerance):
            raise ValueError(
                f"model {name!r}: the outputs of its `prefill`, continued by `step`, differ from "
                "those of its `forward`"
            )


def differs(outputs: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether outputs differ by more than the tolerance, relative to the largest expected.

    Outputs that are nan do not differ: training reports them.
    """
    difference = (outputs.float() - expected.float()).abs().max()
    return bool(difference > tolerance * expected.float().abs().max())


def wave(shape: tuple[int, ...], device: str) -> Tensor:
    """Return numbers without a pattern that repeats, the same on every machine."""
    return torch.arange(prod(shape), device=device).cos().view(shape)
