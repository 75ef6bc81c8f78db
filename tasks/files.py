"""Where data lie on this machine, and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def data_folder() -> Path:
    """Where corpora and made sets lie: the folder `data` of the checkout, or the one that
    LOOKBACK_DATA names.
    """
    return Path(os.environ.get("LOOKBACK_DATA") or Path(__file__).parents[1] / "data")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path | None]:
    """Fill the folder that is given; when the block is through, it is found under its name, whole.

    None is given where it is there already. One process fills at a time, others wait for it; what
    one that was killed has left behind is taken away by the next.
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


def parquet_files(folder: Path, file: str) -> list[Path]:
    """All parquet files below a folder whose names begin with `file`; raises ValueError where there
    are none.
    """
    paths = sorted(folder.rglob(f"{file}*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: expected files {file}*.parquet, found none")
    return paths
