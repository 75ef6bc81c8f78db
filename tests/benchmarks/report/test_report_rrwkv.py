"""The page that answers whether retrospection helps: verdicts, ratios and sentences from records
with known answers.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lookback.benchmarks.record import Cell, Outcome, Record, TaskFacts, make_cell
from lookback.benchmarks.report import make_named
from lookback.benchmarks.report.rrwkv import (
    by_suite,
    comparisons,
    cost_ratios,
    part_pairs,
    view_figure,
    view_table,
    words,
)
from lookback.benchmarks.storage import write_record
from tests.records import FACTS, as_cost, asked, cost_record, learn_record, record, score, trained

ROOT = Path(__file__).parents[3]
LANGUAGE = TaskFacts(
    vocabulary=256, classes=None, score="bits per byte", baseline_score=4.0, source="made up"
)


def of(cell: Cell, **fields: object) -> Cell:
    tuned = {"learning_rates": (1e-3, 1e-2)}
    return make_cell({**cell.model_dump(), "test_lengths": (24,), **tuned, **fields})


def runs(
    cell: Cell,
    correct: Sequence[int],
    suite: str = "ablation",
    task: TaskFacts = FACTS,
    **fields: object,
) -> list[Record]:
    """A run a seed, with so many of a thousand answers right."""
    return [
        trained(
            of(cell, seed=seed, **fields),
            [score(24, right, 1000)],
            task,
            suite,
            parameters=1100 if fields["model"] == "rrwkv" else 1000,
        )
        for seed, right in enumerate(correct)
    ]


@pytest.fixture
def records(cell: Cell) -> list[Record]:
    """RWKV at 0.3, 0.4, 0.5; interval 8 is 0.30, 0.31 and 0.32 better, and without retrospection
    just as RWKV.
    """
    without = {"interval": 8, "retrospection": "none"}
    return [
        *runs(cell, (300, 400, 500), model="rwkv"),
        *runs(cell, (600, 710, 820), model="rrwkv", model_options={"interval": 8}),
        *runs(cell, (310, 400, 490), model="rrwkv", model_options=without),
        *runs(cell, (900, 900, 900), model="transformer"),
    ]


def test_verdicts(records: list[Record]) -> None:
    """0.31 with 4.303 * 0.01 / sqrt(3) = 0.0248 to either side; half-way is 0.5625."""
    helps, same = comparisons(by_suite(records))
    assert (
        helps["variant"] == "interval=8"
        and helps["verdict"] == "helps"
        and helps["mean"] == pytest.approx(0.31)
    )
    assert helps["high"] - helps["low"] == pytest.approx(2 * 0.0248, abs=1e-3)
    assert helps["basis learned"] == "0 of 3" and helps["its learned"] == "3 of 3"
    assert helps["its parameters"] / helps["basis parameters"] == 1.1
    assert same["variant"] == "interval=8 retrospection=none" and same["verdict"] == "not shown"


def test_what_is_worse_hurts_in_either_direction_of_a_score(cell: Cell) -> None:
    for task, verdict in ((FACTS, "hurts"), (LANGUAGE, "helps")):
        found = [
            *runs(cell, (300, 400), task=task, model="rwkv"),
            *runs(cell, (199, 300), task=task, model="rrwkv"),
        ]
        (row,) = comparisons(by_suite(found))
        assert (row["verdict"], row["variant"]) == (verdict, "defaults")


def test_one_seed_shows_nothing(cell: Cell) -> None:
    found = [*runs(cell, (100,), model="rwkv"), *runs(cell, (999,), model="rrwkv")]
    rows = comparisons(by_suite(found))
    assert [row["verdict"] for row in rows] == ["not shown"]
    said = " ".join(words(rows, [], []))
    assert "nothing can be said" in said and "1 comparison has one seed" in said


def test_one_learning_rate_decides_nothing(cell: Cell) -> None:
    one = {"learning_rates": ()}
    found = [
        *runs(cell, (300, 310), model="rwkv", **one),
        *runs(cell, (900, 910), model="rrwkv", **one),
    ]
    rows = comparisons(by_suite(found))
    assert [row["verdict"] for row in rows] == ["one learning rate"]
    said = " ".join(words(rows, [], []))
    assert view_table(rows)["helps"].tolist() == [""]
    assert (
        "nothing can be said" in said
        and "1 more, at one learning rate" in said
        and "helps" not in said
    )


def test_suites_are_not_mixed_and_smoke_is_left_out(cell: Cell) -> None:
    """A suite's steps are its own: RRWKV of one is never held against RWKV of another."""
    assert (
        by_suite([*runs(cell, (1,), "a", model="rwkv"), *runs(cell, (1,), "b", model="rrwkv")])
        == {}
    )
    smoke = [
        *runs(cell, (1,), "a-smoke", model="rwkv"),
        *runs(cell, (1,), "a-smoke", model="rrwkv"),
    ]
    assert by_suite(smoke) == {}


def test_one_option_at_a_time_tells_the_parts_apart(records: list[Record]) -> None:
    """0.29, 0.31, 0.33 less without retrospection: 0.31 with 4.303 * 0.02 / sqrt(3) = 0.0497 to
    either side.
    """
    (row,) = part_pairs(by_suite(records))
    assert (row["whole"], row["changed"]) == ("interval=8", "retrospection=none")
    assert row["mean"] == pytest.approx(-0.31) and row["high"] - row["low"] == pytest.approx(
        2 * 0.0497, abs=1e-3
    )


def test_ranges_stand_beside_each_other(cell: Cell) -> None:
    def ranged(model: str, far: int) -> Record:
        return trained(of(cell, model=model), [asked(24, {(1, 1): (90, 100), (2, 3): (far, 100)})])

    (row,) = comparisons(by_suite([ranged("rwkv", 40), ranged("rrwkv", 90)]))
    assert (row["basis range"], row["its range"]) == ("1", "≥ 3")


def test_costs_are_ratios_at_the_longest_common_length(cell: Cell) -> None:
    """A step in a quarter of a second has four times the tokens a second of one in a second."""
    found = [
        cost_record(as_cost(cell, {"model": model, "length": length}), seconds)
        for model, length, seconds in (
            ("rwkv", 64, 0.25),
            ("rwkv", 128, 0.25),
            ("rrwkv", 64, 1.0),
            ("rrwkv", 128, 1.0),
            ("rrwkv", 256, 9.0),
        )
    ]
    (row,) = cost_ratios(by_suite(found))
    assert row["length"] == 128 and row["noisy"] and row["variant"] == "defaults"
    assert row["training tokens a second"] == pytest.approx(0.25) and row["state"] == pytest.approx(
        1
    )
    assert row["time of a token in decode"] == pytest.approx(4)
    assert "0.25 times the training tokens a second" in " ".join(words([], [], [row]))


def test_the_words_are_those_of_the_numbers(records: list[Record], cell: Cell) -> None:
    groups = by_suite(records)
    text = " ".join(words(comparisons(groups), part_pairs(groups), []))
    for words_of_it in (
        "Of 1 comparisons",
        "helps in 1, hurts in 0",
        "in 0 neither is shown",
        "about 0.1 of 1",
        "**It helps** in copy trained at 24 and tested at 24 (ablation, interval=8): "
        "0.400 becomes 0.710, +0.310",
        "a score became better in 0 and worse in 1 of 1 comparisons; 1 of these change "
        "retrospection itself, 1 with",
        "was not measured here",
    ):
        assert words_of_it in text, words_of_it
    assert "It hurts" not in text and "default options" not in text
    plain = [
        *runs(cell, (300, 400, 500), model="rwkv"),
        *runs(cell, (100, 210, 320), model="rrwkv"),
    ]
    said = " ".join(words(comparisons(by_suite(plain)), [], []))
    assert (
        "**With its default options**, chosen before any of this, it helps in 0 of 1 "
        "and hurts in 1." in said
    )


def test_runs_that_two_suites_have_are_shown_once(records: list[Record]) -> None:
    again = [one.model_copy(update={"suite": "again"}) for one in records]
    assert (
        len(comparisons(by_suite([*records, *again]))) == len(comparisons(by_suite(records))) == 2
    )


def test_one_view_has_a_row_a_place_and_the_best_variant(records: list[Record], cell: Cell) -> None:
    """Bits per byte are better where they are lower."""
    fields = {"suite": "language", "task": LANGUAGE, "length": 24}
    bits = [
        *runs(cell, (300, 400), model="rwkv", **fields),
        *runs(cell, (199, 300), model="rrwkv", **fields),
    ]
    rows = comparisons(by_suite([*records, *bits]))
    of_bits, of_answers = sorted(
        view_table(rows).to_dict("records"), key=lambda row: row["suite"] == "ablation"
    )
    assert (of_answers["best variant"], of_answers["helps"], of_answers["hurts"]) == (
        "interval=8",
        "1 of 2",
        "0 of 2",
    )
    assert (
        of_answers["difference"].startswith("+0.310 (")
        and of_answers["helps at longer tests"] == ""
    )
    assert (of_bits["helps"], of_bits["best variant"]) == ("1 of 1", "defaults")
    figure = view_figure(rows)
    assert figure and {axes.get_title(loc="left") for axes in figure.axes} == {
        "accuracy higher than RWKV's",
        "bits per byte lower than RWKV's",
    }
    gains = [
        line.get_xdata()[0]
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("None", "")
    ]
    assert sorted(gains) == pytest.approx(
        sorted([-row["mean"] if row["suite"] == "language" else row["mean"] for row in rows])
    )


def test_the_page_of_each_machine(records: list[Record], cell: Cell, tmp_path: Path) -> None:
    failed = record(
        of(cell, model="rrwkv", seed=9),
        Outcome(status="nan", message="the loss is nan"),
        "ablation",
    )
    for one in [*records, failed, learn_record(of(cell, model="lstm"))]:
        write_record(tmp_path / "results", one)
    (made,) = make_named(tmp_path / "results", tmp_path / "reports", ["rrwkv"])
    assert made.path == tmp_path / "reports" / "some-machine" / "rrwkv" / "README.md"
    page = made.path.read_text()
    for text in (
        "this project's reconstruction",
        "| interval=8 |",
        "helps",
        "× 1.10",
        "the loss is nan",
    ):
        assert text in page, text
    assert "lstm" not in page and "0.900" not in page
    command = [
        sys.executable,
        "-m",
        "lookback.benchmarks.cli",
        "report",
        "rrwkv",
        "--results",
        str(tmp_path / "nothing"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("lookback: no records")
    write_record(tmp_path / "one", learn_record(of(cell, model="lstm")))
    with pytest.raises(ValueError, match="no suite has records of both rrwkv and rwkv"):
        make_named(tmp_path / "one", tmp_path / "reports", ["rrwkv"])
