"""Frames hold what the records' JSON holds, and a measurement counts once."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lookback.benchmarks.record import Cell, Record, SequenceSums
from lookback.benchmarks.report.frames import (
    FRAMES,
    IDENTITY,
    distinct,
    frame,
    without_pilots,
)
from lookback.benchmarks.report.names import add_names, model_name, sort_models, task_name
from lookback.benchmarks.report.sections.costs import prices
from lookback.benchmarks.report.statistics import summarise
from lookback.benchmarks.storage import PUBLISHED_RECORDS, read_record, record_files
from tests.records import FACTS, as_cost, cost_record, learn_record, record, score, trained


def published() -> list[tuple[Record, dict]]:
    paths = list(record_files(PUBLISHED_RECORDS))  # two suites may have a cell in common
    return [(read_record(path), json.loads(path.read_text())) for path in paths]


def test_scores_and_costs_are_those_of_the_files() -> None:
    pairs = published()
    records = [record for record, _ in pairs]
    tests = [t for _, f in pairs if f["outcome"]["learn"] for t in f["outcome"]["learn"]["tests"]]
    assert len(tests) > 0
    assert sorted(frame("scores", records)["score"]) == sorted(t["score"] for t in tests)

    phases = [
        phase["seconds"]["median"]
        for _, f in pairs if f["outcome"]["cost"]
        for phase in f["outcome"]["cost"]["phases"].values()
    ]  # fmt: skip
    assert sorted(frame("costs", records)["seconds"].dropna()) == sorted(phases)


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_every_frame_has_the_cells_columns(name: str, cell: Cell) -> None:
    rows = frame(name, [learn_record(cell), cost_record(as_cost(cell))])
    assert rows.columns.is_unique
    if len(rows):
        assert {"suite", "machine", "task", "model", "seed", "training", "width"} <= set(rows)


def test_an_unknown_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="no frame 'speed': expected one of runs, scores"):
        frame("speed", [])


def test_a_models_speed_is_a_share_of_that_of_a_matrix_product(cell: Cell) -> None:
    """4 GFLOP in half a second beside 100 GFLOP a second; unknown in old records."""
    made = cost_record(as_cost(cell), seconds=0.5)
    assert made.outcome.cost
    phase = made.outcome.cost.phases["training"].model_copy(update={"flops": 4 * 10**9})
    shares = []
    for matmul in (1e11, None):
        update = {"phases": {"training": phase}, "matmul_flops_per_second": matmul}
        outcome = {"cost": made.outcome.cost.model_copy(update=update)}
        record = made.model_copy(update={"outcome": made.outcome.model_copy(update=outcome)})
        table = prices(frame("costs", [record]))
        shares.append(table.get("share_of_matmul_speed", [None])[0])
    assert shares == [pytest.approx(0.08), None]


def test_options_are_columns(cell: Cell) -> None:
    options = {"pairs": 4, "filler": "noise"}
    changed = cell.model_copy(update={"task_options": options, "model_options": {"window": 64}})
    rows = frame("scores", [learn_record(changed)])
    assert rows["task.pairs"][0] == 4
    assert rows["task.filler"][0] == "noise"
    assert rows["model.window"][0] == 64


def test_test_options_are_columns_and_floors_are_the_best_reference(cell: Cell) -> None:
    test = score(64, 80).model_copy(
        update={"options": {"pairs": 8}, "references": {"last value": 0.3, "commonest": 0.41}}
    )
    rows = frame("scores", [trained(cell, [test])])
    assert rows["test.pairs"][0] == 8
    assert rows["floor"][0] == 0.41


def test_values_per_sequence_come_from_the_sums(cell: Cell) -> None:
    sums = SequenceSums(totals="10 0 4 0", counts="10 10 5 15")
    test = score(64, 14, 40).model_copy(update={"by_sequence": sums})
    rows = frame("scores", [trained(cell, [test])])
    assert rows["sequences"][0].mean() == pytest.approx(14 / 40)
    assert rows["sequences"][0][0] == pytest.approx(0.35 + (10 - 3.5) / 10)


def test_another_learning_rate_is_no_other_seed(cell: Cell) -> None:
    """Not in a table, and it is named where it tells runs apart."""
    records = []
    for rate in (0.01, 0.003):
        other = cell.model_copy(update={"learning_rate": rate})
        records += [learn_record(other.model_copy(update={"seed": seed})) for seed in range(3)]
    means = add_names(summarise(frame("scores", records), [*IDENTITY, "test_length"], "score"))
    names = ["RWKV-4, learning rate 0.003", "RWKV-4, learning rate 0.01"]
    assert list(dict.fromkeys(means["model_name"])) == names
    assert set(means["seeds"]) == {3}


def test_a_copied_folder_and_another_time_limit_are_no_more_seeds(cell: Cell) -> None:
    first = learn_record(cell)
    later = learn_record(cell.model_copy(update={"time_limit": 7200.0}), correct=70)
    later = later.model_copy(update={"ended": "2026-01-02T00:00:00+00:00"})
    kept, left_out = distinct([first, first, later])
    assert (len(kept), left_out) == (1, 2)
    assert kept[0].cell.time_limit == 7200


def test_another_batch_size_in_tokens_is_the_same_measurement(cell: Cell) -> None:
    tokens = cell.batch_size * cell.length
    by_tokens = cell.model_copy(update={"batch_tokens": tokens})
    assert len(distinct([learn_record(cell), learn_record(by_tokens)])[0]) == 1


def test_another_revision_of_the_data_is_another_measurement(cell: Cell) -> None:
    records = []
    for revision in ("3.11.7", "3.12.1"):
        facts = FACTS.model_copy(update={"data": {"revision": revision}})
        made = learn_record(cell)
        outcome = made.outcome.model_copy(update={"task": facts})
        records.append(made.model_copy(update={"outcome": outcome}))
    assert len(distinct(records)[0]) == 2
    names = add_names(frame("scores", records))["model_name"]
    assert names.nunique() == 2
    assert names.str.contains("data 3.1").all()


def test_pilots_and_calibrations_compare_nothing(cell: Cell) -> None:
    suites = ["recall", "recall-pilot", "calibrate-recall"]
    records = [learn_record(cell, suite=suite) for suite in suites]
    assert [record.suite for record in without_pilots(records)] == ["recall"]


def test_runs_have_a_row_whatever_their_status(cell: Cell) -> None:
    from lookback.benchmarks.record import Outcome

    failed = record(cell, Outcome(status="nan", message="loss\nnot finite"))
    rows = frame("runs", [failed, learn_record(cell)])
    assert list(rows["status"]) == ["nan", "ok"]
    assert rows["message"][0] == "not finite"


def test_names() -> None:
    assert model_name("transformer", '{"window": 64}') == "Transformer, window 64"
    assert model_name("rwkv") == "RWKV-4"
    assert model_name("hf:gpt2") == "hf:gpt2"
    options = '{"pairs": {"low": 2, "high": 32}, "alphabet": 8}'
    assert task_name("recall", options, ["pairs"]) == "recall, 2 to 32 pairs"
    assert task_name("mine", '{"note": "<b>[x](y)|`"}', ["note"]) == "mine, note ?b?[x] (y)??"


def test_names_of_no_rows_are_columns_too(cell: Cell) -> None:
    """A section of a user's own picks them, also from records that hold nothing for it."""
    rows = frame("scores", [learn_record(cell)]).head(0)
    assert {"model_name", "task_name"} <= set(add_names(rows))


def test_models_come_in_the_order_of_tables_and_numbers_by_their_size() -> None:
    names = ["Transformer, window 64", "LSTM", "Transformer, window 16", "mine", "RWKV-4"]
    models = ["transformer", "lstm", "transformer", "mine", "rwkv", "transformer"]
    table = pd.DataFrame({"model": models, "model_name": [*names, "Transformer"]})
    assert list(sort_models(table)["model_name"]) == [
        "Transformer",
        "Transformer, window 16",
        "Transformer, window 64",
        "RWKV-4",
        "LSTM",
        "mine",
    ]


def test_records_that_are_not_there(tmp_path: Path) -> None:
    from lookback.benchmarks.report.make import load

    with pytest.raises(ValueError, match="no folder of records"):
        load(tmp_path / "nowhere")


def test_the_plainest_task_of_a_suite_comes_first(cell: Cell) -> None:
    options = ({"delay": 2, "symbols": 4}, {}, {"delay": 2})
    tasks = [cell.model_copy(update={"task_options": one}) for one in options]
    records, left_out = distinct([learn_record(one) for one in tasks])
    assert [len(record.cell.task_options) for record in records] == [0, 1, 2] and not left_out
