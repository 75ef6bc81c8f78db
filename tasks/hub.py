"""Parquet files of data sets on the hub: finding, downloading and reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROWS = 256  # rows of a parquet file in memory at once
UNKNOWN_REVISION = "not known"

Files = dict[str, list[Path]]
"""The parquet files of each name, such as "train"; large sets have several files of one name."""


def find_files(
    hub: str, configuration: str | None, folder: Path | None, names: Sequence[str]
) -> tuple[str, Files]:
    """Return the revision of a data set on the hub, and its parquet files.

    `folder` is the user's copy of these files, laid out as on the hub; None downloads them.

    Raises ValueError if a folder lacks files, ConnectionError if they cannot be downloaded.
    """
    if folder is None:
        return download_files(hub, configuration, names)
    inner = folder / (configuration or "")
    root = inner if inner.is_dir() else folder
    return UNKNOWN_REVISION, {name: files_in(root, name) for name in names}


def files_in(folder: Path, name: str) -> list[Path]:
    """Return the parquet files below a folder whose names begin with `name`, sorted.

    Raises ValueError if there are none.
    """
    paths = sorted(folder.rglob(f"{name}*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: expected files {name}*.parquet, found none")
    return paths


def download_files(hub: str, configuration: str | None, names: Sequence[str]) -> tuple[str, Files]:
    """Download the files that the hub's dataset card names; `datasets` keeps them in its cache."""
    import datasets

    try:
        data_files = datasets.load_dataset_builder(hub, configuration).config.data_files
        addresses = {name: [str(file) for file in data_files[name]] for name in names}
        downloaded = datasets.DownloadManager().download(addresses)
    except Exception as error:  # the type depends on what fails between here and the hub
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"cannot fetch {hub}: {type(error).__name__}: {reason}") from error

    files = {name: [Path(path) for path in downloaded[name]] for name in names}
    return revision_of(addresses[names[0]][0]), files


def revision_of(address: str) -> str:
    """Return the commit in hf://datasets/owner/name@commit/path."""
    return address.partition("@")[2].partition("/")[0] or UNKNOWN_REVISION


def read_parquet(paths: Iterable[Path], columns: list[str]) -> Iterator[Any]:
    """Yield record batches (pyarrow) of at most ROWS rows of these columns.

    Raises ValueError that names the file if it is damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            file = pq.ParquetFile(path)
            present = file.schema_arrow.names
            if not set(columns) <= set(present):
                expected = ", ".join(columns)
                raise ValueError(f"{path}: expected columns {expected}, found {', '.join(present)}")
            yield from file.iter_batches(ROWS, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: expected a whole parquet file: {error}") from None
