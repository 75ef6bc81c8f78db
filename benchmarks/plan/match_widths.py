"""Widths that make a suite's models agree in parameters, operations or state: worked out, never set
by hand.

A suite asks for it with a table [match]; the model it names keeps the suite's width. Parameters are
all there are, embedding and head included; operations those of a training step; state is what one
sequence of the cell's length leaves for decoding to go on from.
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
MATTERS = (
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
WIDEST = 2**20
PATIENCE = 12  # widths tried before halving what is left is the surer way
REFUSED = 512  # so many widths in a row that a model cannot have: it will have none


def match_widths(suite: Suite, tolerance: float | None = None) -> Suite:
    """The suite with its cells' widths as its [match] asks; raises ValueError where none comes near
    enough.

    `tolerance`, a fraction, takes the place of the suite's own.
    """
    if suite.match is None:
        return suite
    match = suite.match.model_copy(update={} if tolerance is None else {"tolerance": tolerance})
    try:
        cells = [
            make_cell({**cell.model_dump(), "width": _width(cell, match)}) for cell in suite.cells
        ]
    except RuntimeError as error:
        raise ValueError(
            f"a model here cannot be sized by {match.by}, only by parameters: {error}"
        ) from error
    return replace(suite, cells=tuple(dict.fromkeys(cells)))


def _width(cell: AnyCell, match: Match) -> int:
    standard = cell.model_copy(update={"model": match.to, "model_options": match.options})
    if (cell.model, cell.model_options) == (match.to, match.options):
        return cell.width
    aim, (width, value) = _solve(
        _lean(cell, match.by), _lean(standard, match.by), match.by, match.multiple
    )
    if abs(value - aim) <= match.tolerance * aim:
        return width
    raise ValueError(
        f"model {cell.model!r} cannot have the {aim:,} {NAMES[match.by]} of {match.to!r} of width {cell.width} within "
        f"{match.tolerance:.2g}, in cell {cell.id}: nearest comes width {width} with {value:,} "
        f"({value / max(aim, 1) - 1:+.1%}); [match] tolerance, or --tolerance, says how near is near enough"
        f"{f', multiple = {match.multiple} which widths there are' if match.multiple > 1 else ''}"
    )


def _lean(cell: AnyCell, by: str) -> AnyCell:
    """What the measure depends on, so that cells alike in it are worked out once."""
    length = 1 if by == "parameters" else cell.length
    fields = {name: getattr(cell, name) for name in MATTERS}
    return LearnCell.model_validate({**fields, "kind": "learn", "batch_size": 1, "length": length})


@cache
def _solve(cell: AnyCell, standard: AnyCell, by: str, multiple: int) -> tuple[int, tuple[int, int]]:
    """What the standard has, and the width at which the cell's model comes nearest to it, with what
    it has there.
    """
    measure = MEASURES[by]
    aim = measure(standard)
    start = max(1, cell.width // multiple)
    times, value = nearest(
        lambda times: measure(cell.model_copy(update={"width": times * multiple})), aim, start
    )
    return aim, (times * multiple, value)


def nearest(measure: Callable[[int], int], aim: int, start: int) -> tuple[int, int]:
    """The width whose measure is nearest `aim`, and that measure; it must not fall as widths grow.

    Widths that a model cannot have (its `measure` raises ValueError) are passed over. Raises that
    error when it can have none.
    """
    found: dict[int, int] = {}

    def from_(width: int, below: int = WIDEST) -> int | None:
        """The first width from `width` on, and below `below`, that there is."""
        refusal = None
        for candidate in range(width, min(below, width + REFUSED)):
            try:
                found[candidate] = found.get(candidate) or measure(candidate)
                return candidate
            except ValueError as error:
                refusal = error
        if refusal and not found:
            raise refusal
        return None

    low, high = 0, from_(start)
    while high is not None and found[high] < aim:
        low, high = high, from_(2 * high)
    end = high or low + 1  # the answer is `low`, `high`, or between them
    while end - low > 1:
        middle = _between(low, end, found, aim)
        width = from_(middle, below=end)
        if width is not None and found[width] < aim:
            low = width
        else:
            end = middle
    return min(found.items(), key=lambda pair: (abs(pair[1] - aim), pair[0]))


def _between(low: int, end: int, found: dict[int, int], aim: int) -> int:
    """A width between these two, where the measure meets the aim if it grows as a power does."""
    middle = (low + end) // 2
    if len(found) < PATIENCE and found.get(end):
        power = math.log(found[end] / found[low]) / math.log(end / low) if found.get(low) else 2
        middle = math.ceil(end * (max(aim, 1) / found[end]) ** (1 / power)) if power else middle
    return min(max(middle, low + 1), end - 1)
