"""The folder of data, and folders that are either complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def data_folder() -> Path:
    """Return the folder of corpora and generated sets: LOOKBACK_DATA, or `data` in the checkout."""
    return Path(os.environ.get("LOOKBACK_DATA") or Path(__file__).parents[1] / "data")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder to fill; when the block ends without error, rename it to `folder`.

    Yields None if `folder` exists already. A lock lets one process fill it while the others wait;
    the next process removes the remains of one that was killed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            yield None
            return

        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
