"""Measures the cells of a suite that have no record yet, and records them. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import platform
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from lookback.benchmarks.machine import SHARED_GPU, commit, load, machine, versions
from lookback.benchmarks.record import FINAL, AnyCell, Machine, Outcome, Record, ResolvedOptions
from lookback.benchmarks.run.process import allocator, default_threads, measure_in_process
from lookback.benchmarks.run.progress import CellResult, MessageLog, ProgressBar
from lookback.benchmarks.storage import TornRecordError, read_record, write_record
from lookback.benchmarks.suite import Suite

WORK = ".work"  # beside the folders of records: locks, checkpoints and output
CONTINUES = "the same command continues from here"


class CellLockedError(Exception):
    """Another runner measures this cell at the moment."""


@dataclass
class Runner:
    """Measures the cells of a suite one at a time; records lie in results/<machine>/<suite>/."""

    results: Path
    suite: Suite
    plugins: Sequence[str] = ()
    threads: int = 0  # of torch; 0 for OMP_NUM_THREADS, or else one per core
    deadline: float = math.inf  # on the monotonic clock; then the run stops as with Ctrl-C
    exclusive: bool = True  # wait until no other runner measures on this device
    share: float = 1.0  # of a GPU, for each cell
    options: Mapping[AnyCell, ResolvedOptions] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)  # by device
    signals: list[signal.Signals] = field(default_factory=list)  # that asked this run to stop

    @property
    def stop_requests(self) -> int:
        """0 to go on, 1 to have cells save and stop, 2 to kill them."""
        out_of_time = time.monotonic() >= self.deadline
        return max(len(self.signals), int(out_of_time))

    def folder(self, cell: AnyCell) -> Path:
        return self.results / self.machine(cell).slug / self.suite.name

    def machine(self, cell: AnyCell) -> Machine:
        if cell.device not in self.machines:
            self.machines[cell.device] = machine(cell.device)
        return self.machines[cell.device]

    def path(self, cell: AnyCell) -> Path:
        return self.folder(cell) / f"{cell.id}.json"

    def recorded(self, cell: AnyCell) -> Record | None:
        """Return the record of a cell, or None if there is no file.

        Raises ValueError if the file is not a record, or is the record of another cell.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        record = read_record(path)
        if record.cell != cell:
            raise ValueError(
                f"{path}: expected the record of this cell, not that of {record.cell_id}"
            )
        return record

    def missing(self) -> list[AnyCell]:
        """Cells without a final record, in the suite's order."""
        return self.missing_and_unreadable()[0]

    def missing_and_unreadable(self) -> tuple[list[AnyCell], list[str]]:
        """Return the cells to measure, and a message for each cell whose file is not its record.

        The cell of a torn record is measured again. A whole file of another schema or cell may be
        somebody's result: it is not overwritten, and its cell is not measured.
        """
        missing = []
        messages = []
        for cell in self.suite.cells:
            try:
                record = self.recorded(cell)
            except TornRecordError:
                record = None
            except ValueError as error:
                messages.append(
                    f"not measured, nor overwritten: {error}; move it away to measure its cell"
                )
                continue
            if record is None or not self._is_result(record):
                missing.append(cell)
        return missing, messages

    def _is_result(self, record: Record) -> bool:
        """Return whether a record's cell need not be measured again.

        A record made with other defaults does not count. An option that the record does not hold
        was added later; its default keeps the earlier behaviour.
        """
        options = self.options.get(record.cell, ResolvedOptions())
        recorded_options = [
            (record.options.model, options.model),
            (record.options.task, options.task),
        ]
        for recorded, current in recorded_options:
            if any(current.get(name, value) != value for name, value in recorded.items()):
                return False
        return record.outcome.status in FINAL

    def run(self) -> int:
        """Measure the missing cells and return the exit code.

        0: all measured, or the time is over; 1: a cell failed or cannot be recorded; 130 or 143:
        interrupted by SIGINT or SIGTERM.
        """
        cells, unreadable = self.missing_and_unreadable()
        total = len(self.suite.cells)
        recorded = total - len(cells) - len(unreadable)
        print(
            f"{self.suite.name}: {total} cells, {recorded} recorded, {len(cells)} to measure",
            flush=True,
        )

        ended = 0
        failed = len(unreadable)
        with self.listening(), ProgressBar(len(cells)) as bar:
            for message in unreadable:
                bar.say(message)
            try:
                for result in self._results(cells, bar):
                    bar.finish(result)
                    ended += 1
                    if result.record is None or result.record.outcome.status not in FINAL:
                        failed += 1
            except OSError as error:
                folder = self.folder(cells[0])
                bar.say(f"cells cannot be recorded in {folder}: {error.strerror or error}")
                bar.say(f"records are safe; once this is fixed, {CONTINUES}")
                return 1

            if self.signals:
                bar.say(f"interrupted; {CONTINUES}")
                return 128 + self.signals[-1]
            if ended < len(cells):
                bar.say(f"the time is over with {len(cells) - ended} cells left; {CONTINUES}")
        return 1 if failed else 0

    def _results(self, cells: Sequence[AnyCell], bar: ProgressBar) -> Iterator[CellResult]:
        """Yield the result of each cell as it ends, until the run is asked to stop.

        A cell that another runner measures is put off until the end, so that several runners share
        the work.
        """
        queue = deque(cells)
        while queue and not self.stop_requests:
            cell = queue.popleft()
            bar.start(cell)
            began = time.monotonic()
            try:
                record = self.measure(cell, bar)
            except CellLockedError:
                queue.append(cell)
                continue
            if record is not None:
                yield CellResult(cell, record, time.monotonic() - began)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, Ctrl-C and SIGTERM ask the cell to save and stop, twice kill it."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            self.signals.append(signal.Signals(number))

        previous = {
            number: signal.signal(number, request_stop)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def measure(self, cell: AnyCell, log: MessageLog) -> Record | None:
        """Measure a cell in its own process and record it; return None if it was stopped.

        If another runner has recorded the cell by now, return that record. Raises CellLockedError
        if another runner measures it at the moment. An exclusive runner first waits until no other
        measures on this device.
        """
        work = self.folder(cell).parent / WORK
        work.mkdir(parents=True, exist_ok=True)
        cell_lock = work / f"{cell.id}.lock"
        with contextlib.ExitStack() as locks:
            if self.exclusive and not self._lock_device(cell, work, locks, log):
                return None
            try:
                locks.enter_context(FileLock(cell_lock).acquire(timeout=1))
            except Timeout:
                log.say_once("another runner measures some of these cells; going on with others")
                raise CellLockedError from None

            self._set_torn_aside(cell, log)
            record = self.recorded(cell)
            if record is None or not self._is_result(record):
                record = self._measure(cell, work, log)
            cell_lock.unlink(missing_ok=True)
            return record

    def _lock_device(
        self, cell: AnyCell, work: Path, locks: contextlib.ExitStack, log: MessageLog
    ) -> bool:
        """Wait for the device; return False if asked to stop meanwhile."""
        lock = FileLock(work / f"{device_name(cell.device)}.lock")
        while not self.stop_requests:
            try:
                locks.enter_context(lock.acquire(timeout=1))
            except Timeout:
                log.say_once(f"another runner measures on this {cell.device}; waiting for it")
            else:
                return True
        return False

    def _set_torn_aside(self, cell: AnyCell, log: MessageLog) -> None:
        """Rename a torn record, so that it no longer counts as one and is still there."""
        path = self.path(cell)
        try:
            self.recorded(cell)
        except TornRecordError as error:
            for number in itertools.count():
                aside = path.with_suffix(f".json.corrupt{number or ''}")
                if not aside.exists():
                    break
            path.rename(aside)
            log.say(f"{error}; kept as {aside.name}, and its cell is measured again")

    def _measure(self, cell: AnyCell, work: Path, log: MessageLog) -> Record | None:
        started = _now()
        load_before = load()
        outcome = self._in_own_process(cell, work, log)
        if outcome.status == "killed" and not self.stop_requests:
            log.say(f"{cell.id}: killed; trying once more")
            outcome = self._in_own_process(cell, work, log)
        # A cell that was asked to stop may still have come to its end.
        if self.stop_requests and outcome.status not in FINAL:
            return None

        facts = {
            "threads": self.threads or default_threads(),
            "allocator": allocator(),
            "load_before": load_before,
            "load_after": load(),
        }
        if self.share < 1:
            facts["gpu_share"] = self.share
        if cell.device == "cuda":
            facts["tf32"] = False  # see measure/__main__.py

        place = self.machine(cell)
        code, uncommitted = commit()
        record = Record(
            suite=self.suite.name,
            cell=cell,
            cell_id=cell.id,
            options=self.options.get(cell, ResolvedOptions()),
            outcome=outcome,
            started=started,
            ended=_now(),
            machine=place.model_copy(update={"facts": {**place.facts, **facts}}),
            versions=versions(),
            commit=code,
            uncommitted_changes=uncommitted,
        )
        write_record(self.folder(cell), record)
        if outcome.status in FINAL:
            shutil.rmtree(work / cell.id, ignore_errors=True)
        return record

    def _in_own_process(self, cell: AnyCell, work: Path, log: MessageLog) -> Outcome:
        outcome, messages = measure_in_process(
            cell,
            (work / cell.id).resolve(),
            plugins=tuple(Path(plugin).resolve() for plugin in self.plugins),
            threads=self.threads or default_threads(),
            environment={SHARED_GPU: "1"} if self.share < 1 else {},
            stop_requests=lambda: self.stop_requests,
            progress=log.progress,
        )
        for message in messages:
            log.say(f"{cell.id}: {message}")
        return outcome


def device_name(device: str) -> str:
    """Return a name of a device that differs between machines and GPUs that share a folder.

    It contains a hash in place of the host's name. Slurm numbers the GPUs of each job from 0, so a
    job's devices are its own.
    """
    names = [platform.node(), os.environ.get("SLURM_JOB_ID", "")]
    if device == "cuda":
        names.append(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return f"{device}-{digest}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
