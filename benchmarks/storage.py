"""Records on disk: one JSON file each, written so that a half-written one never stands under a
record's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import ValidationError

from lookback.benchmarks.record import Record, one_line


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that under `path` stands the old content or the new one, whole, at any
    moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp leaves 0600
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def write_record(folder: Path, record: Record) -> Path:
    """Write `record` into `folder` under its cell's id."""
    path = folder / f"{record.cell.id}.json"
    text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")
    _flush(folder)
    return path


def _flush(folder: Path) -> None:
    """Have a folder's new names outlive a power cut, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class TornRecordError(ValueError):
    """A record's file that is no whole JSON: what a power cut, a full disk or a merge leaves, and
    nobody can read.
    """


def read_record(path: Path) -> Record:
    """Read one record; raises ValueError that names it and what was expected; TornRecordError where
    it is torn.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        torn = any(fault["type"] == "json_invalid" for fault in error.errors(include_url=False))
        kind = TornRecordError if torn else ValueError
        raise kind(f"{path}: not a record of schema 1: {one_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read: {error.strerror}") from None


def read_records(folder: Path, suites: Collection[str] = ()) -> Iterator[Record]:
    """The records below `folder`, of these suites alone where any are named.

    One that cannot be read is left out, and a line on the error stream names it. Of a suite is what
    says so of itself: a file of another folder that nowhere holds a suite's name is of none of
    them, and is not taken apart.
    """
    words = {json.dumps(suite).encode() for suite in suites}
    for path in record_files(folder):
        try:
            if (
                words
                and path.parent.name not in suites
                and not any(word in path.read_bytes() for word in words)
            ):
                continue
            record = read_record(path)
        except (OSError, ValueError) as error:
            print(f"lookback: left out: {error}", file=sys.stderr)
        else:
            if not suites or record.suite in suites:
                yield record


def record_files(folder: Path) -> Iterator[Path]:
    """All records below `folder`, in the order of their paths; hidden files and folders are work in
    progress.
    """
    for path in sorted(folder.rglob("*.json")):
        if not any(re.match(r"\.", part) for part in path.relative_to(folder).parts):
            yield path
