"""Intervals and verdicts against simulations, scipy, and figures that others published."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lookback.benchmarks.report import statistics


def test_the_t_interval_is_scipys() -> None:
    values = [0.3, 0.5, 0.45, 0.6]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert statistics.t_interval(values) == pytest.approx(expected)
    assert all(math.isnan(end) for end in statistics.t_interval([0.3]))


def test_the_error_of_one_run_has_the_sequence_as_its_unit() -> None:
    """Answers of one sequence are right or wrong together, as in parity: ten times as far apart."""
    draws = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(400):
        counts = draws.integers(50, 150, size=64)
        right = draws.random(64) < 0.7
        scores.append((right * counts).sum() / counts.sum())
        totals = (right * counts).astype(float)
        values = statistics.sequence_values(totals, counts.astype(float))
        assert values.mean() == pytest.approx(scores[-1])
        errors.append(statistics.crossed_error(values[None, :])[0])
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.1)
    naive = math.sqrt(0.7 * 0.3 / (64 * 100))
    assert np.mean(errors) > 5 * naive


@pytest.mark.parametrize(("of_seed", "of_window"), [(0.02, 0.3), (0.1, 0.3), (0.1, 0.0)])
def test_the_interval_covers_although_all_seeds_share_the_windows(
    of_seed: float, of_window: float
) -> None:
    """Four seeds and forty windows, whose differences matter more, as much, or not at all."""
    draws = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        table = draws.normal(1.5, 0.05, size=(4, 40))
        table += draws.normal(0, of_seed, size=(4, 1)) + draws.normal(0, of_window, size=(1, 40))
        low, high = statistics.interval(list(table.mean(axis=1)), list(table))
        covered += low <= 1.5 <= high
    assert 0.93 < covered / 1000 < 0.98


def test_an_interval_over_seeds_alone_ignores_the_windows() -> None:
    draws = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        means = 1.5 + draws.normal(0, 0.02, size=4) + draws.normal(0, 0.3) / math.sqrt(40)
        low, high = statistics.t_interval(list(means))
        covered += low <= 1.5 <= high
    assert covered / 500 < 0.7


@pytest.mark.parametrize(("seeds", "deviations"), [(3, 3.3), (6, 1.4), (8, 1.2)])
def test_the_smallest_difference_is_that_of_a_power_table(seeds: int, deviations: float) -> None:
    """Cohen's d at 80 % power, two-sided 5 %, paired: 3.26, 1.43 and 1.16 (G*Power)."""
    values = list(np.linspace(-1, 1, seeds))
    found = statistics.smallest_difference(values) / np.std(values, ddof=1)
    assert found == pytest.approx(deviations, abs=0.05)


def test_the_smallest_difference_is_shown_four_times_in_five() -> None:
    draws = np.random.default_rng(2)
    shown = 0
    effect = statistics.smallest_difference([-1.0, 0.0, 1.0, 0.5, -0.5, 0.0])
    scale = np.std([-1.0, 0.0, 1.0, 0.5, -0.5, 0.0], ddof=1)
    for _ in range(2000):
        low, _high = statistics.t_interval(list(draws.normal(effect, scale, size=6)))
        shown += low > 0
    assert shown / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.10, 0.12, 0.11, 0.13], "better"),
        ([-0.10, -0.12, -0.11, -0.13], "worse"),
        ([0.001, -0.002, 0.003, 0.0], "equivalent"),
        ([0.020, 0.021, 0.022, 0.020], "equivalent"),  # shown, and too small to matter
        ([0.2, -0.2, 0.1, -0.15], "inconclusive"),
        ([0.3], "inconclusive"),
    ],
)
def test_verdicts(differences: list[float], word: str) -> None:
    assert statistics.verdict(pd.DataFrame({"difference": differences}), 0.05) == word


def test_better_is_claimed_of_equal_models_in_one_of_forty() -> None:
    draws = np.random.default_rng(3)
    tables = [pd.DataFrame({"difference": draws.normal(0, 1, size=6)}) for _ in range(2000)]
    words = [statistics.verdict(table, 0.05) for table in tables]
    assert words.count("better") / 2000 == pytest.approx(0.025, abs=0.01)


def test_attention_is_fitted_by_two_terms() -> None:
    """c + a T + b T^2 with 1 % noise: the share and the crossover are those it was made with."""
    lengths = [256.0 * 2**power for power in range(7)]
    noise = np.random.default_rng(4).normal(1, 0.005, size=7)
    values = [(5e-3 + 1e-5 * t + 2e-9 * t * t) * e for t, e in zip(lengths, noise, strict=True)]
    fitted_share, crossover = statistics.quadratic_part(lengths, values)
    quadratic = 2e-9 * lengths[-1] ** 2
    share = quadratic / (5e-3 + 1e-5 * lengths[-1] + quadratic)
    assert fitted_share == pytest.approx(share, abs=0.03)
    assert crossover == pytest.approx(1e-5 / 2e-9, rel=0.15)


def test_a_linear_cost_has_no_quadratic_share() -> None:
    lengths = [256.0 * 2**power for power in range(7)]
    noise = np.random.default_rng(5).normal(1, 0.01, size=7)
    values = [(2e-3 + 1e-5 * t) * e for t, e in zip(lengths, noise, strict=True)]
    assert np.isnan(statistics.quadratic_part(lengths, values)).all()


def test_slopes() -> None:
    lengths = [64.0, 128.0, 256.0, 512.0]
    assert statistics.slope(lengths, [t**1.5 for t in lengths])[0] == pytest.approx(1.5)
    assert statistics.slope(lengths, [7.0] * 4)[0] == pytest.approx(0)


def test_standing() -> None:
    assert statistics.standing(0.45, 0.41, "accuracy") == "at floor"
    assert statistics.standing(0.6, 0.41, "accuracy") == "learned"
    assert statistics.standing(0.97, 0.41, "accuracy") == "at ceiling"
    assert statistics.standing(1.9, 3.0, "bits per byte") == ""


def test_pairs_are_of_one_seed_and_the_nearest_size() -> None:
    rows = [
        ("a", 0, 100, 0.5), ("a", 1, 100, 0.7), ("a", 2, 100, 0.9),
        ("b", 0, 105, 0.4), ("b", 1, 105, 0.5), ("b", 0, 400, 0.1), ("b", 1, 400, 0.1),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["model", "seed", "parameters", "score"])
    frame = frame.assign(task="t", training="{}", model_options="{}")
    ours, theirs = (rows for _, rows in frame.groupby("model"))
    pairs = statistics.paired(ours, theirs, ["task"], "score")
    assert sorted(pairs["difference"].round(6)) == [0.1, 0.2]

    slower = theirs.assign(training='{"learning_rate": 0.001}')
    assert statistics.paired(ours, pd.concat([theirs, slower]), ["task"], "score").empty
    assert len(statistics.paired(pd.concat([theirs, slower]), ours, ["task"], "score")) == 4


def test_one_seed_has_the_interval_of_its_sequences_and_none_without_them() -> None:
    run = {"task": "t", "seed": 0, "score": 0.8, "unit": "accuracy"}
    values = np.array([0.7, 0.9, 0.8, 0.8])
    with_sums = pd.DataFrame([{**run, "sequences": values}])
    means = statistics.summarise(with_sums, ["task"], "score")
    assert means["high"][0] - 0.8 == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(values))
    means = statistics.summarise(pd.DataFrame([run]), ["task"], "score")
    assert means[["low", "high"]].isna().all(axis=None)
