"""Checkpoints of a training run, kept on disk until its cell is finished."""

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

NAMES = ("checkpoint.pt", "checkpoint.before.pt")  # the newest, and the one before it


@dataclass
class State:
    """Progress of a training run, apart from its model and optimizer."""

    step: int = 0  # steps taken
    seconds: float = 0.0
    waiting: float = 0.0  # seconds of these outside the training step
    evaluating: float = 0.0  # seconds in validations
    saving: float = 0.0  # seconds in writing checkpoints, but for the last one
    joules: float | None = None

    loss_sum: Tensor | float = 0.0  # of the steps since the last validation
    loss_count: int = 0

    curve: list[dict[str, Any]] = field(default_factory=list)  # fields of `CurvePoint`
    seen: list[Tensor] = field(default_factory=list)  # fingerprints of training examples
    finished: bool = False
    failure: str = ""  # why training ended early, if the loss was not finite


def save(
    folder: Path,
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    state: State,
    cell: LearnCell,
) -> None:
    """Write a checkpoint and keep the one before it, in case this one turns out damaged.

    Only rank 0 writes. Raises OSError with the file's name if it cannot be written, for example to
    a full disk.
    """
    if parallel.rank() > 0:
        return

    content = {
        "cell": _identity(cell),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "state": {**vars(state), "loss_sum": float(state.loss_sum), "seen": torch.cat(state.seen)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "checkpoint.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError of its own
        temporary.unlink(missing_ok=True)
        message = f"checkpoint {temporary} cannot be written: {error}"
        raise OSError(message.splitlines()[0]) from error

    newest, before = (folder / name for name in NAMES)
    if newest.exists():
        newest.replace(before)
    temporary.replace(newest)


def _identity(cell: LearnCell) -> str:
    """Return the cell's canonical form; any number of processes may resume its checkpoints."""
    return cell.model_copy(update={"processes": 1}).canonical()


def load(
    folder: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, cell: LearnCell
) -> State:
    """Resume from the newest intact checkpoint of this cell; without one, return a fresh state.

    A checkpoint that cannot be used is reported and leaves model, optimizer and random state as
    they were. No code in a file is executed: torch reads tensors, numbers and text only.
    """
    paths = [folder / name for name in NAMES if (folder / name).exists()]
    if not paths:
        return State()

    fresh_model = copy.deepcopy(model.state_dict())
    fresh_optimizer = copy.deepcopy(optimizer.state_dict())
    fresh_random = torch.get_rng_state()
    for path in paths:
        try:
            return _load_file(path, model, optimizer, cell)
        except Exception as error:  # a damaged file can raise anything
            line = (str(error).strip().splitlines() or [""])[0]
            print(f"lookback: {path} cannot be resumed: {type(error).__name__}: {line}", flush=True)
            model.load_state_dict(fresh_model)
            optimizer.load_state_dict(fresh_optimizer)
            torch.set_rng_state(fresh_random)
    return State()


def _load_file(
    path: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, cell: LearnCell
) -> State:
    """Load one checkpoint into model, optimizer and random generators, and return its state.

    Raises an error of any type if the file is damaged, or belongs to another cell or model.
    """
    with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not verify them
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")
    content = torch.load(path, map_location="cpu", weights_only=True)

    identity = _identity(cell)
    if content.get("cell", identity) != identity:
        raise ValueError("it belongs to another cell")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in content["model"].items()} != shapes:
        raise ValueError("it belongs to another model")

    state = State(**{**content["state"], "seen": [content["state"]["seen"].cpu()]})
    is_empty = state.finished and not (state.curve or state.failure)
    if is_empty or not 0 <= state.step <= cell.steps:
        raise ValueError("its state is not one that this cell can reach")

    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"].cpu())
    if content["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random_cuda"][0].cpu())
    return state
