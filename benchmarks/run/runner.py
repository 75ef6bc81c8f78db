"""Measures the cells of a suite that have no record yet, and records them. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from lookback.benchmarks.machine import commit, load, machine, versions
from lookback.benchmarks.record import (
    FINAL,
    AnyCell,
    Code,
    Machine,
    Outcome,
    Record,
    ResolvedOptions,
)
from lookback.benchmarks.run.cell_server import POLL_SECONDS, CellServer
from lookback.benchmarks.run.process import (
    ALLOCATOR,
    allocator,
    default_threads,
    measure_in_process,
)
from lookback.benchmarks.run.progress import CellResult, MessageLog, ProgressBar
from lookback.benchmarks.storage import (
    TornRecordError,
    read_record,
    set_aside,
    set_aside_path,
    write_atomically,
    write_record,
)
from lookback.benchmarks.suite import Suite, cell_count

WORK = ".work"  # beside the folders of records: locks, checkpoints and output
CONTINUES = "the same command continues from here"


class CellLockedError(Exception):
    """Another runner measures this cell at the moment."""


class MemorySharedError(Exception):
    """A cell ran out of memory while others shared the memory with it."""


@dataclass
class Runner:
    """Measures the cells of a suite; records lie in results/<machine>/<suite>/.

    Learning cells run `jobs` at a time, on a CPU with one thread each. Cost cells run alone, all
    models at one length before the next length.
    """

    results: Path
    suite: Suite
    plugins: Sequence[str] = ()
    threads: int = 0  # of torch in each cell; 0: one if it learns on a CPU, else one per core
    jobs: int = 1  # learning cells side by side
    deadline: float = math.inf  # on the monotonic clock; then the run stops as with Ctrl-C
    keep_going: bool = False  # although two cells of one model end with the same error
    exclusive: bool = True  # wait until no other runner measures on this device
    share: float = 1.0  # of a GPU, for each cell
    options: Mapping[AnyCell, ResolvedOptions] = field(default_factory=dict)
    code: Mapping[AnyCell, Code] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)  # by device
    signals: list[signal.Signals] = field(default_factory=list)  # that asked this run to stop
    is_failing: bool = False  # records cannot be written: running cells save and stop
    server: CellServer | None = None  # while several cells are measured

    @property
    def stop_requests(self) -> int:
        """0 to go on, 1 to have cells save and stop, 2 to kill them."""
        out_of_time = time.monotonic() >= self.deadline
        return max(len(self.signals), int(out_of_time or self.is_failing))

    def folder(self, cell: AnyCell) -> Path:
        return self.results / self.machine(cell).slug / self.suite.name

    def machine(self, cell: AnyCell) -> Machine:
        if cell.device not in self.machines:
            self.machines[cell.device] = machine(cell.device)
        return self.machines[cell.device]

    def path(self, cell: AnyCell) -> Path:
        """Return the file of a cell's record, whether it exists or not."""
        return self.folder(cell) / f"{cell.id}.json"

    def recorded(self, cell: AnyCell) -> Record | None:
        """Return the record of a cell, or None if there is no file.

        Raises ValueError if the file is not a record, or is the record of another cell.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        record = read_record(path)
        if record.cell.id != cell.id:
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
            if record is None or not self._is_result(cell, record):
                missing.append(cell)
        return missing, messages

    def _is_result(self, cell: AnyCell, record: Record) -> bool:
        """Return whether a cell with this record need not be measured again.

        A record of other defaults or another plug-in does not count, nor does a timeout under a
        shorter limit.
        """
        if record.outcome.status == "timeout" and record.cell.time_limit < cell.time_limit:
            return False
        options = self.options.get(cell)
        if options is not None and not options.repeat(record.options):
            return False

        code = self.code.get(cell)
        recorded_plugins = record.code.plugins if record.code is not None else {}
        if code is not None and code.plugins != recorded_plugins:
            return False
        return record.outcome.status in FINAL

    def other_versions(self) -> list[str]:
        """Return a message for each of Lookback's files that differs from the recorded version."""
        counts: Counter[str] = Counter()
        for cell, code in self.code.items():
            with contextlib.suppress(ValueError):
                record = self.recorded(cell)
                if record is not None and record.code is not None:
                    for path, digest in code.sources.items():
                        counts[path] += record.code.sources.get(path, digest) != digest
        return [
            f"{count} of the records were made by other versions of {path}; --again measures anew"
            for path, count in counts.items()
            if count
        ]

    def set_records_aside(self) -> int:
        """Set the suite's records aside, so that their cells are measured again; count them."""
        paths = [self.path(cell) for cell in self.suite.cells if self.path(cell).exists()]
        for path in paths:
            set_aside(path)
        return len(paths)

    def run(self) -> int:
        """Measure the missing cells and return the exit code.

        0: all measured, or the time is over; 1: a cell failed or cannot be recorded; 130 or 143:
        interrupted by SIGINT or SIGTERM.
        """
        cells, unreadable = self.missing_and_unreadable()
        total = len(self.suite.cells)
        recorded = total - len(cells) - len(unreadable)
        print(
            f"{self.suite.name}: {cell_count(total)}, {recorded} recorded, {len(cells)} to measure",
            flush=True,
        )

        ended = 0
        failed = len(unreadable)
        errors: Counter[tuple[str, str]] = Counter()
        with self.listening(), ProgressBar(len(cells)) as bar:
            for message in (*self.other_versions(), *unreadable):
                bar.say(message)
            try:
                self._keep_suite_file()
                for result in self._results(cells, bar):
                    bar.finish(result)
                    ended += 1
                    if result.record is None or result.record.outcome.status not in FINAL:
                        failed += 1
                    if self._repeats_an_error(result, errors):
                        bar.say(
                            f"stopped: two cells of {result.cell.model} ended with the same error; "
                            "--keep-going measures the others"
                        )
                        return 1
            except OSError as error:
                folder = self.folder(self.suite.cells[0])
                bar.say(f"cells cannot be recorded in {folder}: {error.strerror or error}")
                bar.say(f"records are safe; once this is fixed, {CONTINUES}")
                return 1

            if self.signals:
                bar.say(f"interrupted; {CONTINUES}")
                return 128 + self.signals[-1]
            if ended < len(cells):
                bar.say(f"the time is over with {len(cells) - ended} cells left; {CONTINUES}")
        return 1 if failed else 0

    def _keep_suite_file(self) -> None:
        """Copy the suite's file beside its records, where reports find its title and endpoint.

        A user's own file may have the name of one of ours, with another endpoint.
        """
        if self.suite.path is None:
            return
        text = self.suite.path.read_text(encoding="utf-8")
        for folder in {self.folder(cell) for cell in self.suite.cells}:
            copy = folder / self.suite.path.name
            if not copy.exists() or copy.read_text(encoding="utf-8") != text:
                write_atomically(copy, text)

    def _repeats_an_error(self, result: CellResult, errors: Counter[tuple[str, str]]) -> bool:
        """Count a cell's error; return whether the run should stop, as its model is broken."""
        if self.keep_going or result.record is None or result.record.outcome.status != "error":
            return False
        lines = result.record.outcome.message.strip().splitlines()
        errors[result.cell.model, lines[-1] if lines else ""] += 1
        return errors.most_common(1)[0][1] > 1

    def _results(self, cells: Sequence[AnyCell], bar: ProgressBar) -> Iterator[CellResult]:
        """Yield the result of each cell as it ends, until the run is asked to stop."""
        if not cells:
            return
        learning = [cell for cell in cells if cell.kind == "learn"]
        timed = [cell for cell in cells if cell.kind == "cost"]
        timed.sort(key=lambda cell: cell.length)  # stable: compared models stay neighbours

        work = self.folder(cells[0]).parent / WORK
        with contextlib.ExitStack() as stack:
            if self.exclusive and not self._lock_device(cells[0].device, work, stack, bar):
                return
            stack.enter_context(self._serving(len(cells), bar))

            out_of_memory: list[AnyCell] = []
            yield from self._side_by_side(learning, self.jobs, bar, out_of_memory)
            # A cell that ran out of memory beside others has all of it for a second try.
            yield from self._side_by_side(out_of_memory, 1, bar)
            yield from self._side_by_side(timed, 1, bar)

    def _side_by_side(
        self,
        cells: Sequence[AnyCell],
        jobs: int,
        bar: ProgressBar,
        out_of_memory: list[AnyCell] | None = None,
    ) -> Iterator[CellResult]:
        """Measure cells, `jobs` at a time; yield the result of each as it ends.

        A cell that another runner measures is put off until the end, so that several runners share
        the work. Cells that ran out of shared memory are appended to `out_of_memory`.
        """
        waiting = deque(cells)
        running: dict[Future[CellResult | None], AnyCell] = {}
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs and not self.stop_requests:
                        cell = waiting.popleft()
                        running[pool.submit(self._timed_measure, cell, jobs, bar)] = cell
                    if not running:
                        return

                    # Signals are handled between waits: this is the main thread.
                    ended, _ = wait(running, POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in ended:
                        cell = running.pop(future)
                        try:
                            result = future.result()
                        except CellLockedError:
                            waiting.append(cell)
                            continue
                        except MemorySharedError:
                            assert out_of_memory is not None
                            out_of_memory.append(cell)
                            continue
                        if result is not None:
                            yield result
            finally:
                self.is_failing = bool(running)  # left by an error: the other cells save and stop

    def _timed_measure(self, cell: AnyCell, jobs: int, bar: ProgressBar) -> CellResult | None:
        began = time.monotonic()
        with bar.following(cell) as log:
            record = self.measure(cell, log, jobs)
        return None if record is None else CellResult(cell, record, time.monotonic() - began)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM ask cells to save and stop; the second one kills them."""

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

    @contextlib.contextmanager
    def _serving(self, cells: int, log: MessageLog) -> Iterator[None]:
        """Run the server that forks the processes of cells, where that saves time.

        Linux only: elsewhere, a forked process cannot be relied on to use its system libraries.
        """
        if cells > 1 and sys.platform.startswith("linux"):
            self.server = CellServer({**ALLOCATOR, **os.environ})
            if not self.server.wait_until_ready(lambda: self.stop_requests):
                if not self.stop_requests:
                    log.say("the server of cells has ended; each cell starts a fresh process")
                self._close_server()
        try:
            yield
        finally:
            self._close_server()

    def _close_server(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def measure(self, cell: AnyCell, log: MessageLog, jobs: int = 1) -> Record | None:
        """Measure a cell in its own process and record it; return None if it was stopped.

        If another runner has recorded the cell by now, return that record. Raises CellLockedError
        if another runner measures it at the moment, and MemorySharedError if it ran out of memory
        beside others.
        """
        work = self.folder(cell).parent / WORK
        work.mkdir(parents=True, exist_ok=True)
        cell_lock = work / f"{cell.id}.lock"
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(FileLock(cell_lock).acquire(timeout=1))
            except Timeout:
                log.say_once("another runner measures some of these cells; going on with others")
                raise CellLockedError from None

            self._set_torn_aside(cell, log)
            record = self.recorded(cell)
            if record is None or not self._is_result(cell, record):
                if record is not None and record.outcome.status in FINAL:
                    set_aside(self.path(cell))
                record = self._measure(cell, work, log, jobs)
            cell_lock.unlink(missing_ok=True)
            return record

    def _lock_device(
        self, device: str, work: Path, locks: contextlib.ExitStack, log: MessageLog
    ) -> bool:
        """Wait until no other runner uses the device; return False if asked to stop meanwhile."""
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / f"{device_name(device)}.lock")
        while not self.stop_requests:
            try:
                locks.enter_context(lock.acquire(timeout=1))
            except Timeout:
                log.say_once(f"another runner measures on this {device}; waiting for it")
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

    def _measure(self, cell: AnyCell, work: Path, log: MessageLog, jobs: int) -> Record | None:
        self._discard_other_checkpoints(cell, work / cell.id)
        started = _now()
        began = time.monotonic()
        load_before = load()
        outcome = self._in_own_process(cell, work, log, jobs)
        if outcome.status == "killed" and not self.stop_requests:
            log.say(f"{cell.id}: killed; trying once more")
            outcome = self._in_own_process(cell, work, log, jobs)
        # A cell that was asked to stop may have finished before it noticed.
        if self.stop_requests and outcome.status not in FINAL:
            return None
        if outcome.status == "oom" and jobs > 1:
            raise MemorySharedError

        facts = {
            "threads": self._threads(cell),
            "allocator": allocator(),
            "load_before": load_before,
            "load_after": load(),
        }
        if jobs > 1:
            facts["jobs"] = jobs
        if self.share < 1:
            facts["gpu_share"] = self.share
        if cell.device == "cuda":
            facts["tf32"] = False  # see measure/job.py

        place = self.machine(cell)
        commit_id, uncommitted = commit()
        record = Record(
            suite=self.suite.name,
            cell=cell,
            cell_id=cell.id,
            options=self.options.get(cell, ResolvedOptions()),
            code=self.code.get(cell),
            outcome=outcome,
            started=started,
            ended=_now(),
            wall_seconds=round(time.monotonic() - began, 3),
            machine=place.model_copy(update={"facts": {**place.facts, **facts}}),
            versions=versions(),
            commit=commit_id,
            uncommitted_changes=uncommitted,
        )
        path = write_record(self.folder(cell), record)
        if outcome.status in FINAL:
            set_aside_path(path).unlink(missing_ok=True)
            shutil.rmtree(work / cell.id, ignore_errors=True)
        return record

    def _discard_other_checkpoints(self, cell: AnyCell, folder: Path) -> None:
        """Remove the checkpoints that a cell has left with other plug-ins."""
        code = self.code.get(cell)
        if code is None:
            return
        file = folder / "plugins.json"
        plugins = json.dumps(code.plugins, sort_keys=True)
        if folder.exists() and (not file.exists() or file.read_text("utf-8") != plugins):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        file.write_text(plugins, encoding="utf-8")

    def _in_own_process(self, cell: AnyCell, work: Path, log: MessageLog, jobs: int) -> Outcome:
        outcome, messages = measure_in_process(
            cell,
            (work / cell.id).resolve(),
            plugins=tuple(Path(plugin).resolve() for plugin in self.plugins),
            threads=self._threads(cell),
            stop_requests=lambda: self.stop_requests,
            progress=log.progress,
            # Several processes that train one cell together import torch in any case.
            server=self.server if cell.processes == 1 else None,
            memory_share=1 / jobs,
            shared_gpu=self.share < 1 or jobs > 1,
        )
        for message in messages:
            log.say(f"{cell.id}: {message}")
        return outcome

    def _threads(self, cell: AnyCell) -> int:
        """Return the threads of a cell.

        Learning cells on a CPU have one, so that scores do not depend on the number of cores.
        """
        if self.threads:
            return self.threads
        return 1 if cell.kind == "learn" and cell.device == "cpu" else default_threads()


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
