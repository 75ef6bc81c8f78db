"""What every block must keep, tried on a few positions: a model that reads ahead would win every table.

Blocks of this package are held to it by tests, those of other libraries by `models.foreign`.
"""

import torch
from torch import Tensor, nn

from models.model import registered_block

TRIED = 8  # positions
CLOSE = {torch.float32: 5e-3, torch.bfloat16: 5e-2}  # of the largest output: GPUs multiply with 11 bits, and with 8


def check_contract(
    name: str, width: int, depth: int, options: dict[str, object], device: str, precision: torch.dtype
) -> None:
    """Raise ValueError where a block does not keep its shape, is not causal, or says something else step by step.

    Tried is a block of its own with weights moved off where they begin: what begins as zero hides what it does.
    `precision` is that of autocast, or float32 for none.
    """
    kind = registered_block(name)
    if kind.__module__.partition(".")[0] == __package__:
        return
    block = kind(width, 0, depth, **options).to(device).eval()
    x = torch.arange(2 * TRIED * width, device=device).cos().view(2, TRIED, width)
    half = TRIED // 2
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision != torch.float32)
    with torch.no_grad(), autocast:
        for weight in block.parameters():
            weight.add_(0.1 * torch.arange(weight.numel(), device=device).cos().view_as(weight))
        found = block(x)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"model {name!r}: its block reads {tuple(x.shape)} and gives {told}: expected the same shape"
            )
        if precision == torch.float32 and found.dtype != x.dtype:
            raise ValueError(f"model {name!r}: its block reads {x.dtype} and gives {found.dtype}: expected the same")
        later = block(torch.cat([x[:, :half], -x[:, half:]], 1))
        if _differ(later[:, :half], found[:, :half], precision):
            raise ValueError(f"model {name!r} is not causal: what comes later changes what its block says before")
        if hasattr(block, "step") and _differ(_stepped(block, x), found, precision):
            raise ValueError(
                f"model {name!r}: its `step`, position by position, says something else than its `forward`"
            )


def _stepped(block: nn.Module, x: Tensor) -> Tensor:
    state, outputs = block.initial_state(x.shape[0], x.device, x.dtype), []  # type: ignore[operator]
    for position in x.unbind(1):
        y, state = block.step(position, state)  # type: ignore[operator]
        outputs.append(y)
    return torch.stack(outputs, 1)


def _differ(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    """Not where either is no number: of that, training tells."""
    return bool((a.float() - b.float()).abs().max() > CLOSE[precision] * b.float().abs().max())
