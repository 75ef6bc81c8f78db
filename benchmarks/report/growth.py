"""Growth with length as tables and in words: exponents beside theory, crossings, and what the longest length costs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.scaling import Crossing, Growth, Point, crossing, fit, theory
from lookback.benchmarks.report.style import RC, in_order, looks, panels

BASELINE = "transformer"
SHRINKING = "tokens a batch"  # how protocols end in which the batch shrinks as the length grows
MANY = 5  # models: with more, only pairs with the baseline are compared

EXPONENTS = """Fitted to y(T) on logarithmic axes; time, operations and state are those of a sequence (decode: of a \
token). *Slope*: the straight line through all lengths; *tail*: through the three longest; *exponent*: p of y = c + \
a·T^p, of what grows when what does not (weights, launches) is taken away; its share of the whole at the longest \
length is the *constant part*. In brackets 95 % intervals, from the curve's own scatter between lengths. The \
*verdict* is what all of p's interval allows: constant up to 0.25, linear from 0.75 to 1.25, quadratic from 1.75 to \
2.25, or between them; constant too where no growth is seen and the slope's interval lies within 0.25 of zero. It is \
of the lengths measured. *Theory* is the exponent once T is large, and the terms that a layer has: where T·13d² \
outweighs T²d, at lengths below some ten widths, attention too is nearly linear, and the exponent of the operations \
says what to expect of the time. Attention is fused here: its T×T matrix is never kept, so its memory is linear. In \
the figure: exponents with their intervals (hollow: slopes, where no growth is seen) and, as grey bars, theory."""

CROSSINGS = """Which is the cheaper one, and from what length on, by lines between medians on logarithmic axes; in \
brackets the lengths at which the two were last and first told apart. Two timings differ where their quartiles do not \
overlap and their medians are further apart than twice the scatter of both curves between lengths; *always*: at every \
length measured. What is *extrapolated* was not measured: there the fits of the table above would meet, said only \
where both are good and grow differently, and up to 16 times the longest length."""

RATIOS = """Ratios of medians at the longest length that both have; in brackets what the quartiles of both allow at \
most; (noisy) where the quartiles of one of the timings were over a tenth of its median apart. Two models are told \
apart where quartiles do not overlap and the ratio is more than twice the scatter of both curves between lengths; \
*about* stands where a timing was noisy or that scatter is over a tenth."""


@dataclass(frozen=True)
class Quantity:
    """One thing that length costs: of a phase, in a column of the frame of costs, with quartiles where it is timed."""

    name: str
    phase: str
    column: str
    spread: bool = False
    a_sequence: bool = False  # the column is a token's, the quantity a sequence's


QUANTITIES = (
    Quantity("training time", "training", "milliseconds", True, True),
    Quantity("training operations", "training", "flops_a_token", False, True),
    Quantity("training memory", "training", "peak_bytes"),
    Quantity("prefill time", "prefill", "milliseconds", True, True),
    Quantity("prefill operations", "prefill", "flops_a_token", False, True),
    Quantity("prefill memory", "prefill", "peak_bytes"),
    Quantity("decode time", "decode", "milliseconds", True),
    Quantity("decode operations", "decode", "flops_a_token"),
    Quantity("state", "decode", "state_bytes"),
)
NAMES = tuple(quantity.name for quantity in QUANTITIES)
COMPARED = ("training time", "training memory", "prefill time", "decode time", "state")


@dataclass(frozen=True)
class Curve:
    """One quantity of one model against length, as measured: median and quartiles at each length."""

    protocol: str
    task: str
    model: str
    family: str
    options: Mapping[str, Any]
    quantity: str
    points: Mapping[float, Point]
    noisy: frozenset[float]

    @cached_property
    def growth(self) -> Growth:
        return fit(list(self.points), [point[0] for point in self.points.values()])

    @property
    def scatter(self) -> float:
        """Of log y between lengths, where it is timed and there are lengths enough to tell; bytes have none."""
        return self.growth.scatter if "time" in self.quantity and len(self.points) > 3 else 0.0

    @property
    def exponent_in_theory(self) -> float:
        """Memory at so many tokens a batch does not have the length in it."""
        found = theory(self.family, self.options).get(self.quantity)
        fixed = self.protocol.endswith(SHRINKING) and self.quantity.endswith("memory")
        return math.nan if found is None else found.exponent - (1 if fixed else 0)

    @property
    def terms(self) -> str:
        found = theory(self.family, self.options).get(self.quantity)
        return found.terms if found else ""


def curves_of(costs: pd.DataFrame) -> list[Curve]:
    """Every quantity that was measured, of every model and protocol; over seeds medians of medians.

    Where the batch shrinks as the length grows, a decoded token's time says more of the batch, and is left out.
    """
    found = []
    keys = ["protocol", "task", "model", "family", "model_options"]
    for names, group in costs[costs["status"] == "ok"].groupby(keys, sort=False):
        for quantity in QUANTITIES:
            if quantity.name == "decode time" and str(names[0]).endswith(SHRINKING):
                continue
            rows = group[(group["phase"] == quantity.phase) & (group[quantity.column].astype(float) > 0)]
            points = {float(length): _point(same, quantity) for length, same in rows.groupby("length")}
            noisy = (
                frozenset(rows.loc[rows["noisy"].astype(bool), "length"].map(float)) if quantity.spread else frozenset()
            )
            if points:
                protocol, task, model, family, options = map(str, names)
                found.append(
                    Curve(protocol, task, model, family, json.loads(options), quantity.name, points, frozenset(noisy))
                )
    order = in_order(curve.model for curve in found)
    return sorted(found, key=lambda curve: (NAMES.index(curve.quantity), order.index(curve.model)))


def _point(rows: pd.DataFrame, quantity: Quantity) -> Point:
    columns = [quantity.column + (end if quantity.spread else "") for end in ("", "_low", "_high")]
    times = float(rows["length"].iloc[0]) if quantity.a_sequence else 1.0
    median, low, high = (times * float(rows[column].median()) for column in columns)
    return median, low, high


def parts(curves: list[Curve]) -> list[Part]:
    """Exponents, of each protocol by itself, and crossings; nothing where fewer than three lengths were measured."""
    curves = [curve for curve in curves if len(curve.points) >= 3]
    protocols, made = list(dict.fromkeys(curve.protocol for curve in curves)), []
    for number, protocol in enumerate(protocols):
        here = [curve for curve in curves if curve.protocol == protocol]
        title = "How costs grow" + (f": {protocol}" if len(protocols) > 1 else "")
        text = EXPONENTS if number == 0 else "Read as the table before it."
        name = "cost-growth" + (f"-{number + 1}" if number else "")
        made.append(Part(title, text, name, exponents_figure(here), growth_data(here), growth_table(here)))
    return [*made, Part("Where one overtakes another", CROSSINGS, table=crossing_table(curves))] if made else []


def exponents_figure(curves: list[Curve]) -> Figure:
    """A panel a quantity, a line a model: its exponent with its interval, and a bar where theory puts it."""
    names = [name for name in NAMES if any(curve.quantity == name for curve in curves)]
    models = in_order(curve.model for curve in curves)
    style = looks(models)
    with mpl.rc_context(RC):
        figure, axes = panels(len(names), rows=-(-len(names) // 3), height=0.7 + 0.27 * len(models))
        for one, name in zip(axes, names, strict=True):
            for curve in (curve for curve in curves if curve.quantity == name):
                _exponent(one, curve, -models.index(curve.model), style[curve.model])
            one.set_title(name)
            one.set_xlim(-0.5, 3)
            one.set_xticks([0, 1, 2], ["constant", "linear", "quadratic"])
            one.set_ylim(-len(models) + 0.4, 0.6)
            one.set_yticks([-place for place in range(len(models))], models)
            one.grid(visible=False, axis="y")
    return figure


def _exponent(axes: Axes, curve: Curve, place: float, look: Mapping[str, Any]) -> None:
    """Of what does not grow, the slope stands for the exponent, hollow; what the axis does not hold is cut off."""
    growth = curve.growth
    shown = growth.exponent if growth.grows else growth.slope
    if not math.isnan(curve.exponent_in_theory):
        axes.plot([curve.exponent_in_theory] * 2, [place - 0.38, place + 0.38], color="#999999", linewidth=3, zorder=1)
    if shown.known:
        axes.plot([shown.low, shown.high], [place] * 2, color=look["color"], linewidth=1.6)
    inside = look["color"] if growth.grows else "white"
    axes.plot(shown.value, place, marker=look["marker"], color=look["color"], markerfacecolor=inside)


def growth_data(curves: list[Curve]) -> pd.DataFrame:
    """All fitted numbers, a row a curve."""
    rows = []
    for curve in curves:
        growth = curve.growth
        row: dict[str, Any] = {
            "protocol": curve.protocol, "task": curve.task, "quantity": curve.quantity, "model": curve.model,
            "lengths": growth.n, "shortest": min(curve.points), "longest": growth.longest,
        }  # fmt: skip
        for name in ("slope", "tail", "exponent"):
            estimate = getattr(growth, name)
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row | {
            "constant_part": growth.constant_share, "scatter": growth.scatter, "verdict": growth.verdict,
            "theory": curve.exponent_in_theory, "terms": curve.terms,
        })  # fmt: skip
    return pd.DataFrame(rows)


def growth_table(curves: list[Curve]) -> pd.DataFrame:
    """A row a curve: what was fitted, the verdict, and what theory says."""
    rows = []
    for curve in curves:
        growth = curve.growth
        share = growth.constant_share
        rows.append({
            "protocol": curve.protocol, "task": curve.task, "what": curve.quantity, "model": curve.model,
            "lengths": f"{min(curve.points):.0f} to {growth.longest:.0f} ({growth.n})",
            "slope": str(growth.slope), "tail": str(growth.tail),
            "exponent": str(growth.exponent) if growth.grows else "no growth seen" if growth.n > 3 else "",
            "constant part": "" if math.isnan(share) else f"{100 * share:.0f} %", "verdict": growth.verdict,
            "theory": _of_theory(curve),
        })  # fmt: skip
    return without_single(pd.DataFrame(rows), "protocol", "task")


def _of_theory(curve: Curve) -> str:
    return "" if math.isnan(curve.exponent_in_theory) else f"{curve.exponent_in_theory:g} ({curve.terms})"


def without_single(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A table without those columns that say the same in all rows."""
    return table.drop(columns=[column for column in columns if column in table and table[column].nunique() < 2])


def crossing_table(curves: list[Curve]) -> pd.DataFrame:
    """A row a pair of models, a column a quantity."""
    rows = []
    for (protocol, task), here in _groups(curves):
        for first, second in pairs(list(here)):
            row = {"protocol": protocol, "task": task, "first": first, "second": second}
            for name in COMPARED:
                one, two = here[first].get(name), here[second].get(name)
                row[name] = said(_crossing(one, two), first, second) if one and two else ""
            rows.append(row)
    return without_single(pd.DataFrame(rows), "protocol", "task")


def _crossing(one: Curve, two: Curve) -> Crossing:
    ahead = not one.protocol.endswith(SHRINKING)  # no such batch holds a longer sequence
    return crossing(one.points, two.points, 2 * _scatter(one, two), ahead)


def _scatter(one: Curve, two: Curve) -> float:
    return math.hypot(one.scatter, two.scatter)


def _groups(curves: list[Curve]) -> Iterator[tuple[tuple[str, str], dict[str, dict[str, Curve]]]]:
    """Of each protocol and task: curves by model, ours first, and by quantity."""
    for key in dict.fromkeys((curve.protocol, curve.task) for curve in curves):
        here = [curve for curve in curves if (curve.protocol, curve.task) == key]
        models = in_order(curve.model for curve in here)
        yield key, {model: {c.quantity: c for c in here if c.model == model} for model in models}


def pairs(models: list[str]) -> list[tuple[str, str]]:
    """All pairs of a few models; of many, each with the baseline, or with the first where that is absent."""
    if len(models) <= MANY:
        return list(itertools.combinations(models, 2))
    base = BASELINE if BASELINE in models else models[0]
    return [(base, model) for model in models if model != base]


def said(found: Crossing, first: str, second: str) -> str:
    """A crossing in a few words: which of the two is the cheaper one, and from what length on."""
    before, later = (first, second) if found.rises else (second, first)
    if found.kind == "crossing":
        return f"{later} from {found.length:,.0f} on ({found.low:,.0f} to {found.high:,.0f})"
    if found.kind == "beyond":
        return f"{before} up to {found.low:,.0f}; extrapolated: {later} from {roughly(found.length)} on"
    if found.kind in ("below", "above"):
        cheaper = first if found.kind == "below" else second
        span = f"{found.low:,.0f}" + (f" to {found.high:,.0f}" if found.high > found.low else "")
        return f"{cheaper} always" if found.throughout else f"{cheaper}, as far as told apart (at {span})"
    return {"alike": "not told apart", "several": "not clear: changes more than once", "none": ""}[found.kind]


def words(costs: pd.DataFrame, curves: list[Curve]) -> list[Part]:
    """What the longest length costs, the baseline beside each other model: ratios with what is known of their noise."""
    lines, rows = [], []
    for (protocol, task), here in _groups(curves):
        base = BASELINE if BASELINE in here else next(iter(here))
        sentences = []
        for model in here:
            ratios = {name: r for name in COMPARED if (r := ratio_of(here[base].get(name), here[model].get(name)))}
            if model != base and ratios:
                found = {name: str(ratios[name]) if name in ratios else "" for name in COMPARED}
                length = f"{max(ratio.length for ratio in ratios.values()):,.0f}"
                rows.append({"protocol": protocol, "task": task, "at": length, "model": f"{base} / {model}", **found})
                sentences.append(sentence(base, model, ratios))
        if sentences:
            lines.append(" ".join([f"With {protocol}:", *sentences]))
    if not rows:
        return []
    text = "\n\n".join([*lines, " ".join([_sizes(costs), *_endings(costs), RATIOS])])
    return [Part("What length costs, in words", text, table=without_single(pd.DataFrame(rows), "protocol", "task"))]


def _sizes(costs: pd.DataFrame) -> str:
    sizes = costs["parameters"].dropna()
    low, high = int(sizes.min()), int(sizes.max())
    return f"The models have {low:,} to {high:,} parameters, {100 * (high / low - 1):.1f} % apart at most."


@dataclass(frozen=True)
class Ratio:
    """One model's cost over another's at one length, and the least and the most that the quartiles of both allow."""

    length: float
    value: float
    low: float
    high: float
    noisy: bool
    scatter: float  # of the logarithm, from how both curves scatter between lengths

    @property
    def apart(self) -> bool:
        return (self.low > 1 or self.high < 1) and abs(math.log(self.value)) > 2 * self.scatter

    @property
    def rough(self) -> bool:
        return self.noisy or self.scatter > 0.1

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({times(self.low)} to {times(self.high)})"
        return f"{times(self.value)}{spread}{' (noisy)' if self.noisy else ''}"


def times(ratio: float) -> str:
    """A ratio to three digits, or to whole ones where it is large."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"


def roughly(value: float) -> str:
    """To two significant digits, in plain figures."""
    return f"{float(f'{value:.2g}'):,.10g}"


def ratio_of(one: Curve | None, two: Curve | None) -> Ratio | None:
    """The first over the second at the longest length that both have; nothing where they share none."""
    if one is None or two is None or not set(one.points) & set(two.points):
        return None
    length = max(set(one.points) & set(two.points))
    (median, low, high), (under, under_low, under_high) = one.points[length], two.points[length]
    noisy = length in one.noisy | two.noisy
    return Ratio(length, median / under, low / under_high, high / under_low, noisy, _scatter(one, two))


SAID = {
    "training time": "the time of a training step", "training memory": "the memory of one",
    "prefill time": "the time of prefill", "decode time": "the time of a decoded token", "state": "the state",
}  # fmt: skip


def sentence(base: str, model: str, ratios: Mapping[str, Ratio]) -> str:
    """One sentence on a pair, at the longest length they share; what noise leaves open is said to be so."""
    length = max(ratio.length for ratio in ratios.values())
    there = {name: ratio for name, ratio in ratios.items() if ratio.length == length}
    clear = [name for name, ratio in there.items() if ratio.apart]
    needs = [
        f"{f'about {roughly(there[name].value)}' if there[name].rough else times(there[name].value)} times {thing}"
        for name, thing in zip(clear, _things(clear), strict=True)
    ]
    open_ = _things([name for name, ratio in there.items() if not ratio.apart])
    text = f"at {length:,.0f} tokens {base} needs {_and(needs)} of {model}" if clear else ""
    if open_ and clear:
        text += f"; in {_and(open_)} they are not told apart"
    elif open_:
        text = f"at {length:,.0f} tokens {base} and {model} are not told apart in {_and(open_)}"
    return text[0].upper() + text[1:] + "."


def _things(names: Sequence[str]) -> list[str]:
    """What quantities are called in one enumeration; `one` is a training step that was just named."""
    alone = "the memory of a training step"
    return [alone if name == "training memory" and "training time" not in names else SAID[name] for name in names]


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _endings(costs: pd.DataFrame) -> list[str]:
    """A sentence for each model and protocol that ended otherwise than well at some length."""
    lines = []
    broken = costs[~costs["status"].isin(["ok", "missing"])]
    for (protocol, model, status), group in broken.groupby(["protocol", "model", "status"], sort=False):
        phase = group.sort_values("length").iloc[0]
        lines.append(f"With {protocol}, {model} ended in {status} at {phase['length']:,} tokens ({phase['phase']}).")
    return lines
