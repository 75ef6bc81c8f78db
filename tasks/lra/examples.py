"""Helpers of the tasks in this folder: batches, documents as bytes, and pictures as text."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.corpus import byte_symbols
from lookback.tasks.lra.cache import Examples
from lookback.tasks.task import Batch

PAD = 256
"""Token that fills up a short document; 0 to 255 are its bytes."""
TEXT_SYMBOLS = [*byte_symbols(), "_"]
GREY_SYMBOLS = [str(grey) for grey in range(256)]
SHADES = " .:-=+*#%@"


def as_batch(examples: Examples, padded: bool = True) -> Batch:
    """Return examples as a batch of int64, with their valid lengths if some are `padded`."""
    tokens, labels, lengths = (
        torch.from_numpy(examples[field].astype(np.int64))
        for field in ("tokens", "label", "length")
    )
    return Batch(tokens, labels, lengths=lengths if padded else None)


def text_batch(texts: Sequence[bytes], labels: Sequence[int], length: int) -> Batch:
    """Return one document per label as a batch, cut at `length` or filled up with PAD.

    An empty document counts as one PAD, so that there is a token to read.
    """
    tokens = np.full((len(texts), length), PAD, dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = np.frombuffer(text[:length], dtype=np.uint8)
    lengths = [max(1, min(len(text), length)) for text in texts]
    return Batch(torch.from_numpy(tokens), torch.tensor(labels), lengths=torch.tensor(lengths))


def pair_batch(texts: Sequence[bytes], labels: Sequence[int], length: int) -> Batch:
    """Return two consecutive documents per label as a batch: tokens (batch, 2, length)."""
    documents = text_batch(texts, labels, length)
    assert documents.lengths is not None
    return Batch(
        documents.tokens.unflatten(0, (-1, 2)),
        documents.targets,
        lengths=documents.lengths.unflatten(0, (-1, 2)),
    )


def grey_values(file: bytes, side: int, name: str) -> NDArray[np.uint8]:
    """Return the grey values of a PNG file, (side * side,).

    Raises ValueError that begins with `name` unless the file is a whole PNG of this size.
    """
    from PIL import Image, UnidentifiedImageError

    expected = f"{name}: expected a PNG of {side} x {side}"
    try:
        with Image.open(BytesIO(file), formats=["PNG"]) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"{expected}, found {error if file else 'nothing'}") from None
    if grey.shape != (side, side):
        raise ValueError(f"{expected}, found {grey.shape[1]} x {grey.shape[0]}")
    return grey.reshape(-1)


def shrunk(images: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Return square images, (n, pixels), with `length` pixels, the rounded means of blocks."""
    side, smaller = isqrt(images.shape[1]), isqrt(length)
    blocks = images.reshape(len(images), smaller, side // smaller, smaller, side // smaller)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8).reshape(len(images), length)


def text_picture(tokens: Tensor) -> str:
    """Return a document, (length,), as text without its padding."""
    content = bytes(token for token in tokens.tolist() if token < PAD)
    return content.decode("utf-8", errors="replace")


def picture(tokens: Tensor) -> str:
    """Return a square image of grey values, (side * side,), as lines of characters.

    The brighter a pixel, the more ink has its character.
    """
    side = isqrt(len(tokens))
    shades = (tokens.reshape(side, side) * len(SHADES)) // 256
    lines = []
    for row in shades.tolist():
        lines.append("".join(SHADES[shade] for shade in row).rstrip())
    return "\n".join(lines)
