"""The process that measures one cell: how it is started, followed, stopped and cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lookback.benchmarks.machine import usable_cores
from lookback.benchmarks.record import AnyCell, Job, Outcome
from lookback.benchmarks.run.cell_server import POLL_SECONDS, CellServer, ForkedProcess

CellProcess = subprocess.Popen[bytes] | ForkedProcess

GRACE_SECONDS = 20.0  # between asking a process to stop and killing it
MESSAGE = "lookback: "  # begins each line of a cell's output that its user should see
SHOWN_OUTPUT = 2000  # characters of the output that the record of a failed cell keeps

# By default glibc returns the memory of large tensors to the system as soon as they are freed, and
# each new tensor pays for its pages again. Without that, training steps of small models take 10 to
# 30 % less time on a CPU.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


def measure_in_process(
    cell: AnyCell,
    folder: Path,
    *,
    plugins: tuple[Path, ...],
    threads: int,
    stop_requests: Callable[[], int],
    progress: Callable[[int, int, str], None],
    server: CellServer | None = None,
    memory_share: float = 1.0,
    shared_gpu: bool = False,
) -> tuple[Outcome, list[str]]:
    """Measure a cell in a process of its own, which starts in the user's current folder.

    Args:
        folder: where checkpoints and the output of the process lie.
        stop_requests: returns 0 to go on, 1 to have the cell save and stop, 2 to kill it.
        progress: called with the work done, all work, and a description.
        server: forks the process; without one, a fresh process imports torch itself.
        memory_share: part of the machine's memory for this cell, on a CPU.
        shared_gpu: whether other cells run on the GPU at the same time.

    Returns:
        The outcome and the messages that the process has for its user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome_file = folder / "outcome.json"
    output_file = folder / "output.txt"
    outcome_file.unlink(missing_ok=True)

    with _progress_pipe() as (reader, writer):
        job = Job(
            cell=cell,
            plugins=plugins,
            folder=folder,
            outcome=outcome_file,
            progress=writer,
            parent=os.getpid(),
            threads=threads,
            memory_share=memory_share,
            shared_gpu=shared_gpu,
            created=time.time(),
        )
        process = _start(job, output_file, server)
        with _cleaned_up(process):
            timed_out = _follow(process, reader, cell.time_limit, stop_requests, progress)

    output = output_file.read_text(encoding="utf-8", errors="replace")
    messages = [
        line.removeprefix(MESSAGE) for line in output.splitlines() if line.startswith(MESSAGE)
    ]
    if outcome_file.exists():
        outcome = Outcome.model_validate_json(outcome_file.read_bytes())
    elif timed_out:
        outcome = Outcome(status="timeout", message=f"not done after {cell.time_limit:g} seconds")
    else:
        assert process.returncode is not None  # the process has ended
        outcome = _outcome_of_failure(process.returncode, output[-SHOWN_OUTPUT:])
    return outcome, messages


@contextlib.contextmanager
def _progress_pipe() -> Iterator[tuple[int, int]]:
    """A pipe for progress: the descriptors to read from and to write to."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def _start(job: Job, output_file: Path, server: CellServer | None) -> CellProcess:
    job_file = job.folder / "job.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    with output_file.open("wb") as output:
        if server is not None:
            return server.start(job_file, job.progress, output.fileno())

        # -P: modules in the user's folder must not hide those of Python or of Lookback.
        command = [sys.executable, "-P", "-m", "lookback.benchmarks.measure", str(job_file)]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(job.progress,),
            start_new_session=True,
            env={**ALLOCATOR, **os.environ},
        )


@contextlib.contextmanager
def _cleaned_up(process: CellProcess) -> Iterator[None]:
    """At the end, kill the process and everything that it has started."""
    guard = _watchdog(process)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        guard.kill()
        guard.communicate()


def _watchdog(process: CellProcess) -> subprocess.Popen[bytes]:
    """Start a shell that kills the cell's process group if this process is killed.

    The shell waits for the end of its input, which closes whenever this process ends. The kernel
    ends the cell's own process with ours (see measure/job.py), but not what that has started.
    """
    script = "trap '' HUP INT TERM; read nothing; kill -s KILL -- -$1"
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _follow(
    process: CellProcess,
    reader: int,
    time_limit: float,
    stop_requests: Callable[[], int],
    progress: Callable[[int, int, str], None],
) -> bool:
    """Pass progress on until the process ends; return whether its time limit ended it."""
    deadline = time.monotonic() + time_limit
    timed_out = False
    passed_on = 0  # stop requests
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while process.poll() is None:
            if selector.select(timeout=POLL_SECONDS):
                *lines, unread = (unread + os.read(reader, 65536)).split(b"\n")
                if lines:
                    progress(*json.loads(lines[-1]))

            requests = stop_requests()
            if requests > passed_on:
                passed_on = requests
                process.send_signal(signal.SIGTERM if requests == 1 else signal.SIGKILL)

            if time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL if timed_out else signal.SIGTERM)
                timed_out = True
                deadline = time.monotonic() + GRACE_SECONDS
    return timed_out


def _outcome_of_failure(exit_code: int, output: str) -> Outcome:
    """The outcome of a process that ended without writing one."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return Outcome(status="killed", message=f"ended by signal {name}: {output}")
    return Outcome(status="error", message=f"ended with exit code {exit_code}: {output}")


def default_jobs(device: str, threads: int) -> int:
    """Return how many learning cells run side by side: one per core, or one on a GPU."""
    return 1 if device == "cuda" else max(1, usable_cores() // max(1, threads))


def default_threads() -> int:
    """Return OMP_NUM_THREADS, as torch does, or else the number of cores."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdecimal() and int(setting):
        return int(setting)
    return usable_cores()


def allocator() -> str:
    """Return the memory allocation settings of a cell's process; the user's override ours."""
    settings = {name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if name in os.environ:
            settings[name] = os.environ[name]
    return " ".join(f"{name}={value}" for name, value in settings.items())
