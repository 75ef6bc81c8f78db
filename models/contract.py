"""Checks a block before it is measured: a model that reads ahead would win every table.

Tests check the blocks of this package. Blocks of plug-ins are checked here on a few positions, and
`lookback.models.foreign` does the same for models of other libraries.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lookback.models.model import registered_block, step_through

POSITIONS = 8  # that a block is checked on
TOLERANCE = 5e-3  # relative to the largest output: GPUs may multiply with 11 bits
AUTOCAST_TOLERANCE = 5e-2  # bfloat16 has 8 bits


def check_contract(
    name: str, width: int, depth: int, options: dict[str, object], device: str
) -> None:
    """Raise ValueError if a block changes the shape, is not causal, or steps to other outputs.

    The check builds a block of its own and runs it under autocast where that is on. It moves the
    weights away from their initialisation, because weights that start at zero hide what they do.
    """
    block_type = registered_block(name)
    if block_type.__module__.startswith("lookback.models."):
        return

    block = block_type(width, 0, depth, **options).to(device).eval()
    x = _wave(2 * POSITIONS * width, device).view(2, POSITIONS, width)
    autocast = torch.is_autocast_enabled(device)
    tolerance = AUTOCAST_TOLERANCE if autocast else TOLERANCE
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.1 * _wave(weight.numel(), device).view_as(weight))

        outputs = block(x)
        _check_shape(name, x, outputs, autocast)
        if not is_causal(block, x, tolerance):
            raise ValueError(
                f"model {name!r} is not causal: later positions change the outputs of earlier ones"
            )
        if hasattr(block, "step") and differs(step_through(block, x)[0], outputs, tolerance):
            raise ValueError(
                f"model {name!r}: the outputs of its `step`, position by position, differ from "
                "those of its `forward`"
            )


def _wave(count: int, device: str) -> Tensor:
    """Numbers without a pattern that repeats, (count,), the same on every machine."""
    return torch.arange(count, device=device).cos()


def _check_shape(name: str, x: Tensor, outputs: object, autocast: bool) -> None:
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


def is_causal(forward: Callable[[Tensor], Tensor], x: Tensor, tolerance: float) -> bool:
    """Return whether the second half of x, (batch, length, width), leaves earlier outputs alone."""
    half = x.shape[1] // 2
    changed = torch.cat([x[:, :half], -x[:, half:]], 1)
    return not differs(forward(changed)[:, :half], forward(x)[:, :half], tolerance)


def differs(outputs: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether outputs differ by more than the tolerance, relative to the largest expected.

    Outputs that are nan do not differ: training reports them.
    """
    difference = (outputs.float() - expected.float()).abs().max()
    return bool(difference > tolerance * expected.float().abs().max())
