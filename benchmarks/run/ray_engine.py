"""Measures many cells at once on the nodes of a Ray cluster.

A node measures a cell as a runner does here, in a fresh process, and writes the record. It also
sends the record back, and the runner writes it if it does not exist yet, so the nodes need no
common disk. The nodes must be of one type, because records of different machines are not mixed;
before anything is measured, each node reports its type.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lookback.benchmarks.machine import machine, usable_cores
from lookback.benchmarks.record import AnyCell, Machine, Record
from lookback.benchmarks.run.progress import CellResult, MessageLog, ProgressBar
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_record, write_record
from lookback.benchmarks.suite import Suite

POLL_SECONDS = 0.5
RAY_SETTINGS = {  # of a cluster that is started here; the user's override ours
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # cells are timed
    "RAY_memory_monitor_refresh_ms": "0",  # a cell that runs out of memory says so: a result
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
FOLDER_PREFIX = "lookback-ray-"  # of the temporary folder of a cluster that is started here
FOLDER_LOCK = "in-use.lock"  # held as long as the process that started it lives
STORE_BYTES = 100 << 20  # of memory for what Ray's processes exchange: records


class LostError(Exception):
    """The worker of a cell ended without an answer, or was stopped by somebody else."""


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of a node, or those that a cell takes."""

    cpus: int
    gpus: float = 0.0


def resources_of(cell: AnyCell, node: Resources, threads: int = 0, share: float = 1.0) -> Resources:
    """Return the part of a node that a cell takes; raise ValueError if no such node can hold it.

    A timed cell has a device to itself: a GPU, or on a CPU the whole node. Other cells take a CPU
    for each thread, or `share` of a GPU and by default the same part of the CPUs.
    """
    is_timed = cell.kind == "cost"
    if cell.device == "cpu":
        return Resources(node.cpus if is_timed else min(threads or 1, node.cpus))

    gpus = float(cell.processes) if is_timed or cell.processes > 1 else share
    if gpus > node.gpus:
        raise ValueError(
            f"{cell.id} takes {gpus:g} GPUs: expected at most the {node.gpus:g} of a node"
        )
    cpus = threads or max(1, int(node.cpus * gpus / node.gpus))
    return Resources(min(cpus, node.cpus), gpus)


@dataclass
class RayRunner(Runner):
    """Runs cells as tasks of Ray, and collects their records as they end.

    Each task takes a worker of its own, and the cell's process is the child of that worker.
    """

    nodes: dict[str, Resources] = field(default_factory=dict)  # of every node, by device

    def resources(self, cell: AnyCell) -> Resources:
        return resources_of(cell, self.nodes[cell.device], self.threads, self.share)

    def _results(self, cells: Sequence[AnyCell], bar: ProgressBar) -> Iterator[CellResult]:
        """Yield the result of each cell as it ends; a lost cell is tried once more."""
        running = {self._submit(cell): cell for cell in cells}
        lost: set[AnyCell] = set()
        passed_on = 0  # stop requests
        try:
            while running and passed_on < 2:
                if self.stop_requests > passed_on:
                    passed_on = self.stop_requests
                    self._stop(running, at_once=passed_on > 1)

                for task in self._ended(running):
                    cell = running.pop(task)
                    try:
                        result = self._fetch(task)
                    except LostError as error:
                        message = f"{cell.id}: {error}"
                        if cell in lost:
                            yield CellResult(cell, None, messages=(message,))
                        elif not self.stop_requests:
                            bar.say(f"{message}; trying once more")
                            lost.add(cell)
                            running[self._submit(cell)] = cell
                        continue

                    if result.record is not None:
                        self._write_home(result.record, bar)
                        yield result
        finally:
            self._stop(running, at_once=True)

    def _submit(self, cell: AnyCell) -> Any:
        """Hand a cell to the cluster, and return the handle of its task."""
        import ray

        resources = self.resources(cell)
        runner = Runner(
            self.results.resolve(),
            Suite(self.suite.name, self.suite.title, (cell,)),
            plugins=[str(Path(plugin).resolve()) for plugin in self.plugins],
            threads=self.threads or (0 if cell.kind == "learn" else resources.cpus),
            exclusive=False,  # Ray gives each cell its device
            share=resources.gpus if 0 < resources.gpus < 1 else 1.0,
            options={cell: self.options[cell]} if cell in self.options else {},
            code={cell: self.code[cell]} if cell in self.code else {},
        )
        task = ray.remote(max_calls=1, max_retries=0)(measure_on_node)
        task = task.options(num_cpus=resources.cpus, num_gpus=resources.gpus, name=cell.id)
        return task.remote(runner)

    def _ended(self, running: dict[Any, AnyCell]) -> list[Any]:
        """Wait a moment for a task to end; return those that have ended."""
        import ray

        ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        return ended

    def _fetch(self, task: Any) -> CellResult:
        """Return the result of a task.

        Raises LostError if its worker is gone, or OSError if the record cannot be written there.
        """
        import ray

        try:
            result: CellResult = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise error.cause from None
            raise LostError(f"{type(error.cause).__name__}: {error.cause}") from None
        except ray.exceptions.RayError as error:
            raise LostError(f"its worker is gone ({_first_line(error)})") from None
        if result.record is None and not self.stop_requests:
            raise LostError("stopped on its node")
        return result

    def _stop(self, running: dict[Any, AnyCell], at_once: bool) -> None:
        """Have running cells save and stop, or kill them at once; waiting tasks never start."""
        import ray

        for task in running:
            ray.cancel(task, force=at_once)  # without force, like Ctrl-C in the worker's process

    def _write_home(self, record: Record, log: MessageLog) -> None:
        """Write the record of a node with a disk of its own."""
        folder = self.results / record.machine.slug / self.suite.name
        path = folder / f"{record.cell_id}.json"
        with contextlib.suppress(ValueError):
            if path.exists() and read_record(path) == record:
                return
        self._set_torn_aside(record.cell, log)
        write_record(folder, record)


def measure_on_node(runner: Runner) -> CellResult:
    """Measure the runner's only cell. Ray runs this function as a task."""
    (cell,) = runner.suite.cells
    log = MessageLog()
    began = time.monotonic()
    with runner.listening():
        record = runner.measure(cell, log)
    return CellResult(cell, record, time.monotonic() - began, tuple(log.messages))


def join_ray(address: str = "") -> None:
    """Join the Ray cluster at an address or at RAY_ADDRESS, or else start one on this machine.

    Raises ValueError if Ray is not installed, or if there is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS", "") or "local"
    settings: dict[str, Any] = {}
    if address == "local":
        for name, value in RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        folder = _make_folder()
        settings = {
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
        }
    _check_reachable(address)

    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ValueError(
            "--engine ray needs the package ray, the extra 'ray': "
            "pip install -c constraints.txt -e '.[ray]'"
        ) from None
    # Ray comments on its default authentication, a token.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    atexit.register(ray.shutdown)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **settings)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {_first_line(error)}") from None


def _make_folder() -> str:
    """Return a new folder for a cluster, which is removed at exit.

    A killed process cannot remove its folder; the next one does.
    """
    for lock_file in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{FOLDER_LOCK}"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock_file, timeout=0):
            shutil.rmtree(lock_file.parent, ignore_errors=True)

    folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)  # a short path, because it holds sockets
    lock = FileLock(Path(folder) / FOLDER_LOCK)
    lock.acquire()
    atexit.register(lock.release)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _check_reachable(address: str) -> None:
    """Raise ValueError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r}: {error}: expected the HOST:PORT of its head"
        ) from None


def ray_device() -> str:
    """Return "cuda" if the joined cluster has a GPU, else "cpu"."""
    import ray

    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def on_ray(runner: Runner) -> RayRunner:
    """Return a runner of the same cells for the joined cluster.

    Raises ValueError if its nodes are of several types or cannot hold the cells.
    """
    settings = {setting.name: getattr(runner, setting.name) for setting in fields(Runner)}
    spread = RayRunner(**settings)
    for device in {cell.device for cell in runner.suite.cells}:
        nodes = _nodes(device)
        types = {node.slug: node for node, _ in nodes}
        if len(types) > 1:
            raise ValueError(
                f"the nodes of the Ray cluster differ ({', '.join(sorted(types))}): "
                "expected nodes of one type, because records of different machines are not mixed"
            )
        (spread.machines[device],) = types.values()

        cpus = [resources.cpus for _, resources in nodes]
        gpus = [resources.gpus for _, resources in nodes]
        # On a CPU a timed cell takes all CPUs of the largest node, so that nothing runs beside it.
        largest = Resources(min(cpus) if device == "cuda" else max(cpus), max(gpus))
        spread.nodes[device] = largest
        print(
            f"ray: {len(nodes)} x {types.popitem()[0]}, "
            f"{largest.cpus} CPUs and {largest.gpus:g} GPUs each"
        )
    for cell in runner.suite.cells:
        spread.resources(cell)  # raises if no node can hold the cell
    return spread


def _nodes(device: str) -> list[tuple[Machine, Resources]]:
    """Return the machine and the resources of each node of the cluster that has this device."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = {}
    for node in ray.nodes():
        cpus = int(node["Resources"].get("CPU", 0))
        gpus = node["Resources"].get("GPU", 0.0)
        if node["Alive"] and (gpus if device == "cuda" else cpus):
            resources[node["NodeID"]] = Resources(cpus, gpus)
    if not resources:
        raise ValueError(
            f"the Ray cluster has no node for device {device!r}: expected one with CPUs or GPUs"
        )

    question = ray.remote(num_cpus=0, max_retries=0)(machine)
    answers = []
    for node in resources:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        answers.append(question.options(scheduling_strategy=strategy).remote(device))
    try:
        return list(zip(ray.get(answers), resources.values(), strict=True))
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"a node of the Ray cluster cannot say what it is: {_first_line(error)}: "
            "expected Lookback on every node, at the same path and in the same environment"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
