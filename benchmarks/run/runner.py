"""For each cell without a final record: measure it in its own process, record it. Knows nothing of
torch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from lookback.benchmarks.machine import SHARED_GPU, commit, load, machine, versions
from lookback.benchmarks.record import (
    FINAL,
    AnyCell,
    Job,
    Machine,
    Outcome,
    Record,
    ResolvedOptions,
)
from lookback.benchmarks.storage import TornRecordError, read_record, write_record
from lookback.benchmarks.suite import Suite

GRACE_SECONDS = 20.0  # between asking a process to stop and killing it
WORK = ".work"
SAID = "lookback: "  # begins a line of a cell's process that whoever runs it is to see
# glibc gives large tensors back to the system as soon as they are freed, and every new one is then
# paid for page by page: kept instead, training steps of small models take 10 to 30 % less time on a
# CPU.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


@dataclass(frozen=True)
class Measured:
    """What came of a cell: its record, or None where it was stopped or lost, and what there was to
    say of it.
    """

    cell: AnyCell
    record: Record | None
    seconds: float = 0.0
    said: tuple[str, ...] = ()


@dataclass
class Runner:
    """Measures the cells of a suite, one at a time, and keeps their records in
    results/<machine>/<suite>/.
    """

    results: Path
    suite: Suite
    plugins: Sequence[str] = ()
    threads: int = 0  # of torch; 0 for OMP_NUM_THREADS, or else one a core
    # waits until no other runner measures on this device; a cluster sees to that by itself
    exclusive: bool = True
    share: float = 1.0  # of a GPU, that cells have, the rest being others'
    signals: int = 0  # how often somebody asked to stop
    child: subprocess.Popen[bytes] | None = None
    machines: dict[str, Machine] = field(default_factory=dict)
    options: Mapping[AnyCell, ResolvedOptions] = field(default_factory=dict)

    def folder(self, cell: AnyCell) -> Path:
        return self.results / self.machine(cell).slug / self.suite.name

    def machine(self, cell: AnyCell) -> Machine:
        if cell.device not in self.machines:
            self.machines[cell.device] = machine(cell.device)
        return self.machines[cell.device]

    def path(self, cell: AnyCell) -> Path:
        return self.folder(cell) / f"{cell.id}.json"

    def recorded(self, cell: AnyCell) -> Record | None:
        """The record of a cell, if there is one; raises ValueError when what is there is none, or
        another cell's.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        record = read_record(path)
        if record.cell != cell:
            raise ValueError(
                f"{path}: expected the record of this cell, found that of {record.cell_id}"
            )
        return record

    def missing(self) -> list[AnyCell]:
        """Cells without a final record, in the suite's order; see `sorted_out`."""
        return self.sorted_out()[0]

    def sorted_out(self) -> tuple[list[AnyCell], list[str]]:
        """Cells to measure, and a line for each that is not, because a file that we cannot read
        stands in its place.

        A torn record is measured again. What is whole but of another schema or cell may be
        somebody's result: nobody writes over it, and the other cells are measured.
        """
        missing, strange = [], []
        for cell in self.suite.cells:
            try:
                record = self.recorded(cell)
            except TornRecordError:
                record = None
            except ValueError as error:
                strange.append(
                    f"not measured, nor written over: {error}; move it away to have its cell measured"
                )
                continue
            if record is None or not self._is_result(record):
                missing.append(cell)
        return missing, strange

    def _is_result(self, record: Record) -> bool:
        """Return whether a record's cell need not be measured again.

        A record made with other defaults is none. An option that the record does not hold was added
        later; its default keeps the earlier behaviour.
        """
        options = self.options.get(record.cell, ResolvedOptions())
        same = all(
            options.model.get(name, value) == value for name, value in record.options.model.items()
        ) and all(
            options.task.get(name, value) == value for name, value in record.options.task.items()
        )
        return same and record.outcome.status in FINAL

    def run(self) -> int:
        """Measure what is missing; the exit code: 0 all measured, 1 some cell in error, 130 or 143
        interrupted.
        """
        cells, strange = self.sorted_out()
        every = len(self.suite.cells)
        there = every - len(cells) - len(strange)
        print(
            f"{self.suite.name}: {every} cells, {there} recorded, {len(cells)} to measure",
            flush=True,
        )
        failed = len(strange)
        with self.listening(), Bar(len(cells)) as bar:
            for line in strange:
                bar.say(line)
            try:
                for measured in self._measured(cells, bar):
                    bar.finish(measured)
                    failed += measured.record is None or measured.record.outcome.status not in FINAL
            except OSError as error:
                bar.say(
                    f"cells cannot be recorded in {self.folder(cells[0])}: {error.strerror or error}"
                )
                bar.say(
                    "what is recorded stays; when that is mended, the same command goes on from here"
                )
                return 1
            if self.signals:
                bar.say("interrupted; the same command goes on from here")
                return 128 + self.signal_number
        return 1 if failed else 0

    def _measured(self, cells: Sequence[AnyCell], bar: Bar) -> Iterator[Measured]:
        """What comes of each cell, as they end; none is begun any more when somebody has asked to
        stop.
        """
        for cell in cells:
            if self.signals:
                return
            bar.start(cell)
            began = time.monotonic()
            yield Measured(cell, self.measure(cell, bar), time.monotonic() - began)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, Ctrl-C and SIGTERM ask the cell to save and stop; asked twice, it is killed."""
        self.signal_number = signal.SIGINT

        def asked_to_stop(number: int, frame: FrameType | None) -> None:
            self.signals += 1
            self.signal_number = signal.Signals(number)
            if self.child and self.child.poll() is None:
                self.child.send_signal(signal.SIGTERM if self.signals == 1 else signal.SIGKILL)

        before = {
            number: signal.signal(number, asked_to_stop)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def measure(self, cell: AnyCell, notes: Notes) -> Record | None:
        """Measure one cell in its own process and record it, unless somebody just did; None where
        stopped.

        Nobody else measures the cell meanwhile, nor, where the runner is exclusive, on this device.
        """
        work = self.folder(cell).parent / WORK
        work.mkdir(parents=True, exist_ok=True)
        names = (cell.device, cell.id) if self.exclusive else (cell.id,)
        while not self.signals:
            try:
                with contextlib.ExitStack() as locked:
                    for name in names:
                        locked.enter_context(FileLock(work / f"{name}.lock").acquire(timeout=1))
                    record = self._unless_recorded(cell, work, notes)
                    (work / f"{cell.id}.lock").unlink(
                        missing_ok=True
                    )  # who waits for it finds the record
                    return record
            except Timeout:
                notes.say_once(f"another runner measures on this {cell.device}; waiting for it")
        return None

    def _unless_recorded(self, cell: AnyCell, work: Path, notes: Notes) -> Record | None:
        self._set_torn_aside(cell, notes)
        record = self.recorded(cell)
        if record is None or not self._is_result(record):
            record = self._measure(cell, work, notes)
        return record

    def _set_torn_aside(self, cell: AnyCell, notes: Notes) -> None:
        """Keep what is left of a torn record beside its place, under a name that is no record's."""
        path = self.path(cell)
        try:
            self.recorded(cell)
        except TornRecordError as error:
            aside = next(
                name
                for n in itertools.count()
                if not (name := path.with_suffix(f".json.corrupt{n or ''}")).exists()
            )
            path.rename(aside)
            notes.say(f"{error}; kept as {aside.name}, and its cell is measured again")

    def _measure(self, cell: AnyCell, work: Path, notes: Notes) -> Record | None:
        started, busy = _now(), load()
        outcome = self._in_own_process(cell, work, notes)
        if outcome.status == "killed" and not self.signals:
            notes.say(f"{cell.id}: killed; trying once more")
            outcome = self._in_own_process(cell, work, notes)
        if (
            self.signals and outcome.status not in FINAL
        ):  # asked to stop, a cell may still have come to its end
            return None
        code, uncommitted = commit()
        place = self.machine(cell)
        facts = {
            **place.facts,
            "threads": self.threads or default_threads(),
            "allocator": allocator(),
            "load_before": busy,
            "load_after": load(),
            **({"gpu_share": self.share} if self.share < 1 else {}),
            **({"tf32": False} if cell.device == "cuda" else {}),  # see lookback.benchmarks.measure
        }
        record = Record(
            suite=self.suite.name,
            cell=cell,
            cell_id=cell.id,
            options=self.options.get(cell, ResolvedOptions()),
            outcome=outcome,
            started=started,
            ended=_now(),
            machine=place.model_copy(update={"facts": facts}),
            versions=versions(),
            commit=code,
            uncommitted_changes=uncommitted,
        )
        write_record(self.folder(cell), record)
        if outcome.status in FINAL:
            shutil.rmtree(work / cell.id, ignore_errors=True)
        return record

    def _in_own_process(self, cell: AnyCell, work: Path, notes: Notes) -> Outcome:
        folder = (work / cell.id).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        job_file = folder / "job.json"
        answer = folder / "outcome.json"
        answer.unlink(missing_ok=True)
        reader, writer = os.pipe()
        job = Job(
            cell=cell,
            plugins=tuple(Path(plugin).resolve() for plugin in self.plugins),
            folder=folder,
            outcome=answer,
            progress=writer,
            parent=os.getpid(),
            threads=self.threads or default_threads(),
        )
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        with (folder / "output.txt").open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", "lookback.benchmarks.measure", str(job_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                start_new_session=True,
                env={**ALLOCATOR, **os.environ, **({SHARED_GPU: "1"} if self.share < 1 else {})},
            )
        os.close(writer)
        guard = _guard(self.child)
        if self.signals:  # that came before there was anybody to pass them on to
            self.child.send_signal(signal.SIGTERM)
        try:
            timed_out = _follow(self.child, reader, cell.time_limit, notes.progress)
        finally:
            os.close(reader)
            _kill_group(self.child)
            guard.kill()
            guard.communicate()
        said = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        for line in said.splitlines():
            if line.startswith(SAID):
                notes.say(f"{cell.id}: {line.removeprefix(SAID)}")
        return _outcome(self.child.returncode, answer, said[-2000:], timed_out, cell)


def _follow(
    child: subprocess.Popen[bytes], reader: int, limit: float, progress: Callable[..., None]
) -> bool:
    """Pass progress on until the process ends; whether it had to be stopped because its time was
    over.
    """
    deadline, timed_out, rest = time.monotonic() + limit, False, b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while child.poll() is None:
            if selector.select(timeout=0.2):
                *lines, rest = (rest + os.read(reader, 65536)).split(b"\n")
                for line in lines[-1:]:
                    progress(*json.loads(line))
            if time.monotonic() > deadline:
                child.send_signal(signal.SIGKILL if timed_out else signal.SIGTERM)
                deadline, timed_out = time.monotonic() + GRACE_SECONDS, True
    return timed_out


def _guard(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A process that kills the cell's whole group when ours ends, however that happens: its input
    is closed then.

    The kernel ends the cell's own process with ours (measure.py), but not what that one has
    started.
    """
    wait = "trap '' HUP INT TERM; read nothing; kill -s KILL -- -$1"
    return subprocess.Popen(
        ["/bin/sh", "-c", wait, "sh", str(child.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever the cell's process left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcome(code: int, answer: Path, said: str, timed_out: bool, cell: AnyCell) -> Outcome:
    """What happened to a process: what it said, or what its end says."""
    if answer.exists():
        return Outcome.model_validate_json(answer.read_bytes())
    if timed_out:
        return Outcome(status="timeout", message=f"not done after {cell.time_limit:g} seconds")
    if code < 0:
        return Outcome(
            status="killed", message=f"ended by signal {signal.Signals(-code).name}: {said}"
        )
    return Outcome(status="error", message=f"ended with exit code {code}: {said}")


def default_threads() -> int:
    """What OMP_NUM_THREADS says, as with torch itself; else one a core."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else cores()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allocator() -> str:
    """The settings of memory allocation that a cell's process runs under, a user's own before ours."""
    settings = {name: os.environ.get(name, ours) for name, ours in ALLOCATOR.items()}
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    settings |= {name: os.environ[name] for name in names if name in os.environ}
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Notes:
    """Keeps what is said of a cell, for whoever is not there to hear it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, done: int, total: int, what: str) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def say_once(self, text: str) -> None:
        if text not in self.said:
            self.say(text)


class Bar(Notes):
    """What is being measured, what is left, and how long that will take; a line a cell where there
    is no terminal.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=cells,
            disable=not self.live,
            unit="cell",
            dynamic_ncols=True,
            bar_format=(
                "{percentage:3.0f}% |{bar:20}| {n:.1f}/{total} cells, {elapsed} so far, about {remaining} left  {desc}"
            ),
        )
        self.cells, self.done = cells, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def start(self, cell: AnyCell) -> None:
        self.name = cell.id.rpartition("-")[0]
        self.progress(0, 1, "starting")

    def progress(self, done: int, total: int, what: str) -> None:
        self.bar.n = self.done + done / max(1, total)
        self.bar.set_description_str(f"{self.name}: {what}")

    def finish(self, measured: Measured) -> None:
        for line in measured.said:
            self.say(line)
        if measured.record is None:
            return
        self.done += 1
        self.bar.n = self.done
        self.bar.refresh()
        outcome = measured.record.outcome
        if not self.live or outcome.status != "ok":
            last = (
                f": {outcome.message.strip().splitlines()[-1]}" if outcome.message.strip() else ""
            )
            cell = measured.cell.id
            self.say(
                f"[{self.done}/{self.cells}] {cell} {outcome.status} in {measured.seconds:.1f} s{last}"
            )

    def say(self, text: str) -> None:
        super().say(text)
        self.bar.clear()
        print(text, flush=True)
