"""Texts as bytes: written once by `lookback prefetch`, a file a split, and mapped into memory by
whoever reads them.

    data/enwik8/train.bytes         the text of a split, nothing else
    data/enwik8/corpus.json         source, revision, hash, sizes, and what the best constant answer scores

The folder is there whole or not at all. Nothing is copied into a process: pages of the files are
read when they are asked for, and shared between processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lookback.tasks.files import data_folder, parquet_files, whole_folder
from lookback.tasks.task import SPLITS, AbsentCorpusError, Batch

Bytes = NDArray[np.uint8]
Texts = Mapping[str, Iterable[bytes]]
"""Each split's text, in pieces of any size."""
ROWS = 256  # texts of a parquet file that are in memory at once


@dataclass(frozen=True)
class Corpus:
    """A published text: where it is from, and how it is brought here."""

    task: str
    source: str
    variable: str  # of the environment, naming `file`
    file: str  # in words, what of the user's own can be read instead of fetching
    read: Callable[[Path | None], tuple[str, Texts]] = field(repr=False)
    """From what the user named, or from the source: revision, and the texts. Raises ValueError at
    what is not right.
    """

    @property
    def folder(self) -> Path:
        """Where it lies once it has been fetched."""
        return data_folder() / self.task

    def fetch(self) -> None:
        """Bring the corpus here, checked, unless it is here; raises ValueError or OSError that says
        what went wrong.
        """
        with whole_folder(self.folder) as folder:
            if folder:
                named = os.environ.get(self.variable)
                try:
                    revision, texts = self.read(Path(named) if named else None)
                except ConnectionError as error:
                    raise ConnectionError(
                        f"{error}; or name {self.file} in {self.variable}"
                    ) from error
                _write(folder, self.source, revision, texts)
        _ = self.opened  # what was written is what is read

    @property
    def opened(self) -> Opened:
        """The corpus, its files mapped; raises AbsentCorpusError that says how to get it."""
        if not self.folder.is_dir():
            raise AbsentCorpusError(
                f"task {self.task!r} needs {self.source}: `lookback prefetch {self.task}` fetches it once, or reads it "
                f"from {self.file}, where the environment variable {self.variable} names that"
            )
        return _open(self.folder)

    def identity(self) -> dict[str, Any]:
        """What identifies the corpus: source, revision, hash, and the bytes of each split."""
        return {key: value for key, value in self.opened.facts.items() if key != "constant_bits"}

    def constant_bits(self) -> float:
        """Bits per byte of the best constant answer; not a number while the corpus is not here."""
        return float(self.opened.facts["constant_bits"]) if self.folder.is_dir() else math.nan


@dataclass(frozen=True)
class Opened:
    """A corpus that is here: its facts, and the text of each split, mapped into memory."""

    facts: dict[str, Any]
    texts: dict[str, Bytes]


@lru_cache(maxsize=16)
def _open(folder: Path) -> Opened:
    advice = f"delete {folder}, and prefetch it again"
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        texts = {
            split: np.memmap(folder / f"{split}.bytes", mode="r").view(np.ndarray)
            for split in SPLITS
        }
        sizes = {split: facts["bytes"][split] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a whole corpus ({error}): {advice}") from None
    for split, text in texts.items():
        if len(text) != sizes[split]:
            raise ValueError(
                f"{folder}/{split}.bytes: expected {sizes[split]} bytes, found {len(text)}: {advice}"
            )
    return Opened(facts, texts)


def _write(folder: Path, source: str, revision: str, texts: Texts) -> None:
    """Write the splits into a folder, and what identifies them."""
    written = {split: _write_split(folder / f"{split}.bytes", texts[split]) for split in SPLITS}
    counts = {split: count for split, (_, count) in written.items()}
    facts = {
        **identity(
            source,
            revision,
            {split: (digest, int(count.sum())) for split, (digest, count) in written.items()},
        ),
        "constant_bits": constant_bits(counts["train"], counts["test"]),
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_split(path: Path, text: Iterable[bytes]) -> tuple[str, NDArray[np.int64]]:
    """Write a text piece by piece; its SHA-256, and how often each byte stands in it, (256,)."""
    digest, counts = hashlib.sha256(), np.zeros(256, dtype=np.int64)
    with path.open("wb") as file:
        for piece in text:
            file.write(piece)
            digest.update(piece)
            counts += byte_counts(piece)
        file.flush()
        os.fsync(file.fileno())
    if not counts.sum():
        raise ValueError(f"{path.stem}: expected text, found none")
    return digest.hexdigest(), counts


def byte_counts(text: bytes | Bytes) -> NDArray[np.int64]:
    """How often each byte stands in a text, (256,)."""
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)


def constant_bits(train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """Bits per byte of test text when every byte is predicted by its share in the training text;
    from byte counts.
    """
    share = (train + 1.0) / (train + 1.0).sum()
    return float(-(test * np.log2(share)).sum() / test.sum())


def identity(source: str, revision: str, splits: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """What identifies a corpus, for records; of each split its hash and its bytes are given."""
    hashes = "".join(splits[split][0] for split in SPLITS)
    return {
        "source": source,
        "revision": revision,
        "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "bytes": {split: splits[split][1] for split in SPLITS},
    }


def hub_texts(
    hub: str,
    configuration: str | None,
    named: Path | None,
    rows: Mapping[str, int],
    written: Callable[[str], bytes],
) -> tuple[str, Texts]:
    """Revision and texts of a corpus on the hub, column `text`, from its parquet files.

    Args:
        named: a folder of these files, as the hub has them; without it they are fetched.
        rows: how many each split must have.
        written: the bytes of a row.
    """
    revision, files = (
        _parquet_there(hub, configuration) if named is None else _parquet_here(named, configuration)
    )
    return revision, {split: _texts(files[split], rows[split], written) for split in SPLITS}


def _parquet_here(folder: Path, configuration: str | None) -> tuple[str, dict[str, list[Path]]]:
    own = folder / configuration if configuration else folder
    return "not known", {
        split: parquet_files(own if own.is_dir() else folder, split) for split in SPLITS
    }


def _parquet_there(hub: str, configuration: str | None) -> tuple[str, dict[str, list[Path]]]:
    """Fetch the files that the hub's card names; what is fetched once stays in the cache of
    `datasets`.
    """
    import datasets

    try:
        named = datasets.load_dataset_builder(hub, configuration).config.data_files
        places = {split: [str(place) for place in named[split]] for split in SPLITS}
        fetched = datasets.DownloadManager().download(places)
    except Exception as error:  # of many kinds, by what is between here and the hub
        raise ConnectionError(
            f"cannot fetch {hub}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    return _revision(places["train"][0]), {
        split: [Path(path) for path in fetched[split]] for split in SPLITS
    }


def _revision(place: str) -> str:
    """The commit in hf://datasets/owner/name@commit/path."""
    return place.partition("@")[2].partition("/")[0] or "not known"


def _texts(paths: Iterable[Path], rows: int, written: Callable[[str], bytes]) -> Iterator[bytes]:
    """The rows of parquet files as bytes, read a few at a time; raises ValueError that names the
    file and the row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen = 0
    for path in paths:
        try:
            for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=["text"]):
                if not batch.num_columns or not pa.types.is_string(batch.schema.field("text").type):
                    raise ValueError(
                        f"{path}: expected a column 'text' of strings, found {pq.read_schema(path).names}"
                    )
                texts = batch.column(0).to_pylist()
                if None in texts:
                    raise ValueError(
                        f"{path}: row {seen + texts.index(None)} of the split: expected text, found none"
                    )
                yield b"".join(map(written, texts))
                seen += len(texts)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: expected a whole parquet file: {error}") from None
    if seen != rows:
        raise ValueError(
            f"{path.parent}: expected {rows} rows in {path.name} and those beside it, found {seen}"
        )


def windows(
    task: str, text: Bytes, batch_size: int, length: int, generator: torch.Generator, split: str
) -> Batch:
    """Windows from anywhere in a text; every position asks for the next byte.

    In validation and test they begin at places that do not depend on the length, but for those
    which the end of the text cuts off: these begin anew at its start. So scores at two lengths are
    of the same text, read less or more far.
    """
    if len(text) < 2 * length:
        raise ValueError(
            f"task {task!r}: {split} has {len(text)} bytes, too few for windows of {length}"
        )
    places = len(text) - length
    starts = (
        torch.randint(
            places if split == "train" else len(text), (batch_size, 1), generator=generator
        )
        % places
    )
    found = np.stack([text[start : start + length + 1] for start in starts.flatten().tolist()])
    window = torch.from_numpy(found).long()
    return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous())
