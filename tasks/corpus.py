"""Text corpora as bytes: written once by `lookback prefetch`, then mapped into memory by readers.

    data/enwik8/train.bytes         the text of a split, nothing else
    data/enwik8/corpus.json         source, revision, hash, sizes, score of the constant baseline

The folder is either complete or absent. Reading copies nothing: the operating system loads pages
of the files on demand and shares them between processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.files import data_folder, whole_folder
from lookback.tasks.hub import find_files, read_parquet
from lookback.tasks.references import ngram_references
from lookback.tasks.task import IGNORE, SPLITS, AbsentCorpusError, Batch, Options

BLOCK = 4224  # bytes between ends of held-out windows: 4,096 of context, and 128 to score
FEWEST = 8  # of such blocks in a text
PASSAGE = 64  # bytes that are repeated

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]  # (256,): occurrences of each byte
Texts = Mapping[str, Iterable[bytes]]
"""The text of each split, in pieces of any size."""


@dataclass(frozen=True)
class Corpus:
    """A published text: its source, and how to get it onto this machine."""

    task: str
    source: str

    variable: str
    """Environment variable that names the user's own copy."""

    file: str
    """Description of the copy that `variable` may name."""

    read: Callable[[Path | None], tuple[str, Texts]] = field(repr=False)
    """Return revision and texts, from the user's copy, or from the source if that is None.

    Raises ValueError if the content is wrong, ConnectionError if the source cannot be reached.
    """

    @property
    def folder(self) -> Path:
        """The folder of the prefetched corpus."""
        return data_folder() / self.task

    def fetch(self) -> None:
        """Get and check the corpus, unless it is on this machine already.

        Raises ValueError or OSError that says what went wrong.
        """
        with whole_folder(self.folder) as folder:
            if folder is not None:
                copy = os.environ.get(self.variable)
                try:
                    revision, texts = self.read(Path(copy) if copy else None)
                except ConnectionError as error:
                    message = f"{error}; or name {self.file} in {self.variable}"
                    raise ConnectionError(message) from error
                _write(folder, self.source, revision, texts)
        _ = self.opened  # raises if the files cannot be read back

    @property
    def opened(self) -> OpenedCorpus:
        """The corpus with its files mapped; raises AbsentCorpusError that says how to get it."""
        if not self.folder.is_dir():
            raise AbsentCorpusError(
                f"task {self.task!r} needs {self.source}: `lookback prefetch {self.task}` fetches "
                f"it once, or reads it from {self.file} that the environment variable "
                f"{self.variable} names"
            )
        return _open(self.folder)

    def identity(self) -> dict[str, Any]:
        """Return what identifies the corpus: source, revision, hash, and bytes of each split."""
        return {key: value for key, value in self.opened.facts.items() if key != "constant_bits"}

    def constant_bits(self) -> float:
        """Return the bits per byte of the constant baseline, or NaN if the corpus is absent."""
        return float(self.opened.facts["constant_bits"]) if self.folder.is_dir() else math.nan

    def sample(self, rows: Tensor, length: int, split: str, **options: int) -> Batch:
        """Return a batch of windows of a split; see `windows`."""
        return windows(self.task, self.opened.texts[split], rows, length, split, **options)

    def task_facts(self) -> dict[str, Any]:
        """Return the facts, arguments of `register_task`, that the tasks of all corpora share."""
        return {
            "vocabulary": 256,
            "score": "bits per byte",
            "baseline_score": lambda options: self.constant_bits(),
            "symbols": byte_symbols(),
            "shortest": shortest_window,
            "windows": lambda split, length: count_windows(self.opened.texts[split], length),
            "references": ngram_references(lambda: self.opened.texts["train"]),
            "data": lambda options: self.identity(),
            "fetch": lambda length, options: self.fetch(),
        }


@dataclass(frozen=True)
class OpenedCorpus:
    """A corpus on this machine: its facts, and the text of each split, mapped into memory."""

    facts: dict[str, Any]
    texts: dict[str, Bytes]


@lru_cache(maxsize=16)
def _open(folder: Path) -> OpenedCorpus:
    """Map the files of a corpus; raises ValueError if one is missing or damaged."""
    texts = {}
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        for split in SPLITS:
            texts[split] = np.memmap(folder / f"{split}.bytes", mode="r").view(np.ndarray)
            expected = facts["bytes"][split]
            if len(texts[split]) != expected:
                raise ValueError(
                    f"{split}.bytes: expected {expected} bytes, found {len(texts[split])}"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: not a whole corpus ({error}): delete it, and prefetch it again"
        ) from None
    return OpenedCorpus(facts, texts)


def _write(folder: Path, source: str, revision: str, texts: Texts) -> None:
    """Write the text of each split into a folder, and the facts that identify the corpus."""
    hashes = {}
    counts = {}
    sizes = {}
    for split in SPLITS:
        hashes[split], counts[split] = _write_split(folder / f"{split}.bytes", texts[split])
        sizes[split] = int(counts[split].sum())

    facts = identity(source, revision, hashes, sizes)
    facts["constant_bits"] = constant_bits(counts["train"], counts["test"])
    (folder / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_split(path: Path, text: Iterable[bytes]) -> tuple[str, Counts]:
    """Write a text piece by piece; returns its SHA-256 and its byte counts.

    Raises ValueError if the text is empty.
    """
    digest = hashlib.sha256()
    counts = np.zeros(256, dtype=np.int64)
    with path.open("wb") as file:
        for piece in text:
            file.write(piece)
            digest.update(piece)
            counts += byte_counts(piece)
        file.flush()
        os.fsync(file.fileno())

    if not counts.any():
        raise ValueError(f"{path.stem}: expected text, found none")
    return digest.hexdigest(), counts


def byte_symbols() -> list[str]:
    """Return readable forms of the 256 bytes: printable ASCII as it is, all others as escapes."""
    symbols = [f"\\x{byte:02x}" for byte in range(256)]
    for byte in range(33, 127):
        symbols[byte] = chr(byte)
    symbols[ord("\n")] = "\\n"
    symbols[ord(" ")] = "\u2423"
    return symbols


def byte_counts(text: bytes | Bytes) -> Counts:
    """Return the occurrences of each byte in a text: (256,)."""
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)


def constant_bits(train: Counts, test: Counts) -> float:
    """Return the bits per byte of the constant baseline on the test text, from byte counts.

    It predicts every byte by its share in the training text, where each byte counts once more than
    it occurs, so that none has probability zero.
    """
    share = (train + 1.0) / (train + 1.0).sum()
    return float(-(test * np.log2(share)).sum() / test.sum())


def identity(
    source: str, revision: str, hashes: Mapping[str, str], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return what identifies a corpus in a record, from the SHA-256 and the bytes of each split."""
    joined = "".join(hashes[split] for split in SPLITS)
    return {
        "source": source,
        "revision": revision,
        "sha256": hashlib.sha256(joined.encode()).hexdigest(),
        "bytes": {split: sizes[split] for split in SPLITS},
    }


def hub_texts(
    hub: str,
    configuration: str | None,
    folder: Path | None,
    rows: Mapping[str, int],
    encode: Callable[[str], bytes],
) -> tuple[str, Texts]:
    """Return revision and texts of a corpus on the hub: column `text` of its parquet files.

    Args:
        folder: the user's copy of these files, laid out as on the hub; None downloads them.
        rows: number of rows that each split must have.
        encode: returns the bytes of a row.
    """
    revision, files = find_files(hub, configuration, folder, SPLITS)
    return revision, {split: _read_texts(files[split], rows[split], encode) for split in SPLITS}


def _read_texts(
    paths: Sequence[Path], rows: int, encode: Callable[[str], bytes]
) -> Iterator[bytes]:
    """Yield the rows of parquet files as bytes, several at a time.

    Raises ValueError that names the file, and the row where one is wrong.
    """
    count = 0
    for batch in read_parquet(paths, ["text"]):
        texts = batch.column("text").to_pylist()
        for row, text in enumerate(texts, start=count):
            if not isinstance(text, str):
                raise ValueError(
                    f"{paths[0]}: row {row} of the split: expected text, found {text!r:.40}"
                )
        yield b"".join(map(encode, texts))
        count += len(texts)

    if count != rows:
        raise ValueError(f"{paths[0]}: expected {rows} rows in the split, found {count}")


def block_length(text: Bytes, length: int) -> int:
    """Return the bytes between the ends of two windows of validation or test.

    A multiple of BLOCK if the text has at least FEWEST such blocks, so that windows of several
    lengths end at the same positions; otherwise the length.
    """
    block = -(-length // BLOCK) * BLOCK
    return block if len(text) // block >= FEWEST else length


def count_windows(text: Bytes, length: int) -> int:
    """Return how many windows of a text do not overlap; see `block_length`."""
    return (len(text) - 1) // block_length(text, length)


def windows(
    task: str,
    text: Bytes,
    rows: Tensor,
    length: int,
    split: str,
    *,
    scored: int = 0,
    repeat: int = 0,
) -> Batch:
    """Return windows of a text; each position asks for the next byte.

    Args:
        rows: (batch,) int64. In training, a window starts at the remainder of its number by the
            possible starts. In validation and test, window n ends at a fixed position whatever its
            length, so that scores at several lengths are of the same bytes with less or more
            context; windows do not overlap.
        scored: how many of the last positions are asked; 0: all of them.
        repeat: the last PASSAGE bytes of the window also stand `repeat` + PASSAGE bytes earlier,
            with `repeat` bytes of the text between; 0: nothing is repeated.

    Raises ValueError if the text is too short.
    """
    if len(text) < 2 * length:
        raise ValueError(
            f"task {task!r}: {split} has {len(text)} bytes, too few for windows of {length}"
        )
    if split == "train":
        starts = rows % (len(text) - length)
    else:
        starts = (rows + 1) * block_length(text, length) - length

    contents = np.stack([text[start : start + length + 1] for start in starts.tolist()])
    tokens = torch.from_numpy(contents).long()  # (batch, length + 1)
    if repeat:
        at = length + 1 - 2 * PASSAGE - repeat
        tokens[:, at : at + PASSAGE] = tokens[:, -PASSAGE:]
    targets = tokens[:, 1:].contiguous()
    if scored:
        targets[:, :-scored] = IGNORE
    return Batch(tokens[:, :-1].contiguous(), targets)


def shortest_window(options: Options) -> int:
    """Return the shortest window that holds what its options ask for."""
    return max(1, options.scored, 2 * PASSAGE + options.repeat if options.repeat else 0)
