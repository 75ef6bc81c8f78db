"""Intervals, paired differences and verdicts. No other module computes an interval.

All seeds are tested on the same sequences, and the answers of one sequence are not independent:
seeds and sequences are the two units of an interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from lookback.benchmarks.suite import CEILING, MARGIN

LEVEL = 0.95
POWER = 0.8
Numbers = NDArray[np.float64]
NEAREST = 1.25  # largest ratio of parameters of two models that are compared


def t_interval(values: Sequence[float] | Numbers, level: float = LEVEL) -> tuple[float, float]:
    """Return the bounds of the mean of at least two values; (nan, nan) of fewer."""
    if len(values) < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    reach = t_factor(len(values) - 1, level) * standard_error(values)
    return mean - reach, mean + reach


def standard_error(values: Sequence[float] | Numbers) -> float:
    """Return the standard error of the mean of at least two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


@functools.cache
def t_factor(freedom: float, level: float = LEVEL) -> float:
    """Return how many standard errors an interval reaches to each side (Student's t)."""
    return float(stats.t.ppf((1 + level) / 2, freedom))


def sequence_values(totals: Numbers, counts: Numbers) -> Numbers:
    """Return a value per test sequence, whose mean is sum(totals) / sum(counts).

    The linearised ratio of sums (Cochran 1977, section 6.4): the scatter of these values is that of
    the score when other sequences are drawn.
    """
    score = totals.sum() / counts.sum()
    return score + (totals - score * counts) / counts.mean()


def interval(
    values: Sequence[float] | Numbers,
    sequences: Sequence[Numbers] | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the bounds of a mean over seeds; (nan, nan) if neither seeds nor sequences give one.

    `sequences` are the values per test sequence of each seed. All seeds are tested on the same
    sequences, so both are random: Var = S_seeds / n + S_sequences / m - S_rest / (n m), the moment
    estimator of two-way random effects (Owen 2007). Of one seed, over its sequences alone.
    """
    if sequences is None or len({len(row) for row in sequences}) != 1 or len(sequences[0]) < 2:
        return t_interval(values, level)
    error, freedom = crossed_error(np.stack(sequences))
    reach = t_factor(freedom, level) * error
    mean = math.fsum(values) / len(values)
    return mean - reach, mean + reach


def crossed_error(table: Numbers) -> tuple[float, float]:
    """Return the standard error of the mean of a table of seeds by sequences; see `interval`.

    Beside it the degrees of freedom, by Satterthwaite's approximation (1946).
    """
    n, m = table.shape
    mean = table.mean()
    columns = table.mean(axis=0) - mean
    of_sequences = float((columns**2).sum()) / (m - 1) / m
    if n == 1:
        return math.sqrt(of_sequences), float(m - 1)
    rows = table.mean(axis=1) - mean
    rest = table - rows[:, None] - columns[None, :] - mean
    of_seeds = float((rows**2).sum()) / (n - 1) / n
    of_rest = float((rest**2).sum()) / ((n - 1) * (m - 1)) / (n * m)
    variance = max(of_seeds + of_sequences - of_rest, of_seeds)
    spread = of_seeds**2 / (n - 1) + of_sequences**2 / (m - 1)
    freedom = variance**2 / spread if spread > 0 else float(n - 1)
    return math.sqrt(variance), max(freedom, 1.0)


def places_of_groups(frame: pd.DataFrame, by: Sequence[str]) -> list[NDArray[np.intp]]:
    """Return the places of the rows of each group, in the order in which groups first appear."""
    number = frame.groupby(list(by), sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return the mean of a column over the seeds of each group, with its 95 % interval.

    Columns: `by`, mean, low, high, seeds, and the mean `floor` if the frame has one. A column
    `sequences` holds the values per test sequence; one seed without them has no interval. That of
    an accuracy is cut to [0, 1].
    """
    if not frame.empty:
        frame = frame[frame[value].notna()]
    if frame.empty:
        floors = ["floor"] if "floor" in frame else []
        return pd.DataFrame(columns=[*by, "mean", "low", "high", "seeds", *floors])
    groups = places_of_groups(frame, by)
    values = frame[value].to_numpy(float)
    units = frame["unit"].to_numpy() if "unit" in frame and value == "score" else None
    sequences = frame["sequences"].to_numpy() if "sequences" in frame else None
    rows = []
    for group in groups:
        own = None if sequences is None else complete(sequences[group])
        low, high = interval(values[group], own)
        if units is not None and units[group[0]] == "accuracy":
            low, high = max(low, 0.0), min(high, 1.0)
        mean = math.fsum(values[group]) / len(group)
        rows.append({"mean": mean, "low": low, "high": high, "seeds": len(group)})

    keys = frame.iloc[[group[0] for group in groups]][list(by)].reset_index(drop=True)
    means = pd.concat([keys, pd.DataFrame(rows)], axis=1)
    if "floor" in frame:
        floors = frame["floor"].to_numpy(float)
        means["floor"] = [math.fsum(floors[group]) / len(group) for group in groups]
    return means


def named(means: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rename mean, low and high after their quantity; a page shows the three in one column."""
    return means.rename(columns={"mean": name, "low": f"{name}_low", "high": f"{name}_high"})


def sequences_of(group: pd.DataFrame) -> list[Numbers] | None:
    """Return the values per test sequence of every row; None if one has none."""
    return complete(group["sequences"]) if "sequences" in group else None


def complete(sequences: Iterable[Numbers | None]) -> list[Numbers] | None:
    """Return the values per test sequence of several runs; None if a run kept none."""
    rows = []
    for row in sequences:
        if not isinstance(row, np.ndarray):
            return None
        rows.append(row)
    return rows


def paired(
    ours: pd.DataFrame, theirs: pd.DataFrame, keys: Sequence[str], value: str
) -> pd.DataFrame:
    """Return runs beside a baseline's, with the `difference` of `value` for each seed of both.

    `keys` are the columns that a pair shares, `seed` apart. Of several sizes, a run is paired with
    the nearest in parameters, and with none that is more than NEAREST times larger or smaller, nor
    with a baseline that was trained in several ways.
    Columns: those of both, the baseline's with the ending `_baseline`, also `baseline`, and
    `sequences` with the differences per test sequence where both kept them.
    """
    shared = [*keys, "seed"]
    pairs = ours.merge(theirs, on=shared, suffixes=("", "_baseline"))
    ratio = pairs["parameters"] / pairs["parameters_baseline"]
    pairs = pairs.assign(ratio=np.maximum(ratio, 1 / ratio))
    run = [*shared, "model", "model_options", "training", "parameters"]
    nearest = pairs.groupby(run, dropna=False)["ratio"].transform("min")
    pairs = pairs[(pairs["ratio"] == nearest) & (pairs["ratio"] <= NEAREST)]
    pairs = pairs[pairs.groupby(run, dropna=False)["ratio"].transform("size") == 1]
    pairs = pairs.assign(baseline=pairs[f"{value}_baseline"])
    pairs = pairs.assign(difference=pairs[value] - pairs["baseline"])
    if "sequences" in pairs:
        differences = list(map(subtract, pairs["sequences"], pairs["sequences_baseline"]))
        pairs = pairs.assign(sequences=differences)
    return pairs.dropna(subset=["difference"])


def subtract(ours: Numbers | None, theirs: Numbers | None) -> Numbers | None:
    """Return differences per test sequence; None unless both are of as many sequences."""
    if not (isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray)):
        return None
    return ours - theirs if len(ours) == len(theirs) else None


def smallest_difference(values: Sequence[float]) -> float:
    """Return the smallest difference that this many pairs with this scatter detect, at 80 % power.

    Two-sided at 5 %, by the noncentral t distribution. Nan of fewer than two values.
    """
    n = len(values)
    if n < 2:
        return math.nan
    critical = t_factor(n - 1)

    def missing_power(effect: float) -> float:
        return float(stats.nct.sf(critical, n - 1, effect)) - POWER

    return float(optimize.brentq(missing_power, 0.0, 50.0)) * standard_error(values)


def verdict(pairs: pd.DataFrame, matters: float) -> str:
    """Return better, worse, equivalent or inconclusive of `paired` rows; larger is better.

    Equivalent: two one-sided tests at 5 % reject a difference of `matters` or more (Schuirmann
    1987). Better and worse: the 95 % interval excludes zero. One seed shows nothing.
    """
    differences = [float(value) for value in pairs["difference"]]
    if len(differences) < 2:
        return "inconclusive"
    sequences = sequences_of(pairs)
    low, high = interval(differences, sequences, 1 - 2 * (1 - LEVEL))
    if -matters < low and high < matters:
        return "equivalent"
    low, high = interval(differences, sequences)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "inconclusive"


def standing(score: float, floor: float, unit: str) -> str:
    """Return `at floor`, `learned` or `at ceiling` for an accuracy; empty for other units."""
    if unit != "accuracy" or math.isnan(score):
        return ""
    if score < floor + MARGIN:
        return "at floor"
    return "at ceiling" if score >= CEILING else "learned"


def standings(table: pd.DataFrame) -> list[str]:
    """Return where each row stands, by its columns score, sighted_floor and unit."""
    rows = table[["score", "sighted_floor", "unit"]].itertuples(index=False)
    return [standing(*row) for row in rows]


def quadratic_part(lengths: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fit y = c + a T + b T^2 with equal relative errors; attention's cost has this form.

    Returns the share of b T^2 in the fitted value at the longest length, and the length at which
    b T^2 equals a T; both are nan unless the 95 % interval of b lies above zero, and below four
    lengths.
    """
    if len(lengths) < 4 or min(values) <= 0:
        return math.nan, math.nan
    t, y = np.asarray(lengths, float) / max(lengths), np.asarray(values, float)
    coefficients, covariance = np.polyfit(t, y, 2, w=1 / y, cov=True)
    b, a, c = map(float, coefficients)
    if b <= t_factor(len(y) - 3) * math.sqrt(covariance[0, 0]):
        return math.nan, math.nan
    return b / (c + a + b), a / b * max(lengths) if a > 0 else math.nan


def slope(lengths: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of log y over log T with its 95 % interval; nan where there is none."""
    if len(lengths) < 2 or min(values) <= 0:
        return math.nan, math.nan, math.nan
    fit = stats.linregress(np.log2(lengths), np.log2(values))
    reach = t_factor(len(lengths) - 2) * float(fit.stderr) if len(lengths) > 2 else math.nan
    return float(fit.slope), float(fit.slope) - reach, float(fit.slope) + reach
