"""The dry run: predict the memory and time of every cell of a suite, and whether it fits."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import humanize
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lookback.benchmarks.measure.cost import reference_workload_seconds
from lookback.benchmarks.plan.estimate import Estimate, estimate, training_steps
from lookback.benchmarks.record import AnyCell, Machine, Record
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import PUBLISHED_RECORDS, read_record, record_files
from lookback.benchmarks.suite import cell_count

START_SECONDS = 4.0  # from starting a cell's process until it measures
FEW_RUNS = 10  # of the reference workload; a plan needs no better
WIDE = 1000  # columns of a table that is not for a terminal, so that no line breaks


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the dry run. Numbers are None if unknown.

    A recorded cell has the numbers of its record, other cells have estimates.
    """

    cell: AnyCell
    state: str  # "recorded", "to measure" or "too big"
    parameters: int | None = None
    step_flops: int | None = None
    flops: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None

    @property
    def hours(self) -> float | None:
        """Hours of all processes that train the cell; on GPUs, these are GPU hours."""
        return None if self.seconds is None else self.seconds * self.cell.processes / 3600

    def values(self) -> dict[str, Any]:
        """Return everything as JSON takes it: bytes, seconds, operations."""
        values = {"id": self.cell.id, **vars(self), "hours": self.hours}
        del values["cell"]
        for name in ("model", "width", "length", "processes"):
            values[name] = getattr(self.cell, name)
        return values


@dataclass(frozen=True)
class Plan:
    """The predicted needs of every cell of a suite, and the resources of the machine."""

    lines: tuple[PlannedCell, ...]
    memory: int | None  # bytes of the device; None if this machine has no such device
    device: str  # name of the device
    references: Sequence[str]  # devices whose records times are estimated from
    jobs: int = 1  # learning cells side by side

    def __str__(self) -> str:
        """Return the table and its totals, as wide as the terminal if there is one."""
        console = Console()
        if not console.is_terminal:
            console.width = WIDE
        with console.capture() as capture:
            console.print(self._table())
        return "\n".join([capture.get(), *self._totals()])

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("cell", overflow="fold")
        for name in ("parameters", "width", "step", "whole cell", "peak memory", "time"):
            table.add_column(name, justify="right")
        table.add_column("state")

        for line in self.lines:
            table.add_row(
                line.cell.id,
                "" if line.parameters is None else humanize.intcomma(line.parameters),
                str(line.cell.width),
                operations(line.step_flops),
                operations(line.flops),
                "" if line.peak_bytes is None else size(line.peak_bytes),
                "unknown" if line.seconds is None else duration(line.seconds),
                line.state,
            )
        return table

    def _totals(self) -> list[str]:
        count = Counter(line.state for line in self.lines)
        memory = size(self.memory) if self.memory else "unknown memory"
        totals = [
            f"{cell_count(len(self.lines))}: {count['recorded']} recorded, "
            f"{count['to measure']} to measure, "
            f"{count['too big']} too big for {self.device} with {memory}"
        ]
        to_measure = [line for line in self.lines if line.state == "to measure"]
        if not to_measure:
            return totals

        known = [line for line in to_measure if line.hours is not None]
        if known:
            on_gpu = to_measure[0].cell.device == "cuda"
            hours = sum(line.hours or 0.0 for line in known)
            total = f"about {time_words(hours, on_gpu)}"
            if len(known) < len(to_measure):
                total += f" for {len(known)} of the {len(to_measure)} to measure"
            learning = [line.hours or 0.0 for line in known if line.cell.kind == "learn"]
            if self.jobs > 1 and len(learning) > 1:
                shared = hours - sum(learning) * (1 - 1 / self.jobs)
                total += f", {time_words(shared, on_gpu)} with {self.jobs} learning cells at a time"
            totals.append(total)
        if known and self.references:
            totals.append(
                "Times scale with parameters x tokens from the nearest record of the same model, "
                f"or with operations from another model's, on {' and '.join(self.references)}."
            )
        if len(known) < len(to_measure):
            totals.append("Measure one cell of each model first, or give a rate by --assume-flops.")
        return totals


def make_plan(runner: Runner, assumed: float | None = None) -> Plan:
    """Plan a runner's suite; its device may be on another machine.

    Args:
        runner: its suite, and the folder of records.
        assumed: operations per second, for cells without a comparable record.

    Raises ValueError if `assumed` is not a positive number.
    """
    if assumed is not None and not (assumed > 0 and math.isfinite(assumed)):
        raise ValueError(f"a rate of {assumed:g} operations per second: expected a positive number")

    cells = runner.suite.cells
    machine = _machine(runner)
    missing = set(runner.missing()) if machine else set(cells)
    memory = memory_of(machine) if machine else None
    nothing = Known([], here="", slowdowns={})
    known = _known(runner, machine, only_own=assumed is not None) if missing else nothing

    lines = []
    for cell in tqdm(cells, unit="cell", leave=False, disable=None, dynamic_ncols=True):
        if cell in missing:
            lines.append(_unrecorded(cell, memory, known, assumed))
        else:
            lines.append(_recorded(cell, runner))
    return Plan(
        lines=tuple(lines),
        memory=memory,
        device=machine.device if machine else "a GPU",
        references=sorted(known.used),
        jobs=runner.jobs,
    )


def _machine(runner: Runner) -> Machine | None:
    """Return the machine of the suite's device; None if there is no such device here."""
    try:
        return runner.machine(runner.suite.cells[0])
    except (ValueError, IndexError):
        return None


def _recorded(cell: AnyCell, runner: Runner) -> PlannedCell:
    """Return the numbers of a cell's record; without numbers if another version wrote it."""
    record = None
    with contextlib.suppress(ValueError):
        record = runner.recorded(cell)
    if record is None:
        return PlannedCell(cell, "recorded")

    numbers = record.outcome.learn or record.outcome.cost
    training = record.outcome.cost.phases.get("training") if record.outcome.cost else None
    return PlannedCell(
        cell,
        "recorded",
        parameters=numbers.parameters if numbers else None,
        step_flops=training.flops if training else None,
        peak_bytes=training.peak_bytes if training else None,
        seconds=record.seconds,
    )


def _unrecorded(
    cell: AnyCell, memory: int | None, known: Known, assumed: float | None
) -> PlannedCell:
    needs = estimate(cell)
    seconds = _scaled_seconds(cell, needs, known)
    if seconds is None and assumed and needs.flops:
        seconds = START_SECONDS + needs.flops / assumed / cell.processes
    if seconds is not None:
        seconds = min(seconds, cell.time_limit)
    state = "too big" if _exceeds(needs, memory) else "to measure"
    return PlannedCell(cell, state, **vars(needs), seconds=seconds)


def _scaled_seconds(cell: AnyCell, needs: Estimate, known: Known) -> float | None:
    """Return the time of a cell, scaled from the record nearest in model, machine, size and task.

    Starting a process takes the same time whatever it computes; the rest grows with parameters x
    tokens, or with operations if the record is another model's. None if no record has the cell's
    kind and precision.
    """
    candidates = []
    for record in known.records:
        other, seconds = record.cell, record.seconds
        numbers = record.outcome.learn or record.outcome.cost
        if numbers is None or seconds is None:
            continue
        if (other.kind, other.precision) == (cell.kind, cell.precision):
            factor = _work(cell, needs.parameters) / _work(other, numbers.parameters)
            slug = record.machine.slug
            elsewhere = 0 if slug == known.here else 1 if slug in known.slowdowns else 2
            far = (abs(math.log(factor)), other.task != cell.task)
            nearness = (other.model != cell.model, elsewhere, *far)
            candidates.append((nearness, factor, record, seconds))
    if not candidates:
        return None

    _, factor, record, seconds = min(candidates, key=lambda candidate: candidate[0])
    if record.cell.model != cell.model:
        there = None
        with contextlib.suppress(ValueError):  # its model may be a plug-in's
            there = estimate(record.cell).flops
        if not needs.flops or not there:
            return None
        factor = needs.flops / there
    known.used.add(record.machine.device)
    factor *= known.slowdowns.get(record.machine.slug, 1.0)
    start = min(seconds, START_SECONDS)
    return start + (seconds - start) * factor


def _work(cell: AnyCell, parameters: int) -> float:
    """Return the parameters x tokens that each process of a cell trains."""
    return parameters * cell.batch_size * cell.length * training_steps(cell) / cell.processes


@dataclass(frozen=True)
class Known:
    """Finished records that times are scaled from."""

    records: Sequence[Record]
    here: str  # slug of this machine; empty if it has no such device
    slowdowns: Mapping[str, float]  # by a machine's slug, how much longer the same work takes here
    used: set[str] = field(default_factory=set)  # devices whose records have served


def _known(runner: Runner, machine: Machine | None, only_own: bool) -> Known:
    """Return the finished records of the suite's devices: the user's own, and the published."""
    devices = {cell.device for cell in runner.suite.cells}
    folders = [runner.results] if only_own else [runner.results, PUBLISHED_RECORDS]
    records = []
    for path in (path for folder in folders for path in record_files(folder)):
        with contextlib.suppress(ValueError):
            record = read_record(path)
            if record.cell.device in devices and record.outcome.status == "ok":
                records.append(record)
    here = machine.slug if machine else ""
    return Known(records, here, _slowdowns(machine, records))


def _slowdowns(machine: Machine | None, records: Sequence[Record]) -> dict[str, float]:
    """Return how much longer the reference workload takes here than on the machines that timed it.

    Cost records have its times.
    """
    timed: dict[str, list[float]] = {}
    for record in records:
        for phase in record.outcome.cost.phases.values() if record.outcome.cost else ():
            if phase.reference_seconds:
                timed.setdefault(record.machine.slug, []).append(phase.reference_seconds)
    elsewhere = timed.keys() - {machine.slug} if machine else set()
    if not (machine and elsewhere):
        return {}
    device = "cuda" if "gpu" in machine.facts else "cpu"
    here = reference_workload_seconds(device, FEW_RUNS)
    return {slug: here / statistics.median(timed[slug]) for slug in elsewhere}


def memory_of(machine: Machine) -> int | None:
    """Return how many bytes tensors can take: on the GPU if there is one, else on the machine."""
    key = "gpu_memory_bytes" if "gpu" in machine.facts else "memory_bytes"
    memory = machine.facts.get(key)
    return int(memory) if memory else None


def _exceeds(needs: Estimate, memory: int | None) -> bool:
    """Whether the estimated peak is above the memory; False if either is unknown."""
    return bool(memory and needs.peak_bytes and needs.peak_bytes > memory)


def without_too_big(runner: Runner) -> Runner:
    """Return the runner without the cells to measure that this machine's memory cannot hold."""
    missing = runner.missing()
    memory = memory_of(runner.machine(missing[0])) if missing else None
    if not memory:
        return runner

    too_big = set()
    for cell in missing:
        # An estimate takes a second, so only cells that may be large have one.
        if _upper_bound(cell) > memory / 4 and _exceeds(estimate(cell), memory):
            too_big.add(cell)
    cells = tuple(cell for cell in runner.suite.cells if cell not in too_big)
    return replace(runner, suite=replace(runner.suite, cells=cells))


def _upper_bound(cell: AnyCell) -> int:
    """Return more bytes than a usual model needs.

    Each layer has 100 activations of 4 bytes for a token and channel, and 8 scores for each pair of
    tokens.
    """
    longest = max(cell.length, *getattr(cell, "test_lengths", ()), 1)
    tokens = cell.batch_size * longest
    return 4 * cell.depth * tokens * (100 * cell.width + 8 * longest)


def operations(count: float | None) -> str:
    """1540000000 -> "1.54 GFLOP"; None, which is unknown, gives an empty text."""
    return "" if count is None else humanize.metric(count, "FLOP")


def size(count: int) -> str:
    """39200000 -> "39.2 MB"."""
    return humanize.naturalsize(count, format="%.3g")


def time_words(hours: float, on_gpu: bool) -> str:
    """Return `1.5 hours`, or `120 GPU hours`, which several GPUs can share."""
    if not on_gpu:
        return duration(3600 * hours)
    return f"{hours:.2g} GPU hours" if hours < 10 else f"{hours:,.0f} GPU hours"


def duration(seconds: float) -> str:
    """90 -> "1.5 minutes": one unit, one decimal."""
    unit = "seconds"
    for name, length in (("minutes", 60), ("hours", 3600), ("days", 86400)):
        if seconds >= length:
            unit = name
    decimals = "%.0f" if unit == "seconds" else "%.1f"
    longer = ["months", "years"]
    return humanize.precisedelta(seconds, minimum_unit=unit, suppress=longer, format=decimals)
