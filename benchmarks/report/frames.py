"""Records -> typed data frames: one row per thing measured, behind the columns of its cell.

Identity columns hold values (options as JSON), never the names that people read; those are made
where something is drawn, in `names`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from lookback.benchmarks.record import (
    AnyCell,
    DistanceScore,
    PositionScore,
    ReachBin,
    Record,
    Score,
    digest,
)
from lookback.benchmarks.report.statistics import sequence_values
from lookback.benchmarks.suite import only_chooses

IDENTITY = (
    "suite",
    "machine",
    "task",
    "task_options",
    "data",
    "model",
    "model_options",
    "reading",
    "width",
    "depth",
    "trained_length",
    "batch",
    "training",
)
"""Columns that every frame has and that all seeds of one measurement share."""

Row = dict[str, Any]
TRAINING = (
    "tokens",
    "steps",
    "start_length",
    "lengths",
    "learning_rate",
    "learning_rates",
    "weight_decay",
    "dropout",
    "warmup",
    "precision",
    "compile",
)
"""Fields of a cell in which runs may differ that are not seeds of one measurement."""
NOT_MEASURED = ("device", "time_limit")  # fields of a cell that say where and how long, not what


def frame(name: str, records: Iterable[Record]) -> pd.DataFrame:
    """Return one of FRAMES, with a row for each thing that these records measured.

    Raises ValueError if there is no frame of that name.
    """
    if name not in FRAMES:
        raise ValueError(f"no frame {name!r}: expected one of {', '.join(FRAMES)}")
    return Frames(list(records))[name]


@dataclass
class Frames:
    """The frames of some records, each made when it is first asked for."""

    records: Sequence[Record]
    made: dict[str, pd.DataFrame] = field(default_factory=dict)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row per record: the columns of its cell."""
        return pd.DataFrame(list(map(cell_columns, self.records)))

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.made:
            places = []
            rows = []
            for place, record in enumerate(self.records):
                for row in FRAMES[name](record):
                    places.append(place)
                    rows.append(row)
            own = pd.DataFrame(rows)
            if rows:
                cells = self.cells.take(places).reset_index(drop=True)
                own = pd.concat([cells, own], axis=1)
            self.made[name] = own
        return self.made[name]


def cell_columns(record: Record) -> Row:
    """Return the columns that identify a run; each option of its task and model is one too."""
    cell = record.cell
    numbers = record.outcome.learn or record.outcome.cost
    task = record.outcome.task
    row: Row = {
        "suite": record.suite,
        "machine": machine_of(record),
        "device": record.machine.device,
        "task": cell.task,
        "task_options": as_json(cell.task_options),
        "data": as_json(task.data) if task else "{}",
        "model": cell.model,
        "model_options": as_json(cell.model_options),
        "reading": as_json(reading(cell)),
        "width": cell.width,
        "depth": cell.depth,
        "trained_length": cell.length,
        "batch": batch_of(cell),
        "training": as_json(training(cell)),
        "measurement": digest(measurement(record, "seed").encode()),
        "seed": cell.seed,
        "learning_rate": getattr(cell, "learning_rate", None),
        "parameters": numbers.parameters if numbers else None,
        "unit": task.score if task else "",
        "status": record.outcome.status,
    }
    row |= {f"task.{name}": plain(value) for name, value in cell.task_options.items()}
    return row | {f"model.{name}": plain(value) for name, value in cell.model_options.items()}


def machine_of(record: Record) -> str:
    """Return the machine of a cost record and its threads; empty for learning, which needs none."""
    threads = record.machine.facts.get("threads")
    return f"{record.machine.slug}, {threads} threads" if record.cell.kind == "cost" else ""


def reading(cell: AnyCell) -> Row:
    """Return how a model reads a sequence, where that is not the usual way."""
    if cell.kind == "cost":
        return {}
    usual = {"direction": "causal", "pooling": "last"}
    return {name: getattr(cell, name) for name in usual if getattr(cell, name) != usual[name]}


def training(cell: AnyCell) -> Row:
    """Return the settings of training that no other column holds."""
    settings = cell.model_dump(mode="json", include=set(TRAINING), exclude_none=True)
    if "tokens" in settings:
        del settings["steps"]  # they follow from the tokens
    return {name: value for name, value in settings.items() if value != []}


def batch_of(cell: AnyCell) -> str:
    """Return the size of a batch in the unit that stays constant while the length grows."""
    if cell.batch_tokens:
        return f"{cell.batch_tokens:,} tokens a batch"
    return f"{cell.batch_size} sequence{'' if cell.batch_size == 1 else 's'} a batch"


def as_json(options: Row) -> str:
    """Return options as JSON with sorted keys, so that equal options are equal texts."""
    return json.dumps(options, sort_keys=True)


def plain(value: Any) -> Any:
    """Return an option as a cell of a frame: a number or a text; JSON of a list or a table."""
    return value if isinstance(value, int | float | str) else json.dumps(value)


def measurement(record: Record, *without: str) -> str:
    """Return a key of a measurement: its cell without NOT_MEASURED and the fields `without`.

    The batch counts as its number of sequences, and data of another revision are another
    measurement.
    """
    fields = json.loads(record.cell.canonical())
    fields["batch_size"] = record.cell.batch_size
    fields.pop("batch_tokens", None)
    for name in (*NOT_MEASURED, *without):
        fields.pop(name, None)
    data = record.outcome.task.data if record.outcome.task else {}
    return json.dumps([fields, data], sort_keys=True)


def distinct(records: Iterable[Record]) -> tuple[list[Record], int]:
    """Return the newest record of each measurement, and how many were left out.

    A copied folder, a suite run again under another time limit or on another machine must not count
    as more seeds; costs are measured on each machine and device.
    """
    newest: dict[tuple[str, ...], Record] = {}
    count = 0
    for record in records:
        count += 1
        device = record.cell.device if record.cell.kind == "cost" else ""
        key = (measurement(record), machine_of(record), record.suite, device)
        if key not in newest or newest[key].ended < record.ended:
            newest[key] = record
    return sorted(newest.values(), key=_order), count - len(newest)


def _order(record: Record) -> tuple[str, int, str]:
    """Order suites by name, and in each the plainest tasks first."""
    return record.suite, len(record.cell.task_options), record.cell_id


# --- the frames


def _tests(record: Record) -> Iterator[tuple[Row, Score]]:
    """Yield the tests of a run, each with the columns that identify it."""
    learn, task = record.outcome.learn, record.outcome.task
    if learn is None or task is None:
        return
    for test in learn.tests:
        row: Row = {"test_length": test.length, "test_options": as_json(test.options)}
        row["floor"] = task.sighted_floor(test)
        row |= {f"test.{name}": plain(value) for name, value in test.options.items()}
        yield row, test


def _scores(record: Record) -> Iterator[Row]:
    measured = {"score", "loss", "examples", "correct", "count", "seen_in_training"}
    trained = {"state_bytes", "tokens_trained", "longest_trained"}
    for row, test in _tests(record):
        assert record.outcome.learn is not None
        row |= test.model_dump(include=measured) | record.outcome.learn.model_dump(include=trained)
        yield row | {"sequences": _sequences(test, record)}


def _sequences(test: Score, record: Record) -> np.ndarray | None:
    """Return a value per test sequence, in the unit of the score; None if no sums were kept."""
    if test.by_sequence is None:
        return None
    totals = np.array(test.by_sequence.totals.split(), dtype=np.float64)
    counts = np.array(test.by_sequence.counts.split(), dtype=np.float64)
    assert record.outcome.task
    scale = 1.0 if record.outcome.task.score == "accuracy" else 1 / math.log(2)
    return scale * sequence_values(totals, np.broadcast_to(counts, totals.shape))


def _references(record: Record) -> Iterator[Row]:
    for row, test in _tests(record):
        for name, score in test.references.items():
            yield row | {"reference": name, "score": score}


def _distances(record: Record) -> Iterator[Row]:
    for row, test in _tests(record):
        for part in test.by_distance:
            if part.count:
                row |= {"nearest": part.low, "farthest": part.high, "distance": middle(part)}
                row |= {"count": part.count, "correct": part.correct}
                yield row | {"score": part.correct / part.count}


def middle(part: DistanceScore | PositionScore | ReachBin) -> float:
    """Return the geometric middle of a bin; a bin that begins at 0 begins at 1."""
    return math.sqrt(max(part.low, 1) * max(part.high, 1))


def _positions(record: Record) -> Iterator[Row]:
    for row, test in _tests(record):
        for part in test.by_position:
            row |= {"first": part.low, "last": part.high, "position": middle(part)}
            yield row | {"count": part.count, "bits": part.loss / math.log(2)}


def _curves(record: Record) -> Iterator[Row]:
    if learn := record.outcome.learn:
        for point in learn.curve:
            tokens = point.step * record.cell.batch_size * record.cell.length
            yield point.model_dump() | {"tokens": tokens}


def _rates(record: Record) -> Iterator[Row]:
    """Return a row per learning rate: of a pilot's cell its own, of other cells each trial."""
    learn = record.outcome.learn
    if learn is None or record.cell.kind != "learn":
        return
    for trial in learn.trials:
        yield {"rate": trial.learning_rate, "validation": trial.validation}
    if not learn.trials:
        score = learn.validation.score if learn.validation else None
        yield {"rate": record.cell.learning_rate, "validation": score}


def _reached(record: Record) -> Iterator[Row]:
    if learn := record.outcome.learn:
        for goal in learn.reached:
            yield goal.model_dump()


def _gradients(record: Record) -> Iterator[Row]:
    if learn := record.outcome.learn:
        for when, bins in (("untrained", learn.reach_before), ("trained", learn.reach_after)):
            for part in bins:
                yield {"when": when, "distance": middle(part), "share": part.share}


def _costs(record: Record) -> Iterator[Row]:
    cost = record.outcome.cost
    if cost is None:
        return
    for name, phase in cost.phases.items():
        seconds = phase.seconds
        row = phase.model_dump(exclude={"seconds"}) | {"phase": name, "seconds": seconds.median}
        row |= {"q1": seconds.low, "q3": seconds.high, "noisy": seconds.noisy}
        if phase.flops is not None and cost.matmul_flops_per_second:
            speed = phase.flops / seconds.median
            row["share_of_matmul_speed"] = speed / cost.matmul_flops_per_second
        yield row | {"ended_as": "ok"}
    for name, status in cost.failed.items():
        yield {"phase": name, "ended_as": status}
    if cost.state_bytes is not None:
        yield {"phase": "state", "state_bytes": cost.state_bytes, "ended_as": "ok"}


def _generation(record: Record) -> Iterator[Row]:
    if cost := record.outcome.cost:
        for point in cost.generation:
            yield point.model_dump()


def _runs(record: Record) -> Iterator[Row]:
    lines = record.outcome.message.strip().splitlines()
    row: Row = {
        "kind": record.cell.kind,
        "precision": record.cell.precision,
        "started": record.started,
    }
    row |= {"ended": record.ended, "seconds": record.seconds, "cell_id": record.cell_id}
    yield row | {"message": lines[-1] if lines else ""}


FRAMES: dict[str, Callable[[Record], Iterator[Row]]] = {
    "runs": _runs,
    "scores": _scores,
    "references": _references,
    "distances": _distances,
    "positions": _positions,
    "curves": _curves,
    "rates": _rates,
    "reached": _reached,
    "gradients": _gradients,
    "costs": _costs,
    "generation": _generation,
}
"""By name: the rows of a record. `runs` has one row per record, whatever its status."""


def largest(rows: pd.DataFrame, column: str, by: Sequence[str]) -> pd.DataFrame:
    """Return the rows of each group that have its largest value of a column."""
    return rows[rows[column] == rows.groupby(by, dropna=False)[column].transform("max")]


def without_pilots(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records that are not of pilots and calibrations, which only choose settings."""
    for record in records:
        if not only_chooses(record.suite):
            yield record
