"""Records -> data frames: a row for each thing measured, and for each mean over seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lookback.benchmarks.record import AnyCell, Cell, LearnCell, Record, Score
from lookback.benchmarks.report.statistics import t_interval, wilson_interval

RUN = ["task", "model", "parameters", "length"]  # what the seeds of one mean have in common


@dataclass(frozen=True)
class Labels:
    """What tasks and models are called on a page, so that cells of one name differ in nothing but length and seed.

    By name; with their options where a name has several sets of them; and with any other field (width, steps, ...) in
    which cells of some model differ that are otherwise the same.
    """

    several: frozenset[str]
    varied: frozenset[str]
    threads: Mapping[AnyCell, int] = field(default_factory=dict)  # where cells of one kind differ in them

    @classmethod
    def of(cls, records: Iterable[Record]) -> Labels:
        records = list(records)
        sets: dict[str, set[str]] = {}
        same: dict[tuple[str, ...], list[AnyCell]] = {}
        for cell in (record.cell for record in records):
            names = options(cell.task_options), options(settings(cell))
            sets.setdefault(cell.task, set()).add(names[0])
            sets.setdefault(cell.model, set()).add(names[1])
            key = (cell.kind, cell.task, cell.model, *names, str(cell.length), str(cell.seed))
            same.setdefault(key, []).append(cell)
        several = frozenset(name for name, found in sets.items() if len(found) > 1)
        varied = frozenset(field for cells in same.values() for field in _differing(cells))
        return cls(several, varied, _threads(records))

    def task(self, cell: AnyCell) -> str:
        return self._label(cell.task, cell.task_options)

    def model(self, cell: AnyCell) -> str:
        threads = f"threads={self.threads[cell]}" if cell in self.threads else ""
        return " ".join(filter(None, [self._label(cell.model, settings(cell)), self.setting(cell), threads]))

    def setting(self, cell: Cell) -> str:
        """The fields that tell apart cells of the same model with the same options; empty where nothing has to."""
        return options({field: getattr(cell, field) for field in self.varied & TOLD_APART[cell.kind]})

    def _label(self, name: str, given: dict[str, Any]) -> str:
        return f"{name} {options(given)}".rstrip() if name in self.several else name


def _threads(records: Sequence[Record]) -> dict[AnyCell, int]:
    """Return the threads of each cell whose kind was measured with several numbers of them."""
    found = [(record.cell, int(record.machine.facts.get("threads", 0))) for record in records]
    numbers: dict[str, set[int]] = {}
    for cell, threads in found:
        numbers.setdefault(cell.kind, set()).add(threads)
    return {cell: threads for cell, threads in found if len(numbers[cell.kind]) > 1}


def tuned(records: Iterable[Record]) -> bool:
    """Whether each model was trained at the best of several learning rates: one rate may suit one of two models."""
    return all(record.cell.learning_rates for record in records if record.cell.kind == "learn")


def measurement(record: Record, *without: str) -> str:
    """What was measured, wherever it was: the canonical cell but for `device`, `time_limit` and the fields named."""
    cell = json.loads(record.cell.canonical())
    return json.dumps({key: cell[key] for key in cell if key not in ("device", "time_limit", *without)})


TOLD_APART = {
    "learn": frozenset(LearnCell.model_fields) - {"batch_tokens", "time_limit", "reach"},
    "cost": frozenset({"width", "depth", "precision", "compile"}),  # batches and the like are for the report of costs
}


def _differing(cells: Sequence[Cell]) -> set[str]:
    """Fields in which these cells are not all equal."""
    return {
        field for field in TOLD_APART[cells[0].kind]
        if any(getattr(cell, field) != getattr(cells[0], field) for cell in cells)
    }  # fmt: skip


def protocol_of(cell: Cell) -> str:
    """What a `cost` cell holds while the length grows."""
    if cell.batch_tokens:
        return f"{cell.batch_tokens:,} tokens a batch"
    return f"{cell.batch_size} sequence{'' if cell.batch_size == 1 else 's'} a batch"


def settings(cell: AnyCell) -> dict[str, Any]:
    """A model's options, and how it reads where that is not the common way."""
    reading = {"direction": cell.direction, "pooling": cell.pooling}
    return {**cell.model_options, **{k: v for k, v in reading.items() if v != LearnCell.model_fields[k].default}}


def options(given: dict[str, Any]) -> str:
    """As they stand in labels; what Markdown, HTML or the figures' formulas would obey becomes a question mark."""
    shown = " ".join(f"{key}={value}" for key, value in sorted(given.items()))
    return re.sub(r"[^\w \[\]{}.,:;'=+/*%-]", "?", shown)


def scores(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each test of each `learn` cell that ended well."""
    labels, rows = Labels.of(records), []
    for record in records:
        if record.outcome.learn:
            rows += [{**fields_of_test(record, test, labels), **_score(test)} for test in record.outcome.learn.tests]
    return pd.DataFrame(rows)


def fields_of_test(record: Record, test: Score, labels: Labels) -> dict[str, Any]:
    """Columns that tell what run and what test a row is of; tests with other options are tasks of their own."""
    fields = run_fields(record, labels)
    if test.options:
        fields["task"] += f" tested with {options(test.options)}"
    assert record.outcome.task
    return {**fields, "constant": record.outcome.task.sighted_floor(test)}


def distances(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each bin of distance of each test."""
    return _bins(records, "by_distance")


def positions(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each bin of position of each test, its loss (nats) also in bits."""
    found = _bins(records, "by_position")
    return found.assign(bits=found["loss"] / math.log(2)) if len(found) else found


def _bins(records: Sequence[Record], name: str) -> pd.DataFrame:
    labels = Labels.of(records)
    return pd.DataFrame([
        {**fields_of_test(record, test, labels), "test_length": test.length, **part.model_dump()}
        for record in records if record.outcome.learn
        for test in record.outcome.learn.tests
        for part in getattr(test, name)
    ])  # fmt: skip


def curves(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each point of each learning curve."""
    labels = Labels.of(records)
    rows = [
        {**run_fields(record, labels), **point.model_dump(exclude_none=True)}
        for record in records if record.outcome.learn
        for point in record.outcome.learn.curve
    ]  # fmt: skip
    return pd.DataFrame(rows)


def run_fields(record: Record, labels: Labels) -> dict[str, Any]:
    """Columns that tell what run a row is of."""
    cell, outcome = record.cell, record.outcome
    numbers = outcome.learn or outcome.cost
    assert numbers and outcome.task
    return {
        "task": labels.task(cell), "model": labels.model(cell), "setting": labels.setting(cell),
        "parameters": numbers.parameters, "length": cell.length, "seed": cell.seed,
        "steps": getattr(cell, "steps", None),
        "score_unit": outcome.task.score,
        "constant": outcome.task.baseline_score, "direction": cell.direction,
        "pooling": cell.pooling if outcome.task.classes else "",
    }  # fmt: skip


def _score(test: Score) -> dict[str, Any]:
    return {
        "test_length": test.length, "score": test.score, "loss": test.loss, "examples": test.examples,
        "count": test.count, "correct": test.correct, "seen_in_training": test.seen_in_training,
    }  # fmt: skip


Failures = dict[tuple[str, int, str], int]
"""How many runs of a task, training length and model ended without a score."""


def failures(records: Sequence[Record]) -> Failures:
    """How many runs ended in nan, oom or timeout, by task, length and model."""
    labels = Labels.of(records)
    found: Failures = {}
    for record in records:
        if record.cell.kind == "learn" and record.outcome.status in ("nan", "oom", "timeout"):
            key = labels.task(record.cell), record.cell.length, labels.model(record.cell)
            found[key] = found.get(key, 0) + 1
    return found


def over_seeds(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean of a column over seeds with its interval: columns mean, low, high, seeds.

    One seed's accuracy has Wilson's interval, of its answers; one seed's anything else has none.
    """
    rows = []
    for keys, group in frame.groupby(list(by), sort=False, dropna=False):
        values = [float(x) for x in group[value]]
        low, high = t_interval(values)
        if len(values) == 1 and "correct" in group and group["score_unit"].iloc[0] == "accuracy":
            low, high = wilson_interval(int(group["correct"].iloc[0]), int(group["count"].iloc[0]))
        elif "score_unit" in group and group["score_unit"].iloc[0] == "accuracy":
            low, high = max(low, 0.0), min(high, 1.0)  # t knows nothing of the ends; nan stays nan
        carried = {column: group[column].iloc[0] for column in ("score_unit", "constant") if column in group}
        row = dict(zip(by, keys, strict=True)) | carried
        rows.append(row | {"mean": math.fsum(values) / len(values), "low": low, "high": high, "seeds": len(values)})
    return pd.DataFrame(rows)


APART = 1.25  # of several sizes, those farther from each other than so many times are not a pair


def differences(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Score of each model minus the baseline's, paired by seed, with a t interval: columns mean, low, high, seeds.

    Where models were measured at several settings, each is paired with the baseline at its own; of several sizes with
    the nearest one in parameters, so that widths worked out to match find each other.
    """
    keys = ["task", "length", "test_length", "others", "seed"]
    scores = scores.assign(others=scores["setting"].map(without_size))
    own = scores["model"] == (f"{baseline} " + scores["setting"]).str.rstrip()
    carried = [*keys, "score", "model", "parameters"]
    pairs = scores[~own].merge(scores.loc[own, carried], on=keys, suffixes=("", "_of_baseline"))
    pairs["ratio"] = (pairs["parameters"] / pairs["parameters_of_baseline"]).map(lambda r: max(r, 1 / r))
    nearest = pairs["ratio"] == pairs.groupby([*keys, "model"])["ratio"].transform("min")
    chosen = (pairs["ratio"] <= APART) | (pairs["setting"] == pairs["others"])
    rows = []
    of_models = [*keys[:3], "model", "model_of_baseline"]
    for names, group in pairs[nearest & chosen].groupby(of_models, sort=False):
        values = [float(x) for x in group["score"] - group["score_of_baseline"]]
        low, high = t_interval(values)
        row = dict(zip(["task", "trained at", "tested at", "model", "against"], names, strict=True))
        row |= {column: group[column].iloc[0] for column in ("score_unit", "setting")}
        row |= {column: group[column].mean() for column in ("score", "score_of_baseline")}
        rows.append(row | {"mean": math.fsum(values) / len(values), "low": low, "high": high, "seeds": len(values)})
    return pd.DataFrame(rows)


def without_size(setting: str) -> str:
    """A setting but for width and depth, which differ where sizes match."""
    return re.sub(r"\b(width|depth)=\d+ ?", "", setting).rstrip()
