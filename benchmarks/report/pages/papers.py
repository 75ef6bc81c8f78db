"""Papers' tables beside our records, and what has been run of them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.names import model_name
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.section import Frames
from lookback.benchmarks.report.sections.costs import growth
from lookback.benchmarks.report.statistics import summarise

PAPERS = Path(__file__).with_suffix(".toml")
PUBLISHED = Path(__file__).parents[2] / "published.csv"
OURS = "ours"


def read_papers() -> list[dict[str, Any]]:
    """Return the comparisons with papers, as the TOML file has them."""
    return list(tomllib.loads(PAPERS.read_text(encoding="utf-8"))["paper"])


def papers_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per comparison: what makes it, and whether its suite has records."""
    rows = []
    for paper in read_papers():
        scale = paper["suite"].removesuffix("-paper")
        suites = {record.suite for record in records}
        status = "not run"
        if paper["suite"] in suites:
            status = "run"
        elif scale in suites:
            status = "part: at a smaller scale"
        columns = ("paper", "table", "target")
        rows.append({name: paper[name] for name in columns})
        rows[-1] |= {"status": status, "takes": paper["hours"]}
    return pd.DataFrame(rows)


def papers_page(records: Sequence[Record]) -> Page | None:
    """Return the page of published tables beside ours; None if we have a row for none of them."""
    published = pd.read_csv(PUBLISHED)
    blocks = []
    for paper in read_papers():
        if not paper["comparison"]:
            continue
        theirs = published[published["comparison"] == paper["comparison"]]
        ours = OUR_ROWS[paper["comparison"]](records, paper["suite"].removesuffix("-paper"))
        if not ours.empty:
            blocks.append(_block(paper, theirs, ours))
    if not blocks:
        return None
    return Page(
        title="Papers' tables beside ours",
        source=f"{len(records)} records. Made by `lookback report papers`.",
        lead=["Their models are larger and trained far longer: compare orders, not numbers."],
        blocks=[Block("What has been run", table=papers_table(records)), *blocks],
        home="../index.html",
    )


def _block(paper: dict[str, Any], theirs: pd.DataFrame, ours: pd.DataFrame) -> Block:
    table = theirs.pivot_table(index="model", columns="task", values="value", sort=False)
    table = table.reset_index().assign(source="paper")
    names = list(dict.fromkeys(theirs["task"]))
    both = pd.concat([ours.assign(source=OURS), table], ignore_index=True)
    columns = ["source", "model", *[name for name in names if name in both]]
    columns += [name for name in ("at_length", "steps") if name in ours]
    unit = theirs["unit"].iloc[0]
    text = f"{paper['paper']}, {paper['table']}; {unit}. Made by `{paper['target']}`."
    return Block(paper["table"].capitalize(), text, table=both[columns])


def _scores(records: Sequence[Record], suite: str) -> pd.DataFrame:
    """Return the mean test score at the longest length, a row per model and a column per task."""
    chosen = [record for record in records if record.suite in (suite, f"{suite}-paper")]
    scores = Frames(chosen)["scores"]
    if scores.empty:
        return scores
    longest = scores.groupby(["task", "variant"])["test_length"].transform("max")
    scores = scores[scores["test_length"] == longest]
    keys = ["model", "model_options", "task"]
    means = summarise(scores, keys, "score")
    names = zip(means["model"], means["model_options"], strict=True)
    means = means.assign(model=[model_name(name, options) for name, options in names])
    return means.pivot_table(index="model", columns="task", values="mean").reset_index()


def _arena(records: Sequence[Record], suite: str) -> pd.DataFrame:
    table = _scores(records, suite)
    numbers = table.select_dtypes("number").columns
    return table.assign(**{name: 100 * table[name] for name in numbers})


def _enwik8(records: Sequence[Record], suite: str) -> pd.DataFrame:
    return _scores(records, suite).rename(columns={"enwik8": "test"})


def _complexity(records: Sequence[Record], suite: str) -> pd.DataFrame:
    """Return slopes of prefill over length: time (operations, which are exact) and memory."""
    costs = Frames([record for record in records if record.suite == suite])["costs"]
    rows = growth(costs) if not costs.empty else costs
    if rows.empty:
        return rows
    named = {"prefill time": "time", "prefill memory": "space"}
    rows = rows[rows["quantity"].isin(named)]
    rows = rows.assign(quantity=rows["quantity"].map(named), model=rows["model_name"])
    keys = ["model", "longest"]
    table = rows.pivot_table(index=keys, columns="quantity", values="slope", sort=False)
    return table.reset_index().rename(columns={"longest": "at_length"})


OUR_ROWS = {"lra": _arena, "enwik8": _enwik8, "complexity": _complexity}
