"""Two folders: a change is found, noise is not. Two models: paired by seed."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lookback.benchmarks.cli import main
from lookback.benchmarks.record import Cell, Outcome, Record, Timing
from lookback.benchmarks.report.compare import Comparison, compare_folders, compare_models
from lookback.benchmarks.storage import write_record
from tests.records import FACTS, as_cost, cost_record, learn_record, record, score, trained


def folder(path: Path, records: Sequence[Record]) -> Path:
    for one in records:
        write_record(path / one.machine.slug / one.suite, one)
    return path


def both(path: Path, a: Sequence[Record], b: Sequence[Record]) -> Comparison:
    return compare_folders(folder(path / "a", a), folder(path / "b", b))


def seeds(cell: Cell, correct: Sequence[int], **changes: Any) -> list[Record]:
    plain = cell.model_copy(update={"test_lengths": (), **changes})
    return [
        learn_record(plain.model_copy(update={"seed": seed}), right)
        for seed, right in enumerate(correct)
    ]


def verdict(comparison: Comparison, quantity: str) -> str:
    rows = comparison.rows[comparison.rows["quantity"] == quantity]
    assert len(rows) == 1, comparison.rows
    return str(rows["verdict"].iloc[0])


def timed(cell: Cell, median: float, noisy: bool = False, **phase: Any) -> Record:
    """A cost record, all of whose phases took so long, quartiles 5 % around it."""
    made = cost_record(as_cost(cell))
    timing = Timing(median=median, low=0.95 * median, high=1.05 * median, n=20, noisy=noisy)
    assert made.outcome.cost
    phases = {
        name: part.model_copy(update={"seconds": timing, **phase})
        for name, part in made.outcome.cost.phases.items()
    }
    cost = made.outcome.cost.model_copy(update={"phases": phases})
    return made.model_copy(update={"outcome": made.outcome.model_copy(update={"cost": cost})})


def test_a_folder_beside_itself_has_not_changed(cell: Cell, tmp_path: Path) -> None:
    records = [*seeds(cell, [80, 82, 85]), cost_record(as_cost(cell))]
    comparison = both(tmp_path, records, records)
    assert not comparison.failed
    assert set(comparison.rows["verdict"]) == {"equal"}


def test_seeds_that_differ_alike_are_a_change_and_scattered_ones_are_not(
    cell: Cell, tmp_path: Path
) -> None:
    before = seeds(cell, [60, 70, 80])
    assert both(tmp_path / "1", before, seeds(cell, [70, 81, 90])).failed
    scattered = both(tmp_path / "2", before, seeds(cell, [72, 60, 84]))
    assert verdict(scattered, "accuracy") == "within"
    assert not scattered.failed


def test_tests_with_options_are_compared_apart_and_shown_in_words(
    cell: Cell, tmp_path: Path
) -> None:
    def run(of_two: int, of_four: int) -> Record:
        tests = [
            score(24, right).model_copy(update={"options": {"pairs": pairs}})
            for pairs, right in ((2, of_two), (4, of_four))
        ]
        return trained(cell, tests)

    comparison = both(tmp_path, [run(90, 80)], [run(90, 40)])
    scores = comparison.rows[comparison.rows["field"] == "score"]
    assert dict(zip(scores["test_options"], scores["verdict"], strict=True)) == {
        '{"pairs": 2}': "equal",
        '{"pairs": 4}': "changed",
    }
    assert "4 pairs" in str(comparison) and "{" not in str(comparison)


def test_b_beside_a_mirrors_a_beside_b(cell: Cell, tmp_path: Path) -> None:
    draws = random.Random(0)
    a = [*seeds(cell, [draws.randint(20, 90) for _ in range(4)]), timed(cell, 0.5)]
    b = [*seeds(cell, [draws.randint(20, 90) for _ in range(4)]), timed(cell, 0.7)]
    there = compare_folders(folder(tmp_path / "a", a), folder(tmp_path / "b", b)).rows
    back = compare_folders(tmp_path / "b", tmp_path / "a").rows
    assert sorted(there["verdict"]) == sorted(back["verdict"])
    assert sorted(there["difference"].dropna()) == pytest.approx(
        sorted(-back["difference"].dropna())
    )


@pytest.mark.parametrize(
    ("after", "word"),
    [
        ({"median": 1.0}, "equal"),
        ({"median": 1.04}, "within"),
        ({"median": 1.5}, "changed"),
        ({"median": 0.6}, "changed"),
        ({"median": 1.5, "noisy": True}, "noisy"),
    ],
)
def test_times(cell: Cell, tmp_path: Path, after: dict[str, Any], word: str) -> None:
    comparison = both(tmp_path, [timed(cell, 1.0)], [timed(cell, **after)])
    assert verdict(comparison, "training seconds") == word


def test_a_slower_machine_is_no_change(cell: Cell, tmp_path: Path) -> None:
    before = [timed(cell, 1.0, reference_seconds=0.1)]
    slower = [timed(cell, 1.5, reference_seconds=0.15)]
    assert verdict(both(tmp_path / "1", before, slower), "training seconds") == "machine"
    same = [timed(cell, 1.5, reference_seconds=0.1)]
    assert verdict(both(tmp_path / "2", before, same), "training seconds") == "changed"


def test_status_memory_and_parameters(cell: Cell, tmp_path: Path) -> None:
    failed = record(as_cost(cell), Outcome(status="oom"))
    comparison = both(tmp_path / "1", [cost_record(as_cost(cell))], [failed])
    assert verdict(comparison, "status") == "changed"
    larger = cost_record(as_cost(cell), parameters=1235)
    comparison = both(tmp_path / "2", [cost_record(as_cost(cell))], [larger])
    assert verdict(comparison, "parameters") == "changed"
    fatter = timed(cell, 0.5, peak_bytes=1)
    comparison = both(tmp_path / "3", [timed(cell, 0.5)], [fatter])
    assert verdict(comparison, "training peak bytes") == "changed"


def test_a_score_that_is_not_finite_is_a_change(cell: Cell, tmp_path: Path) -> None:
    good, bad = (trained(cell, [score(24, 80).model_copy(update=c)]) for c in ({}, {"score": None}))
    assert both(tmp_path, [good], [bad]).failed


def test_a_run_that_failed_in_one_folder_has_no_scores_to_compare(
    cell: Cell, tmp_path: Path
) -> None:
    trained_once, failed = learn_record(cell), record(cell, Outcome(status="oom"))
    for number, sides in enumerate([(trained_once, failed), (failed, trained_once)]):
        comparison = both(tmp_path / str(number), [sides[0]], [sides[1]])
        assert list(comparison.rows["quantity"]) == ["status"]


def test_bits_of_one_seed_have_no_interval(cell: Cell, tmp_path: Path) -> None:
    facts = FACTS.model_copy(update={"score": "bits per byte"})
    runs = [
        trained(cell, [score(24, 80).model_copy(update={"score": bits})], task=facts)
        for bits in (2.0, 2.0004, 2.01)
    ]
    assert not both(tmp_path / "1", [runs[0]], [runs[1]]).failed
    assert both(tmp_path / "2", [runs[0]], [runs[2]]).failed


def test_another_device_is_the_same_measurement_and_another_rate_is_not(
    cell: Cell, tmp_path: Path
) -> None:
    gpu = [learn_record(cell.model_copy(update={"device": "cuda"}))]
    assert len(both(tmp_path / "1", [learn_record(cell)], gpu).rows) > 0
    rate = [learn_record(cell.model_copy(update={"learning_rate": 0.5}))]
    with pytest.raises(ValueError, match="no measurement in both"):
        both(tmp_path / "2", [learn_record(cell)], rate)


def test_records_of_one_side_are_named(cell: Cell, tmp_path: Path) -> None:
    records = seeds(cell, [80, 82])
    comparison = both(tmp_path, records, records[:1])
    alone = comparison.rows[comparison.rows["verdict"] == "only in A"]
    assert list(alone["seed"]) == [1]
    assert not comparison.failed
    assert "1 only in A" in str(comparison)


def test_json_holds_every_row(cell: Cell, tmp_path: Path) -> None:
    comparison = both(tmp_path, seeds(cell, [60, 70]), seeds(cell, [80, 91]))
    content = json.loads(comparison.as_json())
    assert content["failed"] is True
    assert len(content["rows"]) == len(comparison.rows)


# --- model against model


def two_models(cell: Cell, rwkv: Sequence[int], lstm: Sequence[int]) -> list[Record]:
    made = seeds(cell, rwkv, model="rwkv")
    return made + seeds(cell, lstm, model="lstm")


def test_a_model_is_paired_with_another_by_seed(cell: Cell, tmp_path: Path) -> None:
    levels = [40, 60, 80, 50]
    better = [level + 10 + seed % 2 for seed, level in enumerate(levels)]
    results = folder(tmp_path, two_models(cell, levels, better))
    (row,) = compare_models(results, "lstm", "rwkv").rows.to_dict("records")
    expected = stats.ttest_rel(better, levels).confidence_interval()
    assert row["verdict"] == "better"
    assert row["difference_low"] == pytest.approx(expected.low / 100)
    assert row["difference_high"] == pytest.approx(expected.high / 100)
    assert compare_models(results, "rwkv", "lstm").failed


def test_variants_of_the_other_model_are_not_compared(cell: Cell, tmp_path: Path) -> None:
    variants = []
    for plain in seeds(cell, [10, 10, 10, 10], model="rwkv"):
        changed = plain.cell.model_copy(update={"model_options": {"short_conv": True}})
        variants.append(plain.model_copy(update={"cell": changed, "cell_id": changed.id}))
    levels = [40, 60, 80, 50]
    better = [level + 10 for level in levels]
    results = folder(tmp_path, two_models(cell, levels, better) + variants)
    comparison = compare_models(results, "lstm", "rwkv")
    assert list(comparison.rows["model_name"]) == ["LSTM"] and not comparison.failed
    (row,) = compare_models(results, "rwkv", "rwkv").rows.to_dict("records")
    assert (row["model_name"], row["verdict"]) == ("RWKV-4, short conv", "at floor")


def test_smoke_runs_count_only_where_there_is_nothing_else(cell: Cell, tmp_path: Path) -> None:
    whole = two_models(cell, [40, 60], [50, 70])
    smoke = [run.model_copy(update={"suite": f"{run.suite}-smoke"}) for run in whole]
    for records, suite in ((whole + smoke, whole[0].suite), (smoke, smoke[0].suite)):
        results = folder(tmp_path / suite, records)
        assert set(compare_models(results, "lstm", "rwkv").rows["suite"]) == {suite}


def test_a_model_is_compared_with_a_published_one(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine published it; a score does not depend on the machine."""
    published, own = (
        seeds(cell, [40, 60, 80], model="rwkv"),
        seeds(cell, [52, 71, 93], model="lstm"),
    )
    elsewhere = own[0].machine.model_copy(update={"slug": "my-machine"})
    results = folder(tmp_path / "mine", [r.model_copy(update={"machine": elsewhere}) for r in own])
    folder(tmp_path / "published", published)
    monkeypatch.setattr("lookback.benchmarks.storage.PUBLISHED_RECORDS", tmp_path / "published")
    (row,) = compare_models(results, "lstm", "rwkv", published=True).rows.to_dict("records")
    assert (row["verdict"], row["seeds"]) == ("better", 3)
    with pytest.raises(ValueError, match=r"no records of model 'rwkv' in .*: expected lstm"):
        compare_models(results, "lstm", "rwkv")


def test_an_exit_code_for_scripts(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, two_models(cell, [40, 60, 80], [52, 71, 93]))
    codes = []
    for model, against in (("lstm", "rwkv"), ("rwkv", "lstm"), ("mine", "rwkv")):
        words = ["compare", str(tmp_path), "--model", model, "--against", against]
        monkeypatch.setattr("sys.argv", ["lookback", *words])
        with pytest.raises(SystemExit) as end:
            main()
        codes.append(end.value.code)
    assert codes == [0, 1, 2]
    assert "no records of model 'mine'" in capsys.readouterr().err


def test_models_without_a_common_seed(cell: Cell, tmp_path: Path) -> None:
    records = two_models(cell, [40], [50])
    moved = learn_record(records[1].cell.model_copy(update={"seed": 7}))
    results = folder(tmp_path, [records[0], moved])
    with pytest.raises(ValueError, match="no test of the same seed"):
        compare_models(results, "lstm", "rwkv")
