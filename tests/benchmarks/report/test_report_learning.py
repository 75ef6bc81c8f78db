"""Numbers of the learning report against examples worked out by hand."""

import itertools
import math
from collections.abc import Sequence

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookback.benchmarks.record import (
    Cell,
    CurvePoint,
    DistanceScore,
    LearnNumbers,
    Outcome,
    PositionScore,
    Reached,
    Record,
    Score,
    TaskFacts,
    Trial,
    make_cell,
)
from lookback.benchmarks.report import distance, extrapolation, figures, frames, learning, training
from lookback.benchmarks.report.about import facts, matched, model_table, sizes_beside, waited
from lookback.benchmarks.report.page import summarise
from lookback.benchmarks.report.statistics import halfway
from tests.records import asked, learn_record, record, score, trained

LANGUAGE = TaskFacts(
    vocabulary=256, classes=None, score="bits per byte", baseline_score=4.0, source="made up"
)


def of(cell: Cell, **fields: object) -> Cell:
    return make_cell({**cell.model_dump(), **fields})


def rows(table: pd.DataFrame, *columns: str) -> list[tuple[object, ...]]:
    return list(table[list(columns)].itertuples(index=False, name=None))


# --- distance and effective range; with a constant answer of 0.125, half-way is 0.5625


def test_half_way() -> None:
    assert halfway(0.125) == 0.5625 and halfway(0.0) == 0.5 and halfway(1.0) == 1.0


@pytest.mark.parametrize(
    ("bins", "length", "expected"),
    [
        (
            {(1, 1): (100, 100), (2, 3): (57, 100), (4, 7): (56, 100), (8, 15): (100, 100)},
            16,
            (3, 15),
        ),
        ({(1, 1): (56, 100), (2, 3): (100, 100)}, 4, (0, 3)),
        ({(1, 1): (90, 100), (2, 3): (90, 100)}, 64, (3, 3)),
        (
            {(1, 1): (90, 100), (2, 3): (90, 100), (64, 95): (90, 100)},
            80,
            (79, 79),
        ),  # no distance is the length
        (
            {(1, 1): (9, 9), (2, 3): (2, 50), (4, 7): (90, 91), (8, 15): (0, 100)},
            16,
            (7, 15),
        ),  # the first three pooled
        ({(1, 1): (100, 100), (2, 3): (60, 99)}, 4, (1, 1)),  # the rest has too few to be judged
        ({(1, 1): (50, 50), (2, 3): (49, 49)}, 4, None),
    ],
)
def test_effective_range(
    bins: dict[tuple[int, int], tuple[int, int]], length: int, expected: tuple[int, int] | None
) -> None:
    found = distance.effective_range(asked(length, bins), 0.125)
    assert (found and (found.found, found.judged)) == expected


def test_a_range_has_the_interval_that_its_answers_allow() -> None:
    """By hand, of 100 answers each, with Wilson's formula: 0.95 is surely above 0.5625, 0.60 and
    0.50 may be either.
    """

    def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
        middle, half = (
            share + z**2 / (2 * n),
            z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)),
        )
        return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)

    assert (
        wilson(0.95, 100)[0] > 0.5625 > wilson(0.60, 100)[0]
        and wilson(0.50, 100)[1] > 0.5625 > wilson(0.2, 100)[1]
    )
    bins = {(1, 1): (95, 100), (2, 3): (60, 100), (4, 7): (50, 100), (8, 15): (20, 100)}
    assert distance.effective_range(asked(16, bins), 0.125) == (3, 1, 7, 15)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), min_size=2, max_size=12))
def test_pooled_bins_keep_order_and_answers(found: list[tuple[int, int]]) -> None:
    bins = [
        DistanceScore(low=2**i, high=2 ** (i + 1) - 1, correct=min(c, n), count=n)
        for i, (c, n) in enumerate(found)
    ]
    pooled = distance.pooled(bins, enough=100)
    assert all(one.count >= 100 for one in pooled)
    assert all(one.high < two.low for one, two in itertools.pairwise(pooled))
    judged = [b for b in bins if pooled and b.high <= pooled[-1].high]
    assert sum(b.count for b in pooled) == sum(b.count for b in judged)
    assert sum(b.count for b in bins) - sum(b.count for b in judged) < 100


@given(st.lists(st.integers(0, 100), min_size=3, max_size=8), st.integers(0, 7))
def test_a_better_answer_never_shortens_the_range(correct: list[int], place: int) -> None:
    def found(values: Sequence[int]) -> distance.Range:
        bins = {(2**i, 2 ** (i + 1) - 1): (right, 100) for i, right in enumerate(values)}
        reached = distance.effective_range(asked(1024, bins), 0.125)
        assert reached
        return reached

    more = [100 if i == place else right for i, right in enumerate(correct)]
    assert found(more).judged == found(correct).judged
    assert all(better >= before for better, before in zip(found(more), found(correct), strict=True))
    assert found(correct).shortest <= found(correct).found <= found(correct).longest


def test_ranges_over_seeds_are_medians(cell: Cell) -> None:
    """Of seeds with ranges 0, 3, 7 and 15 the median is the lower of 3 and 7."""
    far = [(0, 0, 0, 0), (100, 100, 0, 0), (100, 100, 100, 0), (100, 100, 100, 100)]
    edges = [(1, 1), (2, 3), (4, 7), (8, 15)]
    tests = [
        asked(16, {e: (right, 100) for e, right in zip(edges, of_seed, strict=True)})
        for of_seed in far
    ]
    records = [trained(of(cell, seed=seed, length=16), [test]) for seed, test in enumerate(tests)]
    columns = ("effective range", "interval", "seeds", "learned", "asked up to")
    assert rows(distance.range_table(records), *columns) == [("3", "0 to ≥ 15", 4, "2 of 4", "15")]
    assert distance.summary(records) == {"rwkv": {"range in copy @16": "3"}}
    assert rows(distance.range_table(records[3:]), "effective range") == [("≥ 15",)]
    assert distance.summary(records[:2]) == {
        "rwkv": {"range in copy @16": ""}
    }  # neither has learned the task


def test_a_task_of_one_distance_has_no_range_and_no_curve(cell: Cell) -> None:
    records = [trained(cell, [asked(24, {(8, 11): (90, 100)})])]
    assert (
        distance.range_table(records).empty
        and distance.parts(records) == []
        and distance.summary(records) == {}
    )


def test_heatmap_holds_pooled_accuracies_nearest_first(cell: Cell) -> None:
    bins: list[dict[tuple[int, int], tuple[int, int]]] = [
        {(1, 1): (9, 10), (2, 3): (5, 10)},
        {(1, 1): (5, 10), (2, 3): (1, 10), (4, 5): (3, 10)},
    ]
    records = [
        trained(of(cell, seed=seed), [asked(24, bins[0]), asked(40, bins[seed])]) for seed in (0, 1)
    ]
    table = distance.grid(frames.distances(records))
    assert list(table.index) == ["1", "2–3", "4–5"] and list(table.columns) == [24, 40]
    assert table[24].tolist()[:2] == [0.9, 0.5] and math.isnan(table.loc["4–5", 24])
    assert table[40].tolist() == [0.7, 0.3, 0.3]


def test_shades_begin_at_the_constant_answer_in_either_direction() -> None:
    accuracy = figures.quality(pd.DataFrame([[0.0, 0.125, 0.5625, 1.0]]), 0.125, 1.0)
    assert accuracy.iloc[0].tolist() == [0.0, 0.0, 0.5, 1.0]
    bits = figures.quality(pd.DataFrame([[5.0, 4.0, 3.0, 2.0]]), 4.0, 2.0)
    assert bits.iloc[0].tolist() == [0.0, 0.0, 0.5, 1.0]


# --- extrapolation and position


def test_matrix_is_of_training_and_test_lengths(cell: Cell) -> None:
    records = [
        trained(
            of(cell, length=length, seed=seed),
            [score(test, right + 10 * seed) for test, right in tests],
        )
        for length, tests in ((24, ((24, 80), (48, 40))), (48, ((48, 90),)))
        for seed in (0, 1)
    ]
    table = extrapolation.grid(frames.scores(records), "length")
    assert list(table.index) == [24, 48] and list(table.columns) == [24, 48]
    assert table.loc[24].tolist() == pytest.approx([0.85, 0.45])
    assert table.loc[48, 48] == 0.95 and math.isnan(table.loc[48, 24])


def test_what_is_not_finite_has_no_mean(cell: Cell) -> None:
    """One seed of two has no finite loss: the other's is not the mean of both."""
    tests = [
        Score(length=24, examples=5, count=9, correct=0, loss=loss, score=loss)
        for loss in (2.0, None)
    ]
    records = [trained(of(cell, seed=seed), [test], LANGUAGE) for seed, test in enumerate(tests)]
    scores = frames.scores(records)
    assert rows(learning.score_table(scores), "score", "95 % interval") == [("not finite", "")]
    assert extrapolation.grid(scores, "model").isna().all().all()


def test_no_matrix_of_one_length(cell: Cell) -> None:
    assert extrapolation.matrices(frames.scores([trained(cell, [score(24, 80)])])) is None
    assert (
        extrapolation.matrices(frames.scores([trained(cell, [score(24, 80), score(40, 70)])]))
        is not None
    )


def test_loss_by_position_is_in_bits(cell: Cell) -> None:
    """ln 2 nats are a bit."""
    parts = tuple(
        PositionScore(low=i, high=i, loss=bits * math.log(2), count=5)
        for i, bits in enumerate((4.0, 3.0, 1.0))
    )
    test = Score(length=24, examples=5, count=15, correct=0, loss=1.8, score=2.6, by_position=parts)
    found = frames.positions([trained(cell, [test], LANGUAGE)])
    assert found["bits"].tolist() == pytest.approx([4.0, 3.0, 1.0]) and found["low"].tolist() == [
        0,
        1,
        2,
    ]
    assert extrapolation.by_position(found) is not None


# --- learning rates


def tried(
    cell: Cell, validations: Sequence[float | None], picked: float, **fields: object
) -> Record:
    trials = tuple(
        Trial(learning_rate=rate, steps=6, seconds=1.0, validation=v)
        for rate, v in zip((1e-3, 3e-3, 1e-2), validations, strict=True)
    )
    return trained(of(cell, **fields), [score(24, 80)], learning_rate=picked, trials=trials)


@pytest.mark.parametrize(
    ("validations", "picked", "edge"),
    [
        ((0.5, 0.6, 0.7), 1e-2, "highest"),
        ((0.7, 0.6, 0.5), 1e-3, "lowest"),
        ((0.5, 0.7, 0.6), 3e-3, ""),
        ((0.5, 1.0, 1.0), 1e-2, ""),
        ((0.5, None, 0.7), 1e-2, "highest"),
    ],
)
def test_a_pick_at_the_edge_is_one_that_nothing_inside_equals(
    cell: Cell, validations: Sequence[float | None], picked: float, edge: str
) -> None:
    numbers = tried(cell, validations, picked).outcome.learn
    assert numbers and training.edge_of(numbers, higher_is_better=True) == edge


def test_edges_of_what_is_better_when_lower(cell: Cell) -> None:
    numbers = tried(cell, (2.0, 2.5, 3.0), 1e-3).outcome.learn
    assert numbers and training.edge_of(numbers, higher_is_better=False) == "lowest"


def test_rates_are_means_over_seeds_with_picks(cell: Cell) -> None:
    records = [
        tried(cell, (0.2, 0.6, 0.8), 1e-2, seed=0),
        tried(cell, (0.4, 0.7, None), 3e-3, seed=1),
        tried(cell, (0.3, 0.8, None), 3e-3, seed=2),
    ]
    (row,) = training.rate_table(records).to_dict("records")
    assert (row["rate 0.001"], row["rate 0.003"], row["rate 0.01"]) == (
        "0.300",
        "0.700 ×2",
        "0.800 (2 not finite) ×1",
    )
    assert row["seeds"] == 3 and row["at the edge"] == "highest in 1"
    assert training.at_edge(records) == ["rwkv on copy at 24 (highest in 1 of 3 seeds)"]


def test_records_from_before_rates_were_compared_have_no_such_sections(cell: Cell) -> None:
    parts = {part.title: part for part in training.parts([learn_record(cell)])}
    assert (
        parts["Learning rates"].empty
        and parts["Time to learn"].empty
        and not parts["Learning curves"].empty
    )


# --- time to learn, seeds that learned


def reaching(
    cell: Cell, seed: int, *found: tuple[float, int], joules: float | None = None
) -> Record:
    reached = tuple(
        Reached(score=s, step=n, seconds=n / 10, tokens=n * 96, joules=joules) for s, n in found
    )
    curve = (CurvePoint(step=6, loss=1.0, validation=0.5),)
    return trained(
        of(cell, seed=seed), [score(24, 80)], learning_rate=1e-3, reached=reached, curve=curve
    )


def test_time_to_learn_is_the_median_of_those_that_did(cell: Cell) -> None:
    records = [
        reaching(cell, 0, (0.9, 200), (0.99, 400)),
        reaching(cell, 1, (0.9, 300)),
        reaching(cell, 2, (0.9, 700)),
        reaching(cell, 3),
    ]
    records.append(record(of(cell, seed=4), Outcome(status="nan", message="the loss is nan")))
    columns = ("accuracy", "seeds", "steps", "seconds", "tokens")
    assert rows(training.time_table(records), *columns) == [
        ("0.9", "3 of 5", "300", "30.0", "28,800"),
        ("0.99", "1 of 5", "400", "40.0", "38,400"),
    ]
    assert "joules" not in training.time_table(records)
    assert rows(training.time_table([reaching(cell, 0, (0.9, 200), joules=1234.0)]), "joules") == [
        ("1,234",)
    ]


def test_a_mean_of_seeds_that_learn_or_do_not_says_how_many(cell: Cell) -> None:
    """Half-way is 0.5625: of 0.2, 0.6 and 0.95 two have learned and one has solved it; a fourth run
    failed.
    """
    records = [
        trained(of(cell, seed=seed), [score(24, right)]) for seed, right in enumerate((20, 60, 95))
    ]
    records.append(record(of(cell, seed=3), Outcome(status="nan")))
    table = learning.score_table(frames.scores(records), frames.failures(records))
    assert rows(table, "learned", "solved", "seeds") == [("2 of 4", "1 of 4", "3 (1 failed)")]


def test_language_models_do_not_learn_or_fail(cell: Cell) -> None:
    test = Score(length=24, examples=5, count=15, correct=0, loss=1.8, score=2.6)
    assert "learned" not in learning.score_table(frames.scores([trained(cell, [test], LANGUAGE)]))


# --- differences


def pair(cell: Cell, task: TaskFacts, gains: Sequence[float], **fields: object) -> list[Record]:
    """RWKV with 1, 2, 3 ... and a model that has so much more, seed by seed."""
    return [
        trained(
            of(cell, model=model, seed=seed, **fields),
            [Score(length=24, examples=5, count=100, correct=0, loss=1.0, score=1.0 + seed + more)],
            task,
        )
        for seed, gain in enumerate(gains)
        for model, more in (("rwkv", 0.0), ("lstm", gain))
    ]


@pytest.mark.parametrize(
    ("task", "gains", "expected"),
    [
        (None, (0.1, 0.2, 0.3), "not shown"),
        (None, (0.2, 0.2, 0.21), "lstm"),
        (LANGUAGE, (0.2, 0.2, 0.21), "rwkv"),
        (LANGUAGE, (-0.2, -0.2, -0.21), "lstm"),
    ],
)
def test_better_follows_the_direction_of_the_score(
    cell: Cell, task: TaskFacts | None, gains: Sequence[float], expected: str
) -> None:
    """0.1, 0.2, 0.3: 0.2 with 4.303 * 0.1 / sqrt(3) = 0.248 to either side, which holds zero."""
    facts_of_task = task or TaskFacts(
        vocabulary=9, classes=None, score="accuracy", baseline_score=0.1, source="made up"
    )
    (row,) = learning.difference_table(frames.scores(pair(cell, facts_of_task, gains))).to_dict(
        "records"
    )
    assert (
        row["better"] == expected
        and row["minus"] == "rwkv"
        and row["model"] == "lstm"
        and row["seeds"] == 3
    )
    if task is None and expected == "not shown":
        assert row["95 % interval"] == "-0.048 to +0.448"


def test_who_is_held_against_whom(cell: Cell) -> None:
    named: tuple[tuple[str, dict[str, int]], ...] = (
        ("transformer", {}),
        ("rwkv", {}),
        ("rrwkv", {"interval": 4}),
        ("rrwkv", {"interval": 8}),
        ("lstm", {}),
    )
    records = [
        trained(of(cell, model=model, model_options=options, seed=seed), [score(24, 50)])
        for model, options in named
        for seed in (0, 1)
    ]
    assert rows(learning.difference_table(frames.scores(records)), "model", "minus") == [
        ("transformer", "rwkv"),
        ("rrwkv interval=4", "rwkv"),
        ("rrwkv interval=8", "rwkv"),
        ("lstm", "rwkv"),
        ("lstm", "transformer"),
    ]


def test_cells_that_differ_in_more_than_the_seed_are_never_averaged(cell: Cell) -> None:
    """Two widths are two models, each against the other model of its own width."""
    records = [
        r
        for width, gain in ((16, 0.1), (32, 0.5))
        for r in pair(cell, LANGUAGE, (gain, gain), width=width)
    ]
    scores = frames.scores(records)
    assert set(scores["model"]) == {f"{m} width={w}" for m in ("rwkv", "lstm") for w in (16, 32)}
    found = frames.differences(scores, "rwkv")
    assert dict(zip(found["model"], found["mean"], strict=True)) == pytest.approx(
        {"lstm width=16": 0.1, "lstm width=32": 0.5}
    )
    assert set(frames.scores(pair(cell, LANGUAGE, (0.1, 0.2)))["model"]) == {"rwkv", "lstm"}


def test_widths_worked_out_to_match_find_each_other(cell: Cell) -> None:
    """Sizes of about 1000 and 4000; one model lacks the larger, and is not held against what is
    four times as large.
    """
    sizes = {"rwkv": {16: 1000, 32: 4000}, "lstm": {17: 1010, 35: 3950}, "transformer": {15: 995}}
    records = [
        trained(
            of(cell, model=model, width=width, seed=seed),
            [score(24, parameters // 100)],
            parameters=parameters,
        )
        for model, widths in sizes.items()
        for width, parameters in widths.items()
        for seed in (0, 1)
    ]
    found = frames.differences(frames.scores(records), "rwkv")
    assert rows(found, "model", "against") == [
        ("lstm width=17", "rwkv width=16"),
        ("lstm width=35", "rwkv width=32"),
        ("transformer width=15", "rwkv width=16"),
    ]
    assert matched(records) == "Parameters are matched within 1.5 %."  # 1010 / 995, and 4000 / 3950
    found = frames.differences(frames.scores([r for r in records if r.cell.width != 16]), "rwkv")
    assert rows(found, "model", "against") == [("lstm width=35", "rwkv width=32")]


# --- about


def sized(cell: Cell, **models: int) -> list[Record]:
    return [
        trained(of(cell, model=model), [score(24, 50)], parameters=n) for model, n in models.items()
    ]


def test_sizes_are_held_against_the_first_models(cell: Cell) -> None:
    records = sized(cell, transformer=1000, rwkv=1013, lstm=995)
    assert (
        matched(records) == "Parameters are matched: all are within 1.3 % of transformer's."
    )  # 1013 / 1000
    far = sized(cell, rwkv=1000, transformer=1019, lstm=981)
    assert (
        matched(far) == "Parameters are matched: all are within 1.9 % of rwkv's."
    )  # 1019 / 981 is not
    assert sizes_beside(records) == (
        "transformer",
        {"rwkv": [pytest.approx(0.013)], "lstm": [pytest.approx(-0.005)]},
    )
    records = sized(cell, transformer=1000, rwkv=1120, lstm=900)
    sentence = matched(records)
    assert "**Sizes are not matched** within 2 %" in sentence
    assert "rwkv has up to 12.0 % more" in sentence and "lstm has up to 10.0 % fewer" in sentence
    assert rows(model_table(records), "parameters", "beside transformer") == [
        ("1,000", ""),
        ("1,120", "+12.0 %"),
        ("900", "-10.0 %"),
    ]


def test_one_model_is_not_matched_with_anything(cell: Cell) -> None:
    assert matched(sized(cell, rwkv=1000)) == "" and "beside rwkv" not in model_table(
        sized(cell, rwkv=1000)
    )


def test_sizes_of_different_tasks_are_not_held_against_each_other(cell: Cell) -> None:
    records = [
        *sized(cell, rwkv=1000, lstm=1000),
        *sized(of(cell, task="recall"), rwkv=2000, lstm=2000),
    ]
    assert matched(records) == "Parameters are matched: all are within 0.0 % of rwkv's."


def test_the_largest_share_of_waiting_is_told(cell: Cell) -> None:
    records = [
        trained(of(cell, seed=seed), [score(24, 50)], seconds=10.0, waiting=waiting)
        for seed, waiting in ((0, 0.1), (1, 0.37), (2, None))
    ]
    assert waited(records) == f"at most 3.7 % ({records[1].cell_id})"
    assert facts(records)["time outside the training step"] == waited(records)
    assert "time outside the training step" not in facts(records[2:])


# --- the first table


def test_a_task_trained_at_several_lengths_stands_at_each(cell: Cell) -> None:
    records = [
        trained(of(cell, length=length), [score(24, right), score(48, 30)])
        for length, right in ((24, 80), (48, 20))
    ]
    (row,) = summarise(records).to_dict("records")
    assert (row["copy @24"], row["copy @48"]) == ("0.80", "0.30")


def test_every_number_of_the_newest_fields_has_a_default() -> None:
    """Records from before are read: nothing of what this report uses may be demanded."""
    new = {"waiting", "joules", "learning_rate", "trials", "reached"}
    assert all(not LearnNumbers.model_fields[name].is_required() for name in new)
