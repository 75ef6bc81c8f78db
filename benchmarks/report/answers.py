"""Pages that answer a question, beside those of suites: what a paper prints, what it claims, whether a part helps.

Each is a function of the records of one machine, and is asked for by its name as suites are: `lookback report
complexity --scale smoke` makes reports/<machine>/complexity-smoke, as Markdown and as one HTML file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import html
from lookback.benchmarks.report.page import RECONSTRUCTION, TEMPLATES, Made, NothingToReportError, measured
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.storage import write_atomically

TOGETHER = "all-machines"  # the folder of a page whose records are of several machines


@dataclass(frozen=True)
class Question:
    """A page's name, and what makes it: `answer` raises NothingToReportError where the records say nothing of it."""

    name: str
    answer: Callable[[Sequence[Record], Path], Made]
    suite: str = ""  # whose records it is made of; of all suites where empty
    together: bool = False  # one page of all machines, in place of one for each

    def pages(self, records: Iterable[Record], reports: Path, suite: str = "", name: str = "") -> list[Made]:
        """The page of each machine, of the question's own suite or another; raises NothingToReportError if none has."""
        suite, groups = suite or self.suite, dict[str, list[Record]]()
        for record in records:
            if not suite or record.suite == suite:
                groups.setdefault(TOGETHER if self.together else record.machine.slug, []).append(record)
        made, why = [], f"no records of suite {suite!r}: run it first" if suite else "no records: run a suite first"
        for slug, found in sorted(groups.items()):
            try:
                made.append(self.answer(sorted(found, key=_order), reports / slug / (name or self.name)))
            except NothingToReportError as error:
                why = str(error)
        if not made:
            raise NothingToReportError(why)
        html.write_index(reports)
        return made


def _order(record: Record) -> tuple[str, str, str]:
    return record.machine.slug, record.suite, record.cell.id


def notes_on(records: Sequence[Record]) -> list[str]:
    """What must be known of the models before any number is read."""
    return [RECONSTRUCTION] if any(record.cell.model == "rrwkv" for record in records) else []


def write_answer(
    folder: Path, title: str, text: str, parts: Sequence[Part], records: Sequence[Record], table: str,
    headline: Sequence[str] = (),
) -> Made:  # fmt: skip
    """Write a page of parts, empty ones left out; `table` is what a terminal shows of it."""
    kept = [part for part in parts if not part.empty]
    for part in kept:
        part.write(folder)
    said = "\n".join(f"- {sentence}" for sentence in headline)
    page = TEMPLATES.get_template("answer.md").render(title=title, headline=said, text=text, parts=kept)
    write_atomically(folder / "README.md", page)
    html.write(html.Document(title, measured(records), headline, text), kept, folder)
    return Made(table, folder / "README.md")
