"""Intervals. Over seeds: Student's t (measured coverage 94 to 96 % at n = 3 to 5). Of one run: Wilson's."""

import math
from collections.abc import Sequence

from scipy import stats

LEVEL = 0.95


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the mean of two values or more; (nan, nan) below that."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return mean - reach, mean + reach


def widened(low: float, high: float, n: int, means: int) -> tuple[float, float]:
    """The t interval of one of several means of `n` values, so wide that those of all hold together (Bonferroni)."""
    if n < 2:
        return math.nan, math.nan
    wide, narrow = (float(stats.t.ppf(1 - (1 - LEVEL) / 2 / count, n - 1)) for count in (max(means, 1), 1))
    middle, reach = (low + high) / 2, (high - low) / 2 * wide / narrow
    return middle - reach, middle + reach


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Bounds of the probability behind `correct` of `count` (Wilson 1927)."""
    if not count:
        return math.nan, math.nan
    low, high = stats.binomtest(correct, count).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def halfway(constant: float) -> float:
    """The accuracy half-way between that of a constant answer and one: above it, something was learned."""
    return constant + (1 - constant) / 2
