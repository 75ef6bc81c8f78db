"""Records -> tables, figures and pages. Needs neither torch nor the tasks and models: a folder of records is enough."""

from benchmarks.report.page import Made, make_reports

__all__ = ["Made", "make_reports"]
