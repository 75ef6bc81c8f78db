"""One training step: the same loss and the same optimizer for every task and model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from lookback.benchmarks.measure import parallel
from lookback.benchmarks.record import AnyCell, Cell, LearnCell
from lookback.models.model import SequenceModel, build_model
from lookback.tasks.task import Batch, Task

BETAS = (0.9, 0.99)
EPSILON = 1e-8
CLIP = 1.0  # largest norm of the gradient

Progress = Callable[[int, int, str], None]
"""Called with the work done, the total work, and a description of the current step."""


def make_model(cell: AnyCell, task: Task) -> SequenceModel:
    """Return the cell's model on its device, with weights drawn from the cell's seed."""
    torch.manual_seed(cell.seed)
    model = model_of(cell, task).to(cell.device)
    if cell.compile:
        for block in (*model.blocks, *model.backward_blocks):
            block.compile()
    return model


def model_of(cell: AnyCell, task: Task) -> SequenceModel:
    """Return the cell's model, with weights drawn from torch's current random state.

    Raises ValueError if there is no such model, or if it has no such option.
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


def meta_model(cell: AnyCell, task: Task) -> SequenceModel:
    """Return the cell's model on the meta device: shapes without memory or numbers.

    Raises ValueError as `model_of` does.
    """
    with torch.device("meta"), SkipInitialisation():
        return model_of(cell, task)


class SkipInitialisation(TorchFunctionMode):
    """Leave weights as they are, and make constants on the CPU.

    Random numbers and arithmetic have no effect on meta tensors, but make torch import its
    compiler, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.arange, torch.full):
            kwargs.setdefault("device", "cpu")
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_", "div_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


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
    """Return the rate of a step, counted from 0: linear warm-up, then a half cosine to zero."""
    if step < cell.warmup:
        return cell.learning_rate * (step + 1) / cell.warmup
    progress = (step - cell.warmup) / max(1, cell.steps - cell.warmup)
    return cell.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def precision(cell: Cell) -> contextlib.AbstractContextManager[object]:
    """Return the context that a cell computes in: autocast to bfloat16, or none for float32."""
    if cell.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(cell.device, dtype=torch.bfloat16)


def map_batch(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with a function applied to each of its tensors."""
    changes = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        if tensor is not None:
            changes[field.name] = function(tensor)
    return replace(batch, **changes)


def rows_of(batch: Batch, first: int, last: int) -> Batch:
    """Return sequences `first` to `last` of a batch, `last` excluded."""
    return map_batch(batch, lambda tensor: tensor[first:last])


def to_device(batch: Batch, device: str) -> Batch:
    """Return the batch on a device, copied asynchronously if that is a GPU."""
    return map_batch(batch, lambda tensor: _move(tensor, device))


def _move(tensor: Tensor, device: str) -> Tensor:
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def logits_and_targets(
    model: SequenceModel | parallel.DataParallelModel, batch: Batch, cell: Cell
) -> tuple[Tensor, Tensor]:
    """Return the logits and targets of all positions that have a target, on the cell's device.

    Logits are (targets, choices) float32, targets are (targets,) int64.
    """
    # Found before the batch moves: on a GPU, `nonzero` would wait for all work queued so far.
    indices = batch.target_indices()
    asks_everywhere = len(indices) == batch.targets.numel()
    batch = to_device(batch, cell.device)
    targets = batch.targets.flatten()
    if not asks_everywhere:
        indices = _move(indices, cell.device)
        targets = targets[indices]

    with precision(cell):
        if batch.targets.ndim == 1:  # one label per example
            logits = model(batch.tokens, lengths=batch.lengths)
        elif asks_everywhere:
            logits = model(batch.tokens).flatten(0, -2)
        else:
            logits = model(batch.tokens, indices)
    return logits.float(), targets


def training_step(
    model: SequenceModel | parallel.DataParallelModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    cell: Cell,
    rate: float,
) -> Tensor:
    """Take one step at a learning rate.

    With several processes, each passes the whole batch and trains on its own rows.

    Returns:
        the loss before the step, in nats: a scalar on the cell's device. With several processes,
        the mean over these is the loss of the batch.
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
    """Return the mean cross entropy over all targets of the batch, in nats."""
    if parallel.world_size() == 1:
        return cross_entropy(*logits_and_targets(model, batch, cell))

    # DistributedDataParallel averages over ranks, which may have different numbers of targets.
    local_batch = rows_of(batch, *parallel.local_rows(len(batch.tokens)))
    total = cross_entropy(*logits_and_targets(model, local_batch, cell), reduction="sum")
    return total * (parallel.world_size() / len(batch.target_indices()))
