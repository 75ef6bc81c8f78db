"""The released files of Long Range Arena (lra_release.gz), read where somebody has unpacked them.

    listops-1000/basic_{train,val,test}.tsv               Source, Target; the source in binary parentheses
    tsv_data/new_aan_pairs.{train,eval,test}.tsv          label, id1, id2, text1, text2; no header
    pathfinder32/curv_contour_length_14/metadata/0.npy    text: folder, file, number, label, ...
    pathfinder32/curv_contour_length_14/imgs/0/sample_0.png

Whatever is not as it should be stops with the file, the row, and what was expected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookback.tasks.files import data_folder
from lookback.tasks.lra.cache import Examples, Integers
from lookback.tasks.lra.examples import grey_values
from lookback.tasks.task import AbsentCorpusError

LISTOPS_NAMES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
PAIRS_NAMES = {"train": "train", "validation": "eval", "test": "test"}
LISTOPS_SIGNS = {
    **{str(digit): digit for digit in range(10)},
    "[MIN": 10,
    "[MAX": 11,
    "[MED": 12,
    "[SM": 13,
    "]": 14,
}
KNOWN_EMPTY = ("pathfinder32", "curv_baseline", "imgs/0", "sample_172.png")
"""An empty file of the release: left out, and said so. Any other image that is none is an error."""


def release(inside: str) -> Path:
    """A file or folder of the unpacked release; raises AbsentCorpusError that says where it is
    looked for.
    """
    folder = Path(os.environ.get("LOOKBACK_LRA") or data_folder() / "lra_release")
    if not (folder / inside).exists():
        raise AbsentCorpusError(
            f"{folder / inside} does not exist: unpack lra_release.gz of Long Range Arena and name the folder that "
            f"holds {inside.partition('/')[0]}/ in the environment variable LOOKBACK_LRA"
        )
    return folder / inside


def read_listops(path: Path, length: int) -> Examples:
    """All rows of a ListOps file; raises ValueError on anything but the published form, or over
    `length` tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected lines of text, found a binary file") from None
    if not lines or lines[0].split("\t") != ["Source", "Target"]:
        raise ValueError(
            f"{path}: row 1: expected the header Source<tab>Target, found {lines[0][:40] if lines else ''!r}"
        )
    if len(lines) < 2:
        raise ValueError(
            f"{path}: row 2: expected an expression and its value, found the end of the file"
        )
    tokens = np.full((len(lines) - 1, length), 15, dtype=np.uint8)
    labels, lengths = np.zeros(len(tokens), dtype=np.int64), np.zeros(len(tokens), dtype=np.int64)
    for row, line in enumerate(lines[1:]):
        signs, labels[row] = _listops_row(f"{path}: row {row + 2}", line)
        if len(signs) > length:
            raise ValueError(
                f"{path}: row {row + 2}: expected at most {length} tokens, found {len(signs)}"
            )
        tokens[row, : len(signs)], lengths[row] = signs, len(signs)
    return tokens, labels, lengths


def _listops_row(where: str, line: str) -> tuple[list[int], int]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"{where}: expected 2 columns (Source, Target), found {len(columns)}")
    source, target = columns
    if target not in LISTOPS_SIGNS or len(target) != 1 or target == "]":
        raise ValueError(f"{where}: expected a Target of 0 to 9, found {target[:20]!r}")
    words = source.replace("(", " ").replace(")", " ").split()
    try:
        signs = [LISTOPS_SIGNS[word] for word in words]
    except KeyError as unknown:
        raise ValueError(f"{where}: expected digits, operators and ], found {unknown}") from None
    opened = sum(10 <= sign <= 13 for sign in signs)
    if not signs or opened != signs.count(14) or source.count("(") != source.count(")"):
        raise ValueError(f"{where}: expected a whole expression, every operator closed by ]")
    return signs, int(target)


@dataclass(frozen=True)
class Pairs:
    """A file of labelled pairs of documents, read row by row where needed: it is larger than it
    need be in memory.
    """

    path: Path
    starts: Integers  # of the rows, in bytes; one more for the end of the file
    labels: Integers

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """The two documents of each row."""
        found = []
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(self.starts[row])
                columns = (
                    file.read(self.starts[row + 1] - self.starts[row]).rstrip(b"\r\n").split(b"\t")
                )
                found.append((columns[3], columns[4]))
        return found


@lru_cache(maxsize=3)
def read_pairs(path: Path) -> Pairs:
    """Go through a file of pairs once, checking every row; raises ValueError with the row where it
    is not one.
    """
    starts, labels = [0], []
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != 5:
                raise ValueError(
                    f"{path}: row {row}: expected 5 columns (label, id1, id2, text1, text2), found {len(columns)}"
                )
            if columns[0] not in (b"0", b"1", b"0.0", b"1.0"):
                shown = columns[0][:20].decode(errors="replace")
                raise ValueError(
                    f"{path}: row {row}: expected a label of 0.0 or 1.0, found {shown!r}"
                )
            if not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}: row {row}: expected a line that ends, found the end of a truncated file"
                )
            starts.append(starts[-1] + len(line))
            labels.append(int(float(columns[0])))
    if not labels:
        raise ValueError(f"{path}: row 1: expected a pair of documents, found an empty file")
    return Pairs(path, np.array(starts), np.array(labels))


@dataclass(frozen=True)
class Images:
    """The images that a folder's metadata name, in their order, with labels."""

    folder: Path
    files: tuple[str, ...]
    labels: Integers
    left_out: int


@lru_cache(maxsize=8)
def list_images(folder: Path) -> Images:
    """Every image of a folder such as pathfinder32/curv_contour_length_14, in the order of batches
    and rows.
    """
    metadata = sorted(
        (folder / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem)
    )
    if not metadata:
        raise ValueError(f"{folder / 'metadata'}: expected files 0.npy, 1.npy, ..., found none")
    named = [image for path in metadata for image in _metadata_rows(path)]
    kept = [
        (file, label)
        for file, label in named
        if (folder.parent.name, folder.name, *file) != KNOWN_EMPTY
    ]
    files = tuple("/".join(file) for file, _ in kept)
    return Images(folder, files, np.array([label for _, label in kept]), len(named) - len(kept))


def _metadata_rows(path: Path) -> Iterator[tuple[tuple[str, str], int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected lines of text, found a binary file") from None
    for row, line in enumerate(lines, start=1):
        columns = line.split()
        if len(columns) < 4:
            raise ValueError(
                f"{path}: row {row}: expected a folder, file, number and label, found {len(columns)} columns"
            )
        if columns[3] not in ("0", "1"):
            raise ValueError(f"{path}: row {row}: expected a label of 0 or 1, found {columns[3]!r}")
        yield (columns[0], columns[1]), int(columns[3])


def read_images(folder: str, side: int, digest: str, split: str, rows: Integers) -> Examples:
    """Images number `rows` of a split, side x side, as rows of grey values; `digest` is of the
    metadata.
    """
    images = list_images(Path(folder))
    numbers = rows + split_start(len(images.files), split)
    tokens = np.stack(
        [read_image(Path(folder) / images.files[number], side, number) for number in numbers]
    )
    return tokens, images.labels[numbers], np.full(len(rows), side * side)


def read_image(path: Path, side: int, row: int) -> NDArray[np.uint8]:
    """Grey values of one image, (side * side,); raises ValueError when it is not a whole PNG of
    this size.
    """
    where = f"{path}: image {row}"
    if not path.is_file():
        raise ValueError(f"{where}: expected a PNG of {side} x {side}, found no file")
    return grey_values(path.read_bytes(), side, where)


def split_sizes(count: int) -> dict[str, int]:
    """80, 10 and 10 % of the images, in the order of the files."""
    held_out = count // 10
    return {"train": count - 2 * held_out, "validation": held_out, "test": held_out}


def split_start(count: int, split: str) -> int:
    """The place of a split's first image among all `count`, in the order of the files."""
    sizes = split_sizes(count)
    return {"train": 0, "validation": sizes["train"], "test": sizes["train"] + sizes["validation"]}[
        split
    ]


@lru_cache(maxsize=16)
def digest_of(*paths: Path) -> str:
    """SHA-256 of the files' contents, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
