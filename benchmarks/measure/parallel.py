"""One cell over several processes, a GPU each: every one trains on its rows of each batch.

torch's launcher (what torchrun is) starts them, DistributedDataParallel adds up their gradients.
All hold the whole model and make the whole batch, which is a function of its number, so that they
know without asking how many answers all of them are asked for: the loss is the mean over these, as
in one process, and not a mean of means.

In one process alone, the usual case, every function here gives back what it is given.
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
SEEDS = 1 << 20  # more than there are processes, or steps of a run


def launch(work: Callable[..., None], processes: int, folder: Path, *arguments: object) -> int:
    """Call `work` with these arguments in so many new processes, each of which sees one GPU alone;
    wait for all.

    Returns 0, or the exit code of the first that ended badly, a signal's number negative; the
    others were ended then. Asked to stop by SIGTERM, this process asks all of them, waits, and
    returns what stands for that signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import (  # a tenth of a second that few cells need
        LaunchConfig,
        elastic_launch,
    )

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
        return error.get_first_failure()[1].exitcode
    return 0


_talk: distributed.ProcessGroup | None = None  # on CPUs, for what is no gradient


@contextlib.contextmanager
def process_group(device: str, seconds: float) -> Iterator[None]:
    """Within it, the processes that `launch` started are one group; none waits for another longer
    than `seconds`.
    """
    global _talk
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)  # all are on this machine
    timeout = timedelta(seconds=seconds)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
    _talk = distributed.new_group(backend="gloo", timeout=timeout)
    try:
        yield
    finally:
        _talk = None
        distributed.destroy_process_group()


def count() -> int:
    """Processes that train this cell together."""
    return 1 if _talk is None else distributed.get_world_size()


def rank() -> int:
    """Which of them this is, from 0 on."""
    return 0 if _talk is None else distributed.get_rank()


def broadcast_flags(*flags: bool) -> list[bool]:
    """The flags as the first process has them: where all do not decide alike, they wait for each
    other for ever.
    """
    if _talk is None:
        return list(flags)
    said = torch.tensor(flags, dtype=torch.uint8)
    distributed.broadcast(said, 0, group=_talk)
    return [bool(flag) for flag in said]


def total(value: float) -> float:
    """The sum over all processes."""
    if _talk is None:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(summed, group=_talk)
    return summed.item()


def mean(value: Tensor | float) -> Tensor | float:
    """The mean over all processes of a number."""
    return value if _talk is None else total(float(value)) / count()


def gather(value: Value) -> list[Value]:
    """What every process has, in the order of their ranks; in any but the first, an empty list."""
    if _talk is None:
        return [value]
    found: list[Any] | None = [None] * count() if rank() == 0 else None
    distributed.gather_object(value, found, 0, group=_talk)
    return found or []


def broadcast(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all of them."""
    if _talk is None:
        return make()
    said: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(said, 0, group=_talk)
    return said[0]


def check_alike(step: int) -> None:
    """Raise RuntimeError where processes stand at different steps: one could not read what another
    did.
    """
    if _talk is not None and total(step) != count() * step:
        raise RuntimeError(
            f"process {rank()} stands at step {step}, and another elsewhere: expected one checkpoint"
        )


def wait() -> None:
    """Until all processes are here."""
    if _talk is not None:
        distributed.barrier(group=_talk)


def share(rows: int) -> tuple[int, int]:
    """Of a batch, the first row that this process trains on, and the one behind its last."""
    return rank() * rows // count(), (rank() + 1) * rows // count()


def seed(cell_seed: int, step: int) -> None:
    """Have torch draw what is drawn in training, of dropout above all, anew for this step and
    process.

    So a run goes on alike after a stop, with nothing kept of any process but the first; one process
    keeps its state.
    """
    if _talk is not None:
        torch.manual_seed(((cell_seed * SEEDS + step) * SEEDS + rank()) % (1 << 63))


DataParallelModel = DistributedDataParallel  # its gradients are means over all processes


def wrap_model(model: SequenceModel) -> SequenceModel | DataParallelModel:
    """Return the model to train: in several processes, one whose gradients are means over all."""
    if _talk is None:
        return model
    return DataParallelModel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,  # sequences may be shorter than a model's interval
    )
