"""Verdicts on claims follow the records: they hold, fail, or stay open where these do, and turn
when these turn.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats

from lookback.benchmarks.record import (
    Cell,
    CostNumbers,
    Outcome,
    Phase,
    PositionScore,
    ReachBin,
    Record,
    Score,
    TaskFacts,
    Timing,
    make_cell,
)
from lookback.benchmarks.report import claims, make_all, make_named
from lookback.benchmarks.report.claims import CLAIMS, Claim
from lookback.benchmarks.report.evidence import Band, Measure, measures
from lookback.benchmarks.report.html import read_card
from lookback.benchmarks.report.statistics import t_interval, widened
from lookback.benchmarks.storage import write_record
from tests.records import FACTS, asked, record, trained

LENGTHS = [256 * 2**k for k in range(6)]
BITS = TaskFacts(
    vocabulary=256, classes=None, score="bits per byte", baseline_score=4.0, source="made up"
)
FARTHER, RECALLS = "RRWKV looks farther", "RWKV recalls less"


def claim_of(name: str) -> Claim:
    (found,) = (claim for claim in CLAIMS if claim.name.startswith(name))
    return found


def found_of(name: str, records: Sequence[Record]) -> list[Measure]:
    claim = claim_of(name)
    return measures(claim.find, records, not claim.every)


def verdict_of(name: str, records: Sequence[Record]) -> str:
    return claims.verdict(found_of(name, records), claim_of(name).every)


def priced(
    model: str,
    time: float = 1,
    memory: float = 1,
    step: float = 0,
    factor: float = 1,
    lengths: Sequence[int] = LENGTHS,
    suite: str = "cost",
    **fields: object,
) -> list[Record]:
    """A cost cell at each length, whose time, memory, and step and state, grow with these
    exponents.
    """
    made = []
    for length in lengths:
        cell = make_cell(
            {
                "kind": "cost",
                "task": "python",
                "model": model,
                "width": 16,
                "depth": 1,
                "length": length,
                "batch_size": 1,
                **fields,
            }
        )

        def phase(tokens: int, seconds: float, length: int = length) -> Phase:
            seconds *= factor
            timing = Timing(
                median=seconds, low=0.99 * seconds, high=1.01 * seconds, n=20, noisy=False
            )
            return Phase(
                tokens=tokens,
                seconds=timing,
                peak_bytes=round(1e4 * length**memory),
                flops=10 * length,
            )

        phases = {name: phase(length, 1e-6 * length**time) for name in ("training", "prefill")}
        phases["decode"] = phase(1, 1e-5 * length**step)
        numbers = CostNumbers(
            parameters=1000, phases=phases, state_bytes=round(1000 * length**step)
        )
        made.append(record(cell, Outcome(status="ok", task=FACTS, cost=numbers), suite))
    return made


def learner(model: str, seed: int, task: str = "recall", **fields: object) -> Cell:
    return make_cell(
        {
            "kind": "learn",
            "task": task,
            "model": model,
            "width": 16,
            "depth": 1,
            "length": 64,
            "batch_size": 4,
            "seed": seed,
            "test_lengths": (64, 128),
            "learning_rates": (1e-3, 3e-3),
            **fields,
        }
    )


def recalled(
    model: str, right: Sequence[int], task: str = "recall", suite: str = "recall", **fields: object
) -> list[Record]:
    """A run a seed: all right up to a distance of 31, and so many of a thousand from 32 to 63."""
    return [
        trained(
            learner(model, seed, task, **fields),
            [
                asked(64, {(16, 31): (1000, 1000), (32, 63): (n, 1000)}),
                asked(128, {(64, 127): (999 - n, 1000)}),
            ],
            suite=suite,
        )
        for seed, n in enumerate(right)
    ]


def read(
    model: str, early: Sequence[float], late: Sequence[float], suite: str = "language"
) -> list[Record]:
    """A run a seed of language modelling: bits at positions 0 to 7 and 32 to 63 of 64."""
    made = []
    for seed, bits in enumerate(zip(early, late, strict=True)):
        losses = [(0, 7), (8, 31), (32, 63)], [bits[0], 3.0, bits[1]]
        places = tuple(
            PositionScore(low=a, high=b, loss=loss * math.log(2), count=100)
            for (a, b), loss in zip(*losses, strict=True)
        )
        test = Score(
            length=64, examples=10, count=300, correct=100, loss=1.0, score=3.0, by_position=places
        )
        made.append(trained(learner(model, seed, "python"), [test], BITS, suite))
    return made


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.1, "holds"),
        (0.9, 1.3, "undecided"),
        (1.3, 1.4, "fails"),
        (-1.0, 0.7, "fails"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_an_interval_lies_inside_outside_or_neither(low: float, high: float, verdict: str) -> None:
    assert Band(0.75, 1.25).verdict(low, high) == verdict


COSTS = [
    ("RWKV trains", "rwkv", {}, {"time": 2}),
    ("RWKV trains", "rwkv", {}, {"memory": 1.6}),
    ("RWKV generates", "rwkv", {}, {"step": 1}),
    ("Attention's time", "transformer", {"time": 2}, {"time": 1}),
    ("Attention's memory", "transformer", {"memory": 2}, {"memory": 1}),
    ("A Transformer's cache", "transformer", {"step": 1}, {"step": 0}),
    ("RRWKV's costs grow", "rrwkv", {}, {"step": 0.5}),
]


@pytest.mark.parametrize(("name", "model", "as_claimed", "otherwise"), COSTS)
def test_costs_decide(
    name: str, model: str, as_claimed: dict[str, float], otherwise: dict[str, float]
) -> None:
    """Without noise, the law of the curve decides; operations are linear in these records."""
    found = found_of(name, priced(model, **as_claimed))
    of_time = [one for one in found if "operations" not in one.what]
    assert of_time and {one.verdict for one in of_time} == {"holds"}
    assert verdict_of(name, priced(model, **otherwise)) == "fails"
    assert verdict_of(name, []) == verdict_of(name, priced("lstm")) == "unmeasured"
    assert verdict_of(name, priced(model, lengths=LENGTHS[:3], **as_claimed)) == "unmeasured"


def test_a_batch_that_shrinks_with_the_length_is_no_evidence() -> None:
    assert verdict_of("RWKV trains", priced("rwkv", batch_tokens=8192)) == "unmeasured"


def test_where_one_machine_measured_twice_the_longer_one_decides() -> None:
    short = priced("rwkv", time=2, lengths=LENGTHS[:4], suite="quick")
    found = found_of("RWKV trains", [*priced("rwkv"), *short])
    assert {(one.suite, one.counted) for one in found} == {("cost", True), ("quick", False)}
    assert (
        verdict_of("RWKV trains", [*priced("rwkv"), *short]) == "holds"
        and verdict_of("RWKV trains", short) == "fails"
    )


def test_at_once_is_cheaper_than_one_by_one_or_not() -> None:
    """At 8192 tokens a step of 10 microseconds for each, over 1 for each of them at once; and the
    other way round.
    """
    (found,) = found_of("RWKV is computed", priced("rwkv"))
    assert found.value == pytest.approx(10) and found.verdict == "holds"
    assert verdict_of("RWKV is computed", priced("rwkv", time=1.5)) == "fails"
    assert (
        verdict_of("RWKV is computed", priced("lstm")) == "undecided"
    )  # which is shown, and does not count


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.02, "holds"), (1.1, "undecided"), (1.3, "fails")]
)
def test_as_cheap_is_within_a_tenth(factor: float, verdict: str) -> None:
    """The quartiles of both allow 2 % more."""
    assert verdict_of("RRWKV costs", [*priced("rwkv"), *priced("rrwkv", factor=factor)]) == verdict


def test_both_forms_are_one_function_but_for_rounding() -> None:
    def compared(*apart: float | None, **fields: object) -> list[Record]:
        cells = [learner("rwkv", seed, **fields) for seed in range(len(apart))]
        return [
            trained(cell, [], parallel_recurrent_difference=one)
            for cell, one in zip(cells, apart, strict=True)
        ]

    name = "RWKV's parallel form"
    (found,) = found_of(name, compared(2e-6, 5e-6, 1e-6))
    assert (found.value, found.low, found.high, found.n) == (5e-6, 1e-6, 5e-6, 3)
    assert verdict_of(name, compared(2e-6, 5e-6)) == "holds"
    assert verdict_of(name, compared(2e-6, 5e-3)) == "undecided"
    assert verdict_of(name, compared(2e-3, 5e-3)) == "fails"
    assert verdict_of(name, compared(2e-3, precision="bfloat16")) == "undecided"
    assert verdict_of(name, compared(None)) == verdict_of(name, priced("rwkv")) == "unmeasured"


def test_farther_is_what_scores_say_and_turns_with_them() -> None:
    low, high = (100, 140, 120), (800, 830, 830)
    for better, verdict in (("rrwkv", "holds"), ("rwkv", "fails")):
        worse = {"rrwkv": "rwkv", "rwkv": "rrwkv"}[better]
        assert verdict_of(FARTHER, [*recalled(better, high), *recalled(worse, low)]) == verdict
    assert verdict_of(RECALLS, [*recalled("transformer", high), *recalled("rwkv", low)]) == "holds"
    assert verdict_of(RECALLS, [*recalled("transformer", low), *recalled("rwkv", high)]) == "fails"
    alike = [*recalled("rwkv", (500, 530, 520)), *recalled("rrwkv", (510, 520, 530))]
    assert verdict_of(FARTHER, alike) == "undecided"
    assert verdict_of(FARTHER, recalled("rrwkv", high)) == "unmeasured"


def test_farther_in_one_place_and_nearer_in_another_is_open() -> None:
    low, high = (100, 140, 120), (800, 830, 830)
    both = [
        *recalled("rrwkv", high),
        *recalled("rwkv", low),
        *recalled("rrwkv", low, "copy"),
        *recalled("rwkv", high, "copy"),
    ]
    assert {one.verdict for one in found_of(FARTHER, both) if one.counted} >= {"holds", "fails"}
    assert verdict_of(FARTHER, both) == "undecided"


def test_the_difference_and_its_interval_are_those_of_the_seeds() -> None:
    """In the farther half of the distances, tested at the length of training; the wider one at 1 -
    5 % / 2.
    """
    ours, theirs = (800, 830, 830), (100, 140, 120)
    copied = [*recalled("rrwkv", (10, 20, 60), "copy"), *recalled("rwkv", (10, 30, 20), "copy")]
    found = found_of(FARTHER, [*recalled("rrwkv", ours), *recalled("rwkv", theirs), *copied])
    (one,) = (m for m in found if m.unit.startswith("accuracy") and "recall" in m.what)
    apart = [(a - b) / 1000 for a, b in zip(ours, theirs, strict=True)]
    error = stdev(apart) / math.sqrt(3)
    assert one.value == pytest.approx(fmean(apart)) and one.n == 3
    assert (one.low, one.high) == pytest.approx(stats.t.interval(0.95, 2, fmean(apart), error))
    assert sum(m.counted for m in found) == 2
    assert (one.lowest, one.highest) == pytest.approx(
        stats.t.interval(1 - 0.05 / 2, 2, fmean(apart), error)
    )


def test_what_cannot_decide_does_not_count() -> None:
    """One seed; a lost seed; seeds all alike at the ends of the scale; a part taken away; steps of
    a smoke scale.
    """
    low, high = (100, 140, 120), (800, 830, 830)
    pair = [*recalled("rrwkv", high), *recalled("rwkv", low)]
    assert verdict_of(FARTHER, [*recalled("rrwkv", (900,)), *recalled("rwkv", (0,))]) == "undecided"
    lost = record(learner("rrwkv", 3), Outcome(status="nan", message="the loss is nan"), "recall")
    assert verdict_of(FARTHER, [*pair, lost]) == "undecided"
    ends = [*recalled("rrwkv", (1000,) * 3), *recalled("rwkv", (0,) * 3)]
    assert verdict_of(FARTHER, ends) == "undecided" and {
        one.note[-5:] for one in found_of(FARTHER, ends)
    } == {"alike"}
    less = {"model_options": {"retrospection": "none"}}
    assert (
        verdict_of(FARTHER, [*recalled("rrwkv", high, **less), *recalled("rwkv", low)])
        == "unmeasured"
    )
    any_interval = {"model_options": {"interval": 8}}
    assert (
        verdict_of(FARTHER, [*recalled("rrwkv", high, **any_interval), *recalled("rwkv", low)])
        == "holds"
    )
    smoke = [one.model_copy(update={"suite": "recall-smoke"}) for one in pair]
    assert verdict_of(FARTHER, smoke) == "unmeasured"
    one_rate = {"learning_rates": ()}
    untuned = [*recalled("rrwkv", high, **one_rate), *recalled("rwkv", low, **one_rate)]
    assert (
        verdict_of(FARTHER, untuned) == "undecided"
        and "one learning rate" in found_of(FARTHER, untuned)[0].note
    )
    ranges = [one for one in found_of(FARTHER, pair) if one.unit.startswith("effective range")]
    assert ranges and not any(one.counted for one in ranges)


def test_runs_that_two_suites_have_count_once() -> None:
    low, high = (100, 140, 120), (800, 830, 830)
    pair = [*recalled("rrwkv", high), *recalled("rwkv", low)]
    again = [*recalled("rrwkv", high, suite="same"), *recalled("rwkv", low, suite="same")]
    other = [
        *recalled("rrwkv", high, suite="other"),
        *recalled("rwkv", (100, 140, 121), suite="other"),
    ]
    for more, count in ((again, 1), (other, 2)):
        found = [one for one in found_of(FARTHER, [*pair, *more]) if one.counted]
        assert len(found) == count, more[0].suite
    (left,) = (
        m for m in found_of(FARTHER, [*pair, *again]) if m.suite == "same" and "accuracy" in m.unit
    )
    assert left.note.endswith("the runs of recall")


def test_what_is_exact_has_no_repeats() -> None:
    """Twenty timed runs of each phase; memory and state are counted."""
    found = found_of("RRWKV costs no more", [*priced("rrwkv"), *priced("rwkv")])
    assert {(one.n, one.of) for one in found if "time" in one.what} == {(20, "repeats")}
    assert {(one.n, one.of) for one in found if "time" not in one.what} == {(1, "exact count")}


def test_a_longer_reach_of_gradients_is_not_looking_farther() -> None:
    def reaching(model: str, last: int) -> list[Record]:
        bins = [
            ReachBin(low=2**k, high=2 ** (k + 1) - 1, share=0.5 if 2**k <= last else 0)
            for k in range(6)
        ]
        return [
            one.model_copy(
                update={
                    "outcome": one.outcome.model_copy(
                        update={
                            "learn": one.outcome.learn.model_copy(
                                update={"reach_after": tuple(bins)}
                            )
                        }
                    )
                }
            )
            for one in recalled(model, (500, 530, 520))
            if one.outcome.learn
        ]

    found = [*reaching("rwkv", 4), *reaching("rrwkv", 32)]
    (reach,) = (one for one in found_of(FARTHER, found) if "gradient" in one.unit)
    assert reach.value == pytest.approx(3) and not reach.counted  # 8 to 64 tokens
    assert verdict_of(FARTHER, found) == "undecided"


def test_context_counts_where_its_loss_and_its_fall_agree() -> None:
    late = (2.5, 2.51, 2.49)
    basis = read("rwkv", (4.0, 4.01, 4.02), late)
    deeper = read("rrwkv", (4.0, 4.02, 4.01), [bits - 0.5 for bits in late])
    merely_worse_at_first = read("rrwkv", (4.5, 4.52, 4.51), (2.5, 2.5, 2.51))
    better_everywhere = read("rrwkv", (3.5, 3.52, 3.51), (2.0, 2.0, 2.01))
    assert verdict_of(FARTHER, [*basis, *deeper]) == "holds"
    for other in (merely_worse_at_first, better_everywhere):
        assert verdict_of(FARTHER, [*basis, *other]) == "undecided"
    assert verdict_of("RWKV's loss falls", basis) == "holds"
    assert verdict_of("RWKV's loss falls", read("rwkv", late, (4.0, 4.01, 4.02))) == "fails"
    assert verdict_of("RWKV's loss falls", read("rwkv", (4.0,), (2.0,))) == "undecided"


@pytest.mark.parametrize("count", [1, 7])
def test_widened_intervals_are_those_of_a_higher_level(count: int) -> None:
    values = [0.1, 0.3, 0.25, 0.5]
    wide = stats.t.interval(1 - 0.05 / count, 3, fmean(values), stdev(values) / 2)
    assert widened(*t_interval(values), 4, count) == pytest.approx(wide)


def test_every_target_is_one_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    for claim in CLAIMS:
        assert claim.target.startswith("make ")
        for name in claim.target.split()[1:]:
            assert re.search(rf"^{name}:.*## ", makefile, re.M), name


def test_the_page_of_all_machines(tmp_path: Path) -> None:
    """On the other one RWKV's time is quadratic: it fails there, at once as in growth, and so it
    fails.
    """
    other = {"slug": "other-machine", "device": "Other Machine"}
    found = [
        *priced("rwkv"),
        *recalled("rwkv", (100, 140, 120)),
        *recalled("rrwkv", (800, 830, 830)),
    ]
    found += [
        one.model_copy(update={"machine": one.machine.model_copy(update=other)})
        for one in priced("rwkv", 2)
    ]
    for one in found:
        write_record(tmp_path / "results" / one.machine.slug / one.suite, one)
    (made,) = make_named(tmp_path / "results", tmp_path / "reports", ["claims"])
    assert made.path == tmp_path / "reports" / "all-machines" / "claims" / "README.md"
    page = made.path.read_text()
    assert "Other Machine" in page and "Some Machine" in page and "reconstruction" in page
    assert "| RWKV trains in time and memory linear in length | fails |" in page
    assert "| RRWKV looks farther back than RWKV | holds |" in page
    assert page.count("unmeasured") > 5 and "| none in these records | make language |" in page
    card = read_card(made.path.with_name("index.html"))
    assert card and card["headline"][0].startswith(
        "Of 12 claims: 2 hold, 2 fail, 0 undecided, 8 unm"
    )
    assert "all-machines/claims/index.html" in (tmp_path / "reports" / "index.html").read_text()


def test_reports_without_a_name_hold_the_claims_too(tmp_path: Path) -> None:
    for one in recalled("rwkv", (1,)):
        write_record(tmp_path / "results", one)
    assert "claims" in [
        made.path.parent.name for made in make_all(tmp_path / "results", tmp_path / "reports")
    ]
