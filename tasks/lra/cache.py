"""Sets of generated examples, and the files that keep them.

A generator can make any example by itself, so nothing has to be kept; but examples that are read in
every epoch should not be generated in every epoch. `Generated.fill` writes the whole set in parts,
in several processes. `Generated.read` takes an example from its part if that exists, and generates
it otherwise. A part is one file, written under a temporary name and renamed, so that half a part is
never read and an interrupted `fill` continues where it stopped.

This module does not import torch: the processes that generate parts start faster without it.
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookback.tasks.files import data_folder

PART = 1000  # examples
ABANDONED_SECONDS = 600.0  # age at which a temporary file has lost its writer
POLL_SECONDS = 0.2
Integers = NDArray[np.int64]


class Examples(NamedTuple):
    """Labelled sequences of equal, padded length."""

    tokens: NDArray[np.uint8]  # (examples, length)
    labels: Integers  # (examples,)
    lengths: Integers  # (examples,): number of valid tokens


@dataclass(frozen=True)
class Generated:
    """A set of examples of `length` tokens.

    `make(*arguments, split, rows)` returns the `Examples` with the numbers `rows`, a function of
    its arguments alone. `sizes` is the number of examples in each split.
    """

    name: str
    make: Callable[..., Examples]
    arguments: tuple[Any, ...]
    length: int
    sizes: dict[str, int]

    @cached_property
    def folder(self) -> Path:
        """Folder of the parts, named by a hash of the arguments and the generator's source code."""
        source = Path(str(sys.modules[self.make.__module__].__file__)).read_bytes()
        key = repr((self.arguments, self.length, PART)).encode() + source
        return data_folder() / self.name / hashlib.sha256(key).hexdigest()[:16]

    def part(self, split: str, number: int) -> Path:
        """Return the file of a part, whether it exists or not."""
        return self.folder / f"{split}-{number:04d}.npy"

    def identity(self, count: int) -> dict[str, Any]:
        """Return what identifies the set: a hash of the first `count` examples of each split."""
        return {
            "source": "generated",
            "first_examples": count,
            "first_examples_sha256": _hash_examples(
                self.make, self.arguments, tuple(self.sizes), count
            ),
        }

    def read(self, split: str, rows: Integers) -> Examples:
        """Return the examples with these numbers, generating those whose part does not exist."""
        examples = np.zeros(len(rows), dtype=_layout(self.length))
        missing = np.ones(len(rows), dtype=bool)
        for number in np.unique(rows // PART):
            path = self.part(split, number)
            if path.exists():
                in_part = rows // PART == number
                examples[in_part] = _open_part(path, self.length)[rows[in_part] % PART]
                missing &= ~in_part

        if missing.any():
            examples[missing] = self._generate(split, rows[missing])
        return Examples(
            examples["tokens"],
            examples["label"].astype(np.int64),
            examples["length"].astype(np.int64),
        )

    def fill(self, processes: int | None = None) -> None:
        """Write every missing part, with a progress bar on a terminal.

        It may be stopped at any time, and continued later. Raises the error of a part that cannot
        be generated.
        """
        from tqdm import tqdm

        parts = []
        for split, size in self.sizes.items():
            for number in range(-(-size // PART)):
                parts.append((split, number))
        missing = [part for part in parts if not self.part(*part).exists()]
        _remove_abandoned(self.folder)

        count = min(processes or _usable_cores(), len(missing))
        context = get_context("spawn")
        workers = []
        for first in range(count):
            arguments = (self, missing[first::count], os.getpid())
            workers.append(context.Process(target=_make_parts, args=arguments))

        hidden = not sys.stderr.isatty()
        with tqdm(total=len(parts), unit="part", desc=self.name, disable=hidden) as bar:
            try:
                for worker in workers:
                    worker.start()
                while any(worker.is_alive() for worker in workers):
                    time.sleep(POLL_SECONDS)
                    bar.n = sum(self.part(*part).exists() for part in parts)
                    bar.refresh()
            finally:
                for worker in workers:
                    if worker.pid is not None:  # it was started
                        worker.terminate()
                        worker.join()

        # A part that a worker could not make fails again here, where its error is seen.
        for part in missing:
            if not self.part(*part).exists():
                self.make_part(*part)

    def make_part(self, split: str, number: int) -> None:
        """Generate one part and write it."""
        stop = min((number + 1) * PART, self.sizes[split])
        rows = np.arange(number * PART, stop)
        save_whole(self.part(split, number), self._generate(split, rows))

    def _generate(self, split: str, rows: Integers) -> NDArray[Any]:
        """Return the examples with these numbers in the layout of a part."""
        made = self.make(*self.arguments, split, rows)
        part = np.zeros(len(rows), dtype=_layout(self.length))
        part["tokens"] = made.tokens
        part["label"] = made.labels
        part["length"] = made.lengths
        return part


def _make_parts(generated: Generated, parts: list[tuple[str, int]], parent: int) -> None:
    """Make parts in a process of its own, until the process that started it is gone."""
    # The parent handles Ctrl-C and terminates its workers. Exiting by an exception removes the
    # temporary file of a part that is being written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for part in parts:
        if os.getppid() != parent:
            return
        try:
            generated.make_part(*part)
        except Exception:  # `fill` makes the part again, and raises there
            return


def save_whole(path: Path, array: NDArray[Any]) -> None:
    """Write an array to `path`, which holds it completely or does not exist."""
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


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of killed processes; a recent one may belong to a live process."""
    for path in folder.glob(".*.npy.*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _layout(length: int) -> np.dtype[Any]:
    return np.dtype([("tokens", "u1", (length,)), ("label", "u1"), ("length", "<u4")])


@lru_cache(maxsize=512)
def _open_part(path: Path, length: int) -> NDArray[Any]:
    """Map a part into memory; raises ValueError that names the file if it is damaged."""
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


@lru_cache(maxsize=16)
def _hash_examples(
    make: Callable[..., Examples], arguments: tuple[Any, ...], splits: tuple[str, ...], count: int
) -> str:
    """Return the SHA-256 of the first `count` examples of each split."""
    digest = hashlib.sha256()
    for split in splits:
        for array in make(*arguments, split, np.arange(count)):
            digest.update(np.ascontiguousarray(array).astype("<i8").tobytes())
    return digest.hexdigest()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
