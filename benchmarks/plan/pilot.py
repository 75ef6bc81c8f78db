"""Pilots: the learning rate of each model, and whether a suite's task tells models apart.

A pilot trains every model of a suite at several rates, with a part of the tokens and a seed that
does not count. Its cells and records are like any other; its suite is called SUITE-pilot.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from lookback.benchmarks.record import AnyCell, LearnCell, Record, make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import CEILING, MARGIN, Pilot, Suite
from lookback.tasks.task import get_task

EXTENSIONS = 3  # rates that are added beyond each end of the grid, at most
PERFECT = 1.0  # accuracy that no other rate can exceed
SHORTEST = 32  # tokens that a calibration begins with
MODELS = 2  # that must lie between them

Group = str  # JSON of what the cells of one curve of score against rate share


def pilot_suite(suite: Suite, rates: Sequence[float] = ()) -> Suite:
    """Return the pilot of a suite: one cell for each distinct learning cell and rate.

    `rates` replace those of the suite's `pilot`.

    Raises ValueError if the suite has no `pilot`, or one that leaves no cell.
    """
    pilot = suite.pilot
    if pilot is None:
        raise ValueError(f"suite {suite.name!r} has no table [pilot]: expected the rates to try")
    if rates:
        pilot = pilot.model_copy(update={"learning_rates": tuple(rates)})
    cells: list[LearnCell] = []
    for cell in suite.cells:
        if cell.kind == "learn" and is_piloted(cell, pilot):
            cells += [pilot_cell(cell, pilot, rate) for rate in pilot.learning_rates]
    if not cells:
        only = ", ".join(f"{field} in {list(values)}" for field, values in pilot.only.items())
        raise ValueError(
            f"suite {suite.name!r}: no chosen cell is one of its pilot: "
            f"expected cells that learn{', with ' if only else ''}{only}"
        )
    name, distinct = f"{suite.name}-pilot", tuple(dict.fromkeys(cells))
    return dataclasses.replace(suite, name=name, cells=distinct, pilot=pilot, path=None)


def is_piloted(cell: LearnCell, pilot: Pilot) -> bool:
    """Return whether a cell's fields have the values that a pilot is restricted to."""
    return all(getattr(cell, field) in values for field, values in pilot.only.items())


def pilot_cell(cell: LearnCell, pilot: Pilot, rate: float) -> LearnCell:
    """Return a cell as the pilot trains it: with its seed, its part of the tokens, and one rate."""
    fields = cell.model_dump()
    if cell.tokens is None:
        fields["steps"] = max(1, round(pilot.share * cell.steps))
    else:
        fields["tokens"] = max(1, round(pilot.share * cell.tokens))
    fields["test_lengths"] = [length for length in cell.test_lengths if length <= cell.length]
    fields |= {"seed": pilot.seed, "learning_rate": rate, "learning_rates": ()}
    made = make_cell(fields)
    assert made.kind == "learn"
    return made


def run_pilot(runner: Runner) -> int:
    """Measure a pilot, and extend each grid whose best rate is at its end; return the exit code."""
    while True:
        code = runner.run()
        added = tuple(beyond_the_grid(runner))
        if code or not added:
            return code
        cells = (*runner.suite.cells, *added)
        runner.suite = dataclasses.replace(runner.suite, cells=cells)
        for cell in added:
            source = next(other for other in runner.options if is_same_curve(other, cell))
            runner.options = {**runner.options, cell: runner.options[source]}
            runner.code = {**runner.code, cell: runner.code[source]}


def learned(runner: Runner) -> dict[Group, list[Record]]:
    """Return the records of a pilot in groups that differ in their rate alone, sorted by rate."""
    groups: dict[Group, list[Record]] = {}
    for cell in runner.suite.cells:
        record = runner.recorded(cell)
        if record is not None and cell.kind == "learn":
            groups.setdefault(group_of(cell), []).append(record)
    for records in groups.values():
        records.sort(key=rate_of)
    return groups


def group_of(cell: LearnCell) -> Group:
    """Return a key that cells share if they differ in their learning rate alone."""
    fields = cell.model_dump(mode="json", exclude={"learning_rate"})
    return json.dumps(fields, sort_keys=True)


def is_same_curve(a: AnyCell, b: LearnCell) -> bool:
    """Return whether two cells differ at most in their rate."""
    return a.kind == "learn" and group_of(a) == group_of(b)


def rate_of(record: Record) -> float:
    """Return the learning rate of a pilot's record."""
    assert record.cell.kind == "learn"
    return record.cell.learning_rate


def best_of(records: Sequence[Record]) -> Record:
    """Return the record with the best validation."""
    return max(records, key=quality)


def quality(record: Record) -> float:
    """Return a number that is larger for a better validation; -inf where training failed."""
    numbers, task = record.outcome.learn, record.outcome.task
    if numbers is None or task is None or numbers.validation is None:
        return -math.inf
    score = numbers.validation.score
    if score is None:
        return -math.inf
    return score if task.score == "accuracy" else -score


def beyond_the_grid(runner: Runner) -> Iterator[LearnCell]:
    """Yield a cell at the next rate for each curve whose best rate is the first or the last.

    At most EXTENSIONS rates lie beyond each end of the suite's grid. A curve is not extended if all
    its scores are equal, if every rate failed, or if its best score is perfect.
    """
    assert runner.suite.pilot is not None
    grid = runner.suite.pilot.learning_rates
    for records in learned(runner).values():
        rates = [rate_of(record) for record in records]
        best = best_of(records)
        if len(rates) < 2 or quality(best) in (PERFECT, quality(min(records, key=quality))):
            continue
        if best is records[-1] and sum(rate > max(grid) for rate in rates) < EXTENSIONS:
            rate = rates[-1] * rates[-1] / rates[-2]
        elif best is records[0] and sum(rate < min(grid) for rate in rates) < EXTENSIONS:
            rate = rates[0] * rates[0] / rates[1]
        else:
            continue
        assert best.cell.kind == "learn"
        yield best.cell.model_copy(update={"learning_rate": float(f"{rate:.3g}")})


def findings(runner: Runner) -> Iterator[str]:
    """Yield the rate of each model, and for each task whether it tells the models apart.

    All widths count together, because matched models differ in width.
    """
    tasks: dict[str, list[Record]] = {}
    for records in learned(runner).values():
        cell = records[0].cell
        place = f"{cell.task} {options_text(cell.task_options)} @{cell.length}, depth {cell.depth}"
        tasks.setdefault(place, []).append(best_of(records))

    for place, bests in tasks.items():
        yield f"{place}:"
        for best in bests:
            scores = "; ".join(describe_test(*test) for test in longest_tests(best)) or "failed"
            line = f"learning_rate = {rate_of(best):g}, {scores}"
            yield f"  {model_text(best)}, width {best.cell.width}: {line}"
        yield from tells_apart(bests)


def tells_apart(bests: Sequence[Record]) -> Iterator[str]:
    """Yield whether a task tells models apart; nothing for bits per byte, which have no ceiling."""
    units = {best.outcome.task.score for best in bests if best.outcome.task is not None}
    if units - {"accuracy"}:
        return
    between = set()
    for best in bests:
        if any(is_between(score, floor) for _, score, floor in longest_tests(best)):
            between.add(model_text(best))
    count = f"{len(between)} of {len(set(map(model_text, bests)))} models"
    advice = "the task tells them apart"
    if len(between) < MODELS:
        advice = f"expected {MODELS}, or the task tells none apart: make it easier or harder"
    yield f"  {count} between floor + {MARGIN:g} and {CEILING:g}: {advice}"


def model_text(record: Record) -> str:
    """Return a model with its options for people."""
    return f"{record.cell.model} {options_text(record.cell.model_options)}".strip()


def options_text(options: dict[str, object]) -> str:
    """Return options for people: `pairs 4, alphabet 8`."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def longest_tests(record: Record) -> list[tuple[str, float | None, float]]:
    """Return options, score and sighted floor of each test at the longest length."""
    task, numbers = record.outcome.task, record.outcome.learn
    if task is None or numbers is None:
        return []
    longest = max(test.length for test in numbers.tests)
    return [
        (options_text(test.options), test.score, task.sighted_floor(test))
        for test in numbers.tests
        if test.length == longest
    ]


def describe_test(options: str, score: float | None, floor: float) -> str:
    """Return a test for people: `pairs 8: 0.912, floor 0.261`."""
    text = "not finite" if score is None else f"{score:.3f}"
    return f"{options}{': ' if options else ''}{text}, floor {floor:.3f}"


def is_between(score: float | None, floor: float) -> bool:
    """Return whether a score is one at which models can be told apart."""
    return score is not None and floor + MARGIN <= score <= CEILING


def calibration_cell(task_options: dict[str, Any], fields: dict[str, Any]) -> LearnCell:
    """Return a small cell with these options and fields, whose lengths grow from the shortest."""
    shortest = max(SHORTEST, get_task(fields["task"], task_options).shortest)
    size = {"width": 64, "depth": 2, "batch_tokens": 8192}
    start = {"start_length": min(shortest, fields["length"])}
    made = make_cell({"kind": "learn", "task_options": task_options, **size, **start, **fields})
    assert made.kind == "learn"
    return made


def calibration(cells: Sequence[AnyCell], runner: Runner, option: str) -> Iterator[str]:
    """Yield a line for each setting of an option, and a last one that proposes some.

    A setting is `at floor` below the sighted floor + MARGIN and `at ceiling` above CEILING; between
    them, it tells models apart.
    """
    between = []
    for cell in cells:
        record = runner.recorded(cell)
        if record is None:
            continue
        value = cell.task_options[option]
        tests = longest_tests(record)
        _, score, floor = tests[0] if tests else ("", None, 0.0)
        if score is None:
            yield f"{option} = {value}: {record.outcome.status}"
            continue
        state = "between"
        if score < floor + MARGIN:
            state = "at floor"
        elif score > CEILING:
            state = "at ceiling"
        else:
            between.append(str(value))
        yield f"{option} = {value}: {score:.3f}, floor {floor:.3f}, {state}"
    if between:
        yield f"proposed: {option} = {' or '.join(between)}"
    else:
        yield "no setting is between floor and ceiling: try other values, or more --tokens"
