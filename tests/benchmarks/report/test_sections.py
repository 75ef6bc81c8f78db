"""Sections beside numbers computed by another library."""

import pytest
from scipy import stats

from lookback.benchmarks.record import Cell
from lookback.benchmarks.report.frames import Frames
from lookback.benchmarks.report.sections.scores import score_by_window
from tests.records import learn_record

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
