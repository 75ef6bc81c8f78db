"""Papers' tables beside our records, and how much of each suite has run."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import Evidence
from lookback.benchmarks.report.frames import largest
from lookback.benchmarks.report.names import model_name, sort_models
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.sections.costs import growth
from lookback.benchmarks.report.statistics import summarise
from lookback.benchmarks.suite import find_suite

TITLE = "Papers' tables beside ours"
PAPERS = Path(__file__).with_suffix(".toml")
PUBLISHED = Path(__file__).parents[2] / "published.csv"


def read_papers() -> list[dict[str, Any]]:
    """Return the comparisons with papers, as the TOML file has them."""
    return list(tomllib.loads(PAPERS.read_text(encoding="utf-8"))["paper"])


def recorded_cells(records: Iterable[Record]) -> Counter[str]:
    """Return how many cells of each suite have a record."""
    return Counter(suite for suite, _ in {(one.suite, one.cell_id) for one in records})


def papers_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per comparison: its make target, and how much of its suite has run."""
    recorded = recorded_cells(records)
    rows = []
    for paper in read_papers():
        suite = find_suite(paper["suite"])
        assert suite is not None
        count, cells = recorded[suite.name], len(suite.cells)
        status = "run" if count >= cells else f"part: {count} of {cells} runs"
        if not count:
            status = (
                "part: at a smaller scale"
                if recorded[suite.name.removesuffix("-paper")]
                else "not run"
            )
        row = {name: paper[name] for name in ("paper", "table", "target")}
        rows.append(row | {"status": status, "takes": paper.get("takes") or suite.takes})
    return pd.DataFrame(rows)


def papers_page(evidence: Evidence) -> Page | None:
    """Return the page of published tables beside ours; None if we have no row for any of them."""
    published = pd.read_csv(PUBLISHED)
    blocks = []
    for paper in read_papers():
        if not paper["comparison"]:
            continue
        theirs = published[published["comparison"] == paper["comparison"]]
        base = paper["suite"].removesuffix("-paper")
        frame_name, make = OUR_ROWS[paper["comparison"]]
        rows = evidence[frame_name]
        if not rows.empty:
            rows = rows[rows["suite"].isin([base, f"{base}-paper"])]
        ours = rows if rows.empty else make(rows)
        if not ours.empty:
            blocks.append(_block(paper, theirs, ours))
    if not blocks:
        return None
    return Page(
        title=TITLE,
        source=f"{len(evidence.records)} records. Made by `lookback report papers`.",
        lead=["Their models are larger and trained far longer: compare orders, not numbers."],
        blocks=[Block("What has been run", table=papers_table(evidence.records)), *blocks],
    )


def _block(paper: dict[str, Any], theirs: pd.DataFrame, ours: pd.DataFrame) -> Block:
    columns = [str(name) for name in dict.fromkeys(theirs["task"])]
    table = theirs.pivot_table(index="model", columns="task", values="value", sort=False)
    table = table.rename(columns=str).reset_index().assign(source="paper")
    both = pd.concat([ours.rename(columns=str).assign(source="ours"), table], ignore_index=True)
    more = [name for name in ("at_length", "median", "seeds") if name in ours]
    kept = [name for name in columns if name in both]
    text = f"{paper['paper']}, {paper['table']}. {paper['note']} Made by `{paper['target']}`."
    if theirs["setting"].nunique() == 1:
        text += f" Theirs: {theirs['setting'].iloc[0]}."
    if "seeds" in both:
        both["seeds"] = both["seeds"].astype("Int64")  # whole numbers, although some are missing
    table = both[["source", "model", *kept, *more]]
    return Block(paper["table"].capitalize(), text, table=table, rows=len(table))


# --- our rows: a row per model, a column per column of the paper's table


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the order of models, whose names stand in the column `model`."""
    pairs = zip(rows["model"], rows["model_options"], strict=True)
    rows = sort_models(rows.assign(model_name=[model_name(*pair) for pair in pairs]))
    return rows.assign(model=rows["model_name"])


def _scores(scores: pd.DataFrame, column: str, scale: float = 1.0) -> pd.DataFrame:
    """Return mean scores over seeds, a column for each value of a column of the frame."""
    means = _named(summarise(scores, ["model", "model_options", column], "score"))
    means = means.assign(mean=scale * means["mean"])
    return means.pivot_table(index="model", columns=column, values="mean", sort=False).reset_index()


def _parity(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scaled accuracy, the mean over all test lengths, of the best and the middle seed."""
    keys = ["model", "model_options"]
    runs = scores.groupby([*keys, "seed"], sort=False)["score"].mean().mul(2).sub(1)
    table = runs.groupby(keys, sort=False).agg(parity="max", median="median", seeds="count")
    return _named(table.reset_index())


def _complexity(costs: pd.DataFrame) -> pd.DataFrame:
    """Return slopes of prefill over length."""
    rows = growth(costs)
    if rows.empty:
        return rows
    named = {"prefill time": "time", "prefill memory": "space"}
    rows = _named(rows[rows["quantity"].isin(named)])
    rows = rows.assign(quantity=rows["quantity"].map(named), at_length=rows["longest"])
    keys = ["model", "at_length"]
    table = rows.pivot_table(index=keys, columns="quantity", values="slope", sort=False)
    return table.reset_index()


def _generation(points: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds of the longest text that was generated."""
    last = largest(points, "tokens", ["model", "model_options"])
    last = _named(last.assign(at_length=last["tokens"]))
    medians = last.groupby(["model", "at_length"], sort=False)["seconds"].median()  # over seeds
    return medians.reset_index()


OUR_ROWS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "lra": ("scores", lambda scores: _scores(scores, "task", 100.0)),
    "enwik8": ("scores", lambda scores: _scores(scores.assign(column="test"), "column")),
    "induction": ("scores", lambda scores: _scores(scores, "test_length", 100.0)),
    "parity": ("scores", _parity),
    "complexity": ("costs", _complexity),
    "generation": ("generation", _generation),
}
"""Our rows by comparison: the frame that they are made of, and the function that makes them."""
