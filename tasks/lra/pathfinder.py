"""Pathfinder and Path-X: do the two dots lie on the same curve? One pixel a token, row after row."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from lookback.tasks.lra import curves
from lookback.tasks.lra.cache import Generated
from lookback.tasks.lra.examples import as_batch, generated_identity, picture
from lookback.tasks.lra.released import digest_of, list_images, read_images, release, split_sizes
from lookback.tasks.task import Batch, register_task

SIZES = {"train": 160000, "validation": 20000, "test": 20000}
CONTOURS = {14: "curv_contour_length_14", 9: "curv_contour_length_9", 6: "curv_baseline"}
SOURCE = "Pathfinder: Linsley et al. 2018 (arXiv 1805.08315), the rule of drewlinsley/pathfinder"


def image_set(length: int, released: bool, contour_length: int, data_seed: int) -> Generated:
    """The pictures of a size: those that we draw, or those of the release."""
    side = isqrt(length)
    if contour_length not in CONTOURS:
        raise ValueError(
            f"contour_length {contour_length}: expected 14 (the published one), 9 or 6"
        )
    if not released:
        return Generated(
            "pathfinder", curves.make, (data_seed, length, contour_length), length, SIZES
        )
    folder = release(f"pathfinder{side}/{CONTOURS[contour_length]}")
    sizes = split_sizes(len(list_images(folder).files))
    return Generated(
        "pathfinder-released", read_images, (str(folder), side, _digest(folder)), length, sizes
    )


def _digest(folder: Path) -> str:
    return digest_of(*sorted((folder / "metadata").glob("*.npy")))


def _identity(length: int, **options: Any) -> dict[str, Any]:
    images = image_set(length, **options)
    if not options["released"]:
        return generated_identity(images, count=4)
    folder, _, digest = images.arguments
    left_out = list_images(Path(folder)).left_out
    return {"source": "released", "metadata_sha256": digest, "empty_images_left_out": left_out}


def _fetch(length: int, **options: Any) -> None:
    image_set(length, **options).fill()


def _card(length: int, *lengths: int) -> dict[str, Any]:
    """What both tasks have in common; `length` is the one whose images identify the task."""
    return {
        "vocabulary": 256,
        "classes": 2,
        "baseline_score": 0.5,
        "lengths": (length, *lengths),
        "exact": True,
        "sizes": lambda **options: image_set(length, **options).sizes,
        "symbols": lambda **options: [str(grey) for grey in range(256)],
        "answers": lambda **options: ["two curves", "one curve"],
        "data": lambda **options: _identity(length, **options),
        "picture": picture,
        "fetch": _fetch,
    }


@register_task(
    "pathfinder",
    source=SOURCE + ", at 32 x 32 (64 x 64 and 256 x 256 too)",
    **_card(1024, 4096, 65536),
)
def sample_pathfinder(
    rows: Tensor,
    length: int,
    split: str,
    *,
    released: bool = False,
    contour_length: int = 14,
    data_seed: int = 0,
) -> Batch:
    """A picture of dashed curves with two dots, read pixel by pixel: does one curve join the dots?

        tokens    grey values 0 to 255 of 32 x 32 pixels, the upper left one first
        target    1 when both dots end the same curve, 0 when they end two

    Curves of 14 paddles are the published ("hard") setting, 9 and 6 the easier ones. Papers split
    the released pictures differently, so test sets are not the same across papers: `released` takes
    80, 10 and 10 % in the order of the files; otherwise the pictures are our own, by the published
    rule, and `data_seed` draws others.

    Tests following a curve whose neighbouring pixels lie a row, that is 32 tokens and more, apart.
    Does not test language or memory of content. Scores at a half are the rule until training finds
    the way; give it many steps.
    """
    return as_batch(
        image_set(length, released, contour_length, data_seed).read(split, rows.numpy()),
        padded=False,
    )


@register_task("pathx", source=SOURCE + ", at 128 x 128", **_card(16384))
def sample_pathx(
    rows: Tensor,
    length: int,
    split: str,
    *,
    released: bool = False,
    contour_length: int = 14,
    data_seed: int = 0,
) -> Batch:
    """Pathfinder at 128 x 128, 16384 tokens: most models that do well on the small pictures stay at
    chance here.

    tokens    grey values 0 to 255 of 128 x 128 pixels, the upper left one first
    target    1 when both dots end the same curve, 0 when they end two

    Options as in pathfinder. Tests the same, with rows 128 tokens apart. Does not tell why a model
    fails: too little reach, too few steps and a wrong learning rate all look like a half.
    """
    return as_batch(
        image_set(length, released, contour_length, data_seed).read(split, rows.numpy()),
        padded=False,
    )
