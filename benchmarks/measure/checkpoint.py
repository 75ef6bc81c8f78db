"""Where a training run stands, kept on disk while its cell is not finished."""

from __future__ import annotations

import copy
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.record import LearnCell
from lookback.models.model import SequenceModel

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


def save(
    folder: Path,
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    state: State,
    cell: LearnCell,
) -> None:
    """Write a checkpoint, keeping the one before it, which serves when this one turns out torn.

    Of several processes all bring what they have, and the first writes it; the others do not wait
    for that. Raises OSError that names the file when it cannot be written, on a full disk above
    all.
    """
    content = {
        "cell": _alone(cell),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "state": {**vars(state), "loss_sum": float(state.loss_sum), "seen": torch.cat(state.seen)},
    }
    if parallel.rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    newest, before = (folder / name for name in NAMES)
    fresh = folder / "checkpoint.tmp"
    try:
        with fresh.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's own writer hides what the system said
        fresh.unlink(missing_ok=True)
        raise OSError(f"checkpoint {fresh} cannot be written: {error}".splitlines()[0]) from error
    if newest.exists():
        newest.replace(before)
    fresh.replace(newest)


def _alone(cell: LearnCell) -> str:
    """What the checkpoints of a cell say of it: nothing of the number of processes, any of which
    may go on.
    """
    return cell.model_copy(update={"processes": 1}).canonical()


def load(
    folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, cell: LearnCell
) -> State:
    """Go on from the newest checkpoint that can be read and is this cell's, or from the beginning.

    Nothing in a file is executed: torch reads tensors, numbers and texts of it, and refuses all
    else.
    """
    beginning: tuple[Any, ...] = ()
    for name in NAMES:
        path = folder / name
        if not path.exists():
            continue
        beginning = beginning or copy.deepcopy(
            (model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
        )
        try:
            _check(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = _state(content, model, cell)
            _resume(content, model, optimizer)
            return state
        except (
            Exception
        ) as error:  # torn, a stranger's, or no checkpoint at all: it is nothing to go on from
            said = (str(error).strip().splitlines() or [""])[0]
            print(
                f"lookback: {path} cannot be gone on from: {type(error).__name__}: {said}",
                flush=True,
            )
            model.load_state_dict(beginning[0])
            optimizer.load_state_dict(beginning[1])
            torch.set_rng_state(beginning[2])
    return State()


def _check(path: Path) -> None:
    """Raise where a bit is not as it was written: torch writes checksums into its files, and does
    not read them.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in it is damaged")


def _state(content: dict[str, Any], model: SequenceModel, cell: LearnCell) -> State:
    """Where the run of a checkpoint stands; raises ValueError when it is not one of this cell and
    model.
    """
    if content.get("cell", _alone(cell)) != _alone(
        cell
    ):  # those written before had no cell in them
        raise ValueError("it is another cell's")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in content["model"].items()} != shapes:
        raise ValueError("it is another model's")
    state = State(**{**content["state"], "seen": [content["state"]["seen"].cpu()]})
    if not 0 <= state.step <= cell.steps or (state.finished and not (state.curve or state.failure)):
        raise ValueError("it stands where no run of this cell can stand")
    return state


def _resume(
    content: dict[str, Any], model: SequenceModel, optimizer: torch.optim.Optimizer
) -> None:
    """Load weights, moments and the states of the random generators from a checkpoint."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"].cpu())
    if content["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random_cuda"][0].cpu())
