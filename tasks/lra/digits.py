"""Offline task of the shape of LRA's Image: digits drawn in the font that Pillow carries, on 32 x
32 grey pixels.

It stands beside the published task, under a name of its own, for machines without a network. Its
scores say nothing about CIFAR-10.
"""

from __future__ import annotations

import hashlib
from functools import cache
from math import cos, radians, sin
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.lra.examples import picture
from lookback.tasks.task import Batch, register_task

SIZES = {"train": 45000, "validation": 5000, "test": 10000}
SIDE, LARGE = 32, 64
SMALLEST, TILT, MOST_NOISE = 0.55, 25, 60  # of the side; degrees either way; grey values either way


@cache
def _glyph(digit: int) -> NDArray[np.float64]:
    """A digit, large, in the middle of a square: how much of each pixel it covers."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (LARGE, LARGE))
    ImageDraw.Draw(image).text(
        (LARGE / 2, LARGE / 2), str(digit), 255, ImageFont.load_default(LARGE), anchor="mm"
    )
    return np.asarray(image) / 255


def drawn(digit: int, random: Random) -> NDArray[np.uint8]:
    """A digit of some size, place, tilt, brightness and ground, under some noise: grey values (SIDE
    * SIDE,).
    """
    scale = LARGE / (SIDE * (SMALLEST + (1 - SMALLEST) * random.random()))
    angle = radians(TILT * (2 * random.random() - 1))
    shift = [(random.random() - 0.5) * (SIDE - LARGE / scale) for _ in range(2)]
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    row, column = row - shift[0], column - shift[1]
    source_row = np.rint(scale * (row * cos(angle) - column * sin(angle)) + LARGE / 2).astype(int)
    source_column = np.rint(scale * (row * sin(angle) + column * cos(angle)) + LARGE / 2).astype(
        int
    )
    inside = (
        (source_row >= 0) & (source_row < LARGE) & (source_column >= 0) & (source_column < LARGE)
    )
    cover = np.where(
        inside, _glyph(digit)[source_row.clip(0, LARGE - 1), source_column.clip(0, LARGE - 1)], 0
    )
    ground, ink = sorted(
        (105 * random.random(), 255 - 105 * random.random()), reverse=random.random() < 0.5
    )
    noise = np.frombuffer(random.randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE) / 127.5 - 1
    grey = ground + (ink - ground) * cover + MOST_NOISE * random.random() * noise
    return np.rint(grey.clip(0, 255)).astype(np.uint8).reshape(-1)


@cache
def _identity() -> dict[str, Any]:
    digest = hashlib.sha256(
        b"".join(np.rint(255 * _glyph(digit)).astype(np.uint8).tobytes() for digit in range(10))
    )
    return {"source": "digits in Pillow's own font", "glyphs_sha256": digest.hexdigest()}


@register_task(
    "digit-image",
    vocabulary=256,
    classes=10,
    baseline_score=0.1,
    lengths=(SIDE * SIDE,),
    exact=True,
    sizes=SIZES,
    symbols=lambda: [str(grey) for grey in range(256)],
    answers=lambda: [*"0123456789"],
    data=_identity,
    picture=picture,
    source="Lookback's own: grey pictures of the shape of LRA Image, with digits drawn in them",
)
def sample_digit_image(rows: Tensor, length: int, split: str) -> Batch:
    """A digit somewhere in 32 x 32 grey pixels, small or large, tilted, bright or dark, under
    noise: which one?

    tokens    grey values 0 to 255, the upper left one first
    target    0 to 9

    Tests putting strokes together that lie rows of 32 tokens apart, without a network. Does not
    test what photographs do: its scores say nothing about CIFAR-10.
    """
    tokens, labels = [], []
    for row in rows.tolist():
        random = Random(
            int.from_bytes(hashlib.sha256(f"digit-image {split} {row}".encode()).digest(), "little")
        )
        labels.append(int(random.random() * 10))
        tokens.append(drawn(labels[-1], random))
    return Batch(torch.from_numpy(np.stack(tokens).astype(np.int64)), torch.tensor(labels))
