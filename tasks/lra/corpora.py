"""Text, Image and Retrieval: the tasks of Long Range Arena whose data others have published.

Text and Image come from the hub through `datasets`: `lookback prefetch text` fetches the corpus
once, checks it and saves it under data/; runs only read that. Parquet files of the same form are
read where an environment variable names their folder. Retrieval is read from the released archive.
None of these is ever replaced by something like it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.files import data_folder, parquet_files
from lookback.tasks.language import byte_symbols
from lookback.tasks.lra.cache import Integers
from lookback.tasks.lra.examples import BYTES, grey_values, padded_bytes, picture, text_picture
from lookback.tasks.lra.released import PAIRS_NAMES, Pairs, read_pairs, release
from lookback.tasks.task import AbsentCorpusError, Batch, register_task


@dataclass(frozen=True)
class Corpus:
    """A published set of rows with labels: where it is from, and what it must hold."""

    task: str
    hub: str
    variable: str  # of the environment, naming a folder of parquet files
    content: str  # column
    classes: int
    rows: Mapping[str, int]  # of the files "train" and "test"
    validation: int  # so many of the training rows are set aside

    def __hash__(self) -> int:
        return hash(self.task)

    @property
    def folder(self) -> Path:
        """Where it lies once it has been fetched."""
        return data_folder() / self.task

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each split, validation taken from training."""
        train = self.rows["train"] - self.validation
        return {"train": train, "validation": self.validation, "test": self.rows["test"]}


TEXT = Corpus(
    "text", "stanfordnlp/imdb", "LOOKBACK_IMDB", "text", 2, {"train": 25000, "test": 25000}, 2500
)
IMAGE = Corpus(
    "image", "uoft-cs/cifar10", "LOOKBACK_CIFAR10", "img", 10, {"train": 50000, "test": 10000}, 5000
)


@dataclass(frozen=True)
class Rows:
    """A corpus as it is read: tables of its files, and which rows of which file make each split."""

    tables: Mapping[str, Any]  # a pyarrow table for "train" and "test"
    order: Mapping[str, Integers]
    labels: Mapping[str, Integers]
    hashes: Mapping[str, tuple[bytes, ...]]
    column: str

    def read(self, split: str, rows: Integers) -> tuple[list[bytes], Integers, Integers]:
        """Contents, labels and row numbers in the file, of the examples of a split."""
        file, chosen = _file_of(split), self.order[split][rows]
        return contents(self.tables[file], self.column, chosen), self.labels[file][chosen], chosen


def _file_of(split: str) -> str:
    return "test" if split == "test" else "train"


def contents(table: Any, column: str, rows: Sequence[int] | Integers) -> list[bytes]:
    """Texts as UTF-8, or the bytes of image files, of some rows of a table."""
    values = table.column(column).take(np.asarray(rows)).to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value.encode() for value in values]


@cache
def rows_of(corpus: Corpus) -> Rows:
    """The corpus, checked; raises AbsentCorpusError where there is none, ValueError where it is not
    as it must be.
    """
    tables = _tables(corpus)
    hashes = {
        file: tuple(
            hashlib.sha256(c).digest()
            for c in contents(table, corpus.content, np.arange(len(table)))
        )
        for file, table in tables.items()
    }
    labels = {
        file: table.column("label").to_numpy().astype(np.int64) for file, table in tables.items()
    }
    # In the order of their hashes rows are as good as shuffled, the same everywhere, and equal ones
    # stand together.
    order = {
        file: np.array(sorted(range(len(found)), key=found.__getitem__))
        for file, found in hashes.items()
    }
    held_out, train = np.split(order["train"], [corpus.validation])
    splits = {"train": train, "validation": held_out, "test": order["test"]}
    return Rows(tables, splits, labels, hashes, corpus.content)


def _tables(corpus: Corpus) -> dict[str, Any]:
    named = os.environ.get(corpus.variable)
    if named:
        tables = {file: _read_parquet(Path(named), file) for file in corpus.rows}
    elif corpus.folder.is_dir():
        tables = {file: _read_saved(corpus.folder / file) for file in corpus.rows}
    else:
        raise AbsentCorpusError(
            f"task {corpus.task!r} needs {corpus.hub}: `lookback prefetch {corpus.task}` fetches it once, or name a "
            f"folder of its parquet files in the environment variable {corpus.variable}"
        )
    for file, table in tables.items():
        check(corpus, f"{named or corpus.folder}: {file}", file, table)
    return tables


def _read_saved(folder: Path) -> Any:
    """The table that `datasets` saved in a folder, mapped into memory; reading needs pyarrow alone."""
    import pyarrow as pa

    paths = sorted(folder.glob("data-*.arrow"))
    if not paths:
        raise ValueError(f"{folder}: expected files data-*.arrow, found none")
    try:
        return pa.concat_tables(
            [pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths]
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{folder}: expected whole files as `datasets` saves them: {error}"
        ) from None


def _read_parquet(folder: Path, file: str) -> Any:
    """The table of all parquet files of a folder whose names begin with `file`."""
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


def check(corpus: Corpus, where: str, file: str, table: Any) -> None:
    """Raise ValueError, with the row, unless a table has the columns, rows and labels that it must
    have.
    """
    import pyarrow as pa

    for column in (corpus.content, "label"):
        if column not in table.column_names:
            raise ValueError(
                f"{where}: expected a column {column!r}, found {', '.join(table.column_names)}"
            )
        empty = table.column(column).is_null().to_numpy()
        if empty.any():
            raise ValueError(
                f"{where}: row {int(empty.argmax())}: expected a value in column {column!r}, found none"
            )
    kind = table.column(corpus.content).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_struct(kind)):
        raise ValueError(
            f"{where}: expected text or images in column {corpus.content!r}, found {kind}"
        )
    if not pa.types.is_integer(table.column("label").type):
        raise ValueError(
            f"{where}: expected whole numbers in column 'label', found {table.column('label').type}"
        )
    labels = table.column("label").to_numpy()
    wrong = (labels < 0) | (labels >= corpus.classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{where}: row {row}: expected a label of 0 to {corpus.classes - 1}, found {labels[row]}"
        )
    if len(table) != corpus.rows[file]:
        raise ValueError(f"{where}: expected {corpus.rows[file]} rows, found {len(table)}")


def fetch(corpus: Corpus) -> None:
    """Bring a corpus here: from the parquet files that the environment names, or from the hub;
    checked, then saved.
    """
    import datasets

    if corpus.folder.is_dir():
        return
    if os.environ.get(corpus.variable):
        found = {file: datasets.Dataset(table) for file, table in _tables(corpus).items()}
    else:
        loaded = datasets.load_dataset(corpus.hub)
        found = {file: loaded[file] for file in corpus.rows}
        for file, part in found.items():
            check(corpus, f"{corpus.hub}: {file}", file, part.data.table)
    data_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_folder(), prefix=f".{corpus.task}-") as unfinished:
        datasets.DatasetDict(found).save_to_disk(f"{unfinished}/whole")
        shutil.move(f"{unfinished}/whole", corpus.folder)


@cache
def identity(corpus: Corpus) -> dict[str, Any]:
    """Source and hash, and how many rows stand in two splits, as they do in the corpus itself."""
    rows = rows_of(corpus)
    digest = hashlib.sha256(
        b"".join(b"".join(sorted(rows.hashes[file])) for file in corpus.rows)
    ).hexdigest()
    found = {
        split: {rows.hashes[_file_of(split)][row] for row in rows.order[split]}
        for split in corpus.sizes
    }
    return {
        "source": corpus.hub,
        "sha256": digest,
        "test_also_in_train": len(found["test"] & (found["train"] | found["validation"])),
        "validation_also_in_train": len(found["validation"] & found["train"]),
    }


@register_task(
    "text",
    vocabulary=BYTES,
    classes=2,
    baseline_score=0.5,
    lengths=(4096, 2048, 1024),
    shortest=16,
    sizes=TEXT.sizes,
    symbols=lambda: [*byte_symbols(), "_"],
    answers=lambda: ["negative", "positive"],
    data=lambda: identity(TEXT),
    picture=text_picture,
    fetch=lambda length: fetch(TEXT),
    source="LRA Text: IMDB reviews (Maas et al. 2011) as bytes; a tenth of the training reviews set aside to validate",
)
def sample_text(rows: Tensor, length: int, split: str) -> Batch:
    """A film review as bytes, cut at the length: does its author like the film?

        tokens    I t ' s \u2423 f i n e . _ _ _
        target    1

    The published setting validates on the test reviews; here a tenth of the training reviews is set
    aside for that.

    Tests putting bytes together into words and a verdict. Hardly tests reach: a few telling words
    anywhere decide most reviews, and a bag of words does well.
    """
    texts, labels, _ = rows_of(TEXT).read(split, rows.numpy())
    tokens, lengths = padded_bytes(texts, length)
    return Batch(tokens, torch.from_numpy(labels), lengths=lengths)


OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@register_task(
    "image",
    vocabulary=256,
    classes=10,
    baseline_score=0.1,
    lengths=(1024,),
    exact=True,
    sizes=IMAGE.sizes,
    symbols=lambda: [str(grey) for grey in range(256)],
    answers=lambda: OBJECTS,
    data=lambda: identity(IMAGE),
    picture=picture,
    fetch=lambda length: fetch(IMAGE),
    source="LRA Image: CIFAR-10 (Krizhevsky 2009) in 8-bit grey; a tenth of the training images set aside to validate",
)
def sample_image(rows: Tensor, length: int, split: str) -> Batch:
    """A photograph of 32 x 32 pixels in grey, read pixel by pixel: what does it show?

    tokens    grey values 0 to 255, the upper left one first (299 red + 587 green + 114 blue thousandths)
    target    0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck

    Tests relating pixels whose neighbours below lie 32 tokens away, without knowing that there are
    rows. Overfits soon: regularisation decides as much as reach does. In grey, as published; colour
    would be another task.
    """
    files, labels, numbers = rows_of(IMAGE).read(split, rows.numpy())
    where = [f"{IMAGE.hub}: {_file_of(split)}: row {number}" for number in numbers]
    tokens = np.stack(
        [grey_values(file, 32, place) for file, place in zip(files, where, strict=True)]
    )
    return Batch(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(labels))


PAIRS = {"train": 147086, "validation": 18090, "test": 17437}


def pairs_of(split: str) -> Pairs:
    """The pairs of a split, from the file of that split; raises ValueError unless they are as many
    as they must be.
    """
    path = release(f"tsv_data/new_aan_pairs.{PAIRS_NAMES[split]}.tsv")
    pairs = read_pairs(path)
    if len(pairs.labels) != PAIRS[split]:
        raise ValueError(f"{path}: expected {PAIRS[split]} rows, found {len(pairs.labels)}")
    return pairs


def _pairs_identity() -> dict[str, Any]:
    starts: list[NDArray[np.int64]] = [pairs_of(split).starts for split in PAIRS]
    return {
        "source": "lra_release tsv_data",
        "row_sizes_sha256": hashlib.sha256(np.concatenate(starts).tobytes()).hexdigest(),
    }


@register_task(
    "retrieval",
    vocabulary=BYTES,
    classes=2,
    baseline_score=0.5,
    lengths=(4000, 2000, 1000),
    shortest=16,
    sequences_per_example=2,
    sizes=PAIRS,
    symbols=lambda: [*byte_symbols(), "_"],
    answers=lambda: ["unrelated", "related"],
    data=_pairs_identity,
    picture=text_picture,
    source="LRA Retrieval: the ACL Anthology Network (Radev et al. 2013) as bytes, the released pairs",
)
def sample_retrieval(rows: Tensor, length: int, split: str) -> Batch:
    """Two papers as bytes, each cut at the length and read separately by one encoder: does one cite
    the other?

    tokens    W e \u2423 p a r s e ... _ _
              P a r s i n g \u2423 i s ...
    target    1

    Tests keeping what a paper is about in one vector: neither is read with the other in view. Does
    not test reading the whole paper: title and first words often suffice, and no distance can be
    told.
    """
    pairs, chosen = pairs_of(split), rows.numpy()
    texts = [text for pair in pairs.read(chosen.tolist()) for text in pair]
    tokens, lengths = padded_bytes(texts, length)
    labels = torch.from_numpy(pairs.labels[chosen])
    return Batch(tokens.unflatten(0, (-1, 2)), labels, lengths=lengths.unflatten(0, (-1, 2)))
