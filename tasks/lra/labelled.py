"""Labelled corpora of the hub: fetching, checking and reading them.

`lookback prefetch` saves a corpus once as parquet files under data/. Parquet files of the same form
are used instead if an environment variable names their folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lookback.tasks.files import data_folder, whole_folder
from lookback.tasks.hub import files_in, find_files, read_parquet
from lookback.tasks.task import AbsentCorpusError

FILES = ("train", "test")
"""The files of the hub. Rows of "train" are set aside for validation."""


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


class Row(NamedTuple):
    """A row of a corpus. Rows are sorted by the hash of their content."""

    sha256: bytes
    number: int  # in its file
    content: bytes  # a text in UTF-8, or an image file
    label: int


def fetch(corpus: LabelledCorpus) -> None:
    """Save a corpus, from the user's parquet files or from the hub, unless it is saved already.

    Raises ValueError if the content is wrong, ConnectionError if the hub cannot be reached.
    """
    import pyarrow.parquet as pq

    with whole_folder(corpus.folder) as folder:
        if folder is not None:
            copy = os.environ.get(corpus.variable)
            _, files = find_files(corpus.hub, None, Path(copy) if copy else None, FILES)
            for file, paths in files.items():
                pq.write_table(read_table(corpus, file, paths), folder / f"{file}.parquet")


@cache
def open_corpus(corpus: LabelledCorpus) -> dict[str, list[Row]]:
    """Return the rows of each split of a corpus.

    Raises AbsentCorpusError if it is not on this machine, ValueError if its content is wrong.
    """
    folder = Path(os.environ.get(corpus.variable) or corpus.folder)
    if not folder.is_dir():
        raise AbsentCorpusError(
            f"task {corpus.task!r} needs {corpus.hub}: `lookback prefetch {corpus.task}` fetches "
            "it once, or name a folder of its parquet files in the environment variable "
            f"{corpus.variable}"
        )

    rows: dict[str, list[Row]] = {}
    for file in FILES:
        table = read_table(corpus, file, files_in(folder, file))
        rows[file] = []
        values = table.column(corpus.column).to_pylist()
        labels = table.column("label").to_pylist()
        for number, (value, label) in enumerate(zip(values, labels, strict=True)):
            content = value.encode() if isinstance(value, str) else value["bytes"]
            sha256 = hashlib.sha256(content).digest()
            rows[file].append(Row(sha256, number, content, label))
        # Sorting by hash shuffles the rows, in the same way everywhere, and puts equal rows side by
        # side, so that few of them end up in two splits.
        rows[file].sort()
    return {
        "validation": rows["train"][: corpus.validation],
        "train": rows["train"][corpus.validation :],
        "test": rows["test"],
    }


def read_table(corpus: LabelledCorpus, file: str, paths: Sequence[Path]) -> Any:
    """Return the contents and labels of a file of the hub as a checked table of pyarrow.

    Raises ValueError that names the file, and the row if one is wrong.
    """
    import pyarrow as pa

    table = pa.Table.from_batches(read_parquet(paths, [corpus.column, "label"]))
    name = f"{paths[0].parent}: {file}"
    contents = table.column(corpus.column)
    labels = table.column("label")
    is_text = contents.type in (pa.string(), pa.large_string())
    is_image = pa.types.is_struct(contents.type)
    if not ((is_text or is_image) and pa.types.is_integer(labels.type)):
        raise ValueError(
            f"{name}: expected text or images in column {corpus.column!r} and whole numbers in "
            f"column 'label', found {contents.type} and {labels.type}"
        )

    numbers = labels.fill_null(-1).to_numpy()
    valid = contents.is_valid().to_numpy() & (numbers >= 0) & (numbers < corpus.classes)
    if not valid.all():
        row = int(valid.argmin())
        raise ValueError(
            f"{name}: row {row}: expected a value in column {corpus.column!r} and a label of 0 to "
            f"{corpus.classes - 1}, found {contents[row].as_py()!r:.40} and label {labels[row]}"
        )
    rows = corpus.train_rows if file == "train" else corpus.test_rows
    if len(table) != rows:
        raise ValueError(f"{name}: expected {rows} rows, found {len(table)}")
    return table


@cache
def identity(corpus: LabelledCorpus) -> dict[str, Any]:
    """Return source and hash of a corpus, and the numbers of rows that occur in two splits."""
    digest = hashlib.sha256()
    hashes = {}
    # In the order of the hashes in each file: validation rows are the first of "train".
    for split in ("validation", "train", "test"):
        rows = open_corpus(corpus)[split]
        hashes[split] = {row.sha256 for row in rows}
        for row in rows:
            digest.update(row.sha256)
    return {
        "source": corpus.hub,
        "sha256": digest.hexdigest(),
        "test_also_in_train": len(hashes["test"] & (hashes["train"] | hashes["validation"])),
        "validation_also_in_train": len(hashes["validation"] & hashes["train"]),
    }
