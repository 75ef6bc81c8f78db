"""Records -> tables, figures and pages. Needs neither torch nor the tasks and models: a folder of records is enough."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lookback.benchmarks.report import claims, enwik8, lra, papers, rrwkv
from lookback.benchmarks.report.page import Made, NothingToReportError, all_records, make_reports

__all__ = ["QUESTIONS", "Made", "make_all", "make_named", "make_reports"]

QUESTIONS = {
    one.name: one for one in (claims.QUESTION, rrwkv.QUESTION, *papers.QUESTIONS, lra.QUESTION, enwik8.QUESTION)
}
"""Pages that are not a suite's own, by their names."""


def make_all(results: Path, reports: Path, published: bool = False) -> list[Made]:
    """Every suite's page, and those that answer a question, where there are records for them."""
    made = make_reports(results, reports, [], published)
    records = list(all_records(results, published=published))
    for question in QUESTIONS.values():
        with contextlib.suppress(NothingToReportError):
            made += question.pages(records, reports)
    return made


def make_named(
    results: Path,
    reports: Path,
    names: Sequence[str],
    at_scale: Callable[[str], str] = str,
    of: str = "",
    published: bool = False,
) -> list[Made]:
    """The pages of suites and of questions; `at_scale` gives a suite's name at a scale, `of` a question's suite.

    Raises ValueError where one of them has nothing to tell.
    """
    suites = [at_scale(name) for name in names if name not in QUESTIONS]
    if of and suites:
        raise ValueError(f"{suites[0]} is a suite's page: expected --of with one of {', '.join(QUESTIONS)}")
    made = make_reports(results, reports, suites, published) if suites else []
    for question in (QUESTIONS[name] for name in names if name in QUESTIONS):
        suite = of or (at_scale(question.suite) if question.suite else "")
        name = f"{question.name}-{of}" if of else at_scale(question.name) if question.suite else question.name
        records = all_records(results, [suite] if suite else [], published)
        made += question.pages(records, reports, suite, name)
    return made
