"""Records on disk: one JSON file each, which is never seen half written under a record's name."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import ValidationError

from lookback.benchmarks.record import Record, one_line

UMASK = os.umask(0)  # can only be read by setting it, which is not safe beside other threads
os.umask(UMASK)

PUBLISHED = "published"  # the folder of committed records, beside the user's own
PUBLISHED_RECORDS = Path(__file__).resolve().parents[1] / "results" / PUBLISHED


class TornRecordError(ValueError):
    """A file that is not whole JSON: left by a power cut, a full disk or a merge conflict."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; at any moment, `path` has either its old content or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~UMASK)  # mkstemp leaves 0600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_record(folder: Path, record: Record) -> Path:
    """Write a record into a folder under its id."""
    path = folder / f"{record.cell_id}.json"
    text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")

    # The folder too, so that the new name survives a power cut; Windows cannot.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return path


def set_aside_path(path: Path) -> Path:
    """Return the name of a record that is set aside until its cell has been measured again."""
    return path.with_suffix(".json.old")


def set_aside(path: Path) -> None:
    """Rename a record, so that it no longer counts as one and is still there."""
    path.replace(set_aside_path(path))


def read_record(path: Path) -> Record:
    """Read one record.

    Raises ValueError that names the file and what was expected; TornRecordError if it is torn.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        is_torn = any(fault["type"] == "json_invalid" for fault in error.errors(include_url=False))
        kind = TornRecordError if is_torn else ValueError
        raise kind(f"{path}: not a record of schema 1: {one_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read: {error.strerror}") from None


def read_records(folder: Path, suites: Collection[str] = ()) -> Iterator[Record]:
    """Yield the records below a folder; if suites are named, only theirs.

    A file that cannot be read is left out, and a line on the error stream names it. The record
    says of which suite it is, not its folder.
    """
    quoted = [json.dumps(suite).encode() for suite in suites]
    for path in record_files(folder):
        try:
            # Parsing takes longest: skip files of other folders that do not contain the name.
            if suites and path.parent.name not in suites:
                content = path.read_bytes()
                if not any(name in content for name in quoted):
                    continue
            record = read_record(path)
        except (OSError, ValueError) as error:
            print(f"lookback: left out: {error}", file=sys.stderr)
            continue
        if not suites or record.suite in suites:
            yield record


def published_folder() -> Path:
    """Return the folder of the published records; raises ValueError if none are installed."""
    if not PUBLISHED_RECORDS.is_dir():
        raise ValueError("no published records are installed: expected a checkout of Lookback")
    return PUBLISHED_RECORDS


def read_published(suites: Collection[str] = ()) -> Iterator[Record]:
    """Yield the published records, as of machines that are marked as published."""
    for record in read_records(PUBLISHED_RECORDS, suites):
        marked = record.machine.model_copy(
            update={
                "slug": f"{PUBLISHED}-{record.machine.slug}"[:64],
                "device": f"{record.machine.device} (published)",
            }
        )
        yield record.model_copy(update={"machine": marked})


def record_files(folder: Path) -> Iterator[Path]:
    """Yield the files of all records below a folder, sorted.

    Hidden files and folders are work in progress. Published records below a user's own are not
    hers.
    """
    for path in sorted(folder.rglob("*.json")):
        parts = path.relative_to(folder).parts
        if parts[0] != PUBLISHED and not any(part.startswith(".") for part in parts):
            yield path
