"""Provenance: runs that failed, sizes of models, and options of tasks."""

from __future__ import annotations

import json

import pandas as pd

from lookback.benchmarks.report.names import add_names, option_words, printable
from lookback.benchmarks.report.section import Content, register_section


@register_section("Runs that failed", of="runs")
def failed_runs(runs: pd.DataFrame) -> Content:
    """Runs that did not end as `ok`; no mean contains them."""
    failed = add_names(runs[runs["status"] != "ok"])
    if failed.empty:
        return Content()
    columns = ["task_name", "trained_length", "model_name", "seed", "status", "message"]
    return Content(table=failed[columns])


@register_section("Models and tasks", of="runs", folded=True)
def models_and_tasks(runs: pd.DataFrame) -> Content:
    """Sizes differ with the vocabulary of a task. Widths are chosen so that parameters agree."""
    named = add_names(runs.drop(columns="training"))  # on which no size depends
    keys = ["task_name", "model_name", "width", "depth"]
    sizes = named.groupby(keys, sort=False)["parameters"].max().reset_index()
    lines = []
    for task, text in runs[["task", "task_options"]].drop_duplicates().itertuples(index=False):
        words = option_words(json.loads(text))
        lines.append(f"- {printable(', '.join([task, *words]))}")
    return Content(table=sizes, text="\n".join(lines))
