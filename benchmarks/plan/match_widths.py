"""Work out widths at which a suite's models agree in parameters, operations or state.

A suite asks for it by a table [match]; the model that the table names keeps the suite's width.
Parameters include embedding and head, operations are those of a training step, and state is what
remains after one sequence of the cell's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from lookback.benchmarks.plan.estimate import count_parameters, state_bytes, step_flops
from lookback.benchmarks.record import AnyCell, LearnCell, make_cell
from lookback.benchmarks.suite import Match, Suite

MEASURES: dict[str, Callable[[AnyCell], int]] = {
    "parameters": count_parameters,
    "flops": step_flops,
    "state_bytes": state_bytes,
}
NAMES = {
    "parameters": "parameters",
    "flops": "operations of a training step",
    "state_bytes": "bytes of state",
}
RELEVANT = (  # fields that a measure depends on, beside the length
    "task",
    "task_options",
    "model",
    "model_options",
    "width",
    "depth",
    "pooling",
    "direction",
    "precision",
)
LARGEST_WIDTH = 2**20
LARGEST_GAP = 512  # a model that cannot have any of these successive widths can have none


def match_widths(suite: Suite, tolerance: float | None = None) -> Suite:
    """Return the suite with the widths of its cells as its [match] asks.

    Args:
        suite: unchanged if it has no [match].
        tolerance: a fraction that replaces the suite's own.

    Raises ValueError if no width of a model comes within the tolerance.
    """
    if suite.match is None:
        return suite

    match = suite.match
    if tolerance is not None:
        match = match.model_copy(update={"tolerance": tolerance})
    cells = []
    for cell in suite.cells:
        try:
            width = _matched_width(cell, match)
        except RuntimeError as error:  # the model cannot run on tensors without numbers
            raise ValueError(
                f"model {cell.model!r} can be matched by parameters alone, "
                f"not by {match.by}: {error}"
            ) from error
        cells.append(make_cell({**cell.model_dump(), "width": width}))
    return replace(suite, cells=tuple(dict.fromkeys(cells)))


def _matched_width(cell: AnyCell, match: Match) -> int:
    if (cell.model, cell.model_options) == (match.to, match.options):
        return cell.width

    standard = cell.model_copy(update={"model": match.to, "model_options": match.options})
    target = _measure(_sized(standard, match.by), match.by)
    width, value = _nearest_width(_sized(cell, match.by), match.by, target, match.multiple)
    if abs(value - target) <= match.tolerance * target:
        return width

    message = (
        f"model {cell.model!r} cannot have the {target:,} {NAMES[match.by]} of {match.to!r} "
        f"of width {cell.width} within {match.tolerance:.2g}, in cell {cell.id}: "
        f"the nearest is width {width} with {value:,} ({value / max(target, 1) - 1:+.1%}); "
        "[match] tolerance, or --tolerance, says what is near enough"
    )
    if match.multiple > 1:
        message += f", and multiple = {match.multiple} which widths may be used"
    raise ValueError(message)


def _sized(cell: AnyCell, by: str) -> AnyCell:
    """Return a cell with the relevant fields alone: cells that share them share cached results."""
    fields = {name: getattr(cell, name) for name in RELEVANT}
    length = 1 if by == "parameters" else cell.length
    return LearnCell(**fields, kind="learn", batch_size=1, length=length)


@cache
def _measure(cell: AnyCell, by: str) -> int:
    return MEASURES[by](cell)


@cache
def _nearest_width(cell: AnyCell, by: str, target: int, multiple: int) -> tuple[int, int]:
    """Return the multiple whose measure is nearest to the target, and that measure."""

    def measure(times: int) -> int:
        return _measure(cell.model_copy(update={"width": times * multiple}), by)

    times, value = nearest(measure, target, start=max(1, cell.width // multiple))
    return times * multiple, value


def nearest(measure: Callable[[int], int], target: int, start: int) -> tuple[int, int]:
    """Return the width whose measure is nearest to `target`, and that measure.

    Args:
        measure: must not fall as widths grow; raises ValueError for a width that a model cannot
            have, and the search passes over it.
        target: positive.
        start: the width to begin with.

    Raises the ValueError of `measure` if the model can have no width.
    """
    values: dict[int, int] = {}

    def first_possible(width: int, end: int = LARGEST_WIDTH) -> int | None:
        """Measure the first possible width from `width` on and before `end`."""
        refusal = None
        for candidate in range(width, min(end, width + LARGEST_GAP)):
            try:
                if candidate not in values:
                    values[candidate] = measure(candidate)
                return candidate
            except ValueError as error:
                refusal = error
        if refusal and not values:
            raise refusal
        return None

    def interpolated(low: int, end: int) -> int:
        """Return a width between two, as if the measure grew with the square of the width."""
        root, least, most = (math.sqrt(n) for n in (target, values.get(low, 0), values[end]))
        guess = low + round((end - low) * (root - least) / (most - least))
        return min(max(guess, low + 1), end - 1)

    # Double the width until its measure reaches the target: the answer is `low`, `high` or between.
    low, high = 0, first_possible(start)
    while high is not None and values[high] < target:
        low, high = high, first_possible(2 * high)

    end = low + 1 if high is None else high
    while end - low > 1:
        # Every third guess is the middle, in case the measure grows in another way.
        guess = interpolated(low, end) if end in values and len(values) % 3 else (low + end) // 2
        width = first_possible(guess, end)
        if width is not None and values[width] < target:
            low = width
        else:
            end = guess
    return min(values.items(), key=lambda item: (abs(item[1] - target), item[0]))
