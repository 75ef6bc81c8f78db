"""Pictures for the documentation, made from the data themselves: `python -m benchmarks.pictures`."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.lra.curves import picture

PLACE = Path(__file__).parent.parent / "docs" / "pathfinder.png"
COLUMNS = {32: 5, 64: 1, 128: 2}  # side: how many
CELL, LINE, GREY = 128, 4, 110


def pathfinder_grid() -> NDArray[np.uint8]:
    """Pathfinder pictures of three sizes: above, one curve joins the two dots; below, none does."""
    return np.concatenate([_row(label) for label in (1, 0)])


def _row(label: int) -> NDArray[np.uint8]:
    cells = []
    for side, wanted in COLUMNS.items():
        drawn = (picture(0, side, 14, "train", number) for number in count())
        images = (found.image for found in drawn if found.label == label)
        scale = CELL // side
        cells += [np.kron(image, np.ones((scale, scale), np.uint8)) for image in islice(images, wanted)]
    return np.concatenate([np.pad(cell, LINE // 2, constant_values=GREY) for cell in cells], axis=1)


def main() -> None:
    PLACE.parent.mkdir(exist_ok=True)
    Image.fromarray(pathfinder_grid()).save(PLACE, optimize=True)
    print(PLACE.relative_to(Path.cwd()) if PLACE.is_relative_to(Path.cwd()) else PLACE)


if __name__ == "__main__":
    main()
