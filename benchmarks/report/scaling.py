"""How a cost grows with length: its exponent with an interval, a plain verdict, and where one curve overtakes another.

A straight line through all of a curve on two logarithmic axes understates how it grows: at short lengths weights,
launches and all else that does not depend on the length hide it. So three numbers are fitted to y(T), and said apart:

    slope       of log y against log T over all lengths
    tail        the same over the three longest lengths
    exponent    p of y = c + a T^p with c >= 0, a > 0: of what grows, what does not grow being taken away

All have 95 % intervals from the scatter of the curve itself between lengths (not from repeats at one length, which see
nothing of how the machine changed in between). That of p is a profile interval: every p for which the best c and a
leave a sum of squares (of log y) no larger than the least times 1 + t^2 / (n - 3), with t Student's at n - 3 degrees.
The verdict is the band of exponents in which all of p's interval lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lookback.benchmarks.report.statistics import LEVEL

TAIL = 3  # of the longest lengths
POWERS = np.arange(1, 201) / 50  # exponents looked at, and closer by around the best of them
EXACT = 1e-5  # the least scatter of log y that is reckoned with: bytes and operations have none of their own
BANDS = (
    (0.25, "constant"), (0.75, "between constant and linear"), (1.25, "linear"), (1.75, "between linear and quadratic"),
    (2.25, "quadratic"), (math.inf, "more than quadratic"),
)  # fmt: skip
REACH = 16  # times the longest length: no further is a crossing extrapolated

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; nan where there is too little to tell."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return ""
        value, low, high = (f"{number:.2f}".replace("-0.00", "0.00") for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.known and low != high else value


@dataclass(frozen=True)
class Growth:
    """What was fitted to a curve of `n` lengths; its parts are explained at the top of this file.

    offset, factor: c and a of y = c + a T^p; scatter: deviation of log y around it; level: geometric mean of y.
    """

    n: int
    longest: float
    slope: Estimate
    tail: Estimate
    exponent: Estimate
    offset: float
    factor: float
    scatter: float
    level: float

    @property
    def grows(self) -> bool:
        """Whether an exponent could be told: of a constant any would do, and its interval has no end."""
        return self.exponent.known

    @property
    def constant_share(self) -> float:
        """How much of y at the longest length does not grow; nan where no growth is seen."""
        return self.offset / self.at(self.longest) if self.grows else math.nan

    @property
    def verdict(self) -> str:
        if self.grows:
            return verdict(self.exponent.low, self.exponent.high)
        if self.slope.known and self.slope.low >= -0.25 and self.slope.high <= 0.25:
            return "constant"
        return "not clear"

    def at(self, length: float) -> float:
        """The fitted value; of what does not grow, its level."""
        return float(self.offset + self.factor * length**self.exponent.value) if self.grows else self.level

    @property
    def extrapolates(self) -> bool:
        """Whether the fit is good enough to be carried beyond what was measured."""
        if self.grows:
            return self.exponent.high - self.exponent.low <= 0.5 and self.scatter <= 0.05
        return self.verdict == "constant" and self.n >= 4


def verdict(low: float, high: float) -> str:
    """The band in which an interval of exponents lies; where it reaches over several, what can still be said."""
    names = [next(name for top, name in BANDS if bound <= top) for bound in (low, high)]
    if names[0] == names[1]:
        return names[0]
    if low > 1.25:
        return "more than linear"
    return "less than linear" if high < 0.75 else "not clear"


def fit(lengths: Sequence[float], values: Sequence[float]) -> Growth:
    """What `values` do against `lengths`: positive numbers, one at each of different lengths.

    Below three lengths nothing has an interval, below four the exponent has none.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(values, dtype=float)
    if len(x) != len(y) or len(x) < 2 or min(x.min(), y.min()) <= 0 or len(set(x)) < len(x):
        raise ValueError(f"expected a positive value at each of two or more different lengths, not {y} at {x}")
    x, y = x[np.argsort(x)], y[np.argsort(x)]
    slope, level = _line(x, y, len(x) - 2), math.exp(float(np.log(y).mean()))
    if len(x) < 4:
        return Growth(len(x), x[-1], slope, slope, Estimate(), math.nan, math.nan, math.nan, level)
    exponent, offset, factor, scatter = _power(x, y)
    tail = _line(x[-TAIL:], y[-TAIL:], len(x) - 3, scatter)
    return Growth(len(x), x[-1], slope, tail, exponent, offset, factor, scatter, level)


def _line(x: Array, y: Array, degrees: int, scatter: float | None = None) -> Estimate:
    """Slope of log y against log x; its interval from its own residuals, or from a scatter that is known better."""
    u, v = np.log(x) - np.log(x).mean(), np.log(y)
    slope = float(u @ v / (u @ u))
    if degrees < 1:
        return _slope(slope, math.nan, math.nan)
    rest = v - v.mean() - slope * u
    reach = (
        _student(degrees) * (scatter if scatter is not None else math.sqrt(rest @ rest / degrees)) / math.sqrt(u @ u)
    )
    return _slope(slope, slope - reach, slope + reach)


def _slope(*values: float) -> Estimate:
    """Slope and bounds, rounded: beyond ten decimals they are the order in which a processor sums."""
    return Estimate(*(round(value, 10) + 0.0 for value in values))  # + 0.0 makes -0.0 positive


def _student(degrees: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def _power(x: Array, y: Array) -> tuple[Estimate, float, float, float]:
    """Exponent, offset, factor and scatter of y = c + a x^p; a bound is infinite where all further exponents fit."""
    degrees, ratio, logs = len(x) - 3, x / x[0], np.log(y)
    coarse, _ = _profile(ratio, logs, POWERS, 10)
    near = POWERS[coarse.argmin()] + np.arange(-50, 51) / 1000
    near = near[near > 0]
    fine, shares = _profile(ratio, logs, near, 32)
    power, share = float(near[fine.argmin()]), float(shares[fine.argmin()])
    least = max(float(fine.min()), EXACT**2 * degrees)
    allowed = least * (1 + _student(degrees) ** 2 / degrees)
    low, high = _bounds(np.concatenate([POWERS, near]), np.concatenate([coarse, fine]) <= allowed)
    scale = math.exp(float((logs - np.log((1 - share) * ratio**power + share)).mean()))
    factor = scale * (1 - share) / x[0] ** power
    return Estimate(power, low, high), scale * share, factor, math.sqrt(least / degrees)


def _bounds(powers: Array, inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Ends of the exponents that fit, the next ones outside of them; without an end where the last looked at fits."""
    below, above = powers[powers < powers[inside].min()], powers[powers > powers[inside].max()]
    return float(below.max()) if len(below) else -math.inf, float(above.min()) if len(above) else math.inf


def _profile(ratio: Array, logs: Array, powers: Array, passes: int) -> tuple[Array, Array]:
    """For each exponent the least sum of squares over all offsets, and the offset's share of the first value."""
    raised = (ratio ** powers[:, None])[:, None]  # (powers, 1, lengths)

    def squares(growing: Array) -> Array:  # log10 of what is left for the growing part, (powers, tried)
        part = 10.0 ** growing[..., None]
        rest = logs - np.log(part * raised + (1 - part))
        rest -= rest.mean(-1, keepdims=True)
        return np.square(rest).sum(-1)

    least = -8 - powers * math.log10(ratio[-1])  # there the growing part is nothing even at the longest length
    tried = least[:, None] * np.linspace(1, 0, 25)
    at, row = squares(tried).argmin(1), np.arange(len(powers))
    low, high = tried[row, np.maximum(at - 1, 0)], tried[row, np.minimum(at + 1, 24)]
    for _ in range(passes):  # thirds: each pass keeps two of them
        left, right = low + (high - low) / 3, high - (high - low) / 3
        found = squares(np.stack([left, right], 1))
        better = found[:, 0] < found[:, 1]
        low, high = np.where(better, low, left), np.where(better, right, high)
    ends = np.stack([low, (low + high) / 2, high], 1)
    found = squares(ends)
    at = found.argmin(1)
    return found[row, at], 1 - 10.0 ** ends[row, at]


@dataclass(frozen=True)
class Crossing:
    """Where the first of two curves stops being the lower one (`rises`), or begins to be (`falls`).

    kind: `crossing` at `length`, between `low` and `high`, where the two were last and first told apart; `beyond`, an
    extrapolation by both fits; `below` or `above` where the first is lower, or higher, wherever they differ, from `low`
    to `high` (`throughout`: at every length); `alike` where they never do; `several` where sides change more than
    once; `none` without two common lengths.
    """

    kind: str
    length: float = math.nan
    low: float = math.nan
    high: float = math.nan
    throughout: bool = False
    rises: bool = True


Point = tuple[float, float, float]  # median, first and third quartile; of what is exact, three times the same


def crossing(
    first: Mapping[float, Point], second: Mapping[float, Point], noise: float = 0.0, ahead: bool = True
) -> Crossing:
    """Where `first` overtakes `second`, both by length.

    Two values differ where their quartiles do not overlap and the logarithms of their medians differ by more than
    `noise`, what curves scatter between lengths, of which repeats at one length see nothing. With `ahead` a crossing is
    also looked for beyond the longest length, where the two still differ there.
    """
    lengths = sorted(set(first) & set(second))
    if len(lengths) < 2:
        return Crossing("none")
    sides = [(length, _side(first[length], second[length], noise)) for length in lengths]
    apart = [(length, side) for length, side in sides if side]
    if not apart:
        return Crossing("alike")
    changes = [(a, b) for a, b in pairwise(apart) if a[1] != b[1]]
    if len(changes) > 1:
        return Crossing("several")
    if changes:
        (low, before), (high, _) = changes[0]
        between = [length for length in lengths if low <= length <= high]
        return Crossing("crossing", _root(between, first, second), low, high, rises=before < 0)
    side = apart[0][1]
    found = _beyond(first, second, lengths, side) if ahead and sides[-1][1] else None
    if found:
        return found
    throughout = len(apart) == len(sides)
    return Crossing("below" if side < 0 else "above", math.nan, apart[0][0], apart[-1][0], throughout)


def _side(first: Point, second: Point, noise: float) -> int:
    """-1 where the first is lower, 1 where it is higher, 0 where they are not told apart."""
    if abs(math.log(first[0] / second[0])) <= noise:
        return 0
    return -1 if first[2] < second[1] else 1 if second[2] < first[1] else 0


def _root(lengths: Sequence[float], first: Mapping[float, Point], second: Mapping[float, Point]) -> float:
    """Where the lines between medians cross on two logarithmic axes; the middle one, should there be several."""
    apart = [math.log(first[length][0] / second[length][0]) for length in lengths]
    found = []
    for (t, a), (u, b) in zip(
        zip(lengths, apart, strict=True), list(zip(lengths, apart, strict=True))[1:], strict=False
    ):
        if (a < 0) != (b < 0):
            found.append(math.exp(math.log(t) + (math.log(u) - math.log(t)) * a / (a - b)))
    return found[len(found) // 2]


def _beyond(
    first: Mapping[float, Point], second: Mapping[float, Point], lengths: Sequence[float], side: int
) -> Crossing | None:
    """A crossing behind the longest length by the fits, where both are good, grow differently, and it is not far."""
    one, two = (fit(lengths, [curve[length][0] for length in lengths]) for curve in (first, second))
    if not (one.extrapolates and two.extrapolates) or _alike(one, two):
        return None
    ahead = np.geomspace(lengths[-1], REACH * lengths[-1], 400)[1:]
    turned = [float(length) for length in ahead if (one.at(length) - two.at(length)) * side < 0]
    return Crossing("beyond", turned[0], lengths[-1], math.inf, rises=side < 0) if turned else None


def _alike(one: Growth, two: Growth) -> bool:
    """Whether both may grow with the same exponent: then a crossing far off would be one of rounding."""
    if one.grows and two.grows:
        return one.exponent.low <= two.exponent.high and two.exponent.low <= one.exponent.high
    return not (one.grows or two.grows)


@dataclass(frozen=True)
class Theory:
    """How a quantity should grow: the exponent of T once T is large, and the terms it comes from."""

    exponent: float
    terms: str


LINEAR = Theory(1, "T·d")


def theory(model: str, options: Mapping[str, Any]) -> dict[str, Theory]:
    """What a model's own operations say, by quantity; empty for models that nobody has worked out here.

    T is the length, d the width, S the interval; a layer has 13 d^2 weights, one of RRWKV 15 d^2. Attention is fused,
    on CPU and GPU: its T x T matrix is never kept, so that its memory is linear where the paper's table has T^2. That
    of RRWKV to mediums takes a mask of T x T/S, which is kept.
    """
    if model == "transformer":
        return _theory(2, "T²d + T·13d²", 1, "T·d + 13d²", "2T·d")
    if model == "rrwkv" and options.get("retrospection") == "attention":
        if options.get("interval") == "sqrt":
            return _theory(1.5, "T^1.5·d + T·15d²", 0.5, "√T·d + 15d²", "√T·d", Theory(1.5, "T^1.5 + T·d"))
        return _theory(2, "T²d/S + T·15d²", 1, "T·d/S + 15d²", "T·d/S", Theory(2, "T²/S + T·d"))
    if model == "rrwkv":
        return _theory(1, "T·15d²", 0, "15d²", "d")
    if model in ("rwkv", "lstm"):
        return _theory(1, "T·13d²", 0, "13d²", "d")
    return {}


def _theory(
    whole: float, whole_terms: str, token: float, token_terms: str, state: str, memory: Theory = LINEAR
) -> dict[str, Theory]:
    time, step = Theory(whole, whole_terms), Theory(token, token_terms)
    return {
        "training time": time, "training operations": time, "training memory": memory,
        "prefill time": time, "prefill operations": time, "prefill memory": memory,
        "decode time": step, "decode operations": step, "state": Theory(token, state), "generation time": step,
    }  # fmt: skip
