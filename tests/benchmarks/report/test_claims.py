"""Claims: bands, verdicts, and that the data name frames and columns that exist."""

import math
from typing import Any

import pandas as pd
import pytest

from lookback.benchmarks.record import Cell
from lookback.benchmarks.report.endpoints import Evidence
from lookback.benchmarks.report.frames import frame
from lookback.benchmarks.report.make import endpoints_of, load
from lookback.benchmarks.report.pages.claims import (
    claim_verdict,
    claims_page,
    deciding_measure,
    measure,
    read_claims,
)
from lookback.benchmarks.report.pages.papers import PUBLISHED, papers_table, read_papers
from lookback.benchmarks.report.sections.costs import ratios
from lookback.benchmarks.storage import PUBLISHED_RECORDS
from lookback.benchmarks.suite import find_suite, suite_names
from tests.records import as_cost, cost_record


def judged(value: float, low: float, high: float, most: float) -> str:
    row: dict[str, Any] = {
        "suite": "cost",
        "machine": "m",
        "quantity": "training time",
        "slope": value,
    }
    row |= {"slope_low": low, "slope_high": high}
    return str(measure({"claim": "c", "value": "slope", "high": most}, row)["judged"])


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (1.0, 0.9, 1.1, "in favour"),
        (1.2, 1.1, 1.3, "undecided"),
        (1.5, 1.4, 1.6, "against"),
        (1.0, math.nan, math.nan, "in favour"),  # counted, so exact
        (1.5, math.nan, math.nan, "against"),
    ],
)
def test_a_band_is_judged_by_the_whole_interval(
    value: float, low: float, high: float, word: str
) -> None:
    assert judged(value, low, high, 1.25) == word


def test_an_endpoint_at_the_floor_decides_nothing() -> None:
    row = {"suite": "distance", "machine": "m", "verdict": "at floor", "seeds": 6}
    row |= {"mean": 0.4, "low": 0.3, "high": 0.5}
    claim = {"claim": "c", "value": "mean", "low": 0.0}
    assert measure(claim, row)["judged"] == "undecided"
    assert measure(claim, row | {"verdict": "better"})["judged"] == "in favour"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ([], "not measured"),
        (["in favour", "in favour"], "holds"),
        (["in favour", "undecided"], "undecided"),
        (["in favour", "against"], "fails"),
    ],
)
def test_verdicts(words: list[str], verdict: str) -> None:
    assert claim_verdict(pd.DataFrame({"judged": words})) == verdict


def test_the_measure_that_is_shown_is_the_one_that_decides() -> None:
    rows = {"of": "slope", "value": [1.0, 2.0, 3.0], "value_low": [math.nan, 1.5, 2.5]}
    table = pd.DataFrame({**rows, "value_high": 9.0, "measure": ["a", "b", "c"]})

    def deciding(*words: str) -> str:
        return deciding_measure(table.assign(judged=words))

    assert deciding("in favour", "undecided", "against") == "slope of c: 3.00 (2.50 to 9.00)"
    assert deciding("in favour", "undecided", "in favour") == "slope of b: 2.00 (1.50 to 9.00)"
    assert deciding("in favour", "in favour", "in favour") == "slope of a: 1.00"


def test_the_published_records_measure_the_claims_on_cost() -> None:
    records = load(PUBLISHED_RECORDS)
    page = claims_page(Evidence(records, endpoints_of(records)))
    assert page is not None
    table = page.blocks[0].table
    assert table is not None
    verdicts = table.set_index("claim")["verdict"]
    assert verdicts["RWKV generates each token in constant time and memory"] == "holds"
    assert verdicts["The memory of attention, here fused, is quadratic in length"] == "fails"


def test_claims_and_papers_name_suites_that_exist() -> None:
    for claim in read_claims():
        for suite in claim["suite"]:
            assert find_suite(suite) is not None, suite
    for paper in read_papers():
        assert find_suite(paper["suite"]) is not None
        comparisons = set(pd.read_csv(PUBLISHED)["comparison"])
        assert not paper["comparison"] or paper["comparison"] in comparisons


def test_papers_say_what_has_been_run() -> None:
    table = papers_table([])
    assert set(table["status"]) == {"not run"}


def test_every_endpoint_of_a_suite_is_one_that_pages_can_compute() -> None:
    from lookback.benchmarks.report.endpoints import QUANTITIES

    for name in suite_names():
        suite = find_suite(name)
        assert suite is not None
        assert suite.endpoint is None or suite.endpoint.quantity in QUANTITIES


def test_a_ratio_of_costs_is_of_the_medians_over_seeds(cell: Cell) -> None:
    """Three seeds of each model are one ratio, not nine."""
    records = []
    for model, seconds in (("rwkv", (1.0, 2.0, 9.0)), ("rrwkv", (3.0, 1.0, 8.0))):
        for seed, median in enumerate(seconds):
            own = cell.model_copy(update={"model": model, "seed": seed})
            records.append(cost_record(as_cost(own), median))
    rows = ratios(frame("costs", records), "rrwkv", "rwkv")
    (row,) = rows[rows["quantity"] == "training time"].to_dict("records")
    assert row["ratio"] == pytest.approx(3.0 / 2.0)
    assert row["ratio_low"] == pytest.approx(3.0 * 0.9 / (2.0 * 1.2))
