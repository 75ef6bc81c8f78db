"""What a page is made of: parts, each with a title and any of a text, a figure, the data behind it and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.record import write_atomically
from benchmarks.report import style
from benchmarks.report.tables import safe


@dataclass(frozen=True)
class Part:
    """One section of a page, the same whether it is written as Markdown or otherwise.

    A module of the report has a function `parts(records) -> list[Part]`; what it has nothing to say of, it leaves
    out or returns empty, and the page then has no such section.
    """

    title: str
    text: str = ""  # Markdown: what is shown and how to read it
    name: str = ""  # of its files, without an ending
    figure: Figure | None = None  # written as name.svg, and as PNG and PDF for whom they help
    data: pd.DataFrame | None = None  # the numbers behind the figure, written as name.csv
    table: pd.DataFrame | None = None  # of texts, as they are to be read

    def __post_init__(self) -> None:
        if not self.name and (self.figure is not None or self.has_data):
            raise ValueError(f"part {self.title!r} has a figure or data: expected a name for their files")

    @property
    def alternative(self) -> str:
        """What stands for the figure where it cannot be seen."""
        return f"{self.title}: {self.text.split('. ')[0].rstrip('.')}." if self.text else self.title

    @property
    def has_data(self) -> bool:
        return self.data is not None and not self.data.empty

    @property
    def has_table(self) -> bool:
        return self.table is not None and not self.table.empty

    @property
    def empty(self) -> bool:
        return self.figure is None and not self.has_data and not self.has_table

    def write(self, folder: Path) -> None:
        """Write its figure and its data into `folder`."""
        if self.figure is not None:
            style.save(self.figure, folder / self.name)
        if self.has_data:
            write_atomically(folder / f"{self.name}.csv", safe(self.data).to_csv(index=False, lineterminator="\n"))
