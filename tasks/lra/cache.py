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
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lookback.tasks.files import data_folder

PART = 1000  # examples
Integers = NDArray[np.int64]


Examples = NDArray[np.void]
"""A structured array of labelled sequences; `empty_examples` states its fields."""


def empty_examples(count: int, length: int) -> Examples:
    """Return an array for `count` sequences of equal, padded `length`, in the layout of the files.

    Its fields are `tokens`, (count, length) uint8; `label`, (count,) uint8; and `length`, (count,)
    uint32, the number of valid tokens. All are 0.
    """
    layout = [("tokens", "u1", (length,)), ("label", "u1"), ("length", "<u4")]
    return np.zeros(count, dtype=layout)


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
        examples = empty_examples(len(rows), self.length)
        missing = np.ones(len(rows), dtype=bool)
        for number in np.unique(rows // PART):
            path = self.part(split, number)
            if path.exists():
                in_part = rows // PART == number
                examples[in_part] = _open_part(path)[rows[in_part] % PART]
                missing &= ~in_part

        if missing.any():
            examples[missing] = self.make(*self.arguments, split, rows[missing])
        return examples

    def fill(self) -> None:
        """Write every missing part, with a progress bar on a terminal.

        It may be stopped at any time, and continued later. Raises the error of a part that cannot
        be generated.
        """
        parts = []
        for split, size in self.sizes.items():
            for number in range(-(-size // PART)):
                parts.append((split, number))

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_suffix(".lock")):
            for remains in self.folder.glob(".*"):  # of a process that was killed
                remains.unlink()
            missing = [part for part in parts if not self.part(*part).exists()]
            self._make_parts(missing, done=len(parts) - len(missing))

    def _make_parts(self, parts: list[tuple[str, int]], done: int) -> None:
        """Make parts in several processes; `done` parts, made earlier, count as progress."""
        from tqdm import tqdm

        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(mp_context=spawn, initializer=_start_worker) as workers:
            made = [workers.submit(self.make_part, *part) for part in parts]
            progress = tqdm(
                as_completed(made),
                initial=done,
                total=done + len(parts),
                unit="part",
                desc=self.name,
                disable=not sys.stderr.isatty(),
            )
            try:
                for part in progress:
                    part.result()
            except BaseException:
                # A part may take minutes: do not wait for those that are being made.
                workers.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise

    def make_part(self, split: str, number: int) -> None:
        """Generate one part and write it to its file, which is complete or does not exist."""
        stop = min((number + 1) * PART, self.sizes[split])
        rows = np.arange(number * PART, stop)
        path = self.part(split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            np.save(unfinished, self.make(*self.arguments, split, rows))
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when the parent is gone."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()


@lru_cache(maxsize=512)
def _open_part(path: Path) -> Examples:
    """Map a part into memory; raises ValueError that names the file if it is damaged."""
    try:
        part: Examples = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: not a whole part ({error}): delete it, and it will be made again"
        ) from None
    return part


@lru_cache(maxsize=16)
def _hash_examples(
    make: Callable[..., Examples], arguments: tuple[Any, ...], splits: tuple[str, ...], count: int
) -> str:
    """Return the SHA-256 of the first `count` examples of each split."""
    digest = hashlib.sha256()
    for split in splits:
        examples = make(*arguments, split, np.arange(count))
        for field in ("tokens", "label", "length"):
            digest.update(examples[field].astype("<i8").tobytes())
    return digest.hexdigest()
