"""Where a training run stands, kept on disk while its cell is not finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Cell
from models.model import SequenceModel

NAMES = ("checkpoint.pt", "checkpoint.before.pt")


@dataclass
class State:
    """Where a training run stands, besides model and optimizer."""

    step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0  # seconds of them outside the training step
    joules: float | None = None
    loss_sum: Tensor | float = 0.0
    loss_count: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)  # fingerprints of training examples
    finished: bool = False
    failure: str = ""  # why it ended before its last step, when the loss was no longer a number


def save(folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write a checkpoint, keeping the one before it, which serves when this one turns out torn."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "state": {**vars(state), "loss_sum": float(state.loss_sum), "seen": torch.cat(state.seen)},
    }
    newest, before = (folder / name for name in NAMES)
    fresh = folder / "checkpoint.tmp"
    torch.save(content, fresh)
    if newest.exists():
        newest.replace(before)
    fresh.replace(newest)


def load(folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, cell: Cell) -> State:
    """Go on from the newest checkpoint that can be read and fits the model, or from the beginning."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in NAMES:
        try:
            content = torch.load(folder / name, map_location=cell.device, weights_only=True)
            state = State(**{**content["state"], "seen": [content["state"]["seen"].cpu()]})
            fits = {name: tensor.shape for name, tensor in content["model"].items()} == shapes
        except FileNotFoundError:
            continue
        except Exception:  # torn, or no checkpoint at all: whatever it is, it is nothing to go on from
            continue
        if fits:
            _resume(content, model, optimizer)
            return state
    return State()


def _resume(content: dict[str, Any], model: SequenceModel, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"].cpu())
    if content["random_cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in content["random_cuda"]])
