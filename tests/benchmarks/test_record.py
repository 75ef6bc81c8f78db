"""Cells are values, records are whole files."""

import json
import os
import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from lookback.benchmarks import storage
from lookback.benchmarks.record import Cell, Outcome, Record, make_cell
from lookback.benchmarks.storage import read_record, record_files, write_atomically, write_record
from tests.records import learn_record


def test_a_cell_refuses_what_it_does_not_know(cell: Cell) -> None:
    fields = cell.model_dump()
    for wrong in (
        {"setps": 3},
        {"steps": 0},
        {"steps": "3"},
        {"model": "../rwkv"},
        {"learning_rate": float("nan")},
        {"test_lengths": (0,)},
        {"kind": "lern"},
    ):
        with pytest.raises(ValueError, match=r"expected|unknown field|greater|not"):
            make_cell({**fields, **wrong})
    with pytest.raises(ValidationError):
        cell.steps = 3  # type: ignore[misc]


def test_equal_cells_have_equal_ids_and_others_have_not(cell: Cell) -> None:
    assert make_cell(json.loads(cell.model_dump_json())).id == cell.id
    for change in (
        {"seed": 1},
        {"width": 17},
        {"model_options": {"a": 1}},
        {"learning_rate": 2e-3},
        {"device": "cuda"},
    ):
        assert cell.model_copy(update=change).id != cell.id
    assert cell.id.startswith("copy-rwkv-L24-s0-")


def test_a_field_at_its_default_does_not_change_the_id(cell: Cell) -> None:
    """So fields that are added later leave the ids of older records as they are."""
    assert "weight_decay" not in cell.canonical()
    assert make_cell({**cell.model_dump(), "weight_decay": 0.01}).id == cell.id


def test_records_read_as_written(tmp_path: Path, cell: Cell) -> None:
    record = learn_record(cell)
    path = write_record(tmp_path, record)
    assert path.name == f"{cell.id}.json" and read_record(path) == record
    assert list(record_files(tmp_path)) == [path]


def test_a_resumed_cell_took_the_seconds_of_all_its_processes(cell: Cell) -> None:
    record = learn_record(cell)
    assert record.outcome.learn is not None
    learn = record.outcome.learn.model_copy(update={"seconds": 600.0, "evaluating": 50.0})
    outcome = record.outcome.model_copy(update={"learn": learn})
    resumed = record.model_copy(update={"outcome": outcome, "wall_seconds": 80.0})
    assert resumed.seconds == 650.0
    assert resumed.model_copy(update={"wall_seconds": 670.0}).seconds == 670.0


def test_written_files_have_the_usual_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "UMASK", 0o027)
    write_atomically(tmp_path / "a" / "b.txt", "text")
    assert stat.S_IMODE((tmp_path / "a" / "b.txt").stat().st_mode) == 0o640


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: "", "Invalid JSON"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 0'), "schema_version"),
        (lambda text: text.replace('"steps": 6', '"steps": 7', 1), "does not match the cell"),
        (lambda text: text.replace('"seconds"', '"secs"', 1), "secs: unknown field"),
    ],
)
def test_a_record_that_is_none_is_refused_by_name(
    tmp_path: Path, cell: Cell, change: object, words: str
) -> None:
    path = write_record(tmp_path, learn_record(cell))
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=words) as error:
        read_record(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_ok_needs_numbers(cell: Cell) -> None:
    fields = learn_record(cell).model_dump()
    with pytest.raises(ValidationError, match="must hold its numbers"):
        Record.model_validate({**fields, "outcome": Outcome(status="ok").model_dump()})


def test_work_in_progress_is_no_record(tmp_path: Path, cell: Cell) -> None:
    write_record(tmp_path / ".work" / cell.id, learn_record(cell))
    (tmp_path / f".{cell.id}.json.x1").write_text("half")
    assert not list(record_files(tmp_path))
