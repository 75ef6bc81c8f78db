"""One training step: the one loss and the one optimizer of every task and model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.record import AnyCell, Cell, LearnCell
from lookback.models.model import SequenceModel, build_model
from lookback.tasks.task import Batch, Task

BETAS, EPSILON, CLIP = (0.9, 0.99), 1e-8, 1.0

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and a word on it."""


def make_model(cell: AnyCell, task: Task) -> SequenceModel:
    """The cell's model with weights drawn from its seed, on its device."""
    torch.manual_seed(cell.seed)
    model = model_of(cell, task).to(cell.device)
    if cell.compile:
        for block in (*model.blocks, *model.backward_blocks):
            block.compile()
    return model


def model_of(cell: AnyCell, task: Task) -> SequenceModel:
    """The cell's model with weights from torch's generator as it stands; raises ValueError when
    there is none.
    """
    return build_model(
        cell.model,
        task.vocabulary,
        task.classes,
        width=cell.width,
        depth=cell.depth,
        pooling=cell.pooling,
        direction=cell.direction,
        sequences_per_example=task.sequences_per_example,
        dropout=cell.dropout,
        **cell.model_options,
    )


def make_optimizer(
    model: SequenceModel, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW over the parameter groups that the architecture declares.

    The `scale` of a group multiplies its learning rate.
    """
    groups = []
    for group in model.parameter_groups():
        groups.append(
            {
                "params": group["params"],
                "scale": group["learning_rate_scale"],
                "weight_decay": weight_decay if group["decay"] else 0.0,
            }
        )
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, fused=True)


def learning_rate(cell: LearnCell, step: int) -> float:
    """Return the rate of a step, counted from 0: linear warm-up, then a half cosine down to zero."""
    if step < cell.warmup:
        return cell.learning_rate * (step + 1) / cell.warmup
    progress = (step - cell.warmup) / max(1, cell.steps - cell.warmup)
    return cell.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def precision(cell: Cell) -> contextlib.AbstractContextManager[object]:
    """The context that a cell computes in: autocast, or none in float32."""
    if cell.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(cell.device, dtype=torch.bfloat16)


def to_device(batch: Batch, device: str) -> Batch:
    """The batch on a device, asynchronously where it is a GPU."""
    if device == "cpu":
        return batch

    moved: dict[str, Any] = {
        name: x if x is None else _moved(x, device) for name, x in vars(batch).items()
    }
    return replace(batch, **moved)


def _moved(tensor: Tensor, device: str) -> Tensor:
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def rows_of(batch: Batch, first: int, last: int) -> Batch:
    """Sequences `first` to `last` of a batch, the latter not included."""
    rows: dict[str, Any] = {
        name: x if x is None else x[first:last] for name, x in vars(batch).items()
    }
    return Batch(**rows)


def logits_and_targets(
    model: SequenceModel | parallel.DataParallelModel, batch: Batch, cell: Cell
) -> tuple[Tensor, Tensor]:
    """Logits (asked, choices) float32 and targets (asked,) of everything the batch asks, on the
    cell's device.

    What is asked is found before the batch moves, so that a GPU is not waited for.
    """
    asked = batch.target_indices()
    everything = len(asked) == batch.targets.numel()
    batch, asked = (
        to_device(batch, cell.device),
        asked if everything else _moved(asked, cell.device),
    )
    with precision(cell):
        if batch.targets.ndim == 1:  # one label per example
            logits = model(batch.tokens, lengths=batch.lengths)
        else:
            logits = model(batch.tokens, positions=None if everything else asked).flatten(0, -2)
    targets = batch.targets.flatten()
    return logits.float(), targets if everything else targets[asked]


def training_step(
    model: SequenceModel | parallel.DataParallelModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    cell: Cell,
    rate: float,
) -> Tensor:
    """One step at a learning rate; the loss before it, a scalar on the cell's device,
    nats.

    Of several processes each brings the whole batch and trains on its rows; the mean of their
    losses is the batch's.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    loss = _loss(model, batch, cell)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _loss(model: SequenceModel | parallel.DataParallelModel, batch: Batch, cell: Cell) -> Tensor:
    """Mean cross entropy, nats: of all answers alike, also where one process is asked for more of
    them than another.
    """
    if parallel.count() == 1:
        return cross_entropy(*logits_and_targets(model, batch, cell))
    own = rows_of(batch, *parallel.share(len(batch.tokens)))
    return cross_entropy(*logits_and_targets(model, own, cell), reduction="sum") * (
        parallel.count() / len(batch.target_indices())
    )
