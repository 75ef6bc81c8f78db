"""The paper's table: its numbers as printed, both averages computed, and our records beside them,
never mixed up.
"""

import math
from pathlib import Path

import pytest

from lookback.benchmarks.measure.cell import absent_data, check
from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.record import Cell, make_cell
from lookback.benchmarks.report import make_named
from lookback.benchmarks.report.html import read_card
from lookback.benchmarks.report.lra import (
    TASKS,
    averages,
    differences,
    make_table,
    published_rows,
    rows_of,
)
from lookback.benchmarks.report.published import published
from lookback.benchmarks.storage import write_record
from lookback.benchmarks.suite import read_suite
from lookback.tasks.task import get_task
from tests.records import learn_record

SHAPES = {"listops", "source-text", "source-retrieval", "digit-image", "pathfinder", "pathx"}


def lra_cell(task: str = "listops", **fields: object) -> Cell:
    basis = {
        "kind": "learn",
        "model": "rwkv",
        "width": 8,
        "depth": 2,
        "length": 64,
        "batch_size": 32,
        "steps": 6,
    }
    return make_cell({**basis, "task": task, "pooling": "mean", **fields})


def test_every_published_number_has_a_source() -> None:
    table = published()
    assert table["source"].notna().all() and table["setting"].notna().all()
    lra = table[table["comparison"] == "lra"]
    assert len(lra) == 11 * 7 and set(lra["task"]) == {*TASKS, "average"}
    assert (lra["value"].dropna() > 10).all() and (lra["value"].dropna() < 100).all()


def test_printed_averages_follow_one_of_two_rules_but_for_rwkv() -> None:
    follow = {}
    for row in published_rows():
        printed = float(row["as printed"])
        follow[row["model"]] = [
            abs(float(row[column]) - printed) < 0.02
            for column in ("average of six", "average without Path-X")
        ]
    assert follow.pop("RWKV") == [False, False]
    assert follow.pop("Hrrformer") == [False, True]
    assert set(map(tuple, follow.values())) == {(True, False)}


def test_both_averages_of_rwkv() -> None:
    rwkv = dict(zip(TASKS, (55.88, 86.04, 88.34, 70.53, 58.42), strict=False))
    assert averages(rwkv) == (pytest.approx(68.20, abs=0.005), pytest.approx(71.84, abs=0.005))
    assert all(math.isnan(found) for found in averages({"listops": 50.0}))


def test_our_rows_have_seeds_intervals_and_averages(tmp_path: Path) -> None:
    lengths = {"pathfinder": 1024, "pathx": 16384, "image": 1024}
    records = [
        learn_record(lra_cell(task, seed=seed, length=lengths.get(task, 64)), correct, "lra")
        for task in TASKS
        for seed, correct in enumerate((60, 70, 80))
    ]
    made = make_table(records, tmp_path)
    row = next(
        line for line in made.path.read_text().splitlines() if line.startswith("| rwkv (ours)")
    )
    assert row.count("70.00 (45.2 to 94.8, n = 3)") == 6 and "| 70.00 | 70.00 |" in row
    assert "| causal | 2x8: 0.00 M |" in row and "mean pooling" in row


def test_an_unfinished_row_has_no_average_and_readings_have_rows_of_their_own(
    tmp_path: Path,
) -> None:
    records = [
        learn_record(lra_cell(direction=direction, model=model), 50, "lra")
        for direction in ("causal", "bidirectional")
        for model in ("rwkv", "rrwkv")
    ]
    page = make_table(records, tmp_path).path.read_text()
    ours = [line.split(" | ") for line in page.splitlines() if "(ours)" in line]
    assert [(line[0], line[1]) for line in ours] == [
        ("| rrwkv (ours)", "bidirectional"),
        ("| rrwkv (ours)", "causal"),
        ("| rwkv (ours)", "bidirectional"),
        ("| rwkv (ours)", "causal"),
    ]
    assert all(line[9] == "" and line[10] == "" for line in ours)
    assert "withdrawn" in page


def test_of_several_settings_the_best_validated_stands_in_the_table(tmp_path: Path) -> None:
    records = [
        learn_record(lra_cell(learning_rate=rate), correct, "lra")
        for rate, correct in ((1e-3, 40), (1e-2, 90))
    ]
    page = make_table(records, tmp_path).path.read_text()
    assert page.count("(ours)") == 1 and "90.00 (" in page and "40.00 (" not in page


def test_stand_ins_never_enter_the_table(tmp_path: Path) -> None:
    page = make_table(
        [learn_record(lra_cell("source-text", length=256), 90, "lra-smoke")], tmp_path
    ).path.read_text()
    table, _, rest = page.partition("## Stand-ins")
    assert "90.00" not in table and "source-text" not in table and "only the stand-ins" in table
    assert "| source-text | rwkv | causal | mean | 90.00 (" in rest


def test_the_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    for number in range(2):
        for seed in range(2):
            write_record(tmp_path / "results", learn_record(lra_cell(seed=seed), 50, "lra"))
        make_named(tmp_path / "results", tmp_path / f"reports{number}", ["lra-table"])
    pages = [sorted(path for path in (tmp_path / f"reports{n}").rglob("*.*")) for n in range(2)]
    assert [p.read_bytes() for p in pages[0]] == [p.read_bytes() for p in pages[1]]
    place = tmp_path / "reports0" / "some-machine" / "lra-table"
    assert {path.name for path in place.iterdir()} == {"README.md", "index.html", "lra-table.csv"}
    assert "Long Range Arena" in str(read_card(place / "index.html"))
    assert "some-machine/lra-table/index.html" in (tmp_path / "reports0" / "index.html").read_text()
    with pytest.raises(ValueError, match="no records of suite 'lra-paper'"):
        make_named(tmp_path / "results", tmp_path, ["lra-table"], lambda name: f"{name}-paper")


def test_ours_stand_beside_the_papers_with_the_difference() -> None:
    """RWKV's ListOps is printed as 55.88, the Transformer's as 36.37, and neither has a score on
    Path-X.
    """
    records = [
        learn_record(lra_cell(task, seed=seed, model=model), correct, "lra")
        for task in ("listops", "pathx")
        for model in ("rwkv", "transformer", "lstm")
        for seed, correct in enumerate((60, 70, 80))
    ]
    table = differences(rows_of(records)).set_index("model")
    assert table["task"].tolist() == ["ListOps", "ListOps"]
    assert (
        table.loc["rwkv", "difference"] == "+14.12"
        and table.loc["transformer", "difference"] == "+33.63"
    )
    half = 4.302653 * 10 / math.sqrt(3)  # Student's t, two degrees of freedom
    assert table.loc["rwkv", "95 % interval"] == f"{14.12 - half:+.2f} to {14.12 + half:+.2f}"


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_the_suite_covers_all_six(scale: str) -> None:
    cells = read_suite("lra", scale).cells
    assert {cell.task for cell in cells} >= (SHAPES if scale == "smoke" else set(TASKS))
    assert {cell.pooling for cell in cells} == {"mean"} and all(check(cell) for cell in cells[:12])
    if scale == "paper":
        assert {cell.direction for cell in cells} == {"causal", "bidirectional"} and {
            c.seed for c in cells
        } == {
            0,
            1,
            2,
        }


def test_cells_without_data_are_named_with_the_way_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path))
    monkeypatch.delenv("LOOKBACK_CIFAR10", raising=False)
    cells = [lra_cell(), lra_cell("image", length=1024), lra_cell("image", length=1024, seed=1)]
    absent = absent_data(cells)
    assert set(absent) == set(cells[1:]) and all(
        "lookback prefetch image" in line for line in absent.values()
    )


@pytest.mark.parametrize("task", sorted(SHAPES))
def test_each_shape_is_trained_and_scored(task: str, tmp_path: Path) -> None:
    """The smoke scale of the suite, in this process."""
    cell = next(
        cell
        for cell in read_suite("lra", "smoke").cells
        if cell.task == task and cell.model == "rwkv"
    )
    numbers = learn(cell, get_task(task), tmp_path, lambda *said: None, lambda: False)
    assert (
        numbers.steps == 2
        and numbers.tests[0].count == 2
        and numbers.validation
        and numbers.validation.count == 2
    )
