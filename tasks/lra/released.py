"""Readers of the released archive of Long Range Arena (lra_release.gz), unpacked by the user.

    listops-1000/basic_{train,val,test}.tsv               Source, Target; the source in parentheses
    tsv_data/new_aan_pairs.{train,eval,test}.tsv          label, id1, id2, text1, text2; no header
    pathfinder32/curv_contour_length_14/metadata/0.npy    text: folder, file, number, label, ...
    pathfinder32/curv_contour_length_14/imgs/0/sample_0.png

Any deviation raises ValueError with the file, the row, and what was expected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lookback.tasks.files import data_folder
from lookback.tasks.lra import trees
from lookback.tasks.lra.cache import Examples, Integers
from lookback.tasks.lra.examples import grey_values
from lookback.tasks.task import AbsentCorpusError

LISTOPS_NAMES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
PAIRS_NAMES = {"train": "train", "validation": "eval", "test": "test"}
LISTOPS_TOKENS = {symbol: token for token, symbol in enumerate(trees.SYMBOLS[: trees.PAD])}
KNOWN_EMPTY = ("pathfinder32", "curv_baseline", "imgs/0", "sample_172.png")
"""The empty image of the release, which is left out and counted. Any other one is an error."""


def release(inside: str) -> Path:
    """Return a file or folder of the unpacked archive.

    Raises AbsentCorpusError that says where it was expected.
    """
    folder = Path(os.environ.get("LOOKBACK_LRA") or data_folder() / "lra_release")
    if not (folder / inside).exists():
        raise AbsentCorpusError(
            f"{folder / inside} does not exist: unpack lra_release.gz of Long Range Arena and name "
            f"the folder that holds {inside.partition('/')[0]}/ in the environment variable "
            "LOOKBACK_LRA"
        )
    return folder / inside


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raises ValueError if it is binary."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected lines of text, found a binary file") from None


def read_listops(path: Path, length: int) -> Examples:
    """Return all rows of a ListOps file, padded to `length` tokens.

    Raises ValueError if a row has another form than the published one, or is longer.
    """
    header, *lines = read_lines(path) or [""]
    if header.split("\t") != ["Source", "Target"]:
        raise ValueError(
            f"{path}: row 1: expected the header Source<tab>Target, found {header[:40]!r}"
        )
    if not lines:
        raise ValueError(
            f"{path}: row 2: expected an expression and its value, found the end of the file"
        )

    examples = Examples(
        tokens=np.full((len(lines), length), trees.PAD, dtype=np.uint8),
        labels=np.zeros(len(lines), dtype=np.int64),
        lengths=np.zeros(len(lines), dtype=np.int64),
    )
    for row, line in enumerate(lines):
        name = f"{path}: row {row + 2}"
        tokens, examples.labels[row] = parse_listops(name, line)
        if len(tokens) > length:
            raise ValueError(f"{name}: expected at most {length} tokens, found {len(tokens)}")
        examples.tokens[row, : len(tokens)] = tokens
        examples.lengths[row] = len(tokens)
    return examples


def parse_listops(name: str, line: str) -> tuple[list[int], int]:
    """Return the tokens and the value of an expression; errors begin with `name`."""
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"{name}: expected 2 columns (Source, Target), found {len(columns)}")
    source, target = columns
    if target not in trees.SYMBOLS[:10]:
        raise ValueError(f"{name}: expected a Target of 0 to 9, found {target[:20]!r}")

    # The source is written in binary, left-associated parentheses, which carry no information.
    words = source.replace("(", " ").replace(")", " ").split()
    try:
        tokens = [LISTOPS_TOKENS[word] for word in words]
    except KeyError as unknown:
        raise ValueError(f"{name}: expected digits, operators and ], found {unknown}") from None

    operators = sum(trees.MIN <= token <= trees.SM for token in tokens)
    balanced = source.count("(") == source.count(")")
    if not tokens or operators != tokens.count(trees.CLOSE) or not balanced:
        raise ValueError(f"{name}: expected a whole expression, every operator closed by ]")
    return tokens, int(target)


@dataclass(frozen=True)
class Pairs:
    """A file of labelled pairs of documents; rows are read on demand, to save memory."""

    path: Path
    starts: Integers  # (rows + 1,): position of each row, and the end of the file, in bytes
    labels: Integers  # (rows,)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Return the two documents of each row, one after the other: 2 * len(rows)."""
        documents = []
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(self.starts[row])
                line = file.read(self.starts[row + 1] - self.starts[row])
                documents += line.rstrip(b"\r\n").split(b"\t")[3:5]
        return documents


@lru_cache(maxsize=3)
def read_pairs(path: Path) -> Pairs:
    """Check every row of a file of pairs; raises ValueError with the row that is wrong."""
    starts = [0]
    labels = []
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            labels.append(parse_pair_label(f"{path}: row {row}", line))
            starts.append(starts[-1] + len(line))
    if not labels:
        raise ValueError(f"{path}: row 1: expected a pair of documents, found an empty file")
    return Pairs(path, np.array(starts), np.array(labels))


def parse_pair_label(name: str, line: bytes) -> int:
    """Check one row and return its label; errors begin with `name`."""
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != 5:
        raise ValueError(
            f"{name}: expected 5 columns (label, id1, id2, text1, text2), found {len(columns)}"
        )
    if columns[0] not in (b"0", b"1", b"0.0", b"1.0"):
        shown = columns[0][:20].decode(errors="replace")
        raise ValueError(f"{name}: expected a label of 0.0 or 1.0, found {shown!r}")
    if not line.endswith(b"\n"):
        raise ValueError(f"{name}: expected a line that ends, found the end of a truncated file")
    return int(float(columns[0]))


@dataclass(frozen=True)
class Images:
    """The images that the metadata of a folder list, in their order."""

    files: tuple[str, ...]  # relative to the folder
    labels: Integers
    left_out: int  # number of known empty images


@lru_cache(maxsize=8)
def list_images(folder: Path) -> Images:
    """List the images of a folder such as pathfinder32/curv_contour_length_14.

    Raises ValueError if there are no metadata, or a row of them is wrong.
    """
    metadata = sorted(
        (folder / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem)
    )
    if not metadata:
        raise ValueError(f"{folder / 'metadata'}: expected files 0.npy, 1.npy, ..., found none")

    files = []
    labels = []
    left_out = 0
    for path in metadata:
        for row, line in enumerate(read_lines(path), start=1):
            subfolder, file, label = parse_metadata(f"{path}: row {row}", line)
            if (folder.parent.name, folder.name, subfolder, file) == KNOWN_EMPTY:
                left_out += 1
            else:
                files.append(f"{subfolder}/{file}")
                labels.append(label)
    return Images(tuple(files), np.array(labels), left_out)


def parse_metadata(name: str, line: str) -> tuple[str, str, int]:
    """Return folder, file and label of a row of metadata; errors begin with `name`."""
    columns = line.split()
    if len(columns) < 4:
        raise ValueError(
            f"{name}: expected a folder, file, number and label, found {len(columns)} columns"
        )
    if columns[3] not in ("0", "1"):
        raise ValueError(f"{name}: expected a label of 0 or 1, found {columns[3]!r}")
    return columns[0], columns[1], int(columns[3])


def read_images(folder: str, side: int, digest: str, split: str, rows: Integers) -> Examples:
    """Return the images with the numbers `rows` of a split as grey values.

    `digest` is a hash of the metadata: as an argument it makes the cached set depend on them.
    """
    images = list_images(Path(folder))
    sizes = split_sizes(len(images.files))
    starts = {
        "train": 0,
        "validation": sizes["train"],
        "test": sizes["train"] + sizes["validation"],
    }
    numbers = rows + starts[split]

    tokens = []
    for number in numbers:
        path = Path(folder) / images.files[number]
        name = f"{path}: image {number}"
        if not path.is_file():
            raise ValueError(f"{name}: expected a PNG of {side} x {side}, found no file")
        tokens.append(grey_values(path.read_bytes(), side, name))
    return Examples(np.stack(tokens), images.labels[numbers], np.full(len(rows), side * side))


def split_sizes(count: int) -> dict[str, int]:
    """Return the sizes of the splits: 80, 10 and 10 % of the images, in the order of the files."""
    held_out = count // 10
    return {"train": count - 2 * held_out, "validation": held_out, "test": held_out}


@lru_cache(maxsize=16)
def digest_of(*paths: Path) -> str:
    """Return the SHA-256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
