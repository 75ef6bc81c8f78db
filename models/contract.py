"""What every block must keep, tried on a few positions: a model that reads ahead would win every
table.

Blocks of this package are held to it by tests, those of other libraries by
`lookback.models.foreign`.
"""

import torch
from torch import Tensor

from lookback.models.model import registered_block, step_through

TRIED = 8  # positions that a model is tried on
CLOSE = 5e-3  # of the largest output: GPUs multiply with 11 bits
CLOSE_IN_AUTOCAST = 5e-2  # and then with 8


def check_contract(
    name: str, width: int, depth: int, options: dict[str, object], device: str
) -> None:
    """Raise ValueError where a block does not keep its shape, is not causal, or says something else
    step by step.

    Tried is a block of its own, in autocast where that is on, with weights moved off where they
    begin: what begins as zero hides what it does.
    """
    kind = registered_block(name)
    if kind.__module__.partition(".")[0] == __package__:
        return
    block = kind(width, 0, depth, **options).to(device).eval()
    x = torch.arange(2 * TRIED * width, device=device).cos().view(2, TRIED, width)
    half, autocast = TRIED // 2, torch.is_autocast_enabled(device)
    close = CLOSE_IN_AUTOCAST if autocast else CLOSE
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.1 * torch.arange(weight.numel(), device=device).cos().view_as(weight))
        found = block(x)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"model {name!r}: its block reads {tuple(x.shape)} and gives {told}: expected the same shape"
            )
        if not autocast and found.dtype != x.dtype:
            raise ValueError(
                f"model {name!r}: its block reads {x.dtype} and gives {found.dtype}: expected the same"
            )
        later = block(torch.cat([x[:, :half], -x[:, half:]], 1))
        if _differ(later[:, :half], found[:, :half], close):
            raise ValueError(
                f"model {name!r} is not causal: what comes later changes what its block says before"
            )
        if hasattr(block, "step") and _differ(step_through(block, x)[0], found, close):
            raise ValueError(
                f"model {name!r}: its `step`, position by position, says something else than its `forward`"
            )


def _differ(a: Tensor, b: Tensor, close: float) -> bool:
    """Not where either is no number: of that, training tells."""
    return bool((a.float() - b.float()).abs().max() > close * b.float().abs().max())
