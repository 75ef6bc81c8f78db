"""The first page: models by suites, what length costs, and which papers have been repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import BASELINE, judge_suites
from lookback.benchmarks.report.names import add_names, model_name
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.pages.papers import papers_table
from lookback.benchmarks.report.pages.suite import by_task, machine_name
from lookback.benchmarks.report.section import Frames
from lookback.benchmarks.report.sections.costs import cost_table, one_protocol, quantities
from lookback.benchmarks.report.sections.scores import accuracy_by_distance
from lookback.benchmarks.suite import Endpoint

FRONT_SUITES = ("distance", "quick")


def overview_page(
    records: Sequence[Record],
    endpoints: Mapping[str, Endpoint],
    links: Mapping[str, str],
    not_run: Mapping[str, str],
) -> Page:
    """Return the overview; `links` are pages by their titles, `not_run` titles of suites."""
    blocks = list(front_figure(records))
    learned = endpoint_scores(records, endpoints)
    if not learned.empty:
        text = (
            "Each suite's primary endpoint: mean over seeds with its 95 % interval; rank among the "
            "models of the suite; and where the model's score stands: *at floor* is less than "
            "0.1 above the best answer without a model."
        )
        blocks.append(Block("What models learn", text, table=learned))
    prices = costs_table(records)
    if not prices.empty:
        text = "At the longest length that all models of a suite reached, one sequence a batch."
        blocks.append(Block("What length costs", text, table=prices))
    pages = "\n".join(f"- [{title}]({address})" for title, address in links.items())
    blocks.append(Block("Pages", pages))
    blocks.append(Block("Papers", table=papers_table(records), folded=not learned.empty))
    if not_run:
        words = "\n".join(f"- `make {name}`: {title}" for name, title in not_run.items())
        blocks.append(Block("Suites without records here", words))
    machines = dict.fromkeys(machine_name(record) for record in records)
    return Page(
        title="How far back can a sequence model look, and what does it pay for it?",
        source=f"{len(records)} records of {', '.join(machines)}. Made by `lookback report`.",
        lead=overview_sentences(learned, prices),
        blocks=blocks,
        home="",
    )


def front_figure(records: Sequence[Record]) -> Iterator[Block]:
    """Yield the figure of accuracy against distance, of the first suite that has one."""
    for suite in FRONT_SUITES:
        distances = Frames([record for record in records if record.suite == suite])["distances"]
        if not distances.empty:
            content = accuracy_by_distance(distances)
            title = f"Accuracy against distance, suite {suite}"
            yield Block(title, cleandoc(accuracy_by_distance.__doc__ or ""), content.figure)
            return


def overview_sentences(learned: pd.DataFrame, prices: pd.DataFrame) -> list[str]:
    """Say who leads each suite, and which model is cheapest."""
    sentences = []
    if not learned.empty:
        words = []
        for (suite, task), rows in learned.groupby(["suite", "task_name"], sort=False):
            names = ", ".join(rows[rows["rank"] == 1]["model_name"])
            words.append(f"{names} ({suite}, {task})")
        sentences.append(f"Best on each suite's endpoint: {'; '.join(words)}.")
    if not prices.empty:
        longest = prices[prices["at_length"] == prices["at_length"].max()]
        state = longest.set_index("model_name")["state_bytes"].sort_values()
        least = model_name(BASELINE) if model_name(BASELINE) in state else str(state.index[0])
        most = str(state.index[-1])
        times = float(state[most] / state[least])
        length = longest["at_length"].iloc[0]
        sentences.append(
            f"At {length:,} tokens {most} keeps {times:,.0f} times the state of {least}."
        )
    return sentences


def endpoint_scores(records: Sequence[Record], endpoints: Mapping[str, Endpoint]) -> pd.DataFrame:
    """Return a row per suite and model: the endpoint with its interval, rank and mark."""
    parts = []
    for suite, judged in judge_suites(records, endpoints).items():
        table = judged.table()
        ranks = table.groupby("task_name")["endpoint"].rank(ascending=False, method="min")
        table = table.assign(suite=suite, rank=ranks.astype(int)).sort_values("rank", kind="stable")
        parts += [rows for _, rows in by_task(table)]
    columns = ["suite", "task_name", "rank", "model_name", "endpoint", "endpoint_low"]
    columns += ["endpoint_high", "score", "sighted_floor", "mark", "seeds"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame()


def costs_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per machine and model of the suite `cost`, or of whatever measured costs."""
    costs = Frames(records)["costs"]
    if costs.empty:
        return costs
    rows = quantities(costs)
    suites = rows.groupby("suite")["trained_length"].max()
    rows = add_names(rows[rows["suite"] == suites.idxmax()])
    parts = []
    for _, group in rows.groupby("machine", sort=False):
        prices = cost_table(one_protocol(group))
        if not prices.empty:
            parts.append(prices.assign(machine=group["device"].iloc[0]))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return table.drop(columns="machine") if len(parts) == 1 else table
