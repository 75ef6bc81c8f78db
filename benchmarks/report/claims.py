"""Each claim of the RWKV and RRWKV papers about range and cost, and beside it what the records say: one page of all.

A claim is a text, a way to find its measures in records, and the band in which it wants each of them. The verdict is a
function of these alone, and what is printed as what would change it is what is computed here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.answers import Question, notes_on, write_answer
from lookback.benchmarks.report.evidence import (
    POSITIVE,
    Band,
    Find,
    Measure,
    at_once,
    cost_ratios,
    exponents,
    looks_back,
    measures,
    parallel_recurrent_difference,
    uses_context,
)
from lookback.benchmarks.report.page import Made
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, looks
from lookback.benchmarks.report.tables import plain

TITLE = "What the RWKV and RRWKV papers claim of range and cost, and what the records say"
RWKV, RRWKV = "RWKV (arXiv 2305.13048)", "RRWKV (arXiv 2306.05176)"
VERDICTS = ("holds", "fails", "undecided", "unmeasured")
CONSTANT, LINEAR = Band(-0.25, 0.25), Band(most=1.25)
QUADRATIC, GROWING = Band(1.75, 2.25), Band(least=0.25)
ROUNDING = Band(most=1e-4)  # float32 rounds at 6e-8, and a model does so some hundred times
AS_CHEAP = Band(most=1.1)  # times: a tenth is what timings on one machine may differ by

RULE = """Each claim is in our words. A verdict is computed from the records by the rule that stands with the claim: \
every measure has a band in which the claim wants it, and *holds* where its whole interval lies within, *fails* where \
all of it lies outside, and is *undecided* otherwise. Exponents have 95 % intervals from the scatter of the curve \
between lengths; ratios of costs the bounds that the quartiles of both allow, or that scatter where it is more; \
everything over seeds Student's t at 95 %, and one seed none. Where one of several comparisons is enough, the \
intervals judged are so wide that all hold together (Bonferroni). Not counted are single seeds; places where a seed's \
training failed, or all seeds agree to the last answer; models compared at one learning rate, which may suit one of \
them; effective ranges, which end where asking ends; runs that another suite has too; and how something grows, where \
another suite measured it up to a longer length. Smoke scales are left out. A verdict is of these models, sizes and \
lengths, on these machines, and not of larger ones."""

FIGURE = """In the figure: points with intervals, thin where they are widened to hold together; shaded: where the \
claim wants them; hollow: shown, and not counted."""


@dataclass(frozen=True)
class Claim:
    """`every`: all measures must hold, and one that fails is enough; else one that holds is, where none fails."""

    name: str
    paper: str
    said: str
    measured: str
    find: Find
    bands: str  # in words, what `find` asks
    target: str  # what makes the records
    every: bool = True


CLAIMS = (
    Claim("RWKV trains in time and memory linear in length", f"{RWKV}, abstract and table of complexity",
          "Training handles a sequence in time and memory that grow in proportion to its length.",
          "Exponents of a training step's time, operations and peak memory, the batch being one and the same.",
          exponents("rwkv", {"training time": LINEAR, "training operations": LINEAR, "training memory": LINEAR}),
          f"every exponent {LINEAR}", "make cost"),
    Claim("RWKV is computed in parallel over positions", f"{RWKV}, abstract",
          "Unlike a recurrent network it computes all positions of a training sequence together.",
          "The time of as many single steps as a sequence has tokens, over the time of the sequence at once, forward "
          "only. An LSTM stands beside it: what it gains, too, is no parallelism over positions but fewer calls, and "
          "on few cores the two cannot be told apart by time.",
          at_once("rwkv", "lstm", Band(least=1)), "the ratio above 1", "make cost"),
    Claim("RWKV's parallel form equals its recurrent form", f"{RWKV}, abstract and the sections on both forms",
          "Both forms are one function, without approximation.",
          "The largest difference between the logits of one test sequence, up to 256 tokens of it, read at once and "
          "token by token by the same trained model, over the largest logit, in float32; shown is the largest of all "
          "runs and, where other numbers have an interval, from the smallest to it. Tests compare the operator with "
          "its definition in float64 besides (`tests/models/test_wkv.py`).",
          parallel_recurrent_difference("rwkv", ROUNDING), f"every difference {ROUNDING}", "make language distance"),
    Claim("RWKV generates each token in constant time and memory", f"{RWKV}, abstract and figure of generation",
          "A token costs the same wherever it stands, and what is kept does not grow.",
          "Exponents of a decoded token's time after a context, of the time of tokens generated one by one, and of "
          "the bytes of state.",
          exponents("rwkv", {"decode time": CONSTANT, "generation time": CONSTANT, "state": CONSTANT}),
          f"every exponent {CONSTANT}", "make cost"),
    Claim("Attention's time is quadratic in length", f"{RWKV}, abstract and table of complexity",
          "A Transformer's time for T tokens grows as their square.",
          "Exponents of a training step's and of prefill's time and operations. Products with weights come on top "
          "and are linear, so at lengths below some ten widths the exponent is smaller; longer ones would show it.",
          exponents("transformer", dict.fromkeys(
              ("training time", "training operations", "prefill time", "prefill operations"), QUADRATIC)),
          f"every exponent {QUADRATIC}", "make cost"),
    Claim("Attention's memory, here fused, is quadratic in length", f"{RWKV}, abstract and table of complexity",
          "A Transformer's memory for T tokens grows as their square.",
          "Exponents of the peak memory of a training step and of prefill. Attention here is fused, as it is "
          "everywhere today, and never keeps the matrix of T by T that the paper counts.",
          exponents("transformer", {"training memory": QUADRATIC, "prefill memory": QUADRATIC}),
          f"every exponent {QUADRATIC}", "make cost"),
    Claim("A Transformer's cache, and the time of a token, grow with the context", f"{RWKV}, figure of generation",
          "What attention keeps grows with every token, and so does the time of the next one.",
          "Exponents of the bytes of state, of a decoded token's time, and of tokens generated one by one.",
          exponents("transformer", {"state": GROWING, "decode time": GROWING, "generation time": GROWING}),
          f"every exponent {GROWING}", "make cost"),
    Claim("RWKV's loss falls with context", f"{RWKV}, figure of loss by position",
          "Predictions become better the more has been read.",
          "Bits per byte at positions in the first eighth of the training length, less those in its second half.",
          uses_context("rwkv"), f"every fall {POSITIVE}", "make language"),
    Claim("RWKV recalls less than attention from far back", f"{RWKV}, limitations",
          "A state of fixed size may limit the recall of details over long contexts.",
          "The Transformer's accuracy in the farther half of the distances asked, and its effective range, less "
          "RWKV's, paired by seed, tested at the length of training.",
          looks_back("transformer", "rwkv", context=False), f"a difference {POSITIVE}, and none below",
          "make distance", every=False),
    Claim("RRWKV looks farther back than RWKV", f"{RRWKV}, abstract",
          "RWKV cannot look back, and RRWKV's mediums let it.",
          "RRWKV less RWKV, paired by seed, tested at the length of training: accuracy in the farther half of the "
          "distances asked; effective range; and how much the loss falls with context, which counts only where the "
          "loss late in the context says the same, for a model that is merely worse at first falls farther, and one "
          "that is better everywhere need not look back. Reach of gradients is shown and never counts: it is what "
          "can arrive, not what is made of it. Of RRWKV all variants with all of its parts count, whatever their "
          "interval.",
          looks_back("rrwkv", "rwkv"), f"a difference {POSITIVE}, and none below",
          "make distance language paper-rrwkv-reach", every=False),
    Claim("RRWKV's costs grow as RWKV's do", f"{RRWKV}, abstract",
          "Memory and computation stay efficient: linear in training, constant for each token.",
          "Exponents of a training step's time and memory, of a decoded token's time, and of the bytes of state.",
          exponents("rrwkv", {"training time": LINEAR, "training memory": LINEAR, "decode time": CONSTANT,
                              "state": CONSTANT}),
          f"exponents of training {LINEAR}, of decoding and state {CONSTANT}", "make cost"),
    Claim("RRWKV costs no more than RWKV", f"{RRWKV}, abstract",
          "Read in the strict sense, efficiency is maintained where each cost is the same, within a tenth.",
          "RRWKV's cost over RWKV's at the longest length: time and memory of training, time of prefill, time of a "
          "decoded token, state. Sizes are matched.",
          cost_ratios("rrwkv", "rwkv", AS_CHEAP), f"every ratio {AS_CHEAP}", "make cost"),
)  # fmt: skip


# --- verdicts


def verdict(found: Sequence[Measure], every: bool) -> str:
    """One word on a claim, of the measures that count."""
    words = {one.verdict for one in found if one.counted}
    if not words:
        return "undecided" if found else "unmeasured"
    if every:
        return "fails" if "fails" in words else "holds" if words == {"holds"} else "undecided"
    decided = words & {"holds", "fails"}
    return decided.pop() if len(decided) == 1 else "undecided"


def rule(claim: Claim, found: Sequence[Measure]) -> str:
    """What would change the verdict, in general and now."""
    if claim.every:
        text = f"it holds with {claim.bands}, each by its whole interval, and fails with one wholly outside."
    else:
        several = sum(one.counted for one in found)
        text = (
            f"it holds with {claim.bands}, by intervals widened for all {several} that count, and fails with one below "
            "zero and none above."
        )
    now = verdict(found, claim.every)
    against = [one for one in found if one.counted and one.verdict != ("holds" if now == "undecided" else now)]
    if now in ("undecided", "holds") and against and claim.every:
        text += f" In the way: {'; '.join(_said(one) for one in against[:3])}{_more(len(against) - 3)}."
    if any(one.n == 1 for one in found):
        text += " Single seeds decide nothing; more seeds would."
    return text


def _more(rest: int) -> str:
    return f"; and {rest} more" if rest > 0 else ""


def deciding(found: Sequence[Measure], every: bool) -> Measure | None:
    """Which measure stands for a claim: of those that decide it the least sure; where one is enough, the surest."""
    word = verdict(found, every)
    due = [one for one in found if one.counted and one.verdict == word] or [one for one in found if one.counted]
    pick = max if every else min
    return pick(due or found, key=lambda one: one.highest - one.lowest if one.counted else 0, default=None)


def tally(found: Sequence[Measure]) -> str:
    """How many that count hold, fail, or are undecided."""
    words = Counter(one.verdict for one in found if one.counted)
    said = {"holds": "hold", "fails": "fail", "undecided": "undecided"}
    return ", ".join(f"{words[word]} {text}" for word, text in said.items() if words[word]) or "none counts"


def _said(one: Measure) -> str:
    return f"{one.what}: {_number(one)}"


def _number(one: Measure) -> str:
    interval = _interval(one.low, one.high)
    return f"{_short(one.value)}{f' ({interval})' if interval else ''}, n = {_count(one)}"


def _count(one: Measure) -> str:
    return f"{one.n} {one.of.removesuffix('s') if one.n == 1 else one.of}"


def _short(value: float) -> str:
    """Three digits, and zero for what only rounding of float64 made of it."""
    return f"{round(value, 12) or 0.0:.3g}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{_short(low)} to {_short(high)}"


# --- the page


def claims_table(found: Sequence[tuple[Claim, list[Measure]]]) -> pd.DataFrame:
    """A row a claim: who makes it, the verdict, and the measure that decided it."""
    rows = []
    for claim, of_it in found:
        one = deciding(of_it, claim.every)
        rows.append({
            "claim": claim.name, "verdict": verdict(of_it, claim.every), "such as": _such_as(one, claim),
            "measures": tally(of_it) if of_it else "", "claimed by": claim.paper,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _such_as(one: Measure | None, claim: Claim) -> str:
    return f"{_said(one)}; {one.suite} on {one.machine}" if one else f"no record: {claim.target}"


def claim_part(number: int, claim: Claim, found: Sequence[Measure]) -> Part:
    """The part of a page about one claim: its verdict, what decided it, and every measure."""
    name = f"claim-{number}-{re.sub(r'[^a-z0-9]+', '-', claim.name.lower()).strip('-')}"
    title = f"{number}. {claim.name}: {verdict(found, claim.every)}"
    one = deciding(found, claim.every)
    short = f"Of its measures {tally(found)}. Such as {_such_as(one, claim)}. {FIGURE}\n\n" if one else ""
    text = (
        f"{short}**Claimed** ({claim.paper}): {claim.said}\n\n**Measured**: {claim.measured}\n\n"
        f"**Would change it**: {rule(claim, found)} Made by: `{claim.target}`."
    )
    if not found:
        return Part(title, text, table=pd.DataFrame([{"measure": "none in these records", "made by": claim.target}]))
    return Part(title, text, name, claim_figure(found), _data(found), measure_table(found))


def _data(found: Sequence[Measure]) -> pd.DataFrame:
    return pd.DataFrame([
        {**vars(one), "band": str(one.band), "verdict": one.verdict if one.counted else ""} for one in found
    ])  # fmt: skip


def measure_table(found: Sequence[Measure]) -> pd.DataFrame:
    """A row a measure: its number, its interval, and what it was judged by."""
    several = len({one.machine for one in found}) > 1
    table = pd.DataFrame([
        {"measure": one.what, "unit": one.unit, "number": _short(one.value), "interval": _interval(one.low, one.high),
         "judged by": _interval(one.lowest, one.highest) if one.counted and one.lowest != one.low else "",
         "wanted": str(one.band), "verdict": one.verdict if one.counted else "not counted", "n": _count(one),
         "suite": one.suite, "machine": one.machine if several else "", "note": one.note}
        for one in found
    ])  # fmt: skip
    return table.drop(columns=[column for column in ("judged by", "note", "machine") if (table[column] == "").all()])


def claim_figure(found: Sequence[Measure]) -> Figure:
    """A panel a unit, a row a measure: the number, its interval, and the band that the claim wants it in."""
    units = list(dict.fromkeys(one.unit for one in found))
    groups = [[one for one in found if one.unit == unit] for unit in units]
    style = looks([one.model for one in found])
    heights = [0.24 * len(group) + 0.75 for group in groups]
    with mpl.rc_context(RC):
        figure, axes = plt.subplots(
            len(units), 1, figsize=(8.4, sum(heights)), squeeze=False, height_ratios=[len(g) + 1 for g in groups]
        )
        for panel, unit, group in zip(axes.flat, units, groups, strict=True):
            low, high = _limits(group)
            for place, one in enumerate(group):
                _row(panel, one, -place, (low, high), style[one.model])
            panel.set_title(unit)
            panel.set_xlim(low, high)
            panel.set_ylim(-len(group) + 0.4, 0.6)
            panel.set_yticks([-place for place in range(len(group))], [_label(one) for one in group], fontsize=7.5)
            panel.grid(visible=False, axis="y")
    return figure


def _label(one: Measure) -> str:
    label = f"{one.what} ({one.suite})"
    return label if len(label) <= 78 else f"{label[:75]}..."


def _limits(group: Sequence[Measure]) -> tuple[float, float]:
    """Room for all numbers, intervals and ends of bands that have an end."""
    ends = [end for one in group for end in (one.value, one.low, one.high, one.band.least, one.band.most)]
    low, high = (extreme(end for end in ends if math.isfinite(end)) for extreme in (min, max))
    room = 0.08 * (high - low or 1)
    return low - room, high + room


def _row(axes: Axes, one: Measure, place: float, ends: tuple[float, float], look: dict[str, object]) -> None:
    left, right = max(one.band.least, ends[0]), min(one.band.most, ends[1])
    axes.fill_betweenx([place - 0.42, place + 0.42], left, right, color="#dfe8df", linewidth=0, zorder=0)
    for low, high, width in ((one.lowest, one.highest, 0.8), (one.low, one.high, 2.0)):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place] * 2, color=look["color"], linewidth=width)
    inside = look["color"] if one.counted else "white"
    axes.plot(one.value, place, marker=look["marker"], color=look["color"], markerfacecolor=inside)


def headline(found: Sequence[tuple[Claim, list[Measure]]]) -> list[str]:
    """What a page of claims says first."""
    words = [verdict(of_it, claim.every) for claim, of_it in found]
    counts = Counter(words)
    lines = [
        f"Of {len(found)} claims: {counts['holds']} hold, {counts['fails']} fail, {counts['undecided']} undecided, "
        f"{counts['unmeasured']} unmeasured."
    ]
    for word in VERDICTS:
        names = [claim.name for (claim, _), said in zip(found, words, strict=True) if said == word]
        lines += [f"**{word}**: {'; '.join(names)}."] if names else []
    return lines


def make_claims(records: Sequence[Record], folder: Path) -> Made:
    """Write the page, of the records of all suites and machines."""
    found = [(claim, measures(claim.find, records, not claim.every)) for claim in CLAIMS]
    table = claims_table(found)
    parts = [Part("The claims", table=table), *(claim_part(n, *one) for n, one in enumerate(found, 1))]
    text = "\n\n".join(["Made from the records alone by `make claims`.", RULE, *notes_on(records)])
    return write_answer(folder, TITLE, text, parts, records, plain(table[["verdict", "claim"]]), headline(found))


QUESTION = Question("claims", make_claims, together=True)
