"""Make the pictures of the documentation: `python -m lookback.benchmarks.describe.pictures`.

Without an argument, or with `pathfinder`, it draws examples of Pathfinder. With `report` it takes
pictures of a report; this needs a browser, on whose version the bytes depend.
"""

from __future__ import annotations

import sys
from io import BytesIO
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookback.tasks.lra.curves import picture

ROOT = Path(__file__).parents[2]
PATHFINDER = ROOT / "docs" / "pathfinder.png"
REPORT = ROOT / "docs" / "report.png"
DESKTOP_WIDTH = 1280  # pixels, like all that follow
PHONE_WIDTH = 390
HEIGHT = 1180
GAP = 24
PICTURES = {32: 5, 64: 1, 128: 2}  # side of a Pathfinder picture -> pictures in a row
CELL = 128  # side to which each is magnified
LINE = 4
GREY = 110


def pathfinder_grid() -> NDArray[np.uint8]:
    """Return Pathfinder pictures of three sizes, (height, width) grey values.

    In the upper row one curve joins the two dots, in the lower row none does.
    """
    return np.concatenate([_row(label) for label in (1, 0)])


def _row(label: int) -> NDArray[np.uint8]:
    cells = []
    for side, pictures in PICTURES.items():
        drawn = (picture(0, side, 14, "train", number) for number in count())
        images = (example.image for example in drawn if example.label == label)
        pixel = np.ones((CELL // side, CELL // side), np.uint8)
        for image in islice(images, pictures):
            cells.append(np.pad(np.kron(image, pixel), LINE // 2, constant_values=GREY))
    return np.concatenate(cells, axis=1)


def report_picture(path: Path) -> Image.Image:
    """Return a report on a light desktop and, beside it, on a dark phone."""
    from lookback.benchmarks.describe.browser import chromium

    both = Image.new("RGB", (DESKTOP_WIDTH + GAP + PHONE_WIDTH, HEIGHT), "white")
    with chromium() as browser:
        page = browser.new_page(
            viewport={"width": DESKTOP_WIDTH, "height": HEIGHT}, color_scheme="light"
        )
        page.goto(path.resolve().as_uri())
        both.paste(Image.open(BytesIO(page.screenshot())), (0, 0))

        page = browser.new_page(
            viewport={"width": PHONE_WIDTH, "height": HEIGHT}, color_scheme="dark", is_mobile=True
        )
        page.goto(path.resolve().as_uri())
        page.evaluate("document.querySelector('main').scrollIntoView({behavior: 'instant'})")
        both.paste(Image.open(BytesIO(page.screenshot())), (DESKTOP_WIDTH + GAP, 0))
    return both.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)


def main() -> None:
    """Make the pictures that the command line names."""
    for name in sys.argv[1:] or ["pathfinder"]:
        if name == "pathfinder":
            Image.fromarray(pathfinder_grid()).save(PATHFINDER, optimize=True)
        elif name == "report":
            pages = sorted((ROOT / "reports").rglob("quick/index.html"))
            if not pages:
                sys.exit("no report of the quick suite: make it by `lookback report quick`")
            report_picture(pages[0]).save(REPORT, optimize=True)
        else:
            sys.exit(f"no picture {name!r}: expected pathfinder or report")


if __name__ == "__main__":
    main()
