"""One cell in a process of its own: `python -m lookback.benchmarks.measure JOB`, started by
run/runner.py.

JOB is a JSON file: the cell, the plug-ins to import, where to work and where to put the outcome.
Progress goes to the file descriptor it names, a JSON list a line, so that nothing a model or
plug-in prints can be taken for it.
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
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from lookback.benchmarks.machine import memory_bytes
from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.cell import measure
from lookback.benchmarks.measure.train import InterruptedRunError
from lookback.benchmarks.plugins import load_plugins
from lookback.benchmarks.record import AnyCell, Job
from lookback.benchmarks.storage import write_atomically

INTERRUPTED = 75  # exit code: stopped as asked, to be gone on with
PROGRESS_SECONDS = 0.2
MEMORY_SHARE = 0.9  # of the machine's, for a cell on a CPU
ECHO_SECONDS = 5.0  # in which torch's launcher notices a process that ended, and ends the others


class Reporter:
    """Writes progress to a descriptor, not more often than somebody can read it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.last = descriptor, 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self.last > PROGRESS_SECONDS:
            self.last = time.monotonic()
            os.write(self.descriptor, (json.dumps([done, total, what]) + "\n").encode())


def limit_memory(cell: AnyCell) -> None:
    """Have torch say that there is no more before this process has taken the machine's memory from
    everybody else.

    Of what a system can limit, RLIMIT_DATA is closest to what tensors take: address space
    (RLIMIT_AS) counts libraries and what is only set aside. A lower limit that is there (`ulimit
    -d`) stays. A GPU's driver needs to be free of it.
    """
    if cell.device == "cpu":
        there, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = [
            int(MEMORY_SHARE * memory_bytes() / cell.processes),
            *(n for n in (there, most) if n != resource.RLIM_INFINITY),
        ]
        resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), most))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(INTERRUPTED)


def main() -> None:
    """Measure the cell of the job file that the command line names, and write its outcome."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    _die_with(job.parent)
    if job.cell.processes > 1:
        _measure_in_several_processes(job)

    stop = [False]
    _prepare(job, stop)
    try:
        outcome = measure(job.cell, job.folder, Reporter(job.progress), stop)
    except InterruptedRunError:
        sys.exit(INTERRUPTED)
    write_atomically(job.outcome, outcome.model_dump_json())


def _prepare(job: Job, stop: list[bool]) -> None:
    """Set up signals, threads, numerics, memory and plug-ins; SIGTERM sets `stop[0]`."""
    cell = job.cell

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop[0] = True
        if cell.kind == "cost":  # has nothing to save
            sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides what Ctrl-C means
    torch.set_num_threads(max(1, job.threads // cell.processes))

    # float32 means float32 in every model: no TF32.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]

    # cuDNN's attention compiles a graph for every new length, at tens of milliseconds each. Only a
    # cost cell keeps to one length.
    torch.backends.cuda.enable_cudnn_sdp(cell.kind == "cost")

    limit_memory(cell)
    load_plugins([str(plugin) for plugin in job.plugins])
    if cell.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


def _measure_in_several_processes(job: Job) -> NoReturn:
    """Measure a cell in the processes that it asks for; exit as the first that failed did."""
    job = job.model_copy(update={"parent": os.getpid()})
    with Connection(job.progress, readable=False) as progress:
        code = parallel.launch(_run_rank, job.cell.processes, job.folder, job, progress)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _run_rank(job: Job, progress: Connection) -> None:
    """Measure the cell as one of several processes.

    Rank 0 writes the outcome, or the rank that failed first.
    """
    _die_with(job.parent)
    stop = [False]
    _prepare(job, stop)
    with parallel.process_group(job.cell.device, job.cell.time_limit):
        first = parallel.rank() == 0
        report = Reporter(progress.fileno()) if first else _no_progress
        try:
            outcome = measure(job.cell, job.folder, report, stop)
        except InterruptedRunError:
            return

        if outcome.status == "error":
            # Perhaps only because another process ended; torch's launcher notices that one meanwhile.
            time.sleep(ECHO_SECONDS)
        failed = outcome.status in ("error", "oom")
        if failed and (stop[0] or job.outcome.exists()):
            return  # another process has reported its error
        if first or failed:
            write_atomically(job.outcome, outcome.model_dump_json())
        if failed:
            os._exit(1)  # without cleaning up: the others may wait for this process in vain


def _no_progress(done: int, total: int, description: str) -> None:
    """Ignore progress; only rank 0 reports it."""


if __name__ == "__main__":
    main()
