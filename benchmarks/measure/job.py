"""Measures the cell of a job in this process, and writes its outcome.

Progress goes to the file descriptor that the job names, as one JSON list per line, so that nothing
a model or plug-in prints can be mistaken for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn

import torch

from lookback.benchmarks.machine import SHARED_GPU, memory_bytes
from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.cell import measure
from lookback.benchmarks.measure.train import InterruptedRunError
from lookback.benchmarks.plugins import load_plugins
from lookback.benchmarks.record import AnyCell, Job
from lookback.benchmarks.storage import write_atomically

INTERRUPTED = 75  # exit code: stopped as asked, to be resumed
PROGRESS_SECONDS = 0.2  # between reports
MEMORY_SHARE = 0.9  # of the machine's memory, for all cells on a CPU
LAUNCHER_SECONDS = 5.0  # until torch's launcher notices a process that ended, and ends the others
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def run_job(job: Job) -> None:
    """Measure the cell of a job in this process, and write its outcome."""
    die_with_parent(job.parent)
    if job.cell.processes > 1:
        measure_in_processes(job)

    stop = [False]
    prepare(job, stop)
    starting = time.time() - job.created
    try:
        outcome = measure(job.cell, job.folder, ProgressWriter(job.progress), stop)
    except InterruptedRunError:
        sys.exit(INTERRUPTED)
    outcome = outcome.model_copy(update={"starting": round(starting, 3)})
    write_atomically(job.outcome, outcome.model_dump_json())


class ProgressWriter:
    """Writes progress to a file descriptor, at most once in PROGRESS_SECONDS."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.last_written = 0.0

    def __call__(self, done: int, total: int, description: str) -> None:
        now = time.monotonic()
        if now - self.last_written > PROGRESS_SECONDS:
            self.last_written = now
            line = json.dumps([done, total, description]) + "\n"
            os.write(self.descriptor, line.encode())


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit(INTERRUPTED)


def prepare(job: Job, stop: list[bool]) -> None:
    """Set up signals, threads, numerics, memory and plug-ins; SIGTERM sets `stop[0]`."""
    cell = job.cell

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop[0] = True
        if cell.kind == "cost":  # has nothing to save
            sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides what Ctrl-C means
    if job.shared_gpu:
        os.environ[SHARED_GPU] = "1"
    torch.set_num_threads(max(1, job.threads // cell.processes))

    # float32 means float32 in every model: no TF32.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]

    # cuDNN's attention compiles a graph for every new length, at tens of milliseconds each. Only a
    # cost cell keeps to one length.
    torch.backends.cuda.enable_cudnn_sdp(cell.kind == "cost")

    limit_memory(cell, job.memory_share)
    load_plugins([str(plugin) for plugin in job.plugins])
    if cell.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


def limit_memory(cell: AnyCell, share: float) -> None:
    """Limit this process to a share of the memory, so that torch runs out before the machine does.

    RLIMIT_DATA comes closest to the memory of tensors: RLIMIT_AS would count libraries, and memory
    that is only reserved. A lower limit that is already set (`ulimit -d`) stays. On a GPU there is
    no limit, because its driver reserves much more than it uses.
    """
    if cell.device != "cpu":
        return

    current, maximum = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [int(share * MEMORY_SHARE * memory_bytes() / cell.processes)]
    for limit in (current, maximum):
        if limit != resource.RLIM_INFINITY:
            limits.append(limit)
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), maximum))


def measure_in_processes(job: Job) -> NoReturn:
    """Measure a cell in several processes, and exit as the first that failed did."""
    job = job.model_copy(update={"parent": os.getpid()})
    with Connection(job.progress, readable=False) as progress:
        code = parallel.launch(run_rank, job.cell.processes, job.folder, job, progress)
    if code < 0:
        # End by the same signal, so that the runner sees it.
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def run_rank(job: Job, progress: Connection) -> None:
    """Measure the cell as one of several processes.

    Rank 0 writes the outcome, unless another rank fails first and writes its own.
    """
    die_with_parent(job.parent)
    stop = [False]
    prepare(job, stop)
    with parallel.process_group(job.cell.device, job.cell.time_limit):
        is_first = parallel.rank() == 0
        report = ProgressWriter(progress.fileno()) if is_first else ignore_progress
        try:
            outcome = measure(job.cell, job.folder, report, stop)
        except InterruptedRunError:
            return

        if outcome.status == "error":
            # Perhaps only because another process ended. Then the launcher ends this one, too.
            time.sleep(LAUNCHER_SECONDS)
        has_failed = outcome.status in ("error", "oom")
        if has_failed and (stop[0] or job.outcome.exists()):
            return  # another process has reported its error
        if is_first or has_failed:
            write_atomically(job.outcome, outcome.model_dump_json())
        if has_failed:
            os._exit(1)  # without cleaning up: the other processes may wait for this one in vain


def ignore_progress(done: int, total: int, description: str) -> None:
    """Discard progress; only rank 0 reports it."""
