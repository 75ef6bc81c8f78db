"""Examples that are made once and kept.

A generator makes any example alone, so nothing has to be kept; but what is read in every epoch
should not be drawn in every epoch. `Generated.fill` makes a whole set, part by part, in several
processes; `Generated.read` takes an example from its part where that is there, and makes it where
not. A part is one file, written beside its place and renamed: there are no half parts, and filling
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookback.tasks.files import data_folder

PART = 1000  # examples
ABANDONED_SECONDS = 600.0
POLL_SECONDS = 0.2
Integers = NDArray[np.int64]
Examples = tuple[NDArray[np.uint8], Integers, Integers]
"""Tokens (examples, length), labels (examples,), and how many tokens of each are valid (examples,).
"""


@dataclass(frozen=True)
class Generated:
    """A set of examples of `length` tokens: `make(*arguments, split, rows)` makes those of the
    numbers `rows`.
    """

    name: str
    make: Callable[..., Examples]
    arguments: tuple[Any, ...]
    length: int
    sizes: dict[str, int]

    @cached_property
    def folder(self) -> Path:
        """Named by the arguments and the source of the generator's file: a changed generator finds
        no stale parts.
        """
        source = Path(str(sys.modules[self.make.__module__].__file__)).read_bytes()
        key = hashlib.sha256(
            repr((self.arguments, self.length, PART)).encode() + source
        ).hexdigest()
        return data_folder() / self.name / key[:16]

    def read(self, split: str, rows: Integers) -> Examples:
        """The examples of these numbers, from the parts that are there, made anew where they are
        not.
        """
        tokens = np.zeros((len(rows), self.length), dtype=np.uint8)
        labels, lengths = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        absent = np.ones(len(rows), dtype=bool)
        for number in np.unique(rows // PART):
            path = self.part(split, number)
            if path.exists():
                mine = rows // PART == number
                found = _opened(path, self.length)[rows[mine] % PART]
                tokens[mine], labels[mine], lengths[mine] = (
                    found["tokens"],
                    found["label"],
                    found["length"],
                )
                absent &= ~mine
        if absent.any():
            tokens[absent], labels[absent], lengths[absent] = self.make(
                *self.arguments, split, rows[absent]
            )
        return tokens, labels, lengths

    def part(self, split: str, number: int) -> Path:
        """The file of a part, whether it is there or not."""
        return self.folder / f"{split}-{number:04d}.npy"

    def fill(self, processes: int | None = None) -> None:
        """Make every part that is not there yet, with a bar where somebody watches.

        It can be stopped at any time, and goes on another time. Raises what making a part raises.
        """
        from tqdm import tqdm

        parts = [
            (split, number)
            for split, size in self.sizes.items()
            for number in range(-(-size // PART))
        ]
        todo = [part for part in parts if not self.part(*part).exists()]
        _clear_away(self.folder)
        shares = [todo[first :: processes or _cores()] for first in range(processes or _cores())]
        context = get_context("spawn")
        workers = [
            context.Process(target=_make_parts, args=(self, share, os.getpid()))
            for share in shares
            if share
        ]
        watched = sys.stderr.isatty()
        with tqdm(
            total=len(parts), unit="part", desc=self.name, dynamic_ncols=True, disable=not watched
        ) as bar:
            try:
                for worker in workers:
                    worker.start()
                while any(worker.is_alive() for worker in workers):
                    workers[0].join(POLL_SECONDS)
                    bar.n = sum(self.part(*part).exists() for part in parts)
                    bar.refresh()
            finally:
                for worker in workers:
                    if worker.pid is not None:
                        worker.terminate()
                        worker.join()
        for part in todo:
            if not self.part(*part).exists():
                self.make_part(*part)  # a worker could not; here its reason is raised

    def make_part(self, split: str, number: int) -> None:
        """Make one part and write it: after this it is there whole, or not at all."""
        rows = np.arange(number * PART, min((number + 1) * PART, self.sizes[split]))
        tokens, labels, lengths = self.make(*self.arguments, split, rows)
        part = np.zeros(len(rows), dtype=_layout(self.length))
        part["tokens"], part["label"], part["length"] = tokens, labels, lengths
        save_whole(self.part(split, number), part)


def _make_parts(generated: Generated, parts: list[tuple[str, int]], parent: int) -> None:
    """What one of the processes of `fill` does: its share of the parts, as long as the one that
    started it lives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that one decides
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # so that a part half written is taken away
    for part in parts:
        if os.getppid() != parent:
            return
        try:
            generated.make_part(*part)
        except Exception:  # whatever it is, it is raised again where somebody can read it
            return


def save_whole(path: Path, array: NDArray[Any]) -> None:
    """Write an array under `path` so that it stands there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _clear_away(folder: Path) -> None:
    """Remove what a process that was killed while writing has left; what is younger may be
    another's work.
    """
    for path in folder.glob(".*.npy.*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _layout(length: int) -> np.dtype[Any]:
    return np.dtype([("tokens", "u1", (length,)), ("label", "u1"), ("length", "<u4")])


@lru_cache(maxsize=512)
def _opened(path: Path, length: int) -> NDArray[Any]:
    """A part, read from the disk when asked for; raises ValueError that names the file when it is
    none.
    """
    try:
        part: NDArray[Any] = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole part ({error}): delete it, and it will be made again"
        ) from None
    if part.dtype != _layout(length):
        raise ValueError(
            f"{path}: expected examples of {length} tokens, found {part.dtype}: delete it"
        )
    return part


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
