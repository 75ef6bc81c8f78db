"""What a run tells its user: a message log for each cell, a progress bar on a terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from lookback.benchmarks.record import AnyCell, Record

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
    """Shows the running cell and the remaining time; without a terminal, prints a line per cell."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.done = 0
        self.name = ""
        self.is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=cells,
            disable=not self.is_terminal,
            unit="cell",
            dynamic_ncols=True,
            bar_format=BAR,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def start(self, cell: AnyCell) -> None:
        self.name = cell.id.rpartition("-")[0]  # without the hash
        self.progress(0, 1, "starting")

    def progress(self, done: int, total: int, description: str) -> None:
        self.bar.n = self.done + done / max(1, total)
        self.bar.set_description_str(f"{self.name}: {description}")

    def finish(self, result: CellResult) -> None:
        for message in result.messages:
            self.say(message)
        if result.record is None:
            return

        self.done += 1
        self.bar.n = self.done
        self.bar.refresh()

        outcome = result.record.outcome
        if self.is_terminal and outcome.status == "ok":
            return  # the bar has moved on, which says enough
        count = f"[{self.done}/{self.cells}]"
        line = f"{count} {result.cell.id} {outcome.status} in {result.seconds:.1f} s"
        if outcome.message.strip():
            line += f": {outcome.message.strip().splitlines()[-1]}"
        self.say(line)

    def say(self, message: str) -> None:
        super().say(message)
        self.bar.clear()
        print(message, flush=True)
