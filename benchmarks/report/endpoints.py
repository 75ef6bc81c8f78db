"""The primary endpoint of a suite: its value for each run, and the verdicts between models."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import statistics
from lookback.benchmarks.report.frames import Frames
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.statistics import (
    Numbers,
    complete,
    places_of_groups,
    sequences_of,
    standings,
    subtract,
)
from lookback.benchmarks.suite import Endpoint

PAIR = ["suite", "task", "task_options", "data", "reading", "depth", "trained_length"]
"""Columns that two runs share which are compared by their seed."""
MODEL = [*PAIR, "model", "model_options", "training", "width"]
"""Columns that all seeds of one model share."""
RUN = [*MODEL, "seed"]
BASELINE = "rwkv"  # that other models are compared with


@dataclass(frozen=True)
class Judged:
    """The endpoint of a suite: a row per run in `values`, and a row per model in `verdicts`."""

    endpoint: Endpoint
    values: pd.DataFrame
    verdicts: pd.DataFrame

    def is_best(self, values: pd.Series) -> pd.Series:
        """Return which values of the endpoint are as good as the best, within what matters."""
        return values > values.max() - self.endpoint.difference

    def table(self, values: pd.DataFrame) -> pd.DataFrame:
        """Return a row per model of these `values`, which are all or some of the suite's.

        Columns: score, floor, endpoint, difference to the baseline and verdict, among others. The
        interval of an endpoint is cut to the values that it can have; `blind` is the endpoint of a
        model at the sighted floor, `most` its largest value.
        """
        groups = values.groupby(MODEL, dropna=False)
        facts = ["score", "parameters", "least", "blind", "most"]
        sizes = groups[facts].mean().reset_index()
        means = statistics.summarise(values, MODEL, "value").merge(sizes, on=MODEL)
        means = means.rename(columns={"floor": "sighted_floor"})
        for end in ("low", "high"):
            means[end] = means[end].clip(means["least"], means["most"])
        means = statistics.named(means, "endpoint").assign(unit=values["unit"].iloc[0])
        table = add_names(means.assign(mark=standings(means)), with_length=True)
        columns = ["task_name", "model", "model_name", "parameters", "seeds", "score"]
        columns += ["sighted_floor", "mark", "endpoint", "endpoint_low", "endpoint_high"]
        columns += ["blind", "most"]
        if self.verdicts.empty:
            return table[columns]
        own = ["difference", "difference_low", "difference_high", "smallest_shown", "verdict"]
        on = [*PAIR, "model", "model_options", "training", "parameters"]
        return table.merge(self.verdicts[[*on, *own]], on=on, how="left")[[*columns, *own]]


@dataclass
class SuiteEvidence(Frames):
    """The records of one suite, their frames, and the suite's endpoint with its verdicts."""

    endpoint: Endpoint | None = None

    @cached_property
    def judged(self) -> Judged | None:
        """The endpoint and its verdicts; None if the suite has none, or no run a value of it."""
        if self.endpoint is None:
            return None
        values = endpoint_values(self, self.endpoint)
        if values.empty:
            return None
        quantity, matters = self.endpoint.quantity, self.endpoint.difference
        rows = verdicts(values, matters).assign(quantity=quantity, matters=matters)
        return Judged(self.endpoint, values, rows)

    @cached_property
    def digest(self) -> str:
        """A digest of the records, and of how they are judged."""
        content = [repr(self.endpoint), *(record.model_dump_json() for record in self.records)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()


class Evidence:
    """The evidence of several suites, one by one in `suites`, and their frames, joined."""

    def __init__(
        self, records: Sequence[Record], endpoints: Mapping[str, Endpoint] | None = None
    ) -> None:
        self.records = records
        self.suites: dict[str, SuiteEvidence] = {}
        for suite in dict.fromkeys(record.suite for record in records):
            own = [record for record in records if record.suite == suite]
            self.suites[suite] = SuiteEvidence(own, endpoint=(endpoints or {}).get(suite))
        self.joined: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a frame of all suites; theirs are made once, also for their own pages."""
        if name not in self.joined:
            self.joined[name] = _join(suite[name] for suite in self.suites.values())
        return self.joined[name]

    @property
    def judged(self) -> dict[str, Judged]:
        """Endpoints with their verdicts, by suite; without suites that have no value of theirs."""
        return {name: suite.judged for name, suite in self.suites.items() if suite.judged}

    @property
    def verdicts(self) -> pd.DataFrame:
        """The verdicts of all suites in one frame."""
        return _join(judged.verdicts for judged in self.judged.values())

    @property
    def digest(self) -> str:
        """A digest of all records, and of how they are judged."""
        return " ".join(suite.digest for suite in self.suites.values())


def _join(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    rows = [frame for frame in frames if not frame.empty]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def main_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, of several sizes and trainings of a model, the rows of the one with most seeds."""
    model = ["task", "task_options", "model", "model_options", "trained_length"]
    setup = [*model, "width", "depth", "training"]
    seeds = rows.groupby(setup, dropna=False)["seed"].transform("nunique")
    most = seeds.groupby([rows[name] for name in model], dropna=False).transform("max")
    return rows[seeds == most]


def endpoint_values(frames: Frames, endpoint: Endpoint) -> pd.DataFrame:
    """Return a row per run with its `value` of the endpoint, and the `score` and `floor` behind it.

    Larger values are better, whatever the quantity. Runs without one are left out.
    """
    rows = frames["distances" if endpoint.quantity == "area" else "scores"]
    if rows.empty:
        return rows
    chosen = rows["task"] == endpoint.task
    if endpoint.quantity != "area" or endpoint.lengths:
        chosen &= rows["test_length"].isin(endpoint.lengths)
    rows = rows[chosen]
    if rows.empty:
        return rows
    return pd.DataFrame(_values(rows, endpoint))


Columns = Mapping[str, NDArray[Any]]
"""The columns of one run's rows, as plain arrays: thousands of runs are judged."""
Value = tuple[float, Numbers | None]  # of a run, and per test sequence if the record kept them


def _values(rows: pd.DataFrame, endpoint: Endpoint) -> Iterable[dict[str, object]]:
    measure = QUANTITIES[endpoint.quantity]
    columns = {str(name): rows[name].to_numpy() for name in rows}
    for places in places_of_groups(rows, RUN):
        run = {name: column[places] for name, column in columns.items()}
        value, sequences = measure(run, endpoint)
        if math.isnan(value):
            continue
        weights = octaves(run) if endpoint.quantity == "area" else run["count"]
        least, blind, most = _possible_values(run, endpoint)
        yield {name: run[name][0] for name in [*RUN, "parameters", "unit"]} | {
            "value": value,
            "least": least,
            "blind": blind,
            "most": most,
            "sequences": sequences,
            "score": float(np.average(run["score"], weights=weights)),
            "floor": float(np.average(run["floor"], weights=weights)),
        }


def _score(run: Columns, endpoint: Endpoint) -> Value:
    """The mean over tests; bits per byte count downwards."""
    sign = 1.0 if run["unit"][0] == "accuracy" else -1.0
    score = sign * float(np.mean(run["score"]))
    sequences = complete(run["sequences"])
    if sequences is None or len({len(row) for row in sequences}) > 1:
        return score, None
    # The n-th sequences of all tests are one draw: tests do not share sequences.
    return score, sign * np.mean(sequences, axis=0)


def octaves(bins: Columns) -> Numbers:
    """Return how many octaves of distance each bin spans; a bin of distance zero hardly counts."""
    spans = np.log2(bins["farthest"] + 1) - np.log2(np.maximum(bins["nearest"], 1))
    return np.maximum(spans, 1e-9)


def _area(run: Columns, endpoint: Endpoint) -> Value:
    """Accuracy above the sighted floor, averaged over log2 distance."""
    return float(np.average(run["score"] - run["floor"], weights=octaves(run))), None


def _tested_values(run: Columns, option: str) -> Numbers:
    """Return log2 of an option's value in each test."""
    return np.log2([json.loads(text)[option] for text in run["test_options"]])


def _halfway(run: Columns, endpoint: Endpoint) -> Value:
    """Log2 of the option's value at which accuracy is half-way from the floor to one.

    Interpolated between tests; the first or the last value where accuracy never crosses.
    """
    x = _tested_values(run, endpoint.option)
    above = (run["score"] - run["floor"]) / (1 - run["floor"]) - 0.5
    order = np.argsort(x)
    x, above = x[order], above[order]
    if np.isnan(above).any():
        return math.nan, None
    if above[0] <= 0:
        return float(x[0]), None
    for left in range(len(x) - 1):
        if above[left + 1] <= 0:
            share = above[left] / (above[left] - above[left + 1])
            return float(x[left] + share * (x[left + 1] - x[left])), None
    return float(x[-1]), None


def _saved(run: Columns, endpoint: Endpoint) -> Value:
    """Bits per byte at the shortest context minus those at the longest, on the same bytes."""
    tests = [np.flatnonzero(run["test_length"] == endpoint.lengths[end]) for end in (0, -1)]
    if any(len(test) != 1 for test in tests):
        return math.nan, None
    (first,), (last,) = tests
    scores, sequences = run["score"], run["sequences"]
    return float(scores[first] - scores[last]), subtract(sequences[first], sequences[last])


QUANTITIES: dict[str, Callable[[Columns, Endpoint], Value]] = {
    "score": _score,
    "area": _area,
    "halfway": _halfway,
    "saved": _saved,
}


def _possible_values(run: Columns, endpoint: Endpoint) -> tuple[float, float, float]:
    """Return the least value of an endpoint, that of a model at the sighted floor, and the most."""
    floor = float(np.mean(run["floor"]))
    if endpoint.quantity == "halfway":
        tested = _tested_values(run, endpoint.option)
        return float(tested.min()), float(tested.min()), float(tested.max())
    if endpoint.quantity == "area":
        return -floor, 0.0, 1.0 - floor
    if run["unit"][0] == "accuracy":
        return 0.0, floor, 1.0
    return -math.inf, 0.0 if endpoint.quantity == "saved" else math.nan, math.inf


def is_plain(rows: pd.DataFrame, model: str) -> pd.Series:
    """Return which rows are of a model without options."""
    return (rows["model"] == model) & (rows["model_options"] == "{}")


def verdicts(
    values: pd.DataFrame, matters: float, against: str = BASELINE, keys: Sequence[str] = PAIR
) -> pd.DataFrame:
    """Return the verdict of every other model against one without options, paired by seed.

    `values` has a row per run and test: `value` (larger is better), `score`, `floor`, `unit` and
    the columns `keys` that a pair shares, `seed` apart. A difference below `matters` does not.

    Columns: keys, model, model_options, parameters, value, baseline, difference (the mean
    of the seeds), difference_low, difference_high, seeds, `smallest_shown` (the smallest difference
    that so many seeds show) and verdict. In place of a verdict stands `both at floor` or `both at
    ceiling`, and `at floor` or `baseline at floor` where one is at the floor.
    """
    if values.empty:
        return values
    is_baseline = is_plain(values, against)
    pairs = statistics.paired(values[~is_baseline], values[is_baseline], keys, "value")
    rows: list[dict[str, object]] = []
    run = [*keys, "training", "model", "model_options", "parameters"]
    for key, group in pairs.groupby(run, sort=False, dropna=False):
        standings = []
        for side in ("", "_baseline"):
            score, floor = group[f"score{side}"].mean(), group[f"floor{side}"].mean()
            standings.append(statistics.standing(score, floor, group["unit"].iloc[0]))
        rows.append(dict(zip(run, key, strict=True)) | judge(group, matters, *standings))
    return pd.DataFrame(rows)


def judge(pairs: pd.DataFrame, matters: float, own: str = "", other: str = "") -> dict[str, Any]:
    """Return means, interval, smallest difference shown and verdict of paired differences.

    `own` and `other` say where the two models stand; see `statistics.standing`.
    """
    differences = [float(value) for value in pairs["difference"]]
    low, high = statistics.interval(differences, sequences_of(pairs))
    word = statistics.verdict(pairs, matters)
    if own and own == other and own != "learned":
        word = f"both {own}"
    elif own == "at floor":
        word = own
    elif other == "at floor":
        word = f"baseline {other}"
    return {
        "value": pairs["value"].mean(),
        "baseline": pairs["baseline"].mean(),
        "difference": math.fsum(differences) / len(differences),
        "difference_low": low,
        "difference_high": high,
        "seeds": len(differences),
        "smallest_shown": statistics.smallest_difference(differences),
        "verdict": word,
    }
