"""What the tasks of this folder share: examples as batches, their identity, and images drawn in
characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookback.tasks.lra.cache import Examples, Generated
from lookback.tasks.task import SPLITS, Batch

BYTES, PAD = 257, 256
"""Token ids of text: the 256 bytes, and what fills a short document up."""
SHADES = " .:-=+*#%@"


def as_batch(examples: Examples, padded: bool = True) -> Batch:
    """A batch of examples, their valid lengths only where some are `padded`."""
    tokens, labels, lengths = (
        torch.from_numpy(np.ascontiguousarray(part)).long() for part in examples
    )
    return Batch(tokens, labels, lengths=lengths if padded else None)


def padded_bytes(texts: Sequence[bytes], length: int) -> tuple[Tensor, Tensor]:
    """Documents as bytes, cut at `length` and filled up with PAD: (documents, length), and valid
    tokens of each.

    An empty document counts as one PAD, so that there is something to read.
    """
    tokens = np.full((len(texts), length), PAD, dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = np.frombuffer(text[:length], dtype=np.uint8)
    lengths = [max(1, min(len(text), length)) for text in texts]
    return torch.from_numpy(tokens), torch.tensor(lengths)


def grey_values(file: bytes, side: int, where: str) -> NDArray[np.uint8]:
    """Grey values of a PNG file, (side * side,); raises ValueError, saying where, when it is not a
    whole one.
    """
    from PIL import Image, UnidentifiedImageError

    expected = f"{where}: expected a PNG of {side} x {side}"
    try:
        with Image.open(BytesIO(file), formats=["PNG"]) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"{expected}, found {error if file else 'an empty file'}") from None
    if grey.shape != (side, side):
        raise ValueError(f"{expected}, found {grey.shape[1]} x {grey.shape[0]}")
    return grey.reshape(-1)


def text_picture(tokens: Tensor) -> str:
    """A document as text, without what fills it up."""
    return bytes(token for token in tokens.tolist() if token < PAD).decode(
        "utf-8", errors="replace"
    )


def picture(tokens: Tensor) -> str:
    """A square grey image, (side * side,) of 0 to 255, in characters: light ones stand for bright
    pixels.
    """
    side = isqrt(len(tokens))
    shades = (tokens.reshape(side, side) * len(SHADES)) // 256
    return "\n".join("".join(SHADES[shade] for shade in row).rstrip() for row in shades.tolist())


@cache
def _first_examples(
    name: str, make: Any, arguments: tuple[Any, ...], length: int, count: int
) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for part in make(*arguments, split, np.arange(count)):
            digest.update(np.ascontiguousarray(part).astype("<i8").tobytes())
    return digest.hexdigest()


def generated_identity(generated: Generated, count: int) -> dict[str, Any]:
    """What identifies a set that we make: a hash of the first `count` examples of each split."""
    digest = _first_examples(
        generated.name, generated.make, generated.arguments, generated.length, count
    )
    return {"source": "generated", "first_examples": count, "first_examples_sha256": digest}
