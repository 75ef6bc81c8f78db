"""Sections beside numbers computed by another library."""

import numpy as np
import pytest
from scipy import stats

from lookback.benchmarks.record import Cell, ReachBin, Record
from lookback.benchmarks.report.endpoints import SuiteEvidence
from lookback.benchmarks.report.frames import Frames
from lookback.benchmarks.report.pages.suite import suite_page
from lookback.benchmarks.report.sections.learning import gradient_ratios
from lookback.benchmarks.report.sections.scores import (
    accuracy_by_distance,
    score_by_length,
    score_by_window,
)
from lookback.benchmarks.suite import Endpoint
from tests.records import FACTS, learn_record, score, score_by_distance, trained

FULL = (80, 70, 75)
NARROW = (62, 55, 51)


def test_a_window_is_compared_with_full_attention_by_seed(cell: Cell) -> None:
    plain = cell.model_copy(update={"model": "transformer", "test_lengths": ()})
    narrow = plain.model_copy(update={"model_options": {"window": 4}})
    records = []
    for seed in range(3):
        records.append(learn_record(plain.model_copy(update={"seed": seed}), FULL[seed]))
        records.append(learn_record(narrow.model_copy(update={"seed": seed}), NARROW[seed]))
        other = {"window": 4, "positions": "alibi"}  # stands on no line of plain windows
        records.append(
            learn_record(plain.model_copy(update={"seed": seed, "model_options": other}), 10)
        )
    content = score_by_window(Frames(records)["scores"])

    assert content.table is not None
    (row,) = content.table.to_dict("records")
    interval = stats.ttest_rel(NARROW, FULL).confidence_interval()
    assert row["model_name"] == "Transformer, window 4"
    assert row["difference"] == pytest.approx((sum(NARROW) - sum(FULL)) / 300)
    assert row["difference_low"] == pytest.approx(interval.low / 100)
    assert row["difference_high"] == pytest.approx(interval.high / 100)
    assert content.figure is not None
    assert [panel.title for panel in content.figure.panels] == [plain.task]


def test_without_windows_there_is_nothing_to_show(cell: Cell) -> None:
    assert score_by_window(Frames([learn_record(cell)])["scores"]).is_empty


def test_lengths_that_were_trained_and_read_make_no_line(cell: Cell) -> None:
    """A run at each length, tested at its own."""
    lengths = [cell.model_copy(update={"length": n, "test_lengths": ()}) for n in (16, 32)]
    rows = Frames([learn_record(one) for one in lengths])["scores"]
    assert score_by_length(rows).is_empty
    both = cell.model_copy(update={"test_lengths": (16, 32)})
    assert not score_by_length(Frames([learn_record(both)])["scores"]).is_empty


def test_gradients_from_the_farthest_bin_are_compared_by_seed(cell: Cell) -> None:
    shares = {"rwkv": (0.2, 0.1, 0.3), "rrwkv": (0.5, 0.22, 0.66)}

    def run(model: str, seed: int) -> Record:
        own = cell.model_copy(update={"model": model, "seed": seed})
        near = ReachBin(low=1, high=7, share=0.9)
        far = ReachBin(low=8, high=15, share=shares[model][seed])
        untrained = (near, far.model_copy(update={"share": 0.01}))
        return trained(own, (), reach_before=untrained, reach_after=(near, far))

    records = [run(model, seed) for model in shares for seed in range(3)]
    (row,) = gradient_ratios(Frames(records)["gradients"], "rrwkv", "rwkv").to_dict("records")
    logs = [np.log(shares[model]) for model in ("rrwkv", "rwkv")]
    interval = stats.ttest_rel(*logs).confidence_interval()
    assert row["ratio"] == pytest.approx(stats.gmean(shares["rrwkv"]) / stats.gmean(shares["rwkv"]))
    assert row["ratio_low"] == pytest.approx(np.exp(interval.low))
    assert row["ratio_high"] == pytest.approx(np.exp(interval.high))


def test_a_page_says_the_best_of_each_task_in_its_own_unit(cell: Cell) -> None:
    bits = FACTS.model_copy(update={"score": "bits per byte"})
    records = []
    for model, correct in (("rwkv", 60), ("lstm", 40)):
        copy = cell.model_copy(update={"model": model, "task": "copy"})
        text = cell.model_copy(update={"model": model, "task": "python"})
        records += [trained(copy, [score(64, correct)]), trained(text, [score(128, correct)], bits)]
    assert suite_page(SuiteEvidence(records), "title").lead == [
        "Copy at 64 tokens (accuracy): RWKV-4 0.60, LSTM 0.40.",
        "Python at 128 tokens (bits per byte): LSTM 0.40, RWKV-4 0.60.",
    ]


def test_a_test_at_a_few_distances_makes_no_line(cell: Cell) -> None:
    bins = [(4, 5), (6, 7), (8, 11), (12, 15)]
    right = dict.fromkeys(bins, (30, 40))
    few = trained(cell, [score_by_distance(24, dict(list(right.items())[:3]))])
    assert accuracy_by_distance(Frames([few])["distances"]).is_empty

    enough = trained(cell, [score_by_distance(24, right)])
    assert not accuracy_by_distance(Frames([enough])["distances"]).is_empty
    rare = trained(cell, [score_by_distance(24, right | {(12, 15): (5, 10)})])
    assert accuracy_by_distance(Frames([rare])["distances"]).is_empty


def test_a_page_says_what_its_endpoint_is_and_who_is_best(cell: Cell) -> None:
    endpoint = Endpoint(quantity="score", task=cell.task, lengths=(64,), difference=0.05)
    records = []
    for model, level in (("rwkv", 60), ("lstm", 90), ("rrwkv", 14), ("transformer", 61)):
        for seed in range(3):
            own = cell.model_copy(update={"model": model, "seed": seed})
            records.append(trained(own, [score(64, level + seed % 2)]))
    assert suite_page(SuiteEvidence(records, endpoint=endpoint), "title").lead == [
        "Copy, score at 64 tokens: **LSTM** is best: 0.90, then Transformer 0.61, RWKV-4 0.60, "
        "RRWKV 0.14.",
        "Beside RWKV-4, better: **LSTM**; equivalent: **Transformer**; at the floor, unlike it: "
        "**RRWKV**.",
    ]
