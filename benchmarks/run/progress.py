"""Report a run's progress: a line for each cell that ends, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import humanize
from tqdm import tqdm

from lookback.benchmarks.machine import ROOT
from lookback.benchmarks.record import AnyCell, Outcome, Record

OURS = ("lookback", "tasks", "models", "benchmarks")
BAR = (
    "{percentage:3.0f}% |{bar:20}| {n:.1f}/{total} cells, {elapsed}, about {remaining} left  {desc}"
)


@dataclass(frozen=True)
class CellResult:
    """The record of a cell, or None if the cell was stopped or lost, and the messages about it."""

    cell: AnyCell
    record: Record | None
    seconds: float = 0.0
    messages: tuple[str, ...] = ()


class MessageLog:
    """Collects the messages about a cell; used where no user watches, as on a node of a cluster."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def progress(self, done: int, total: int, description: str) -> None:
        """Ignore progress."""

    def say(self, message: str) -> None:
        self.messages.append(message)

    def say_once(self, message: str) -> None:
        if message not in self.messages:
            self.say(message)


class ProgressBar(MessageLog):
    """Prints a line per cell; on a terminal, also shows running cells and the remaining time.

    May be used from several threads.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.done = 0
        self.running: dict[AnyCell, tuple[float, str]] = {}  # share done, and a description
        self.lock = threading.RLock()
        self.bar = tqdm(
            total=cells,
            disable=not sys.stderr.isatty(),
            unit="cell",
            dynamic_ncols=True,
            bar_format=BAR,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    @contextlib.contextmanager
    def following(self, cell: AnyCell) -> Iterator[CellLog]:
        """Show a cell as running inside; yield the log for its progress and messages."""
        self.show(cell, 0.0, "starting")
        try:
            yield CellLog(self, cell)
        finally:
            with self.lock:
                del self.running[cell]

    def show(self, cell: AnyCell, share: float, description: str) -> None:
        with self.lock:
            self.running[cell] = (share, description)
            self.bar.n = self.done + sum(share for share, _ in self.running.values())
            descriptions = []
            for other, (_, text) in self.running.items():
                descriptions.append(f"{label(other)}: {text}")
            self.bar.set_description_str("; ".join(descriptions))

    def finish(self, result: CellResult) -> None:
        for message in result.messages:
            self.say(message)
        if result.record is None:
            return

        self.done += 1
        outcome = result.record.outcome
        count = f"[{self.done}/{self.cells}]"
        seconds = f"in {result.seconds:.1f} s"
        if outcome.status == "ok":
            line = f"{count} {label(result.cell)} {headline(result.cell, outcome)} {seconds}"
        else:
            line = f"{count} {label(result.cell)} {outcome.status} {seconds}"
        if outcome.message.strip():
            line += f": {outcome.message.strip().splitlines()[-1]}"
        if place := error_place(outcome.message):
            line += f" ({place}; the record has the whole traceback)"
        self.say(line)
        self.bar.n = self.done
        self.bar.refresh()

    def say(self, message: str) -> None:
        with self.lock:
            super().say(message)
            self.bar.clear()
            try:
                print(message, flush=True)
            except BrokenPipeError:
                discard_output()
                with contextlib.suppress(BrokenPipeError):
                    print("lookback: nobody reads the output; the run goes on", file=sys.stderr)


def discard_output() -> None:
    """Send further output nowhere, because whoever read it has left, as `| head -1` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class CellLog(MessageLog):
    """Passes the progress and the messages of one cell on to a progress bar."""

    def __init__(self, bar: ProgressBar, cell: AnyCell) -> None:
        super().__init__()
        self.bar = bar
        self.cell = cell
        self.messages = bar.messages  # print a message of several cells once

    def progress(self, done: int, total: int, description: str) -> None:
        self.bar.show(self.cell, done / max(1, total), description)

    def say(self, message: str) -> None:
        self.bar.say(message)


def label(cell: AnyCell) -> str:
    """Return a cell's name for people: "recall rwkv @256 seed 0 rate 0.01"."""
    options = "".join(f" {name}={value}" for name, value in cell.model_options.items())
    model = f"{cell.model}{options} @{cell.length}"
    if cell.kind == "cost":
        return f"cost {model} seed {cell.seed}"
    return f"{cell.task} {model} seed {cell.seed} rate {cell.learning_rate:g}"


def error_place(message: str) -> str:
    """Return file and line of the last frame of a traceback outside Lookback and its libraries.

    That is a user's own line, if there is one; empty otherwise.
    """
    places = ""
    for file, line in re.findall(r'File "([^"]+)", line (\d+)', message):
        path = Path(file)
        ours = any(path.is_relative_to(ROOT / folder) for folder in OURS)
        is_library = "site-packages" in path.parts or path.is_relative_to(sys.base_prefix)
        if not ours and not is_library:
            here = Path.cwd()
            shown = path.relative_to(here) if path.is_relative_to(here) else path
            places = f"{shown}:{line}"
    return places


def headline(cell: AnyCell, outcome: Outcome) -> str:
    """Return the number of a finished cell: its score at the trained length, or its speed."""
    if outcome.cost is not None and "training" in outcome.cost.phases:
        phase = outcome.cost.phases["training"]
        rate = round(phase.tokens / max(phase.seconds.median, 1e-9))
        return f"trains {humanize.intcomma(rate)} tokens/s"
    if outcome.learn is None or outcome.task is None:
        return "ok"

    tests = {test.length: test for test in outcome.learn.tests}
    test = tests.get(cell.length, outcome.learn.tests[0])
    if test.score is None:
        return "ok"
    unit = "" if outcome.task.score == "accuracy" else f" {outcome.task.score}"
    return f"{test.score:.2f}{unit}"
