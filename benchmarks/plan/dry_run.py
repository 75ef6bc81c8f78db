"""The dry run: what every cell of a suite will need, whether it fits, and how long it will take."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lookback.benchmarks.plan.estimate import Estimate, need, peak_bytes
from lookback.benchmarks.record import AnyCell, LearnCell, Machine, Record
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_record, record_files

STARTING = 4.0  # seconds until a cell's process measures: torch is imported, the model made
COLUMNS = ("cell", "parameters", "width", "step", "whole cell", "peak memory", "time", "")


@dataclass(frozen=True)
class Line:
    """What the dry run says of one cell; `factor` is how many times the operations of the record
    its time is from.

    Where there is no such record, the time is of a rate that somebody assumed, and `factor` None.
    """

    cell: AnyCell
    need: Estimate
    state: str  # "recorded", "to measure" or "too big"
    seconds: float | None
    factor: float | None

    @property
    def hours(self) -> float | None:
        """Of all processes that train the cell, a GPU each."""
        return None if self.seconds is None else self.seconds * self.cell.processes / 3600

    def values(self) -> dict[str, Any]:
        """For machines to read: bytes, seconds, operations."""
        return {
            "id": self.cell.id,
            "model": self.cell.model,
            "width": self.cell.width,
            "length": self.cell.length,
            **vars(self.need),
            "processes": self.cell.processes,
            "seconds": self.seconds,
            "seconds_scaled_by": self.factor,
            "hours": self.hours,
            "state": self.state,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would need, cell by cell, and what there is."""

    lines: tuple[Line, ...]
    memory: int | None  # bytes of the device, where it is here
    device: str  # its name
    basis: str  # the machine whose records times are predicted from
    assumed: float | None = None  # operations a second, where there is no record

    def __str__(self) -> str:
        rows = [COLUMNS, *(_row(line) for line in self.lines)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        table = [
            "  ".join(
                text.ljust(width) if i in (0, 7) else text.rjust(width)
                for i, (text, width) in enumerate(cells)
            )
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        return "\n".join([*(line.rstrip() for line in table), "", *self._totals()])

    def _totals(self) -> list[str]:
        count = Counter(line.state for line in self.lines)
        to_go = [line for line in self.lines if line.state == "to measure"]
        known = [line for line in to_go if line.seconds is not None]
        unit = "GPU hours" if any(line.cell.device == "cuda" for line in self.lines) else "hours"
        room = human(self.memory, "B") if self.memory else "memory that is not known here"
        return [
            f"{len(self.lines)} cells: {count['recorded']} recorded, {count['to measure']} to measure, "
            f"{count['too big']} too big for {self.device} with {room}",
            f"about {sum(line.hours or 0 for line in known):.2g} {unit} for {len(known)} of the {len(to_go)} to measure"
            + ("" if len(known) == len(to_go) else "; how long the others take is unknown"),
            *self._unrecorded([line for line in to_go if line.factor is None], unit),
            "step, whole cell: floating-point operations, counted on tensors without memory, and so is peak memory",
            "time: of the cell's record, or of the same model's record nearest in size, times x by operations; "
            f"records of {self.basis}",
        ]

    def _unrecorded(self, lines: Sequence[Line], unit: str) -> list[str]:
        """What can be said of cells to which no record is near: their operations, and what these
        take at a rate.
        """
        flops = human(sum(line.need.flops or 0 for line in lines), "FLOP")
        if not lines:
            return []
        which = f"{len(lines)} of them, {flops} in all, have no record to go by"
        if not self.assumed:
            return [
                f"{which}: measure one cell of each model first, or name a rate by --assume-flops"
            ]
        hours = sum(line.hours or 0 for line in lines)
        return [
            f"{which}: at {human(self.assumed, 'FLOP')} a second, which is assumed, they take {hours:.2g} {unit}"
        ]


def _row(line: Line) -> tuple[str, ...]:
    told = line.need
    scaled = (
        ""
        if line.state == "recorded"
        else f" (x{line.factor:.3g})"
        if line.factor
        else " (assumed)"
    )
    scaled = scaled if line.seconds is not None else ""
    return (
        line.cell.id,
        f"{told.parameters:,}",
        str(line.cell.width),
        human(told.step_flops, "FLOP"),
        human(told.flops, "FLOP"),
        human(told.peak_bytes, "B"),
        duration(line.seconds) + scaled,
        line.state,
    )


def make_plan(runner: Runner, assumed: float | None = None) -> Plan:
    """The plan of a runner's suite, whose device need not be here.

    Args:
        assumed: operations a second, for cells to which no record is near.
    """
    cells = runner.suite.cells
    place = _here(runner, cells[0].device) if cells else None
    missing = set(runner.missing()) if place else set(cells)
    memory = memory_of(place) if place else None
    records = _earlier(runner.results, place.slug if place else None, cells)
    if assumed is not None and not (assumed > 0 and math.isfinite(assumed)):
        raise ValueError(f"a rate of {assumed:g} operations a second: expected a positive number")
    shown = tqdm(
        cells, unit="cell", leave=False, disable=None, dynamic_ncols=True
    )  # models that loop take a while
    lines = tuple(_line(cell, cell not in missing, memory, records, assumed) for cell in shown)
    basis = records[0].machine.device if records else "this machine there are none yet"
    return Plan(lines, memory, place.device if place else "a GPU", basis, assumed)


def _here(runner: Runner, device: str) -> Machine | None:
    try:
        return runner.machine(LearnCell.model_construct(device=device))
    except ValueError:
        return None


def memory_of(machine: Machine) -> int | None:
    """Bytes that tensors can have: of the GPU, or of the machine."""
    found = machine.facts.get("gpu_memory_bytes" if "gpu" in machine.facts else "memory_bytes")
    return int(found) if found else None


def too_big(cells: Iterable[AnyCell], memory: int | None) -> list[AnyCell]:
    """The cells whose predicted peak is above the memory; one of which nothing can be told is not
    among them.
    """
    return [cell for cell in cells if memory and (peak_bytes(cell) or 0) > memory]


def _generous(cell: AnyCell) -> int:
    """More bytes than any usual model needs: 100 tensors of activations a layer, and a score of
    each pair of tokens.
    """
    longest = max((cell.length, *getattr(cell, "test_lengths", ())))
    tokens = cell.batch_size * longest
    return 4 * cell.depth * tokens * (100 * cell.width + 8 * longest)


def _earlier(results: Path, slug: str | None, cells: Sequence[AnyCell]) -> list[Record]:
    """Records to predict times from: of this machine, or of the one with most, where the device is
    not here.
    """
    folder, models, devices = (
        results / (slug or ""),
        {c.model for c in cells},
        {c.device for c in cells},
    )
    found = []
    for path in record_files(folder) if folder.is_dir() else []:
        with contextlib.suppress(ValueError):
            record = read_record(path)
            if (
                record.outcome.status == "ok"
                and record.cell.model in models
                and record.cell.device in devices
            ):
                found.append(record)
    most = Counter(record.machine.slug for record in found).most_common(1)
    return [record for record in found if record.machine.slug == most[0][0]]


def _line(
    cell: AnyCell,
    recorded: bool,
    memory: int | None,
    records: Sequence[Record],
    assumed: float | None,
) -> Line:
    told = need(cell)
    state = "recorded" if recorded else "too big" if too_big([cell], memory) else "to measure"
    own = [record for record in records if record.cell == cell and recorded]
    near = own[0] if own else _nearest(cell, told, records)
    factor = _factor(told, need(near.cell)) if near else None
    if near and factor:
        seconds = _scaled(_seconds(near), factor * near.cell.processes / cell.processes)
    elif assumed and told.flops:
        seconds = STARTING + told.flops / assumed / cell.processes
    else:
        return Line(cell, told, state, None, None)
    return Line(cell, told, state, min(cell.time_limit, seconds), factor)


def _nearest(cell: AnyCell, told: Estimate, records: Sequence[Record]) -> Record | None:
    """The record of the same model and kind whose training step is nearest in size: parameters
    times tokens.
    """
    alike = [
        r
        for r in records
        if all(getattr(r.cell, f) == getattr(cell, f) for f in ("kind", "model", "precision"))
    ]
    size = told.parameters * cell.batch_size * cell.length
    return min(
        alike,
        key=lambda r: (abs(math.log(_size(r) / size)), r.cell.task != cell.task),
        default=None,
    )


def _size(record: Record) -> int:
    numbers = record.outcome.learn or record.outcome.cost
    assert numbers is not None  # of a record with status ok
    return max(1, numbers.parameters * record.cell.batch_size * record.cell.length)


def _factor(told: Estimate, known: Estimate) -> float | None:
    return told.flops / known.flops if told.flops and known.flops else None


def _seconds(record: Record) -> float:
    return (
        datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)
    ).total_seconds()


def _scaled(seconds: float, factor: float) -> float:
    """The start of a process does not grow with what it computes."""
    start = min(seconds, STARTING)
    return start + (seconds - start) * factor


def human(value: float | None, unit: str) -> str:
    """1234567, "B" -> "1.23 MB"."""
    if value is None:
        return "unknown"
    power = min(6, int(math.log10(value) / 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {' kMGTPE'[power].strip()}{unit}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them; None is unknown."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def without_too_big(runner: Runner) -> Runner:
    """The runner without the cells, yet to be measured, that this machine's memory cannot hold.

    Prediction takes a second a cell, so only those are predicted that could be large.
    """
    missing = runner.missing()
    memory = memory_of(runner.machine(missing[0])) if missing else None
    dropped = set(
        too_big([cell for cell in missing if memory and _generous(cell) > memory / 4], memory)
    )
    kept = tuple(cell for cell in runner.suite.cells if cell not in dropped)
    return replace(runner, suite=replace(runner.suite, cells=kept))
