"""Forks the process of each cell from one process that has imported everything.

Importing torch and the registries takes 4 to 5 CPU-seconds, a fork a few milliseconds. The runner
starts `python -m lookback.benchmarks.measure.server SOCKET` with one end of a Unix socket. For each
cell it sends the path of a job file and two file descriptors, for progress and for output. The
server answers in lines of JSON:

    {"ready": 42}               its own process id: everything is imported
    {"started": 4711}           process id of the cell, which leads a process group of its own
    {"ended": 4711, "code": 0}  its exit code, or the negative number of the signal that ended it

It ends when the runner closes its end of the socket, as the kernel does for one that is killed.

A fork copies only the thread that calls it, and locks that other threads hold stay locked. So the
server must have one thread: the runner starts it with one thread for OpenMP and OpenBLAS, and it
neither touches CUDA nor loads plug-ins. The children do, and set their own number of threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path

from lookback.benchmarks.measure.job import run_job
from lookback.benchmarks.record import Job
from lookback.models.model import model_names
from lookback.tasks.task import task_names

# Modules that torch imports when a cell first needs them, which takes up to 1.5 s.
LAZY_MODULES = ("torch._dynamo", "torch.profiler", "torch.utils.serialization")
MESSAGE_BYTES = 65536


def main() -> None:
    """Serve the runner at the other end of the socket until it closes its end."""
    runner = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the runner decides what they mean
    model_names()  # imports every module that registers a model
    task_names()
    for name in LAZY_MODULES:
        importlib.import_module(name)
    check_threads()

    # SIGCHLD writes a byte into a socket, so that one `select` waits for the runner and children.
    wakeup_reader, wakeup_writer = socket.socketpair()
    wakeup_reader.setblocking(False)
    wakeup_writer.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)

    send(runner, {"ready": os.getpid()})
    with selectors.DefaultSelector() as selector:
        selector.register(runner, selectors.EVENT_READ)
        selector.register(wakeup_reader, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if wakeup_reader in ready:
                wakeup_reader.recv(MESSAGE_BYTES)
                report_ended(runner)
            if runner in ready:
                message, descriptors, _, _ = socket.recv_fds(runner, MESSAGE_BYTES, 2)
                if not message:
                    return
                start(runner, Path(message.decode()), *descriptors)


def check_threads() -> None:
    """Raise RuntimeError if this process has more threads than one, which a fork would lose."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"the cell server has {threads} threads: expected 1 before it forks")


def start(runner: socket.socket, job_file: Path, progress: int, output: int) -> None:
    """Fork a child that measures a job, and tell the runner its process id."""
    server = os.getpid()
    child = os.fork()
    if child == 0:
        measure_job(job_file, progress, output, server)  # does not return
    os.close(progress)
    os.close(output)
    send(runner, {"started": child})


def measure_job(job_file: Path, progress: int, output: int, server: int) -> None:
    """Measure a job in this child, and end it without the server's own cleaning up."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        job = Job.model_validate_json(job_file.read_bytes())
        run_job(job.model_copy(update={"progress": progress, "parent": server}))
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def report_ended(runner: socket.socket) -> None:
    """Tell the runner about every child that has ended."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # no children are left
            return
        if child == 0:  # those that are left still run
            return
        send(runner, {"ended": child, "code": os.waitstatus_to_exitcode(status)})


def send(runner: socket.socket, message: dict[str, int]) -> None:
    """Send the runner a line of JSON."""
    with contextlib.suppress(BrokenPipeError):  # the runner has ended, and so will the server
        runner.sendall((json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    main()
