"""Records -> tables, figures and pages. Needs neither torch nor the tasks and models: a folder of records is enough."""

import contextlib
from pathlib import Path

from benchmarks.report.page import Made, NothingToReportError, make_reports

__all__ = ["Made", "make_all", "make_reports"]


def make_all(results: Path, reports: Path) -> list[Made]:
    """Every suite's page, and those that answer a paper's question, where there are records for them."""
    from benchmarks.report import papers, rrwkv  # programs of their own too, which must not be imported before they run

    made = make_reports(results, reports, [])
    for name in papers.PAGES:
        with contextlib.suppress(NothingToReportError):
            made += papers.make_pages(name, results, reports, "cost")
    with contextlib.suppress(NothingToReportError):
        made += rrwkv.make_answers(results, reports)
    return made
