"""One cell trained by several processes, one GPU each, with DistributedDataParallel.

torch's own launcher, the one behind torchrun, starts the processes. Every process holds the whole
model, makes the whole batch and trains on its own rows of it; gradients are averaged over all. A
batch is a function of its number, so each process knows how many targets the whole batch has, and
the loss is the mean over these, exactly as in one process, rather than a mean of means.

In a single process, the usual case, every function below returns its argument unchanged.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lookback.models.model import SequenceModel

Value = TypeVar("Value")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
SEED_STRIDE = 1 << 20  # more than there are ranks, or steps of a run


def launch(work: Callable[..., None], processes: int, folder: Path, *arguments: object) -> int:
    """Call `work(*arguments)` in new processes, each of which sees one GPU, and wait for them.

    If a process fails or this one receives SIGTERM, all of them are sent SIGTERM.

    Args:
        folder: where the launcher may write its logs.

    Returns:
        0, or the exit code of the first process that failed; a signal's number is negative.
    """
    # Imported here because it takes a tenth of a second that few cells need.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="lookback",
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        virtual_local_rank=True,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        signals_to_handle="SIGTERM",
    )
    try:
        elastic_launch(config, work)(*arguments)
    except SignalException as error:
        return -error.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode
    return 0


# Carries everything but gradients, on the CPU. None in a single process.
_control_group: distributed.ProcessGroup | None = None


@contextlib.contextmanager
def process_group(device: str, timeout_seconds: float) -> Iterator[None]:
    """Join the processes that `launch` started into one group.

    A process that waits for another longer than the timeout raises an error.
    """
    global _control_group
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)  # all processes are on this machine
    timeout = timedelta(seconds=timeout_seconds)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
    _control_group = distributed.new_group(backend="gloo", timeout=timeout)
    try:
        yield
    finally:
        _control_group = None
        distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train this cell together."""
    return 1 if _control_group is None else distributed.get_world_size()


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return 0 if _control_group is None else distributed.get_rank()


def broadcast_flags(*flags: bool) -> list[bool]:
    """Broadcast rank 0's flags, so that all ranks take the same branch and do not deadlock."""
    if _control_group is None:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.uint8)
    distributed.broadcast(values, 0, group=_control_group)
    return [bool(value) for value in values]


def all_sum(value: float) -> float:
    """Return the sum of a number over all ranks."""
    if _control_group is None:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total, group=_control_group)
    return total.item()


def all_mean(value: Tensor | float) -> Tensor | float:
    """Return the mean of a scalar over all ranks."""
    if _control_group is None:
        return value
    return all_sum(float(value)) / world_size()


def gather(value: Value) -> list[Value]:
    """Return the values of all ranks in order on rank 0, and an empty list elsewhere."""
    if _control_group is None:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values, 0, group=_control_group)
    return values or []


def broadcast(make: Callable[[], Value]) -> Value:
    """Call `make` on rank 0 and return its result on every rank."""
    if _control_group is None:
        return make()
    values: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(values, 0, group=_control_group)
    return values[0]


def check_same_step(step: int) -> None:
    """Raise RuntimeError if ranks resume at different steps."""
    if _control_group is not None and all_sum(step) != world_size() * step:
        raise RuntimeError(
            f"rank {rank()} resumes at step {step} and another rank at another step:"
            " expected that all read the same checkpoint"
        )


def barrier() -> None:
    """Wait until every rank has arrived."""
    if _control_group is not None:
        distributed.barrier(group=_control_group)


def local_rows(rows: int) -> tuple[int, int]:
    """Return the first row of a batch that this rank trains on, and the row behind its last."""
    return rank() * rows // world_size(), (rank() + 1) * rows // world_size()


def seed_step(cell_seed: int, step: int) -> None:
    """Seed torch for one training step of this rank, so that dropout differs between ranks.

    A checkpoint then needs the random state of no rank. A single process is not seeded anew; its
    random state is part of its checkpoint.
    """
    if _control_group is not None:
        seed = (cell_seed * SEED_STRIDE + step) * SEED_STRIDE + rank()
        torch.manual_seed(seed % (1 << 63))


DataParallelModel = DistributedDataParallel  # its gradients are means over all processes


def wrap_model(model: SequenceModel) -> SequenceModel | DataParallelModel:
    """Return the model to train: averaging its gradients if there are several processes."""
    if _control_group is None:
        return model
    return DataParallelModel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,  # mediums get no gradient from sequences below one interval
    )
