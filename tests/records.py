"""Records made up for tests of what reads records."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lookback.benchmarks.record import (
    Cell,
    CostCell,
    CostNumbers,
    CurvePoint,
    DistanceScore,
    LearnNumbers,
    Machine,
    Outcome,
    Phase,
    Record,
    Score,
    TaskFacts,
    Timing,
)


def as_cost(cell: Cell, changes: Mapping[str, Any] = MappingProxyType({})) -> CostCell:
    """Return a cost cell with the fields that it shares with another cell, some of them changed."""
    shared = {name: getattr(cell, name) for name in Cell.model_fields}
    return CostCell(**{**shared, "kind": "cost", **changes})


FACTS = TaskFacts(
    vocabulary=10, classes=None, score="accuracy", baseline_score=0.125, source="made up | here"
)


def record(cell: Cell, outcome: Outcome, suite: str = "suite") -> Record:
    return Record(
        suite=suite,
        cell=cell,
        cell_id=cell.id,
        outcome=outcome,
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:00+00:00",
        wall_seconds=60.0,
        versions={"python": "3.11.0", "torch": "2.13.0"},
        machine=Machine(
            slug="some-machine", device="Some Machine", facts={"cores": 2, "load_before": 0.1}
        ),
        commit="0123456789abcdef",
        uncommitted_changes=False,
    )


def score(length: int, correct: int, count: int = 100) -> Score:
    bins = (
        DistanceScore(low=8, high=11, correct=correct // 2, count=count // 2),
        DistanceScore(low=16, high=23, correct=correct - correct // 2, count=count - count // 2),
    )
    return Score(
        length=length,
        examples=10,
        count=count,
        correct=correct,
        loss=1.0,
        score=correct / count,
        by_distance=bins,
    )


def learn_record(cell: Cell, correct: int = 80, suite: str = "suite") -> Record:
    curve = tuple(CurvePoint(step=step, loss=2.0 / step, validation=0.5) for step in (2, 4, 6))
    tests = tuple(score(length, correct) for length in cell.test_lengths or (cell.length,))
    numbers = LearnNumbers(
        parameters=1234,
        steps=6,
        seconds=1.5,
        curve=curve,
        validation=score(cell.length, correct),
        tests=tests,
    )
    return record(
        cell,
        Outcome(status="ok", task=FACTS, learn=numbers, kernels=("lookback::wkv_tiled",)),
        suite,
    )


def cost_record(
    cell: Cell,
    seconds: float = 0.5,
    failed: bool = False,
    suite: str = "suite",
    parameters: int = 1234,
) -> Record:
    timing = Timing(median=seconds, low=seconds * 0.9, high=seconds * 1.2, n=20, noisy=True)
    phase = Phase(tokens=cell.length, seconds=timing, peak_bytes=1000 * cell.length)
    phases = {"prefill": phase, "decode": phase} | ({} if failed else {"training": phase})
    numbers = CostNumbers(
        parameters=parameters,
        phases=phases,
        failed={"training": "oom"} if failed else {},
        state_bytes=5000,
    )
    return record(cell, Outcome(status="oom" if failed else "ok", task=FACTS, cost=numbers), suite)


def score_by_distance(length: int, bins: Mapping[tuple[int, int], tuple[int, int]]) -> Score:
    """A test that asked at these distances: first and last of each bin, and how many answers were
    right of how many.
    """
    parts = tuple(
        DistanceScore(low=a, high=b, correct=right, count=n) for (a, b), (right, n) in bins.items()
    )
    right, n = sum(part.correct for part in parts), sum(part.count for part in parts)
    return Score(
        length=length,
        examples=10,
        count=n,
        correct=right,
        loss=1.0,
        score=right / n,
        by_distance=parts,
    )


def trained(
    cell: Cell,
    tests: Sequence[Score],
    task: TaskFacts = FACTS,
    suite: str = "suite",
    **numbers: Any,
) -> Record:
    """A run with these tests, and whatever else is given of what was learned."""
    fixed: dict[str, Any] = {
        "parameters": 1000,
        "steps": 6,
        "seconds": 1.5,
        "curve": (),
        "validation": None,
    }
    learned = LearnNumbers(**{**fixed, "tests": tuple(tests), **numbers})
    return record(cell, Outcome(status="ok", task=task, learn=learned), suite)
