"""Records in, pages out: chooses the records of each page, and writes it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import sections
from lookback.benchmarks.report.endpoints import Evidence, SuiteEvidence
from lookback.benchmarks.report.frames import distinct, without_pilots
from lookback.benchmarks.report.page import Page, WrittenPage, is_current, page_key, write_page
from lookback.benchmarks.report.pages import claims, papers, rrwkv
from lookback.benchmarks.report.pages.overview import overview_page
from lookback.benchmarks.report.pages.suite import suite_page
from lookback.benchmarks.report.section import SECTIONS
from lookback.benchmarks.storage import published_folder, read_published, read_records
from lookback.benchmarks.suite import Endpoint, find_suite

__all__ = ["TOPICS", "Selection", "make_pages", "sections"]

TOPICS: dict[str, tuple[str, Callable[[Evidence], Page | None]]] = {
    "claims": (claims.TITLE, claims.claims_page),
    "rrwkv": (rrwkv.TITLE, rrwkv.rrwkv_page),
    "papers": (papers.TITLE, papers.papers_page),
}
"""Pages that look at several suites: title and function by their names."""


@dataclass(frozen=True)
class Selection:
    """Which records a page shows: only these tasks and models, and under which title."""

    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    title: str = ""

    def keep(self, record: Record) -> bool:
        """Return whether a record is of the chosen tasks and models."""
        has_task = not self.tasks or record.cell.task in self.tasks
        return has_task and (not self.models or record.cell.model in self.models)


def all_records(results: Path, suites: Sequence[str] = (), published: bool = False) -> list[Record]:
    """Return the records below a folder, and if wanted the published ones beside them.

    Pilots and calibrations are left out unless they are named. Raises ValueError if the folder does
    not exist and no published records are wanted.
    """
    if not (results.is_dir() or published):
        raise ValueError(
            f"no folder of records {results}: `lookback run` makes one, --results names another"
        )
    records = list(read_records(results, suites)) if results.is_dir() else []
    if published:
        published_folder()  # raises if there is none
        records += not_run_here(records, read_published(suites))
    return records if suites else list(without_pilots(records))


def chosen_records(
    results: Path,
    suites: Sequence[str] = (),
    selection: Selection | None = None,
    published: bool = False,
) -> list[Record]:
    """Return the records of these suites, tasks and models.

    Raises ValueError that names the first suite, task or model without a record.
    """
    selection = selection or Selection()
    records = all_records(results, suites, published)
    wanted = {"suite": suites, "task": selection.tasks, "model": selection.models}
    for kind, names in wanted.items():
        absent = [name for name in names if name not in _present(kind, records)]
        if absent:
            present = sorted(_present(kind, all_records(results, (), published)))
            near = difflib.get_close_matches(absent[0], present) or present
            hint = f"expected {' or '.join(near)}, or " if near else ""
            raise ValueError(f"no records of {kind} {absent[0]!r} in {results}: {hint}run it first")
    records = [record for record in records if selection.keep(record)]
    if not records:
        raise ValueError(f"no records in {results} to show: run a suite first")
    return records


def _present(kind: str, records: Iterable[Record]) -> set[str]:
    """Return the names of the suites, tasks or models that have records."""
    return {
        str(record.suite if kind == "suite" else getattr(record.cell, kind)) for record in records
    }


def not_run_here(own: Iterable[Record], published: Iterable[Record]) -> list[Record]:
    """Return published records, without the learning records of models that the user ran."""
    run_here = {(record.suite, record.cell.model) for record in own}
    return [
        record
        for record in published
        if record.cell.kind == "cost" or (record.suite, record.cell.model) not in run_here
    ]


def load(results: str | Path) -> list[Record]:
    """Return the records below a folder, one of each measurement; pilots are left out.

    Raises ValueError if there is no such folder.
    """
    return distinct(all_records(Path(results)))[0]


# Texts of Python, not of Arrow, which take a fifth longer on tables of some hundred rows.
@pd.option_context("mode.string_storage", "python")
def make_pages(
    results: Path,
    reports: Path,
    names: Sequence[str] = (),
    published: bool = False,
    style: str = "page",
    selection: Selection | None = None,
) -> list[WrittenPage]:
    """Write the pages of these suites and topics; without names, all pages and the overview.

    Raises ValueError if a name, or a selected task or model, has no records.
    """
    selection = selection or Selection()
    suites = [name for name in names if name not in TOPICS]
    topics = [name for name in names if name in TOPICS] if names else list(TOPICS)
    records = chosen_records(results, suites, selection, published)
    if suites and topics:  # which look at all suites
        records = chosen_records(results, (), selection, published)
    kept, _ = distinct(records)
    evidence = Evidence(kept, endpoints_of(kept, results))
    counts = Counter(record.suite for record in records)
    written = []
    links = {}
    for suite in suites if names else sorted(counts):
        of_suite = evidence.suites[suite]
        links[suite] = selection.title or suite_title(suite, results)
        settings = (links[suite], counts[suite] - len(of_suite.records))
        written += write_new(suite_page, reports / suite, style, of_suite, *settings)
    for topic in topics:
        title, make = TOPICS[topic]
        pages = write_new(make, reports / topic, style, evidence)
        if pages:
            links[topic] = title
        elif names:
            raise ValueError(f"no records in {results} for the page {topic}: run its suites first")
        written += pages
    if not names:
        written += write_new(overview_page, reports, style, evidence, links)
    return written


def write_new(
    make: Callable[..., Page | None],
    folder: Path,
    style: str,
    evidence: Evidence | SuiteEvidence,
    *settings: object,
) -> list[WrittenPage]:
    """Write the page that `make` makes of evidence and settings; none if it has nothing to show.

    A page that was made of the same records by the same code is left as it is.
    """
    key = page_key(evidence.digest, style, sorted(SECTIONS), *settings)
    if is_current(folder / "index.html", key):
        return [WrittenPage(folder / "README.md", "", is_new=False)]
    page = make(evidence, *settings)
    return [write_page(page, folder, style, key)] if page else []


def suite_title(name: str, results: Path) -> str:
    """Return the title of a suite; its name where its file is unknown."""
    suite = find_suite(name, results)
    return suite.title if suite else f"Suite {name}"


def endpoints_of(records: Iterable[Record], results: Path | None = None) -> dict[str, Endpoint]:
    """Return the endpoints of the suites of these records; smoke scales decide nothing.

    Those of users' suites are known if they were run into the folder `results`.
    """
    endpoints = {}
    for name in dict.fromkeys(record.suite for record in records):
        suite = find_suite(name, results) if not name.endswith("-smoke") else None
        if suite is not None and suite.endpoint is not None:
            endpoints[name] = suite.endpoint
    return endpoints
