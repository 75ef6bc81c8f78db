"""A page a suite and machine, as Markdown and as HTML: a summary and parts, figures as SVG, their numbers as CSV."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import (
    about,
    costs,
    distance,
    extrapolation,
    frames,
    gaps,
    html,
    learning,
    reach,
    style,
    tradeoff,
    training,
)
from lookback.benchmarks.report.headline import headline
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.tables import markdown, plain, span
from lookback.benchmarks.storage import read_published, read_records, write_atomically

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=False,
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATES.filters["markdown"] = markdown

PARTS: tuple[Callable[[Sequence[Record]], list[Part]], ...] = (
    learning.parts, distance.parts, extrapolation.parts, training.parts, reach.parts, costs.parts, tradeoff.parts,
    gaps.parts, about.parts,
)  # fmt: skip
"""What a page is made of, in its order."""
COLUMNS: tuple[Callable[[Sequence[Record]], dict[str, dict[str, str]]], ...] = (
    learning.summary, distance.summary, reach.summary, costs.summary,
)  # fmt: skip
"""Columns of its first table, by model."""

ONE_SEED = (
    "One seed: intervals are of the answers to one trained model (Wilson), not of what another seed would have learned."
)
RECONSTRUCTION = (
    "RRWKV here is this project's reconstruction: its paper (arXiv 2306.05176) was withdrawn, without code or results."
)


class NothingToReportError(ValueError):
    """No records of what a page is about."""


@dataclass(frozen=True)
class Made:
    """What was made of a suite: a table for the terminal, and the path of the page."""

    table: str
    path: Path


@dataclass(frozen=True)
class Page:
    """All that a page holds, in whichever form it is written; records are of one suite and one machine."""

    records: Sequence[Record]
    summary: pd.DataFrame
    parts: list[Part]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Page:
        labels = frames.Labels.of(records)
        order = style.in_order(labels.model(record.cell) for record in records)
        records = sorted(records, key=lambda r: (labels.task(r.cell), r.cell.length, r.cell.seed, r.cell.id))
        records.sort(key=lambda record: order.index(labels.model(record.cell)))
        found = [part for make in PARTS for part in make(records)]
        return cls(records, summarise(records), [part for part in found if not part.empty])

    @property
    def failed(self) -> int:
        return sum(record.outcome.status != "ok" for record in self.records)

    @property
    def seeds(self) -> int:
        """How many seeds what was learned stands on."""
        return len({record.cell.seed for record in self.records if record.outcome.learn})

    @property
    def made(self) -> str:
        """Of how many records it is, and by what command."""
        seeds = f", {self.seeds} seed{'' if self.seeds == 1 else 's'}" if self.seeds else ""
        failed = f", {self.failed} of them not ok" if self.failed else ""
        command = f"lookback report {self.records[0].suite}"
        return f"{len(self.records)} records{seeds}{failed}. Made from the records alone by `{command}`."

    @property
    def notes(self) -> list[str]:
        """What must be known before any number is read."""
        found = [ONE_SEED] if self.seeds == 1 else []
        return found + ([RECONSTRUCTION] if any(record.cell.model == "rrwkv" for record in self.records) else [])

    @property
    def document(self) -> html.Document:
        first = self.records[0]
        return html.Document(
            f"{first.suite} on {first.machine.device}", measured(self.records), headline(self.records, self.parts),
            " ".join([self.made, *self.notes]), self.summary,
        )  # fmt: skip


def measured(records: Sequence[Record]) -> str:
    """From which day to which, and on what."""
    days = min(record.started for record in records)[:10], max(record.ended for record in records)[:10]
    devices = sorted({record.machine.device for record in records})
    return f"{' to '.join(dict.fromkeys(days))} on {', '.join(devices)}"


def all_records(results: Path, suites: Sequence[str] = (), published: bool = False) -> Iterator[Record]:
    """Yield the records below a folder, and if wanted the published ones.

    Pilots and calibrations choose settings and compare nothing: only a report that names them shows them.
    """
    records: list[Iterator[Record]] = []
    if results.is_dir():
        records.append(read_records(results, suites))
    if published:
        records.append(read_published(suites))
    for record in itertools.chain(*records):
        if suites or not (record.suite.endswith("-pilot") or record.suite.startswith("calibrate-")):
            yield record


def make_reports(results: Path, reports: Path, suites: Sequence[str], published: bool = False) -> list[Made]:
    """Make the pages of all suites that have records below `results`, or of those named.

    A record that cannot be read is left out, and named on the error stream. Raises ValueError when there is nothing
    to report.
    """
    if not (results.is_dir() or published):
        raise ValueError(f"no folder of records {results}: `lookback run` makes one, --results names another")
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in all_records(results, suites, published):
        groups.setdefault((record.machine.slug, record.suite), []).append(record)
    absent = set(suites) - {suite for _, suite in groups}
    if absent or not groups:
        raise ValueError(f"no records of suite {sorted(absent)[0] if absent else ''!r} in {results}: run it first")
    made = [make_page(records, reports / slug / suite) for (slug, suite), records in groups.items()]
    html.write_index(reports)
    return made


def make_page(records: Sequence[Record], folder: Path) -> Made:
    """Write one page, its figures and its data into `folder`; records must be of one suite and one machine."""
    page = Page.of(records)
    for part in [Part("Summary", table=page.summary), *page.parts]:
        part.write(folder)
    write_atomically(folder / "README.md", TEMPLATES.get_template("suite.md").render(page=page))
    html.write(page.document, page.parts, folder)
    return Made(plain(page.summary), folder / "README.md")


def summarise(records: Sequence[Record]) -> pd.DataFrame:
    """A row a model: its size, and the columns that each kind of measurement has for it."""
    labels = frames.Labels.of(records)
    sizes: dict[str, list[int]] = {}
    for record in records:
        if numbers := record.outcome.learn or record.outcome.cost:
            sizes.setdefault(labels.model(record.cell), []).append(numbers.parameters)
    rows = {model: {"model": model, "parameters": span(pd.Series(sizes[model]))} for model in style.in_order(sizes)}
    for columns in COLUMNS:
        for model, found in columns(records).items():
            rows[model].update(found)
    return pd.DataFrame(list(rows.values())).fillna("")
