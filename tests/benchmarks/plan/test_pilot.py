"""A pilot finds each rate, goes on where the best is at an end, and judges its tasks."""

import math
from pathlib import Path

import pytest

from lookback.benchmarks.plan.pilot import (
    describe_test,
    findings,
    is_between,
    longest_tests,
    pilot_suite,
    run_pilot,
    tells_apart,
)
from lookback.benchmarks.record import AnyCell, Cell, Code, Outcome, ResolvedOptions
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Pilot, Suite
from tests.command_line import lookback
from tests.processes import replace_processes, tiny
from tests.records import FACTS, learn_record, score, trained

RATES = (1e-3, 3e-3, 1e-2)


def suite(*cells: AnyCell) -> Suite:
    return Suite("mine", "", cells, pilot=Pilot(learning_rates=RATES))


def test_a_pilot_has_a_cell_for_each_model_and_rate() -> None:
    cells = [
        tiny(model, seed=seed, tokens=4800, learning_rate=2e-3, test_lengths=[24, 96])
        for model in ("rwkv", "lstm")
        for seed in range(3)
    ]
    pilot = pilot_suite(suite(*cells))
    assert pilot.name == "mine-pilot" and len(pilot.cells) == 2 * len(RATES)
    assert {cell.seed for cell in pilot.cells} == {100}
    assert {cell.tokens for cell in pilot.cells} == {1200}
    assert {cell.test_lengths for cell in pilot.cells} == {(24,)}
    rates = pilot_suite(suite(*cells), [0.5, 0.25])
    assert {cell.learning_rate for cell in rates.cells if cell.kind == "learn"} == {0.5, 0.25}
    assert rates.pilot is not None and rates.pilot.learning_rates == (0.5, 0.25)
    with pytest.raises(ValueError, match=r"no table \[pilot\]"):
        pilot_suite(Suite("mine", "", tuple(cells)))


def test_a_pilot_may_be_of_some_cells_only() -> None:
    cells = (tiny("rwkv", depth=1), tiny("rwkv", depth=2), tiny("lstm", depth=2))
    pilot = Pilot(learning_rates=RATES, only={"depth": [2], "model": ["rwkv"]})
    chosen = pilot_suite(Suite("mine", "", cells, pilot=pilot))
    assert {(cell.model, cell.depth) for cell in chosen.cells} == {("rwkv", 2)}

    pilot = Pilot(learning_rates=RATES, only={"depth": [7]})
    with pytest.raises(ValueError, match=r"expected cells that learn, with depth in \[7\]"):
        pilot_suite(Suite("mine", "", cells, pilot=pilot))
    with pytest.raises(ValueError, match="unknown field 'deepth'"):
        Pilot(learning_rates=RATES, only={"deepth": [2]})


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, quality: dict[str, dict[float, int]]):
    """Run a pilot in which models score as said, of 100, at each rate, and fail at others."""

    def measure(self: Runner, cell: AnyCell, *rest: object) -> Outcome:
        correct = quality[cell.model].get(cell.learning_rate)
        if correct is None:
            return Outcome(status="nan", message="the loss is nan", task=FACTS)
        learned = score(24, correct)
        numbers = learn_record(cell).outcome.learn.model_copy(
            update={"validation": learned, "tests": (learned,)}
        )
        return Outcome(status="ok", task=FACTS, learn=numbers)

    replace_processes(monkeypatch, measure)
    # Matched models differ in width.
    cells = tuple(tiny(model, width=8 + number) for number, model in enumerate(quality))
    pilot = pilot_suite(suite(*cells))
    runner = Runner(
        folder,
        pilot,
        options={cell: ResolvedOptions() for cell in pilot.cells},
        code={cell: Code(plugins={}, sources={}, suite="") for cell in pilot.cells},
    )
    assert run_pilot(runner) == 0
    return runner


def test_the_grid_is_extended_until_the_best_rate_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above for one model, below for the other; a rate that fails counts as the worst."""
    quality = {
        "rwkv": {1e-3: 30, 3e-3: 50, 1e-2: 70, 0.0333: 80},
        "lstm": {0.000111: 40, 0.000333: 60, 1e-3: 55, 3e-3: 20, 1e-2: 10},
    }
    runner = run(tmp_path, monkeypatch, quality)
    rates: dict[str, list[float]] = {"rwkv": [], "lstm": []}
    for cell in runner.suite.cells:
        rates[cell.model].append(cell.learning_rate)
    assert sorted(rates["rwkv"]) == [1e-3, 3e-3, 1e-2, 0.0333, 0.111]
    assert sorted(rates["lstm"]) == [0.000111, 0.000333, 1e-3, 3e-3, 1e-2]
    lines = list(findings(runner))
    assert "  rwkv, width 8: learning_rate = 0.0333, 0.800, floor 0.125" in lines
    assert "  lstm, width 9: learning_rate = 0.000333, 0.600, floor 0.125" in lines


def test_a_perfect_score_is_not_searched_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = run(tmp_path, monkeypatch, {"rwkv": {1e-3: 100, 3e-3: 100, 1e-2: 70}})
    assert len(runner.suite.cells) == 3


@pytest.mark.parametrize(("scores", "count"), [((80, 60), 2), ((96, 60), 1), ((20, 100), 0)])
def test_a_task_tells_models_apart_if_two_are_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[int, int], count: int
) -> None:
    quality = {
        model: {1e-3: 5, 3e-3: best, 1e-2: 6}
        for model, best in zip(("rwkv", "lstm"), scores, strict=True)
    }
    lines = list(findings(run(tmp_path, monkeypatch, quality)))
    (line,) = [line for line in lines if f"  {count} of 2 models between floor + 0.1" in line]
    assert line.endswith("the task tells them apart") == (count == 2)


def test_bits_per_byte_have_no_floor_and_no_ceiling(cell: Cell) -> None:
    """They have neither a floor below which nothing is learned nor a ceiling."""
    facts = FACTS.model_copy(update={"score": "bits per byte"})
    tests = [score(24, 80).model_copy(update={"score": bits}) for bits in (1.6, 1.9)]
    assert not list(tells_apart([trained(cell, [test], task=facts) for test in tests]))
    assert list(
        tells_apart([trained(cell, [test]) for test in (score(24, 80), score(24, 60))])
    ) == [
        "  1 of 1 models between floor + 0.1 and 0.95: "
        "expected 2, or the task tells none apart: make it easier or harder"
    ]


def test_a_model_is_between_if_one_of_its_tests_is(cell: Cell) -> None:
    """A capacity suite tests several numbers of pairs: easy ones end at the ceiling."""
    tests = [
        score(24, correct).model_copy(update={"options": {"pairs": pairs}})
        for pairs, correct in ((2, 100), (8, 60), (32, 13))
    ]
    found = longest_tests(trained(cell, tests))
    assert [describe_test(*test) for test in found] == [
        "pairs 2: 1.000, floor 0.125",
        "pairs 8: 0.600, floor 0.125",
        "pairs 32: 0.130, floor 0.125",
    ]
    assert [is_between(score, floor) for _, score, floor in found] == [False, True, False]


def test_a_grid_is_extended_three_times_at_an_end_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rising(dict[float, int]):
        def get(self, rate: float, default: object = None) -> int:  # type: ignore[override]
            return int(50 + 10 * math.log10(rate / 1e-3))

    runner = run(tmp_path, monkeypatch, {"rwkv": Rising()})
    rates = sorted(cell.learning_rate for cell in runner.suite.cells)
    assert rates[:3] == list(RATES) and len(rates) == len(RATES) + 3


def test_equal_scores_do_not_extend_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = run(tmp_path, monkeypatch, {"rwkv": dict.fromkeys(RATES, 12)})
    assert len(runner.suite.cells) == len(RATES)


def test_a_calibration_says_where_floor_and_ceiling_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = {2: 99, 4: 60, 8: 15}

    def measure(self: Runner, cell: AnyCell, *rest: object) -> Outcome:
        tested = score(24, correct[cell.task_options["pairs"]])
        numbers = learn_record(cell).outcome.learn.model_copy(update={"tests": (tested,)})
        return Outcome(status="ok", task=FACTS, learn=numbers)

    replace_processes(monkeypatch, measure)
    result = lookback("calibrate", "recall", "--option", "pairs=2,4,8", "--results", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-4:] == [
        "pairs = 2: 0.990, floor 0.125, at ceiling",
        "pairs = 4: 0.600, floor 0.125, between",
        "pairs = 8: 0.150, floor 0.125, at floor",
        "proposed: pairs = 4",
    ]
