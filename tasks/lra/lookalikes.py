"""Offline tasks with the form of LRA's Image, Text and Retrieval, for machines without a network.

`digit-image` draws digits in the font that Pillow contains; `source-text` and `source-retrieval`
are made from the source of Python's own standard library. They have names of their own and replace
nothing: their scores say nothing about CIFAR-10, IMDB or AAN.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from math import cos, radians, sin
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.language import standard_library_files
from lookback.tasks.lra.examples import (
    GREY_SYMBOLS,
    TEXT_SYMBOLS,
    pair_batch,
    picture,
    shrunk,
    text_batch,
    text_picture,
)
from lookback.tasks.task import SPLITS, Batch, register_task


def random_of(name: str) -> Random:
    """Return a random source that depends on a name only."""
    return Random(int.from_bytes(hashlib.sha256(name.encode()).digest(), "little"))


# Digits.

SIDE = 32  # pixels
GLYPH_SIDE = 64  # pixels of the glyph from which digits are drawn
SMALLEST = 0.55  # size of the smallest digit, as a share of the side
TILT = 25  # degrees, to either side
NOISE = 60  # grey values, to either side
GREY_RANGE = 105  # of the darker and of the brighter grey


@cache
def glyph(digit: int) -> NDArray[np.float64]:
    """Return the coverage, 0 to 1, of each pixel by a digit: (GLYPH_SIDE, GLYPH_SIDE)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (GLYPH_SIDE, GLYPH_SIDE))
    centre = (GLYPH_SIDE / 2, GLYPH_SIDE / 2)
    font = ImageFont.load_default(GLYPH_SIDE)
    ImageDraw.Draw(image).text(centre, str(digit), 255, font, anchor="mm")
    return np.asarray(image) / 255


def draw_digit(digit: int, random: Random) -> NDArray[np.uint8]:
    """Return the grey values, (SIDE * SIDE,), of a digit.

    Size, position, tilt, brightness, background and noise are random.
    """
    # Map every pixel of the image back to a pixel of the glyph.
    scale = GLYPH_SIDE / (SIDE * (SMALLEST + (1 - SMALLEST) * random.random()))
    angle = radians(TILT * (2 * random.random() - 1))
    room = SIDE - GLYPH_SIDE / scale
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    row = row - (random.random() - 0.5) * room
    column = column - (random.random() - 0.5) * room
    glyph_row = scale * (row * cos(angle) - column * sin(angle)) + GLYPH_SIDE / 2
    glyph_column = scale * (row * sin(angle) + column * cos(angle)) + GLYPH_SIDE / 2

    # Beyond the glyph lies an empty border, which catches all pixels that fall outside.
    glyph_row = np.rint(glyph_row).astype(int).clip(-1, GLYPH_SIDE) + 1
    glyph_column = np.rint(glyph_column).astype(int).clip(-1, GLYPH_SIDE) + 1
    coverage = np.pad(glyph(digit), 1)[glyph_row, glyph_column]

    dark = GREY_RANGE * random.random()
    bright = 255 - GREY_RANGE * random.random()
    bright_background = random.random() < 0.5
    background, ink = (bright, dark) if bright_background else (dark, bright)
    noise = np.frombuffer(random.randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE) / 127.5 - 1
    grey = background + (ink - background) * coverage + NOISE * random.random() * noise
    return np.rint(grey.clip(0, 255)).astype(np.uint8).reshape(-1)


@cache
def glyphs_identity() -> dict[str, Any]:
    """Return what identifies the digits: a hash of their glyphs, which depend on Pillow."""
    digest = hashlib.sha256()
    for digit in range(10):
        digest.update(np.rint(255 * glyph(digit)).astype(np.uint8).tobytes())
    return {"source": "digits in Pillow's own font", "glyphs_sha256": digest.hexdigest()}


@register_task(
    "digit-image",
    vocabulary=256,
    classes=10,
    baseline_score=0.1,
    lengths=(SIDE * SIDE, SIDE * SIDE // 4),
    exact=True,
    sizes={"train": 45000, "validation": 5000, "test": 10000},
    symbols=GREY_SYMBOLS,
    answers=[*"0123456789"],
    data=lambda options: glyphs_identity(),
    picture=picture,
    source="Lookback's own: grey pictures of the shape of LRA Image, with digits drawn in them",
)
def sample_digit_image(rows: Tensor, length: int, split: str) -> Batch:
    """Which digit is drawn in 32 x 32 grey pixels, large or small, tilted, under noise?

        tokens    grey values 0 to 255, from the upper left
        target    0 to 9

    At a length of 256 there are 16 x 16 pixels, each the mean of four.

    Tests combining strokes that lie rows of 32 tokens apart, without a network. Does not test what
    photographs ask for: its scores say nothing about CIFAR-10.
    """
    images = []
    labels = []
    for row in rows.tolist():
        random = random_of(f"digit-image {split} {row}")
        label = int(random.random() * 10)
        labels.append(label)
        images.append(draw_digit(label, random))
    tokens = shrunk(np.stack(images), length).astype(np.int64)
    return Batch(torch.from_numpy(tokens), torch.tensor(labels))


# Source code.

SIZES = {"train": 20000, "validation": 1000, "test": 2000}
TABLE_FOLDERS = {"encodings", "pydoc_data"}  # tables of data, with hardly any code
FEWEST_LINES = 40  # a shorter file is left out
SHORTEST_SHARE = 1 / 8  # of the length: the shortest passage that the file does not end

Lines = tuple[bytes, ...]


class SourceFiles(NamedTuple):
    """The source files of a split."""

    lines: tuple[Lines, ...]  # of each file
    cumulative_bytes: tuple[int, ...]  # of all files up to each

    def draw(self, random: Random) -> int:
        """Return the number of a file, drawn in proportion to its bytes."""
        return bisect_right(self.cumulative_bytes, int(random.random() * self.cumulative_bytes[-1]))


@cache
def source_files(split: str) -> SourceFiles:
    """Return the files of the standard library that belong to a split."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    sizes = []
    for path in standard_library_files(root)[split]:
        lines = tuple(path.read_bytes().splitlines(keepends=True))
        is_table = TABLE_FOLDERS.intersection(path.relative_to(root).parts)
        if len(lines) >= FEWEST_LINES and not is_table:
            files.append(lines)
            sizes.append(sum(map(len, lines)))
    return SourceFiles(tuple(files), tuple(accumulate(sizes)))


@cache
def source_identity() -> dict[str, Any]:
    """Return what identifies the source files: the version of Python, and a hash of all lines."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for lines in source_files(split).lines:
            digest.update(b"".join(lines))
    return {
        "source": "Python standard library",
        "revision": platform.python_version(),
        "sha256": digest.hexdigest(),
        "files": {split: len(source_files(split).lines) for split in SPLITS},
    }


def passage(lines: Lines, length: int, random: Random) -> list[bytes]:
    """Return consecutive lines that fit into a random number of bytes; at least one.

    The number lies between an eighth of `length` and all of it.
    """
    room = length * SHORTEST_SHARE ** random.random()
    first = int(random.random() * max(1, len(lines) - FEWEST_LINES // 4))
    chosen = [lines[first]]
    for line in lines[first + 1 :]:
        room -= len(chosen[-1])
        if room < len(line):
            break
        chosen.append(line)
    return chosen


def labelled_randoms(
    name: str, rows: Tensor, split: str, length: int
) -> Iterator[tuple[int, Random]]:
    """Yield a label, 0 or 1, and a random source for each example."""
    for row in rows.tolist():
        random = random_of(f"{name} {split} {length} {row}")
        yield int(random.random() < 0.5), random


SOURCE_FACTS: dict[str, Any] = {
    "vocabulary": len(TEXT_SYMBOLS),
    "classes": 2,
    "baseline_score": 0.5,
    "shortest": 256,
    "sizes": SIZES,
    "symbols": TEXT_SYMBOLS,
    "data": lambda options: source_identity(),
    "picture": text_picture,
}
"""Arguments of `register_task` that both tasks on source code share."""


@register_task(
    "source-text",
    lengths=(1024, 2048, 4096),
    answers=["shuffled", "in order"],
    **SOURCE_FACTS,
    source="Lookback's own: byte-level classification of the shape of LRA Text, from Python's "
    "standard library",
)
def sample_source_text(rows: Tensor, length: int, split: str) -> Batch:
    """A passage of source code as bytes: are its lines in order, or shuffled?

        tokens    d e f \u2423 f ( x ) : \\n \u2423 \u2423 r e t u r n \u2423 x _ _
        target    1 if the lines are in the order of the file, 0 if they are shuffled

    A passage has at least two different lines and fills at most the length, most often an eighth
    of it or more; the rest is padding. Every file belongs to one split.

    Tests whether a model sees that lines far apart belong together, without a network. Does not
    test long reach alone: the indentation from line to line gives much away. Its scores say nothing
    about IMDB.
    """
    files = source_files(split)
    texts = []
    labels = []
    for label, random in labelled_randoms("source-text", rows, split, length):
        # Passages of one line, or of equal lines, have one order alone: neither label has them.
        lines: list[bytes] = []
        while len(set(lines)) < 2:
            lines = passage(files.lines[files.draw(random)], length, random)
        in_order = list(lines)
        while label == 0 and lines == in_order:
            random.shuffle(lines)
        texts.append(b"".join(lines))
        labels.append(label)
    return text_batch(texts, labels, length)


@register_task(
    "source-retrieval",
    lengths=(1000, 2000, 4000),
    sequences_per_example=2,
    answers=["two files", "one file"],
    **SOURCE_FACTS,
    source="Lookback's own: pairs of documents of the shape of LRA Retrieval, from Python's "
    "standard library",
)
def sample_source_retrieval(rows: Tensor, length: int, split: str) -> Batch:
    """Two passages of source code, read separately: are they from the same file?

        tokens    i m p o r t \u2423 r e _ _        from the first half of a file
                  r e . s u b ( _ _ _ _        from the second half of it, or of another file
        target    1 for one file, 0 for two

    Tests keeping the subject of a document in one vector: neither passage is read with the other in
    view. Does not test comparing them word by word; its scores say nothing about AAN.
    """
    files = source_files(split)
    texts = []
    labels = []
    for label, random in labelled_randoms("source-retrieval", rows, split, length):
        first = files.draw(random)
        second = first
        while label == 0 and second == first:
            second = files.draw(random)

        front = files.lines[first][: len(files.lines[first]) // 2]
        back = files.lines[second][len(files.lines[second]) // 2 :]
        texts.append(b"".join(passage(front, length, random)))
        texts.append(b"".join(passage(back, length, random)))
        labels.append(label)
    return pair_batch(texts, labels, length)
