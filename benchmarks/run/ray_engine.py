"""Many cells at once on many machines: the runner of run.py, spread over a Ray cluster or over
Slurm.

What a node does with a cell is what a runner does with it here: measure it in a fresh process and
write its record. The record also comes home, and is written down where it does not lie yet, so that
nodes need no common disk. A run is of one type of machine, whose records lie in one folder: nodes
are asked what they are before anything is measured.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookback.benchmarks.machine import machine
from lookback.benchmarks.record import AnyCell, Machine, Record
from lookback.benchmarks.run.runner import GRACE_SECONDS, WORK, Bar, Measured, Notes, Runner, cores
from lookback.benchmarks.storage import read_record, write_record
from lookback.benchmarks.suite import Suite

POLL_SECONDS = 0.5
RAY_SETTINGS = {  # of a cluster that is started here, a user's own before ours
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # cells are timed
    # a cell that runs out of memory says so, which is a result
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
STORE_BYTES = 100 << 20  # of memory for what goes between Ray's processes: records


class LostError(Exception):
    """A cell's worker ended without an answer, or was made to stop by somebody else."""


@dataclass(frozen=True)
class Room:
    """What a node has, or what a cell takes of it."""

    cpus: int
    gpus: float = 0.0


def room_of(cell: AnyCell, node: Room, threads: int = 0, share: float = 1.0) -> Room:
    """What a cell takes of a node; raises ValueError where no such node can hold it.

    A timed cell has a device for itself: a GPU, or on a CPU the node. Others take their share of a
    GPU, and as many CPUs as threads: unless told, all of a node without GPUs, or those that fall to
    their GPUs.
    """
    if cell.device == "cpu":
        return Room(node.cpus if cell.kind == "cost" or not threads else min(threads, node.cpus))
    gpus = float(cell.processes) if cell.processes > 1 or cell.kind == "cost" else share
    if gpus > node.gpus:
        raise ValueError(
            f"{cell.id} takes {gpus:g} GPUs: expected at most the {node.gpus:g} of a node"
        )
    return Room(min(threads or max(1, int(node.cpus * gpus / node.gpus)), node.cpus), gpus)


def measure_there(runner: Runner) -> Measured:
    """What a process on a node does: the runner's one cell, and what there was to say of it told at
    the end.
    """
    (cell,) = runner.suite.cells
    notes, began = Notes(), time.monotonic()
    with runner.listening():
        record = runner.measure(cell, notes)
    return Measured(cell, record, time.monotonic() - began, tuple(notes.said))


@dataclass
class ClusterRunner(Runner):
    """Hands the cells out to a cluster, and takes records in as they come; what runs there ends
    when it is asked to.
    """

    rooms: dict[str, Room] = field(default_factory=dict)  # of a node, for each kind of device

    def _submit(self, cells: Sequence[AnyCell]) -> list[Any]:
        """Have these cells measured: a handle of each."""
        raise NotImplementedError

    def _ended(self, handles: Sequence[Any]) -> list[Any]:
        """Those that have ended, waiting a little for one."""
        raise NotImplementedError

    def _fetch(self, handle: Any) -> Measured:
        """What came of a cell; raises LostError, or OSError where it could not be recorded."""
        raise NotImplementedError

    def _stop(self, handles: Sequence[Any], now: bool) -> None:
        """Ask what runs to save and end, or end it now; what does not run yet never will."""
        raise NotImplementedError

    def room(self, cell: AnyCell) -> Room:
        return room_of(cell, self.rooms[cell.device], self.threads, self.share)

    def there(self, cell: AnyCell) -> Runner:
        """The runner that measures a cell on its node."""
        room = self.room(cell)
        return Runner(
            self.results.resolve(),
            Suite(self.suite.name, self.suite.title, (cell,)),
            plugins=self._plugins(),
            threads=self.threads or room.cpus,
            exclusive=False,
            options={cell: self.options[cell]} if cell in self.options else {},
            share=room.gpus if 0 < room.gpus < 1 else 1.0,
        )

    def _plugins(self) -> list[str]:
        return [str(Path(plugin).resolve()) for plugin in self.plugins]

    def _measured(self, cells: Sequence[AnyCell], bar: Bar) -> Iterator[Measured]:
        out = dict(zip(self._submit(cells), cells, strict=True))
        lost: set[AnyCell] = set()
        asked = 0
        try:
            while out and asked < 2:
                if self.signals > asked:
                    asked = self.signals
                    self._stop([*out], now=asked > 1)
                for handle in self._ended([*out]):
                    cell = out.pop(handle)
                    try:
                        measured = self._fetch(handle)
                        if measured.record is None and not self.signals:
                            raise LostError("stopped on its node")
                    except LostError as error:
                        if cell in lost:
                            yield Measured(cell, None, said=(f"{cell.id}: {error}",))
                        elif not self.signals:
                            bar.say(f"{cell.id}: {error}; trying once more")
                            lost.add(cell)
                            out |= zip(self._submit([cell]), [cell], strict=True)
                    else:
                        self._keep(measured.record, bar)
                        yield measured
        finally:
            self._stop([*out], now=True)

    def _keep(self, record: Record | None, notes: Notes) -> None:
        """Write down the record of a node whose disk is not ours."""
        if record is None:
            return
        folder = self.results / record.machine.slug / self.suite.name
        with contextlib.suppress(ValueError):
            if (path := folder / f"{record.cell_id}.json").exists() and read_record(path) == record:
                return
        self._set_torn_aside(record.cell, notes)
        write_record(folder, record)


def one_type(found: Mapping[str, tuple[Machine, Room]], wanted: str) -> str:
    """Of the machines found (node -> what it is and has), the type to measure on: the one wanted,
    or that with most.

    Raises ValueError that names the types there are where the one wanted is not among them.
    """
    size: Counter[str] = Counter()
    for place, room in found.values():
        size[place.slug] += int(1000 * (room.gpus or room.cpus))
    if wanted and wanted not in size:
        raise ValueError(f"--machine {wanted}: expected one of {', '.join(sorted(size))}")
    return wanted or size.most_common(1)[0][0]


# --- Ray


@dataclass
class RayRunner(ClusterRunner):
    """Cells as Ray's tasks. Each takes a worker of its own; the cell's process is that worker's
    child.
    """

    left_out: tuple[str, ...] = ()  # ids of nodes that are of another type

    def _submit(self, cells: Sequence[AnyCell]) -> list[Any]:
        import ray

        task = ray.remote(max_calls=1, max_retries=0)(measure_there)
        where = (
            {"label_selector": {"ray.io/node-id": f"!in({','.join(self.left_out)})"}}
            if self.left_out
            else {}
        )
        handles = []
        for cell in cells:
            room = self.room(cell)
            options = {"num_cpus": room.cpus, "num_gpus": room.gpus, "name": cell.id, **where}
            handles.append(task.options(**options).remote(self.there(cell)))
        return handles

    def _ended(self, handles: Sequence[Any]) -> list[Any]:
        import ray

        return ray.wait([*handles], timeout=POLL_SECONDS)[0]

    def _fetch(self, handle: Any) -> Measured:
        import ray

        try:
            return ray.get(handle)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise error.cause from None
            raise LostError(f"{type(error.cause).__name__}: {error.cause}") from None
        except ray.exceptions.RayError as error:
            raise LostError(f"its worker is gone ({_first_line(error)})") from None

    def _stop(self, handles: Sequence[Any], now: bool) -> None:
        import ray

        for handle in handles:
            ray.cancel(
                handle, force=now
            )  # not by force, it is to a worker's process what Ctrl-C is


def join_ray(address: str = "") -> None:
    """Join the Ray cluster at an address, or at RAY_ADDRESS, or start one on this machine; raises
    ValueError.
    """
    address = address or os.environ.get("RAY_ADDRESS", "") or "local"
    alone: dict[str, Any] = {}
    if address == "local":
        os.environ.update({name: os.environ.get(name, ours) for name, ours in RAY_SETTINGS.items()})
        folder = tempfile.mkdtemp(prefix="lookback-ray-")  # short, for it holds sockets
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        alone = {
            "num_cpus": cores(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
        }
    _check_reachable(address)
    ray = _package("ray")
    logging.getLogger("ray._private.authentication").setLevel(
        logging.ERROR
    )  # it remarks on its default, a token
    atexit.register(ray.shutdown)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **alone)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {_first_line(error)}") from None


def _check_reachable(address: str) -> None:
    """Raise ValueError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r}: {error}: expected the HOST:PORT of its head"
        ) from None


def ray_device() -> str:
    """The device that cells are for unless told: a GPU where the cluster that was joined has one."""
    import ray

    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def on_ray(runner: Runner, share: float = 1.0, wanted: str = "") -> RayRunner:
    """The runner, spread over the cluster that was joined; raises ValueError where that cannot
    measure its cells.
    """
    spread = RayRunner(
        runner.results,
        runner.suite,
        runner.plugins,
        runner.threads,
        share=share,
        options=runner.options,
    )
    left_out: list[str] = []
    for device in {cell.device for cell in runner.suite.cells}:
        found = _ray_nodes(device)
        slug = one_type(found, wanted)
        of_type = {node: room for node, (place, room) in found.items() if place.slug == slug}
        left_out += [node for node in found if node not in of_type]
        spread.machines[device] = next(place for place, _ in found.values() if place.slug == slug)
        cpus = [
            room.cpus for room in of_type.values()
        ]  # a timed cell's CPUs must be all that a node has
        room = Room(
            min(cpus) if device == "cuda" else max(cpus),
            max(room.gpus for room in of_type.values()),
        )
        spread.rooms[device] = room
        print(
            f"ray: {_nodes(len(of_type))} of type {slug}, {room.cpus} CPUs and {room.gpus:g} GPUs each",
            end="",
        )
        others = Counter(place.slug for place, _ in found.values() if place.slug != slug)
        print(
            "".join(
                f"; {_nodes(n)} of type {name} left out: --machine {name}"
                for name, n in others.items()
            )
        )
    spread.left_out = tuple(left_out)
    for cell in runner.suite.cells:
        spread.room(cell)
    return spread


def _ray_nodes(device: str) -> dict[str, tuple[Machine, Room]]:
    """What the cluster's nodes are and have that can hold cells for a device, as they say
    themselves.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    rooms = {
        node["NodeID"]: Room(
            int(node["Resources"].get("CPU", 0)), node["Resources"].get("GPU", 0.0)
        )
        for node in ray.nodes()
        if node["Alive"]
    }
    rooms = {
        node: room for node, room in rooms.items() if (room.gpus if device == "cuda" else room.cpus)
    }
    if not rooms:
        raise ValueError(
            f"the Ray cluster has no node for device {device!r}: expected one with CPUs and GPUs to give"
        )
    ask = ray.remote(num_cpus=0, max_retries=0)(machine)
    asked = {
        node: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(device)
        for node in rooms
    }
    try:
        return {node: (ray.get(answer), rooms[node]) for node, answer in asked.items()}
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"a node of the Ray cluster cannot say what it is: {_first_line(error)}: expected Lookback, at the same "
            "path and in the same environment, on every node"
        ) from None


# --- Slurm


@dataclass
class SlurmRunner(ClusterRunner):
    """Cells as jobs of Slurm, in arrays of equals. The results folder must be on a disk that the
    nodes share.
    """

    options: Mapping[str, Any] = field(default_factory=dict)  # of sbatch, as submitit names them
    system: str = "slurm"  # or what else submitit knows: "local", for tests

    def _submit(self, cells: Sequence[AnyCell]) -> list[Any]:
        handles: dict[AnyCell, Any] = {}
        for room, minutes in dict.fromkeys(
            (self.room(cell), self._minutes(cell)) for cell in cells
        ):
            alike = [
                cell for cell in cells if (self.room(cell), self._minutes(cell)) == (room, minutes)
            ]
            whole = any(cell.kind == "cost" and cell.device == "cpu" for cell in alike)
            executor = self._executor(room, minutes, whole)
            with executor.batch():
                jobs = [executor.submit(measure_there, self.there(cell)) for cell in alike]
            handles |= zip(alike, jobs, strict=True)
        return [handles[cell] for cell in cells]

    def _executor(self, room: Room, minutes: int, whole: bool) -> Any:
        submitit = _package("submitit", "slurm")
        executor = submitit.AutoExecutor(
            self.results.resolve() / WORK / "slurm", cluster=self.system
        )
        own = {"array_parallelism": 1000, **({"exclusive": True} if whole else {}), **self.options}
        executor.update_parameters(
            name="lookback",
            timeout_min=minutes,
            cpus_per_task=room.cpus,
            **({"gpus_per_node": math.ceil(room.gpus)} if room.gpus else {}),
            **({f"slurm_{name}": value for name, value in own.items()}),
        )
        return executor

    def _minutes(self, cell: AnyCell) -> int:
        """A cell's time, twice where it is killed once, and that to start and to stop."""
        return math.ceil(2 * (cell.time_limit + 2 * GRACE_SECONDS) / 60) + 5

    def machine(self, cell: AnyCell) -> Machine:
        """What a node says it is; the first time, a job goes and asks."""
        if cell.device not in self.machines:
            print("slurm: a first job asks a node what it is", flush=True)
            executor = self._executor(Room(1, float(cell.device == "cuda")), 5, whole=False)
            try:
                found = executor.submit(node_of_slurm, cell.device).result()
            except Exception as error:
                raise OSError(
                    f"a first job could not say what a node is: {_first_line(error)}"
                ) from None
            self.machines[cell.device], self.rooms[cell.device] = found
        return self.machines[cell.device]

    def _ended(self, handles: Sequence[Any]) -> list[Any]:
        ended = [handle for handle in handles if handle.done()]
        if not ended:
            time.sleep(POLL_SECONDS)
        return ended

    def _fetch(self, handle: Any) -> Measured:
        try:
            return handle.result()
        except Exception as error:
            raise LostError(f"its job {handle.job_id} is gone ({_first_line(error)})") from None

    def _stop(self, handles: Sequence[Any], now: bool) -> None:
        for handle in handles:
            handle.cancel(check=False)


def node_of_slurm(device: str) -> tuple[Machine, Room]:
    """The node that a job is on, as it is recorded, and all that it has, of which a job may see a
    part alone.
    """
    place = machine(device)
    cpus, gpus = place.facts["cores"], float(place.facts.get("gpu_count") or 0)
    name, scontrol = os.environ.get("SLURMD_NODENAME"), shutil.which("scontrol")
    if name and scontrol:
        said = subprocess.run(
            [scontrol, "show", "node", name, "--oneliner"], capture_output=True, text=True
        ).stdout
        found = re.search(r"\bCfgTRES=(\S+)", said)
        whole = dict(part.partition("=")[::2] for part in found[1].split(",")) if found else {}
        cpus, gpus = int(whole.get("cpu", cpus)), float(whole.get("gres/gpu", gpus))
    return place, Room(cpus, gpus)


def on_slurm(runner: Runner, options: Sequence[str] = (), system: str = "slurm") -> SlurmRunner:
    """The runner, spread over Slurm, with options NAME=VALUE for sbatch; raises ValueError where
    there is no Slurm.
    """
    _package("submitit", "slurm")
    wanted = _options(options)
    if system == "slurm" and not shutil.which("sbatch"):
        raise ValueError("--engine slurm: expected sbatch here, as on a login node of a cluster")
    return SlurmRunner(
        runner.results, runner.suite, runner.plugins, runner.threads, options=wanted, system=system
    )


def _options(given: Sequence[str]) -> dict[str, Any]:
    """["partition=gpu", "nice=10"] -> {"partition": "gpu", "nice": 10}"""
    options = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--slurm {option}: expected NAME=VALUE, as in partition=gpu")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _package(name: str, extra: str = "") -> Any:
    """An optional package; raises ValueError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        extra = extra or name
        raise ValueError(
            f"--engine {extra} needs the package {name}, the extra {extra!r}: "
            f"pip install -c constraints.txt -e '.[{extra}]'"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
