"""What a page is made of: parts, each with a title and any of a text, a figure, the data behind it and a table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lookback.benchmarks.report import style
from lookback.benchmarks.report.tables import csv, latex
from lookback.benchmarks.storage import write_atomically


@dataclass(frozen=True)
class Part:
    """One section of a page, the same whether it is written as Markdown or otherwise.

    A module of the report has a function `parts(records) -> list[Part]`; what it has nothing to say of, it leaves
    out or returns empty, and the page then has no such section.
    """

    title: str
    text: str = ""  # Markdown: what is shown and how to read it
    name: str = ""  # of its files, without an ending
    figure: Figure | None = None  # written as name.svg, for a paper also as PDF and PNG
    data: pd.DataFrame | None = None  # the numbers behind the figure, written as name.csv
    table: pd.DataFrame | None = None  # of texts, as they are to be read; for a paper also a file, see table_name

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

    @property
    def table_name(self) -> str:
        """Of the table's files, without an ending."""
        return "table-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def write(self, folder: Path) -> None:
        """Write its figure and its data into `folder`, for a paper also its table, as LaTeX and as CSV."""
        if self.figure is not None:
            style.save(self.figure, folder / self.name)
        if self.has_data:
            write_atomically(folder / f"{self.name}.csv", csv(self.data))
        if self.has_table and style.for_paper():
            write_atomically(folder / f"{self.table_name}.tex", latex(self.table))
            write_atomically(folder / f"{self.table_name}.csv", csv(self.table))
