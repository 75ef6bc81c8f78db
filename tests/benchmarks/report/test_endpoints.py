"""Endpoints against values worked out by hand, and the ruler against its known range."""

from typing import Any

import pandas as pd
import pytest

from lookback.benchmarks.record import Cell, Record
from lookback.benchmarks.report.endpoints import Evidence, endpoint_values, main_size, verdicts
from lookback.benchmarks.report.frames import Frames
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.pages.overview import incomplete_suites, overview_page
from lookback.benchmarks.report.pages.suite import TEST, model_table
from lookback.benchmarks.report.statistics import summarise
from lookback.benchmarks.suite import Endpoint, read_suite
from tests.records import score, score_by_distance, trained


def endpoint(**fields: Any) -> Endpoint:
    fixed: dict[str, Any] = {"task": "copy", "lengths": (64,), "difference": 0.05}
    return Endpoint(**{**fixed, **fields})


def value(records: list[Record], wanted: Endpoint) -> float:
    return float(endpoint_values(Frames(records), wanted)["value"].iloc[0])


def model(cell: Cell, name: str, seed: int, correct: int) -> Record:
    changed = cell.model_copy(update={"task": "copy", "model": name, "seed": seed})
    return trained(changed, [score(64, correct)])


def test_a_score_is_the_mean_over_lengths(cell: Cell) -> None:
    copy = cell.model_copy(update={"task": "copy"})
    run = trained(copy, [score(32, 100), score(64, 60), score(128, 20)])
    assert value([run], endpoint(quantity="score", lengths=(64, 128))) == pytest.approx(0.4)


def test_the_area_reads_off_the_range_of_a_ruler(cell: Cell) -> None:
    """A model that is perfect up to distance 63 and at the floor beyond has 6 octaves of 10."""
    bins = {(2**k, 2 ** (k + 1) - 1): (1000 if k < 6 else 125, 1000) for k in range(10)}
    test = score_by_distance(1024, bins)
    run = trained(cell.model_copy(update={"task": "copy", "length": 1024}), [test])
    (row,) = endpoint_values(Frames([run]), endpoint(quantity="area", lengths=(1024,))).to_dict(
        "records"
    )
    assert row["value"] == pytest.approx((1 - 0.125) * 6 / 10)
    assert row["score"] - row["floor"] == pytest.approx(row["value"])  # so that both say learned


def test_pairs_at_which_accuracy_is_halfway(cell: Cell) -> None:
    """The floor is 0.125, so half-way is 0.5625: between 8 pairs (0.75) and 16 (0.375)."""
    tests = [
        score(64, correct, 1000).model_copy(update={"options": {"pairs": pairs}})
        for pairs, correct in ((32, 125), (4, 1000), (16, 375), (8, 750))
    ]
    run = trained(cell.model_copy(update={"task": "copy"}), tests)
    found = value([run], endpoint(quantity="halfway", option="pairs"))
    assert found == pytest.approx(3 + (0.75 - 0.5625) / (0.75 - 0.375))


def test_bits_saved_by_context(cell: Cell) -> None:
    tests = [score(16, 50).model_copy(update={"score": 3.0, "count": 100})]
    tests += [score(256, 50).model_copy(update={"score": 2.25})]
    run = trained(cell.model_copy(update={"task": "copy"}), tests)
    assert value([run], endpoint(quantity="saved", lengths=(16, 256))) == pytest.approx(0.75)


def test_an_interval_ends_at_the_values_that_an_endpoint_can_have(cell: Cell) -> None:
    records = [model(cell, "rwkv", seed, level) for seed, level in enumerate((5, 100))]
    wanted = {records[0].suite: endpoint(quantity="score")}
    (judged,) = Evidence(records, wanted).judged.values()
    (row,) = judged.table(judged.values).to_dict("records")
    assert (row["endpoint_low"], row["endpoint_high"]) == (0.0, 1.0)


def test_the_frames_of_several_suites_are_those_of_their_records(cell: Cell) -> None:
    records = []
    for suite in ("first", "second"):
        for seed in range(2):
            run = model(cell, "rwkv", seed, 40 + seed)
            records.append(run.model_copy(update={"suite": suite}))
    for name in ("scores", "costs"):
        pd.testing.assert_frame_equal(Evidence(records)[name], Frames(records)[name])


def test_verdicts_are_paired_by_seed(cell: Cell) -> None:
    records = []
    for seed, level in enumerate((40, 60, 80, 50)):  # seeds differ far more than models
        records.append(model(cell, "rwkv", seed, level))
        records.append(model(cell, "lstm", seed, level + 10 + seed % 2))
    wanted = endpoint(quantity="score")
    judged = verdicts(endpoint_values(Frames(records), wanted), wanted.difference)
    assert list(judged["model"]) == ["lstm"]
    assert judged["difference"].iloc[0] == pytest.approx(0.105)
    assert judged["verdict"].iloc[0] == "better"
    assert judged["seeds"].iloc[0] == 4


@pytest.mark.parametrize(
    ("rwkv", "lstm", "word"),
    [
        (15, 16, "both at floor"),
        (99, 100, "both at ceiling"),
        (80, 15, "at floor"),
        (15, 80, "baseline at floor"),
    ],
)
def test_no_verdict_at_the_floor_or_the_ceiling(
    cell: Cell, rwkv: int, lstm: int, word: str
) -> None:
    records = []
    for seed in range(4):
        records += [model(cell, "rwkv", seed, rwkv), model(cell, "lstm", seed, lstm - seed % 2)]
    wanted = endpoint(quantity="score")
    judged = verdicts(endpoint_values(Frames(records), wanted), wanted.difference)
    assert list(judged["verdict"]) == [word]


def test_the_floor_is_asked_of_the_sizes_that_are_compared(cell: Cell) -> None:
    """A smaller baseline on the floor does not stand for the one that a model is paired with."""
    records = []
    for seed in range(4):
        narrow = cell.model_copy(update={"width": 16})
        records += [model(narrow, "rwkv", seed, 13), model(cell, "rwkv", seed, 60)]
        records.append(model(cell, "lstm", seed, 80 + seed % 2))
    wanted = endpoint(quantity="score")
    values = endpoint_values(Frames(records), wanted)
    values["parameters"] = 100 * values["width"]
    assert list(verdicts(values, wanted.difference)["verdict"]) == ["better"]


def test_models_that_read_whole_sequences_are_compared_and_named_without_it(cell: Cell) -> None:
    """All models of Long Range Arena are pooled, and none is named after it."""
    records = []
    for seed in range(4):
        for name, level in (("rwkv", 50), ("lstm", 70 + seed % 2)):
            pooled = cell.model_copy(update={"pooling": "mean"})
            records.append(model(pooled, name, seed, level))
    wanted = {records[0].suite: endpoint(quantity="score")}
    evidence = Evidence(records, wanted)
    (judged,) = evidence.judged.values()
    assert list(judged.verdicts["verdict"]) == ["better"]
    assert list(judged.table(judged.values)["model_name"]) == ["RWKV-4", "LSTM"]

    streaming = [model(cell, "rwkv", 0, 50), model(cell, "lstm", 0, 50)]
    both = Evidence([*records, *streaming], wanted)
    (judged,) = both.judged.values()
    assert "RWKV-4, pooling mean" in set(judged.table(judged.values)["model_name"])
    assert sorted(judged.verdicts["seeds"]) == [1, 4]  # each beside its like


def test_an_overview_of_models_with_options_alone(cell: Cell) -> None:
    windowed = cell.model_copy(update={"model_options": {"window": 16}})
    run = model(windowed, "transformer", 0, 50)
    wanted = {run.suite: endpoint(quantity="score")}
    page = overview_page(Evidence([run], wanted), {})
    assert "What models learn" not in {block.title for block in page.blocks}


def test_the_overview_says_what_an_endpoint_can_be(cell: Cell) -> None:
    runs = [model(cell, name, seed, 50) for name in ("rwkv", "rrwkv") for seed in (0, 1)]
    evidence = Evidence(runs, {runs[0].suite: endpoint(quantity="score")})
    page = overview_page(evidence, {})
    (learned,) = (block.table for block in page.blocks if block.title == "What models learn")
    assert learned is not None
    (row,) = learned.to_dict("records")
    floor = runs[0].outcome.task.sighted_floor(runs[0].outcome.learn.tests[0])
    assert (row["floor"], row["perfect"]) == (round(floor, 2), 1.0)
    assert any("RRWKV minus RWKV-4 on 1 primary" in sentence for sentence in page.lead)


def test_runs_at_several_trained_lengths_are_named_and_judged_apart(cell: Cell) -> None:
    runs = []
    for length, correct in ((64, 40), (128, 80)):
        trained_at = cell.model_copy(update={"length": length})
        runs += [
            model(trained_at, name, seed, correct) for name in ("rwkv", "lstm") for seed in (0, 1)
        ]
    judged = Evidence(runs, {runs[0].suite: endpoint(quantity="score")}).judged[runs[0].suite]
    scores = judged.table(judged.values).set_index(["task_name", "model"])["score"].to_dict()
    assert scores == {
        ("copy, trained at 64", "rwkv"): 0.4,
        ("copy, trained at 64", "lstm"): 0.4,
        ("copy, trained at 128", "rwkv"): 0.8,
        ("copy, trained at 128", "lstm"): 0.8,
    }
    means = add_names(summarise(Frames(runs)["scores"], TEST, "score"), with_length=True)
    table = model_table(means, pd.DataFrame())
    assert set(table) >= {"copy, trained at 64 @64", "copy, trained at 128 @64_low"}


def test_fewer_bits_are_better(cell: Cell) -> None:
    from tests.records import FACTS

    facts = FACTS.model_copy(update={"score": "bits per byte", "baseline_score": 8.0})
    records = []
    for seed, wobble in enumerate((0.0, 0.001, 0.002, 0.001)):
        for name, bits in (("rwkv", 2.0), ("lstm", 2.2 + wobble)):
            changed = cell.model_copy(update={"task": "copy", "model": name, "seed": seed})
            test = score(64, 50).model_copy(update={"score": bits})
            records.append(trained(changed, [test], task=facts))
    wanted = endpoint(quantity="score", difference=0.02)
    judged = verdicts(endpoint_values(Frames(records), wanted), wanted.difference)
    assert judged["verdict"].iloc[0] == "worse"
    assert judged["difference"].iloc[0] == pytest.approx(-0.201)


def test_runs_of_another_task_have_no_value(cell: Cell) -> None:
    run = trained(cell.model_copy(update={"task": "recall"}), [score(64, 50)])
    assert endpoint_values(Frames([run]), endpoint(quantity="score")).empty
    assert endpoint_values(Frames([]), endpoint(quantity="area")).empty


def test_the_overview_shows_the_size_with_most_seeds(cell: Cell) -> None:
    records = [model(cell, "rwkv", seed, 50) for seed in range(3)]
    wider = [model(cell.model_copy(update={"width": 2 * cell.width}), "rwkv", 0, 90)]
    rows = main_size(Frames([*wider, *records])["scores"])
    assert set(rows["width"]) == {cell.width}
    assert len(rows) == 3


def test_the_overview_counts_cells_that_were_not_measured(cell: Cell) -> None:
    run = model(cell, "rwkv", 0, 50).model_copy(update={"suite": "tracking"})
    rows = incomplete_suites([run, run]).set_index("suite")
    cells = len(read_suite("tracking").cells)
    assert tuple(rows.loc["tracking", ["recorded", "cells"]]) == (1, cells)
    assert rows.loc["distance", "recorded"] == 0
    assert rows["takes"].all()
