"""What records say of a claim: measures, each with an interval and the band in which a claim wants it to lie.

All numbers are those of the other pages: exponents and ratios of costs, ranges, distances, positions, reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import distance, frames, generation, reach
from lookback.benchmarks.report.costs import PHASES, costs_of
from lookback.benchmarks.report.growth import COMPARED, SHRINKING, Curve, curves_of, ratio_of
from lookback.benchmarks.report.scaling import Growth
from lookback.benchmarks.report.statistics import widened

ANSWERS = "accuracy, farther half"
RANGE = "effective range, tokens"
GAIN = "fall of the loss, bits per byte"
LATE = "late loss, bits per byte lower"
REACH = "reach of the gradient, octaves"
ONE_BY_ONE = "one by one over at once"
FORMS = "largest difference of logits, of the largest logit"
ENOUGH = 4  # lengths that an exponent with an interval takes


@dataclass(frozen=True)
class Band:
    """Where a claim wants a number to lie; ends are not in it."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.least):
            return f"below {self.most:g}"
        return f"above {self.least:g}" if math.isinf(self.most) else f"from {self.least:g} to {self.most:g}"

    def verdict(self, low: float, high: float) -> str:
        """Of an interval: inside, outside, or neither, as of one that is not known."""
        if low > self.least and high < self.most:
            return "holds"
        return "fails" if high < self.least or low > self.most else "undecided"


POSITIVE = Band(least=0)


@dataclass(frozen=True)
class Measure:
    """One number beside a claim, and the interval that it is judged by.

    low, high: as other pages give it; lowest, highest: what is judged, wider where one of many comparisons is enough.
    """

    what: str
    unit: str
    model: str
    value: float
    low: float
    high: float
    n: int
    of: str  # what n counts, and so what the interval is of
    band: Band
    note: str = ""
    counted: bool = True  # does it decide?
    place: str = ""  # of those in one place of a machine only the one to the longest length counts
    longest: float = 0
    suite: str = ""
    machine: str = ""
    lowest: float = math.nan
    highest: float = math.nan

    @property
    def verdict(self) -> str:
        return self.band.verdict(self.lowest, self.highest)


Find = Callable[[Sequence[Record]], list[Measure]]
"""The measures in the records of one suite on one machine."""


def measures(find: Find, records: Sequence[Record], widen: bool) -> list[Measure]:
    """All measures in all suites of all machines; with `widen`, intervals over seeds hold together."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if not record.suite.endswith("-smoke"):  # whose few steps show nothing but that they can be taken
            groups.setdefault((record.machine.slug, record.suite), []).append(record)
    found = [
        replace(one, suite=suite, machine=group[0].machine.device, place=one.place and f"{one.place} on {slug}")
        for (slug, suite), group in sorted(groups.items()) for one in find(group)
    ]  # fmt: skip
    found = _once(_longest(found))
    several = sum(one.counted for one in found)
    ends = [widened(one.low, one.high, one.n, several) if widen else (one.low, one.high) for one in found]
    return [replace(one, lowest=low, highest=high) for one, (low, high) in zip(found, ends, strict=True)]


def _longest(found: Sequence[Measure]) -> list[Measure]:
    """Shorter ones of the same do not count: the longest shows most of how something grows."""
    most: dict[tuple[str, str], float] = {}
    for one in found:
        most[one.machine, one.place] = max(one.longest, most.get((one.machine, one.place), 0))
    noted = {place: f"another suite measured up to {longest:,.0f} tokens" for place, longest in most.items()}
    return [
        one if not one.place or one.longest == most[one.machine, one.place]
        else replace(one, counted=False, note=noted[one.machine, one.place])
        for one in found
    ]  # fmt: skip


def _once(found: Sequence[Measure]) -> list[Measure]:
    """Of runs that two suites have, to the last answer of every seed, the first counts."""
    first: dict[tuple[object, ...], str] = {}
    kept = []
    for one in found:
        key = one.machine, one.unit, one.n, one.value, one.low, one.high
        again = one.counted and one.of == "seeds" and first.setdefault(key, one.suite) != one.suite
        kept.append(replace(one, counted=False, note=f"{one.note}; the runs of {first[key]}") if again else one)
    return kept


def whole(model: str, options: Mapping[str, Any]) -> bool:
    """No part is taken away or changed: of RRWKV only the interval may be any."""
    return model != "rrwkv" or (set(options) <= {"interval"} and options.get("interval") != "none")


# --- costs


def exponents(model: str, bands: Mapping[str, Band]) -> Find:
    """How some quantities of a model grow with length, and a generated token's time with what stands before it."""

    def find(records: Sequence[Record]) -> list[Measure]:
        found = [
            _exponent(curve.growth, curve.quantity, f"{curve.model}, {curve.protocol}", bands[curve.quantity])
            for curve in _curves(records, model) if curve.quantity in bands and len(curve.points) >= ENOUGH
        ]  # fmt: skip
        if "generation time" in bands:
            found += [
                _exponent(growth, "generation time", name, bands["generation time"])
                for name, growth in _generations(records, model)
            ]
        return found

    return find


def _curves(records: Sequence[Record], model: str) -> Iterator[Curve]:
    """Of protocols in which the batch stays the same: else what grows is also the price of smaller batches."""
    costs = costs_of(records)
    for curve in curves_of(costs) if len(costs) else ():
        if curve.family == model and whole(model, curve.options) and not curve.protocol.endswith(SHRINKING):
            yield curve


def _exponent(growth: Growth, quantity: str, of: str, band: Band) -> Measure:
    """Of what is not seen to grow, the slope stands for the exponent."""
    shown = growth.exponent if growth.grows else growth.slope
    what = f"{quantity}: {of}"
    return Measure(what, "exponent", of.split(",")[0], shown.value, shown.low, shown.high,
                   growth.n, "lengths", band, place=what, longest=growth.longest)  # fmt: skip


def _generations(records: Sequence[Record], model: str) -> Iterator[tuple[str, Growth]]:
    chosen = [r for r in records if r.cell.model == model and whole(model, r.cell.model_options)]
    generated = generation.generated_of(chosen)
    for (protocol, name), line in generated.groupby(["protocol", "model"], sort=False) if len(generated) else ():
        if growth := generation.growth_of(line):
            yield f"{name}, {protocol}", growth


def cost_ratios(model: str, base: str, band: Band) -> Find:
    """One model's cost over another's at the longest length that both were measured at."""

    def find(records: Sequence[Record]) -> list[Measure]:
        theirs = {(curve.protocol, curve.task, curve.quantity): curve for curve in _curves(records, base)}
        return [
            one for curve in _curves(records, model) if curve.quantity in COMPARED
            for one in _ratio(curve, theirs.get((curve.protocol, curve.task, curve.quantity)), curve.quantity,
                              f"times {base}'s", band, records)
        ]  # fmt: skip

    return find


def at_once(model: str, reference: str, band: Band) -> Find:
    """The time of as many steps as a sequence has tokens, over that of the sequence at once."""

    def find(records: Sequence[Record]) -> list[Measure]:
        found = []
        for name in (model, reference):
            curves = list(_curves(records, name))
            for curve in (curve for curve in curves if curve.quantity == "decode time"):
                key = curve.protocol, curve.task, curve.model
                steps = replace(curve, points={t: (t * a, t * b, t * c) for t, (a, b, c) in curve.points.items()})
                prefill = (c for c in curves if (c.protocol, c.task, c.model, c.quantity) == (*key, "prefill time"))
                found += _ratio(steps, next(prefill, None), ONE_BY_ONE, "times", band, records, name == model)
        return found

    return find


def _ratio(
    one: Curve, two: Curve | None, what: str, unit: str, band: Band, records: Sequence[Record], counted: bool = True
) -> list[Measure]:
    """With bounds that the quartiles of both allow, or the scatter of both curves between lengths, if that is more."""
    ratio = ratio_of(one, two)
    if ratio is None or two is None:
        return []
    rough = math.exp(2 * ratio.scatter)
    low, high = min(ratio.low, ratio.value / rough), max(ratio.high, ratio.value * rough)
    timed = [phase for phase in PHASES if phase in what] or ["prefill", "decode"]  # one by one over at once
    counts = [
        cost.phases[phase].seconds.n for r in records for phase in timed
        if (cost := r.outcome.cost) and r.cell.length == ratio.length and r.cell.model in (one.family, two.family)
        and phase in cost.phases
    ]  # fmt: skip
    exact = not what.endswith("time") and what != ONE_BY_ONE
    place = f"{what}: {one.model}, {one.protocol}"
    n, of = (1, "exact count") if exact else (min(counts), "repeats")
    return [Measure(f"{place} of {ratio.length:,.0f} tokens", unit, one.model, ratio.value, low, high, n, of, band,
                    counted=counted, place=place, longest=ratio.length)]  # fmt: skip


# --- how far back


def looks_back(model: str, base: str, context: bool = True) -> Find:
    """How much farther back one model makes use of what it read than another, paired by seed, where they were trained.

    Loss by position counts where it falls more with context and is also lower late in it. The reach of gradients is
    shown and never counts: it is what can arrive, not what is made of it.
    """

    def find(records: Sequence[Record]) -> list[Measure]:
        pair = [r for r in records if r.cell.model in (model, base) and whole(r.cell.model, r.cell.model_options)]
        lost = frames.failures(pair)
        compared = [
            *_paired(far(pair), base, ANSWERS, lost),
            *(replace(one, counted=False) for one in _paired(_ranges(pair), base, RANGE, lost)),
        ]  # fmt: skip
        if not context:
            return _tuned(compared, pair)
        gained, late = context_gain(pair), context_loss(pair)
        falls, lower = _paired(gained, base, GAIN, lost), _paired(late, base, LATE, lost, -1)
        agreed = _directions(falls) & _directions(lower)
        for one in [*falls, *lower]:
            kept = (one.what, one.value > 0) in agreed or not one.counted
            compared.append(one if kept else replace(one, counted=False, note=f"{one.note}; fall and loss disagree"))
        reached = _paired(_reached(pair), base, REACH, lost)
        return _tuned(compared, pair) + [replace(one, counted=False) for one in reached]

    return find


def _tuned(found: Sequence[Measure], records: Sequence[Record]) -> list[Measure]:
    """Models that had one learning rate, the same for all, may differ by what it suits: such measures do not count."""
    if frames.tuned(records):
        return list(found)
    return [replace(one, counted=False, note=f"{one.note}; one learning rate") for one in found]


def _directions(found: Sequence[Measure]) -> set[tuple[str, bool]]:
    return {(one.what, one.value > 0) for one in found}


def _paired(scores: pd.DataFrame, base: str, unit: str, lost: frames.Failures, sign: int = 1) -> list[Measure]:
    """Differences to the baseline, those above zero in the model's favour.

    None counts where a seed was lost, of one seed, and where all seeds agree to the last answer, at the ends of what
    can be measured: there is no interval then, or one without width, which would make certain what is not.
    """
    found = []
    for row in frames.differences(scores, base).to_dict("records") if len(scores) else ():
        place = (row["task"], row["trained at"])
        failed = sum(lost.get((*place, name), 0) for name in (row["model"], row["against"]))
        low, high = sorted((sign * row["low"], sign * row["high"]))
        notes = [f"{row['score']:.3g} beside {row['score_of_baseline']:.3g}", f"{failed} failed" if failed else "",
                 "all seeds alike" if low == high else ""]  # fmt: skip
        found.append(Measure(
            f"{row['task']} at {place[1]}: {row['model']} beside {row['against']}", unit, row["model"],
            sign * row["mean"], low, high, row["seeds"], "seeds", POSITIVE, counted=low < high and not failed,
            note="; ".join(filter(None, notes)),
        ))  # fmt: skip
    return found


def _tests(records: Sequence[Record]) -> Iterator[tuple[Record, Any, dict[str, Any]]]:
    """Each test at the length of training, with the columns that tell its run."""
    labels = frames.Labels.of(records)
    for record in records:
        for test in record.outcome.learn.tests if record.outcome.learn else ():
            if test.length == record.cell.length:
                yield record, test, {**frames.fields_of_test(record, test, labels), "test_length": test.length}


def far(records: Sequence[Record]) -> pd.DataFrame:
    """Accuracy in the farther half of the distances asked, where answers are enough; all of it where there is one."""
    rows = []
    for _, test, run in _tests(records):
        farthest = max((one.high for one in test.by_distance), default=0)
        bins = [one for one in test.by_distance if 2 * one.high > farthest]
        if (count := sum(one.count for one in bins)) >= distance.ENOUGH:
            rows.append({**run, "score": sum(one.correct for one in bins) / count})
    return pd.DataFrame(rows)


def _ranges(records: Sequence[Record]) -> pd.DataFrame:
    found = distance.ranges(records)
    return found[found["test_length"] == found["length"]].assign(score=lambda f: f["found"]) if len(found) else found


def context_gain(records: Sequence[Record]) -> pd.DataFrame:
    """Bits at the positions of the first eighth, less those in the second half: what context was good for."""
    return _by_position(records, lambda early, late: early - late)


def context_loss(records: Sequence[Record]) -> pd.DataFrame:
    """Bits in the second half of the positions."""
    return _by_position(records, lambda early, late: late)


def _by_position(records: Sequence[Record], score: Callable[[float, float], float]) -> pd.DataFrame:
    rows = []
    for _, test, run in _tests(records):
        early = [one for one in test.by_position if one.high < test.length / 8]
        late = [one for one in test.by_position if one.low >= test.length / 2]
        if early and late:
            rows.append({**run, "score": score(_bits(early), _bits(late))})
    return pd.DataFrame(rows)


def _bits(bins: Sequence[Any]) -> float:
    return math.fsum(one.loss * one.count for one in bins) / sum(one.count for one in bins) / math.log(2)


def _reached(records: Sequence[Record]) -> pd.DataFrame:
    """Octaves of the first distance from which on no bin holds a thousandth of the gradient, of trained models."""
    shares = reach.shares_of(records)
    rows = []
    for _, run in shares[shares["when"] == "trained"].groupby([*reach.RUN, "seed"], sort=False) if len(shares) else ():
        rows += [{**run.iloc[0], "test_length": run["length"].iloc[0], "score": math.log2(e)} for e in reach.ends(run)]
    return pd.DataFrame(rows)


def uses_context(model: str) -> Find:
    """Whether a model's loss falls with what it has read, each length of training by itself."""

    def find(records: Sequence[Record]) -> list[Measure]:
        mine = [r for r in records if r.cell.model == model and whole(model, r.cell.model_options)]
        gained, lost = context_gain(mine), frames.failures(mine)
        means = frames.over_seeds(gained, ["task", "length", "model"], "score") if len(gained) else gained
        return [
            Measure(f"{row['task']} at {row['length']}: {row['model']}", GAIN, row["model"], row["mean"], row["low"],
                    row["high"], row["seeds"], "seeds", POSITIVE,
                    counted=row["low"] < row["high"] and not lost.get((row["task"], row["length"], row["model"])))
            for row in means.to_dict("records")
        ]  # fmt: skip

    return find


# --- two forms


def parallel_recurrent_difference(model: str, band: Band) -> Find:
    """How far apart a trained model's logits are, read at once and one by one, each task and length by itself.

    Shown is the largest of all runs, judged from the smallest to it. Autocast rounds to three digits, in either form
    elsewhere: what it leaves apart is no difference between functions.
    """

    def find(records: Sequence[Record]) -> list[Measure]:
        labels = frames.Labels.of(records)
        groups: dict[tuple[str, int, str, str], list[float]] = {}
        for record in records:
            learned = record.outcome.learn
            if learned and learned.parallel_recurrent_difference is not None and record.cell.model == model:
                cell = record.cell
                key = labels.task(cell), cell.length, labels.model(cell), cell.precision
                groups.setdefault(key, []).append(learned.parallel_recurrent_difference)
        return [
            Measure(f"{task} at {length}: {name}", FORMS, name, max(apart), min(apart), max(apart), len(apart),
                    "models", band, counted=precision == "float32", note=precision)
            for (task, length, name, precision), apart in groups.items()
        ]  # fmt: skip

    return find
