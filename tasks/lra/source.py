"""Offline tasks of the shape of LRA's Text and Retrieval, made from the source of Python's own
standard library.

They stand beside the published tasks, under names of their own, for machines without a network.
Their scores say nothing about IMDB or AAN.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from lookback.tasks.language import byte_symbols, standard_library_files
from lookback.tasks.lra.examples import BYTES, padded_bytes, text_picture
from lookback.tasks.task import SPLITS, Batch, register_task

SIZES = {"train": 20000, "validation": 1000, "test": 2000}
TABLES = {"encodings", "pydoc_data"}  # no code to speak of
FEWEST_LINES = 40  # a shorter file is left out
SHORTEST = 1 / 8  # of the length, for a document that the file does not end


@dataclass(frozen=True)
class Files:
    """Source files of a split as lines, and their sizes added up: long files are drawn more often."""

    lines: tuple[tuple[bytes, ...], ...]
    up_to: tuple[int, ...]

    def draw(self, random: Random) -> int:
        """The number of a file, drawn in proportion to its bytes."""
        return bisect_right(self.up_to, int(random.random() * self.up_to[-1]))


@cache
def _files(split: str) -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        p
        for p in standard_library_files(root)[split]
        if not TABLES.intersection(p.relative_to(root).parts)
    ]
    texts = [tuple(path.read_bytes().splitlines(keepends=True)) for path in paths]
    kept = tuple(lines for lines in texts if len(lines) >= FEWEST_LINES)
    return Files(kept, tuple(accumulate(sum(map(len, lines)) for lines in kept)))


@cache
def _identity() -> dict[str, Any]:
    digest = hashlib.sha256(
        b"".join(line for split in SPLITS for lines in _files(split).lines for line in lines)
    )
    return {
        "source": "Python standard library",
        "revision": platform.python_version(),
        "sha256": digest.hexdigest(),
        "files": {split: len(_files(split).lines) for split in SPLITS},
    }


def passage(lines: tuple[bytes, ...], length: int, random: Random) -> list[bytes]:
    """Consecutive lines, as many as fit into some bytes between an eighth of `length` and all of
    it; one at least.
    """
    room = length * SHORTEST ** random.random()
    first = int(random.random() * max(1, len(lines) - FEWEST_LINES // 4))
    found = [lines[first]]
    for line in lines[first + 1 :]:
        room -= len(found[-1])
        if room < len(line):
            break
        found.append(line)
    return found


def _each(name: str, rows: Tensor, split: str, length: int) -> list[tuple[int, Random]]:
    """A label and a random source for each example, functions of its number."""
    found = []
    for row in rows.tolist():
        digest = hashlib.sha256(f"{name} {split} {length} {row}".encode()).digest()
        random = Random(int.from_bytes(digest, "little"))
        found.append((int(random.random() < 0.5), random))
    return found


def _symbols() -> list[str]:
    return [*byte_symbols(), "_"]


@register_task(
    "source-text",
    vocabulary=BYTES,
    classes=2,
    baseline_score=0.5,
    lengths=(1024, 2048, 4096),
    shortest=256,
    sizes=SIZES,
    symbols=_symbols,
    answers=lambda: ["shuffled", "in order"],
    data=_identity,
    picture=text_picture,
    source="Lookback's own: byte-level classification of the shape of LRA Text, from Python's standard library",
)
def sample_source_text(rows: Tensor, length: int, split: str) -> Batch:
    """A passage of source code as bytes: do its lines stand in their order, or are they shuffled?

        tokens    d e f \u2423 f ( x ) : \\n \u2423 \u2423 r e t u r n \u2423 x _ _
        target    1 when the lines stand as in the file, 0 when they are shuffled

    An eighth of the length to all of it, filled up with PAD. Files of the library belong to one
    split each.

    Tests whether lines far apart are seen to belong together, without a network. Indentation from
    line to line gives much of it away, so that it does not test long reach alone; its scores say
    nothing about IMDB.
    """
    files, texts, labels = _files(split), [], []
    for label, random in _each("source-text", rows, split, length):
        found = passage(files.lines[files.draw(random)], length, random)
        if not label:
            random.shuffle(found)
        texts.append(b"".join(found))
        labels.append(label)
    tokens, lengths = padded_bytes(texts, length)
    return Batch(tokens, torch.tensor(labels), lengths=lengths)


@register_task(
    "source-retrieval",
    vocabulary=BYTES,
    classes=2,
    baseline_score=0.5,
    lengths=(1000, 2000, 4000),
    shortest=256,
    sequences_per_example=2,
    sizes=SIZES,
    symbols=_symbols,
    answers=lambda: ["two files", "one file"],
    data=_identity,
    picture=text_picture,
    source="Lookback's own: pairs of documents of the shape of LRA Retrieval, from Python's standard library",
)
def sample_source_retrieval(rows: Tensor, length: int, split: str) -> Batch:
    """Two passages of source code, read separately: are they from the same file?

    tokens    i m p o r t \u2423 r e _ _        from the first half of a file
              r e . s u b ( _ _ _ _        from the second half of it, or of another
    target    1 for one file, 0 for two

    Tests keeping what a document is about in one vector: neither passage is read with the other in
    view. Does not test comparing them word by word; its scores say nothing about AAN.
    """
    files, texts, labels = _files(split), [], []
    for label, random in _each("source-retrieval", rows, split, length):
        here = files.draw(random)
        there = here if label else _another(files, here, random)
        a, b = files.lines[here], files.lines[there]
        halves = a[: len(a) // 2], b[len(b) // 2 :]
        texts += [b"".join(passage(half, length, random)) for half in halves]
        labels.append(label)
    tokens, lengths = padded_bytes(texts, length)
    return Batch(
        tokens.unflatten(0, (-1, 2)), torch.tensor(labels), lengths=lengths.unflatten(0, (-1, 2))
    )


def _another(files: Files, here: int, random: Random) -> int:
    draw: Callable[[], int] = lambda: files.draw(random)  # noqa: E731
    return next(there for there in iter(draw, None) if there != here)
