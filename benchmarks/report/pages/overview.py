"""The first page: models by suites, what length costs, and which papers have been repeated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import BASELINE, Evidence, main_size
from lookback.benchmarks.report.names import MODELS, model_name
from lookback.benchmarks.report.page import MOST_PANELS, Block, Page
from lookback.benchmarks.report.pages.papers import papers_table, recorded_cells
from lookback.benchmarks.report.pages.rrwkv import rrwkv_page, verdict_sentence
from lookback.benchmarks.report.pages.suite import (
    BY_OPTION,
    by_task,
    endpoint_sentences,
    machine_names,
)
from lookback.benchmarks.report.section import SECTIONS
from lookback.benchmarks.report.sections.costs import prices as cost_prices
from lookback.benchmarks.suite import read_suite, suite_names

FRONT = (
    ("distance", "Accuracy against distance"),
    ("quick", "Accuracy against distance"),  # where there is nothing better
    ("capacity", BY_OPTION),
    ("tracking", "Accuracy against distance"),
    ("ladder", "Score against window"),
    ("cost", "Cost against length"),
)
"""The figures of the first page: suite and title of the section."""


def overview_page(evidence: Evidence, links: Mapping[str, str]) -> Page:
    """Return the overview; `links` are the titles of pages by their names."""
    records = evidence.records
    figures = list(front_figures(evidence))
    blocks = figures[:1]
    learned = endpoint_scores(evidence)
    if not learned.empty:
        text = (
            "Each suite's primary endpoint, mean over seeds with its 95 % interval. *Floor*: of "
            "the best answer without a model; *perfect*: the most it can be. *At floor*: an "
            "accuracy less than 0.1 above the floor; *at ceiling*: of 0.95 and more. The page of a "
            "suite says what its endpoint is, and has models with options and of other sizes."
        )
        blocks.append(Block("What models learn", text, table=learned))
    prices = longest_prices(evidence["costs"])
    if not prices.empty:
        text = "At the longest length that all models of a suite reached, one sequence a batch."
        shown = prices.drop(columns="share_of_matmul_speed", errors="ignore")
        blocks.append(Block("What length costs", text, table=shown))
    blocks += figures[1:]
    gains = rrwkv_page(evidence)
    if gains and gains.blocks[0].figure:
        title = "RRWKV beside RWKV-4"
        blocks.append(replace(gains.blocks[0], title=title, table=None, folded=True))
    pages = "\n".join(f"- [{name}]({name}/index.html): {title}" for name, title in links.items())
    blocks.append(Block("Pages", pages))
    blocks.append(Block("Papers", table=papers_table(records), folded=not learned.empty))
    incomplete = incomplete_suites(records)
    if not incomplete.empty:
        text = "`lookback run SUITE` measures the rest. *Takes*: all cells of the suite."
        blocks.append(Block("Suites with cells to measure", text, None, incomplete, rows=99))
    return Page(
        title="How far back can a sequence model look, and what does it pay for it?",
        source=f"{len(records)} records of {machine_names(records)}. Made by `lookback report`.",
        lead=overview_sentences(evidence, prices),
        blocks=blocks,
        home="",
    )


def incomplete_suites(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each of our suites that has more cells than records."""
    recorded = recorded_cells(records)
    rows = []
    for suite in map(read_suite, suite_names()):
        if recorded[suite.name] < len(suite.cells):
            counts = {"recorded": recorded[suite.name], "cells": len(suite.cells)}
            rows.append({"suite": suite.name, "title": suite.title, **counts, "takes": suite.takes})
    return pd.DataFrame(rows)


def front_figures(evidence: Evidence) -> Iterator[Block]:
    """Yield the figures of FRONT that the records have, without the panels that a page folds.

    All but the first are folded.
    """
    folded = False
    for suite, title in FRONT:
        section = SECTIONS[title]
        is_shown = suite in evidence.suites and not (suite == "quick" and folded)
        rows = evidence.suites[suite][section.of] if is_shown else ()
        figure = section.make(main_size(rows)).figure if len(rows) else None
        if figure is not None:
            figure = replace(figure, panels=figure.panels[:MOST_PANELS])
            yield Block(f"{title}, suite {suite}", section.text, figure, folded=folded)
            folded = True


def overview_sentences(evidence: Evidence, prices: pd.DataFrame) -> list[str]:
    """Say who leads the first suite, how RRWKV does, and which model keeps the largest state."""
    sentences = []
    for suite in judged_suites(evidence)[:1]:
        sentences += endpoint_sentences(evidence.judged[suite])[:1]
    verdicts = evidence.verdicts
    gains = verdicts[verdicts["model"] == "rrwkv"] if len(verdicts) else verdicts
    if len(gains):
        sentences.append(verdict_sentence(gains))
    if not prices.empty:
        longest = prices[prices["at_length"] == prices["at_length"].max()]
        state = longest.groupby("model_name")["state_bytes"].max().sort_values()
        least = model_name(BASELINE) if model_name(BASELINE) in state else str(state.index[0])
        most = str(state.index[-1])
        times = float(state[most] / state[least])
        length = longest["at_length"].iloc[0]
        sentences.append(
            f"At {length:,} tokens {most} keeps {times:,.0f} times the state of {least}."
        )
    return sentences


def judged_suites(evidence: Evidence) -> list[str]:
    """Return the suites with a value of their endpoint, those of FRONT first."""
    order = dict.fromkeys([*(suite for suite, _ in FRONT), *evidence.judged])
    return [suite for suite in order if suite in evidence.judged]


def endpoint_scores(evidence: Evidence) -> pd.DataFrame:
    """Return a row per suite and task with a column per model.

    Only of models without options, in the size with most seeds: the others stand on the pages of
    the suites.
    """
    rows: list[dict[str, Any]] = []
    models = {}
    for suite in judged_suites(evidence):
        judged = evidence.judged[suite]
        plain = judged.values[judged.values["model_options"] == "{}"]
        if plain.empty:
            continue
        for task, scores in by_task(judged.table(main_size(plain))):
            row = {"suite": suite, "task_name": task, "floor": scores["blind"].mean()}
            row["perfect"] = scores["most"].replace(math.inf, math.nan).mean()
            for score in scores.itertuples():
                name = models[score.model] = model_name(score.model)
                row |= {name: score.endpoint, f"{name}_mark": score.mark}
                row |= {f"{name}_low": score.endpoint_low, f"{name}_high": score.endpoint_high}
            rows.append(row)
    columns = ["suite", "task_name", "floor", "perfect"]
    for model in dict.fromkeys([*(name for name in MODELS if name in models), *models]):
        columns += [f"{models[model]}{end}" for end in ("", "_low", "_high", "_mark")]
    return pd.DataFrame(rows, columns=columns).round(2)


def longest_prices(costs: pd.DataFrame) -> pd.DataFrame:
    """Return the prices (see `costs.prices`) of the suite that measured the longest sequences."""
    if costs.empty:
        return costs
    longest = costs.groupby("suite")["trained_length"].max().idxmax()
    return cost_prices(costs[costs["suite"] == longest])
