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
from typing import Any

import torch

from lookback.benchmarks.machine import memory_bytes
from lookback.benchmarks.measure import parallel
from lookback.benchmarks.measure.cell import measure
from lookback.benchmarks.measure.train import InterruptedRunError
from lookback.benchmarks.plugins import load_plugins
from lookback.benchmarks.record import Cell
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


def limit_memory(cell: Cell) -> None:
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
    """Measure the cell of the job that the command line names, and write its outcome."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _die_with(job["parent"])
    if job["cell"]["processes"] > 1:
        _in_several(job)
        return
    stop = [False]
    cell = _prepare(job, stop)
    try:
        outcome = measure(cell, Path(job["folder"]), Reporter(job["progress"]), stop)
    except InterruptedRunError:
        sys.exit(INTERRUPTED)
    write_atomically(Path(job["outcome"]), outcome.model_dump_json())


def _prepare(job: dict[str, Any], stop: list[bool]) -> Cell:
    """Make this process ready to measure a job's cell: asked to stop, it notes so in `stop`."""
    cell = Cell.model_validate(job["cell"])

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        stop[0] = True
        if cell.kind == "cost":  # has nothing to save
            sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, asked_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides
    torch.set_num_threads(max(1, job["threads"] // cell.processes))
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # float32 is float32: no TF32, in any model
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    # cuDNN's attention makes a graph for every new length, tens of milliseconds each; costs alone
    # keep to one length
    torch.backends.cuda.enable_cudnn_sdp(cell.kind == "cost")
    limit_memory(cell)
    load_plugins(job["plugins"])
    if cell.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    return cell


def _in_several(job: dict[str, Any]) -> None:
    """Measure a job's cell in as many processes as it asks for; this one ends as the first of them
    that ended badly.
    """
    launched = {**job, "parent": os.getpid()}
    with Connection(job["progress"], readable=False) as progress:
        code = parallel.launch(
            _part, job["cell"]["processes"], Path(job["folder"]), launched, progress
        )
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL nobody can
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _part(job: dict[str, Any], progress: Connection) -> None:
    """What each of several processes does. The first says how it went, or else the one that went
    wrong.
    """
    _die_with(job["parent"])
    stop = [False]
    cell = _prepare(job, stop)
    with parallel.joined(cell.device, cell.time_limit):
        first = parallel.rank() == 0
        try:
            outcome = measure(
                cell, Path(job["folder"]), Reporter(progress.fileno()) if first else _silent, stop
            )
        except InterruptedRunError:
            return
        failed = outcome.status in ("error", "oom")
        if (
            outcome.status == "error"
        ):  # perhaps only because another process ended: that one is noticed meanwhile
            time.sleep(ECHO_SECONDS)
        if failed and (
            stop[0] or Path(job["outcome"]).exists()
        ):  # another was first to say what is wrong
            return
        if first or failed:
            write_atomically(Path(job["outcome"]), outcome.model_dump_json())
        if failed:
            os._exit(1)  # at once: the others may wait for this process in vain


def _silent(done: int, total: int, what: str) -> None:
    """Progress of a process that nobody watches."""


if __name__ == "__main__":
    main()
