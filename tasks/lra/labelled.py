"""Labelled corpora of the hub: fetching, checking and reading them.

`datasets` downloads a corpus once and saves it under data/. Parquet files of the same form are used
instead if an environment variable names their folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lookback.tasks.files import data_folder, parquet_files, whole_folder
from lookback.tasks.lra.cache import Integers
from lookback.tasks.task import AbsentCorpusError

FILES = {"train": "train", "validation": "train", "test": "test"}
"""The file of the hub that each split is taken from."""


@dataclass(frozen=True)
class LabelledCorpus:
    """A published set of rows with labels: its source, and what it must contain."""

    task: str
    hub: str
    variable: str  # environment variable that names a folder of parquet files
    column: str  # of texts or images; the labels are in the column "label"
    classes: int
    train_rows: int
    test_rows: int
    validation: int  # number of training rows set aside for validation

    @property
    def folder(self) -> Path:
        """The folder of the prefetched corpus."""
        return data_folder() / self.task

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {
            "train": self.train_rows - self.validation,
            "validation": self.validation,
            "test": self.test_rows,
        }


@dataclass(frozen=True)
class LabelledRows:
    """The tables of a corpus, and the rows of each split. A table is of pyarrow."""

    column: str
    tables: Mapping[str, Any]  # by file
    labels: Mapping[str, Integers]  # by file
    hashes: Mapping[str, list[bytes]]  # by file: SHA-256 of the content of each row
    rows: Mapping[str, Integers]  # by split: numbers of its rows in the file

    def read(self, split: str, numbers: Integers) -> tuple[list[bytes], Integers, Integers]:
        """Return contents, labels and row numbers in the file, of examples of a split."""
        file = FILES[split]
        rows = self.rows[split][numbers]
        return contents(self.tables[file], self.column, rows), self.labels[file][rows], rows


def contents(table: Any, column: str, rows: Integers) -> list[bytes]:
    """Return texts as UTF-8, or the bytes of image files, of rows of a table."""
    import pyarrow as pa

    values = table.column(column).take(rows)
    if pa.types.is_struct(values.type):
        return [image["bytes"] for image in values.to_pylist()]
    return [text.encode() for text in values.to_pylist()]


@cache
def open_corpus(corpus: LabelledCorpus) -> LabelledRows:
    """Open and check a corpus.

    Raises AbsentCorpusError if it is not on this machine, ValueError if its content is wrong.
    """
    tables = read_tables(corpus)
    labels = {}
    hashes = {}
    order = {}
    for file, table in tables.items():
        labels[file] = table.column("label").to_numpy().astype(np.int64)
        rows = contents(table, corpus.column, np.arange(len(table)))
        hashes[file] = [hashlib.sha256(content).digest() for content in rows]
        # Sorting by hash shuffles the rows, in the same way everywhere, and puts equal rows side by
        # side, so that few of them end up in two splits.
        order[file] = np.array(sorted(range(len(rows)), key=hashes[file].__getitem__))

    validation, train = np.split(order["train"], [corpus.validation])
    splits = {"train": train, "validation": validation, "test": order["test"]}
    return LabelledRows(corpus.column, tables, labels, hashes, splits)


def read_tables(corpus: LabelledCorpus) -> dict[str, Any]:
    """Return the checked tables "train" and "test" of a corpus."""
    copy = os.environ.get(corpus.variable)
    if copy:
        folder = Path(copy)
        tables = {file: read_parquet(folder, file) for file in ("train", "test")}
    elif corpus.folder.is_dir():
        folder = corpus.folder
        tables = {file: read_saved(folder / file) for file in ("train", "test")}
    else:
        raise AbsentCorpusError(
            f"task {corpus.task!r} needs {corpus.hub}: `lookback prefetch {corpus.task}` fetches "
            "it once, or name a folder of its parquet files in the environment variable "
            f"{corpus.variable}"
        )
    for file, table in tables.items():
        check_table(corpus, f"{folder}: {file}", file, table)
    return tables


def read_saved(folder: Path) -> Any:
    """Return the table that `datasets` saved in a folder, mapped into memory."""
    import pyarrow as pa

    paths = sorted(folder.glob("data-*.arrow"))
    if not paths:
        raise ValueError(f"{folder}: expected files data-*.arrow, found none")
    try:
        streams = [pa.ipc.open_stream(pa.memory_map(str(path))) for path in paths]
        return pa.concat_tables([stream.read_all() for stream in streams])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{folder}: expected whole files as `datasets` saves them: {error}"
        ) from None


def read_parquet(folder: Path, file: str) -> Any:
    """Return the table of all parquet files of a folder whose names begin with `file`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in parquet_files(folder, file):
        try:
            tables.append(pq.read_table(path))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: expected a whole parquet file: {error}") from None
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(
            f"{folder}: expected {file}*.parquet to have the same columns: {error}"
        ) from None


def check_table(corpus: LabelledCorpus, name: str, file: str, table: Any) -> None:
    """Raise ValueError that begins with `name` unless a table has the right columns and rows."""
    import pyarrow as pa

    for column in (corpus.column, "label"):
        if column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise ValueError(f"{name}: expected a column {column!r}, found {columns}")
        empty = table.column(column).is_null().to_numpy()
        if empty.any():
            row = int(empty.argmax())
            raise ValueError(
                f"{name}: row {row}: expected a value in column {column!r}, found none"
            )

    kind = table.column(corpus.column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_struct(kind)):
        raise ValueError(
            f"{name}: expected text or images in column {corpus.column!r}, found {kind}"
        )
    kind = table.column("label").type
    if not pa.types.is_integer(kind):
        raise ValueError(f"{name}: expected whole numbers in column 'label', found {kind}")

    labels = table.column("label").to_numpy()
    wrong = (labels < 0) | (labels >= corpus.classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{name}: row {row}: expected a label of 0 to {corpus.classes - 1}, found {labels[row]}"
        )

    rows = corpus.train_rows if file == "train" else corpus.test_rows
    if len(table) != rows:
        raise ValueError(f"{name}: expected {rows} rows, found {len(table)}")


def fetch(corpus: LabelledCorpus) -> None:
    """Save a corpus, from the user's parquet files or from the hub, unless it is saved already."""
    import datasets

    with whole_folder(corpus.folder) as folder:
        if folder is None:
            return
        if os.environ.get(corpus.variable):
            tables = {file: datasets.Dataset(table) for file, table in read_tables(corpus).items()}
        else:
            loaded = datasets.load_dataset(corpus.hub)
            tables = {file: loaded[file] for file in ("train", "test")}
            for file, dataset in tables.items():
                check_table(corpus, f"{corpus.hub}: {file}", file, dataset.data.table)
        datasets.DatasetDict(tables).save_to_disk(str(folder))


@cache
def identity(corpus: LabelledCorpus) -> dict[str, Any]:
    """Return source and hash of a corpus, and the numbers of rows that occur in two splits."""
    opened = open_corpus(corpus)
    joined = b"".join(b"".join(sorted(opened.hashes[file])) for file in ("train", "test"))

    hashes = {}
    for split, rows in opened.rows.items():
        in_file = opened.hashes[FILES[split]]
        hashes[split] = {in_file[row] for row in rows}
    return {
        "source": corpus.hub,
        "sha256": hashlib.sha256(joined).hexdigest(),
        "test_also_in_train": len(hashes["test"] & (hashes["train"] | hashes["validation"])),
        "validation_also_in_train": len(hashes["validation"] & hashes["train"]),
    }
