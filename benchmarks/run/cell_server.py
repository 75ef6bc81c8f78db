"""The runner's side of the cell server, which forks cells from a process that has torch loaded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

SERVER = "lookback.benchmarks.measure.server"
POLL_SECONDS = 0.2

# More threads than one would be lost in a fork (see measure/server.py). Cells set their own number.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class ForkedProcess:
    """A cell's process, with the part of subprocess.Popen that following it needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        self.ended.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class CellServer:
    """Starts cells through a server process; may be used from several threads.

    A server that has been killed, and its cells with it, is replaced when the next cell starts.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**environment, **ONE_THREAD}
        self.lock = threading.Lock()  # held from sending a job until its process is known
        self.answered = threading.Condition()
        self._launch()

    def _launch(self) -> None:
        self.socket, server_socket = socket.socketpair()
        with server_socket:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", SERVER, str(server_socket.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(server_socket.fileno(),),
                start_new_session=True,
                env=self.environment,
            )
        self.is_running = True
        self.is_ready = False
        self.started: ForkedProcess | None = None
        self.processes: dict[int, ForkedProcess] = {}
        threading.Thread(target=self._listen, args=(self.socket,), daemon=True).start()

    def wait_until_ready(self, stop_requests: Callable[[], int]) -> bool:
        """Wait for the server's imports; return False if it ended or the run is asked to stop."""
        with self.answered:
            while self.is_running and not self.is_ready and not stop_requests():
                self.answered.wait(POLL_SECONDS)
            return self.is_running and self.is_ready

    def start(self, job_file: Path, progress: int, output: int) -> ForkedProcess:
        """Fork a process for a job; raises ChildProcessError if the server cannot be run."""
        with self.lock, self.answered:
            for _ in range(2):
                self.started = None
                with contextlib.suppress(OSError):
                    socket.send_fds(self.socket, [str(job_file).encode()], [progress, output])
                self.answered.wait_for(lambda: self.started or not self.is_running)
                if self.started is not None:
                    return self.started
                self.close()
                self._launch()
            raise ChildProcessError("the process that starts cells has ended twice")

    def close(self) -> None:
        """End the server, and with it every cell that it started."""
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def _listen(self, server: socket.socket) -> None:
        """Take a server's answers until it ends."""
        with contextlib.suppress(OSError), server.makefile("r") as lines:
            for line in lines:
                answer = json.loads(line)
                with self.answered:
                    if "ready" in answer:
                        self.is_ready = True
                    elif "started" in answer:
                        self.started = ForkedProcess(answer["started"])
                        self.processes[self.started.pid] = self.started
                    else:
                        self._end(answer["ended"], answer["code"])
                    self.answered.notify_all()

        with self.answered:
            self.is_running = False
            for pid in list(self.processes):
                self._end(pid, -signal.SIGKILL)  # the kernel ended them with the server
            self.answered.notify_all()

    def _end(self, pid: int, code: int) -> None:
        process = self.processes.pop(pid)
        process.returncode = code
        process.ended.set()
