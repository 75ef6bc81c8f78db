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
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lookback.tasks.files import data_folder
from lookback.tasks.lra import trees
from lookback.tasks.lra.cache import Examples, Integers, empty_examples
from lookback.tasks.lra.examples import grey_values
from lookback.tasks.task import SPLITS, AbsentCorpusError

LISTOPS_NAMES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
PAIRS_NAMES = {"train": "train", "validation": "eval", "test": "test"}
TAB = b"\t"
PAIR = re.compile(rb"[01](\.0)?(\t[^\t]*){4}\n")
LISTOPS_TOKENS = {symbol: token for token, symbol in enumerate(trees.SYMBOLS[: trees.PAD])}
KNOWN_EMPTY = "pathfinder32/curv_baseline/imgs/0/sample_172.png"
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


def read_listops(path: Path, length: int) -> Examples:
    """Return all rows of a ListOps file, padded to `length` tokens.

    Raises ValueError if a row has another form than the published one, or is longer.
    """
    header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if header != "Source\tTarget" or not lines:
        raise ValueError(
            f"{path}: row 1: expected the header Source<tab>Target and rows below it, "
            f"found {header[:40]!r} and {len(lines)} rows"
        )

    examples = empty_examples(len(lines), length)
    examples["tokens"] = trees.PAD
    for row, line in enumerate(lines):
        name = f"{path}: row {row + 2}"
        tokens, examples["label"][row] = parse_listops(name, line)
        if len(tokens) > length:
            raise ValueError(f"{name}: expected at most {length} tokens, found {len(tokens)}")
        examples["tokens"][row, : len(tokens)] = tokens
        examples["length"][row] = len(tokens)
    return examples


def parse_listops(name: str, line: str) -> tuple[list[int], int]:
    """Return the tokens and the value of an expression; errors begin with `name`."""
    source, _, target = line.partition("\t")
    if target not in trees.SYMBOLS[:10]:
        raise ValueError(f"{name}: expected a Source and a Target of 0 to 9, found {line[-40:]!r}")

    # The source is written in binary, left-associated parentheses, which carry no information.
    words = source.replace("(", " ").replace(")", " ").split()
    unknown = set(words).difference(LISTOPS_TOKENS)
    is_balanced = all(source.count(left) == source.count(right) for left, right in ("()", "[]"))
    if unknown or not words or not is_balanced:
        raise ValueError(
            f"{name}: expected a whole expression of digits, operators and ], found "
            f"{', '.join(sorted(unknown)) or source!r:.40}"
        )
    return [LISTOPS_TOKENS[word] for word in words], int(target)


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
            if not PAIR.fullmatch(line):
                raise ValueError(
                    f"{path}: row {row}: expected a label of 0.0 or 1.0, id1, id2, text1, text2, "
                    f"and a line end, found {line.count(TAB) + 1} columns, "
                    f"{line[:20]!r} ... {line[-20:]!r}"
                )
            labels.append(int(line[:1]))
            starts.append(starts[-1] + len(line))
    if not labels:
        raise ValueError(f"{path}: row 1: expected a pair of documents, found an empty file")
    return Pairs(path, np.array(starts), np.array(labels))


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
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for row, line in enumerate(lines, start=1):
            columns = line.split()
            if len(columns) < 4 or columns[3] not in ("0", "1"):
                raise ValueError(
                    f"{path}: row {row}: expected a folder, a file, a number and a label of 0 or "
                    f"1, found {line[:60]!r}"
                )
            file = f"{columns[0]}/{columns[1]}"
            if folder / file == folder.parents[1] / KNOWN_EMPTY:
                left_out += 1
            else:
                files.append(file)
                labels.append(int(columns[3]))
    return Images(tuple(files), np.array(labels), left_out)


def read_images(folder: str, side: int, digest: str, split: str, rows: Integers) -> Examples:
    """Return the images with the numbers `rows` of a split as grey values.

    `digest` is a hash of the metadata: as an argument it makes the cached set depend on them.
    """
    images = list_images(Path(folder))
    numbers = split_numbers(len(images.files))[split][rows]
    examples = empty_examples(len(rows), side * side)
    examples["label"] = images.labels[numbers]
    examples["length"] = side * side
    for row, number in enumerate(numbers):
        path = Path(folder) / images.files[number]
        content = path.read_bytes() if path.is_file() else b""
        examples["tokens"][row] = grey_values(content, side, f"{path}: image {number}")
    return examples


def split_numbers(count: int) -> dict[str, Integers]:
    """Return the numbers of each split's images: 80, 10 and 10 %, in the order of the files."""
    held_out = count // 10
    groups = np.split(np.arange(count), [count - 2 * held_out, count - held_out])
    return dict(zip(SPLITS, groups, strict=True))


@lru_cache(maxsize=16)
def digest_of(*paths: Path) -> str:
    """Return the SHA-256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
