"""Pictures for the documentation, made from the data themselves: `python -m
lookback.benchmarks.describe.pictures`.

`python -m lookback.benchmarks.describe.pictures report` takes that of a report alone, with a
browser: its bytes are that browser's.
"""

from __future__ import annotations

import sys
from io import BytesIO
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookback.benchmarks.describe.browser import browser
from lookback.tasks.lra.curves import picture

ROOT = Path(__file__).parents[2]
PLACE, REPORT = ROOT / "docs" / "pathfinder.png", ROOT / "docs" / "report.png"
WIDE, NARROW, HEIGHT, GAP = 1280, 390, 1180, 24  # pixels of a desk's window and a telephone's
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
        cells += [
            np.kron(image, np.ones((scale, scale), np.uint8)) for image in islice(images, wanted)
        ]
    return np.concatenate([np.pad(cell, LINE // 2, constant_values=GREY) for cell in cells], axis=1)


def report_picture(page: Path) -> Image.Image:
    """A report as it opens at a desk in a light room, and on a telephone in a dark one."""
    with browser() as tab:
        shots = []
        for width, dark in ((WIDE, False), (NARROW, True)):
            tab.show(page, width, HEIGHT, dark)
            if dark:
                tab.value("document.querySelector('main').scrollIntoView({behavior: 'instant'})")
            shots.append(Image.open(BytesIO(tab.picture())).convert("RGB"))
    both = Image.new("RGB", (WIDE + GAP + NARROW, HEIGHT), "white")
    both.paste(shots[0], (0, 0))
    both.paste(shots[1], (WIDE + GAP, 0))
    return both.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)


def main() -> None:
    """Make those named, pathfinder and report, or the one that needs no browser."""
    PLACE.parent.mkdir(exist_ok=True)
    made = {"pathfinder": PLACE, "report": REPORT}
    unknown = set(sys.argv[1:]) - set(made)
    if unknown:
        sys.exit(f"no picture {sorted(unknown)[0]!r}: expected {' or '.join(made)}")
    for name in sys.argv[1:] or ["pathfinder"]:
        if name == "pathfinder":
            image = Image.fromarray(pathfinder_grid())
        else:
            pages = sorted((ROOT / "reports").glob("*/quick/index.html"))
            if not pages:
                sys.exit("no report of the quick suite: make it by `lookback report quick`")
            image = report_picture(pages[0])
        image.save(made[name], optimize=True)
        print(
            made[name].relative_to(Path.cwd())
            if made[name].is_relative_to(Path.cwd())
            else made[name]
        )


if __name__ == "__main__":
    main()
