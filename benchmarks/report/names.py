"""Names for readers: of models, tasks and options. They are made where something is drawn."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

MODELS = {
    "transformer": "Transformer",
    "rwkv": "RWKV-4",
    "rrwkv": "RRWKV",
    "lstm": "LSTM",
    "rwkv7": "RWKV-7",
    "gated_deltanet": "Gated DeltaNet",
    "mamba2": "Mamba-2",
    "hybrid": "Hybrid",
}
"""As their papers write them, in the order in which tables list them."""

ACRONYMS = {"alibi": "ALiBi", "rope": "RoPE"}
OPTIONS = ("reading", "training")  # columns of JSON
TOLD_APART = (*OPTIONS, "width", "depth", "data")
"""Columns in which runs of one model may differ; a name says so where it is needed."""
NAMED = ("task", "task_options", "model", "model_options", "trained_length")
"""Columns that identify a model and its task."""


@functools.cache
def model_name(name: str, options: str = "{}") -> str:
    """Return a model as papers write it, with its options (JSON): `Transformer, window 64`."""
    words = [MODELS.get(name, name), *option_words(json.loads(options))]
    return printable(", ".join(words))


def task_name(name: str, options: str = "{}", shown: Iterable[str] = ()) -> str:
    """Return a task's name with the options (JSON) named in `shown`: `recall, 4 pairs`."""
    values = json.loads(options)
    chosen = {key: values[key] for key in shown if key in values}
    return printable(", ".join([name.replace("_", " "), *option_words(chosen)]))


def option_words(options: dict[str, Any]) -> list[str]:
    """Return options in words: `4 pairs`, `2 to 32 pairs`, `repeat 64 to 512`, `short conv`."""
    words = []
    for key, value in sorted(options.items()):
        name = key.replace("_", " ")
        if value is True:
            words.append(name)
        elif value is False or value == "none":
            words.append(f"no {name}")
        elif isinstance(value, dict) and set(value) == {"low", "high"}:
            span = f"{value['low']:,} to {value['high']:,}"
            words.append(f"{span} {name}" if name.endswith("s") else f"{name} {span}")
        elif isinstance(value, int) and name.endswith("s"):
            words.append(f"{value:,} {name[:-1] if value == 1 else name}")
        else:
            words.append(f"{name} {ACRONYMS.get(str(value), value)}")
    return words


def printable(text: str) -> str:
    """Replace characters that Markdown, HTML or LaTeX would interpret; an option can hold any."""
    return re.sub(r"[^\w \[\]{}.,:;'=+/*%()-]", "?", text).replace("](", "] (")


def add_names(table: pd.DataFrame, with_length: bool = False) -> pd.DataFrame:
    """Add the columns `model_name` and `task_name`, distinct wherever the rows differ.

    The rows come in the order of the models. `with_length`: a task that was trained at several
    lengths has a name for each of them.
    """
    if table.empty:
        return table.assign(model_name="", task_name="")
    columns = [name for name in (*NAMED, *TOLD_APART) if name in table]
    distinct = table[columns].drop_duplicates()
    runs = distinct.to_dict("records")
    differing = [name for name in TOLD_APART if name in columns and _tells_apart(runs, name)]
    varied = {name: _varied_options(distinct[name]) for name in OPTIONS if name in differing}
    of_tasks = distinct.groupby("task")["task_options"].apply(_varied_options)

    models = []
    tasks = []
    for run in runs:
        words = [model_name(run["model"], run["model_options"])]
        words += [_words(name, run[name], varied.get(name, ())) for name in differing]
        models.append(", ".join(filter(None, words)))
        tasks.append(task_name(run["task"], run["task_options"], of_tasks[run["task"]]))
    names = distinct.assign(model_name=models, task_name=tasks)
    if with_length:
        several = names.groupby("task_name")["trained_length"].transform("nunique") > 1
        trained_at = ", trained at " + names["trained_length"].map("{:,}".format)
        names["task_name"] += trained_at.where(several, "")
    kept = table.drop(columns=["model_name", "task_name"], errors="ignore")
    return sort_models(kept.merge(names, on=columns, how="left"))


def _tells_apart(runs: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether runs of one model on one task and length differ in a column.

    A width may belong to a depth, and settings of training to a size.
    """
    sizes = {"width": ["depth"], "training": ["width", "depth"]}.get(column, [])
    keys = [name for name in (*NAMED, *sizes) if name in runs[0]]
    values: dict[tuple[Any, ...], set[Any]] = {}
    for run in runs:
        key = tuple(run[name] for name in keys)
        values.setdefault(key, set()).add(run[column])
    return any(len(found) > 1 for found in values.values())


def _varied_options(options: Iterable[str]) -> list[str]:
    """Return the options in which tasks differ; `pairs` is always worth naming."""
    tables = [json.loads(text) for text in sorted(set(options))]
    varied = []
    for name in sorted({name for table in tables for name in table}):
        values = {json.dumps(table[name], sort_keys=True) for table in tables if name in table}
        if name == "pairs" or len(values) > 1 or any(name not in table for table in tables):
            varied.append(name)
    return varied


@functools.cache
def options_text(options: str) -> str:
    """Return options (JSON) in words: `2 to 32 pairs, window 64`."""
    return printable(", ".join(option_words(json.loads(options))))


def _words(column: str, value: Any, varied: Sequence[str]) -> str:
    """Return the value of a column of TOLD_APART in words, of options those that vary."""
    if column in OPTIONS:
        options = json.loads(value)
        return printable(", ".join(option_words({k: options[k] for k in varied if k in options})))
    if column == "data":
        revision = json.loads(value).get("revision", "")
        return f"data {str(revision)[:12]}" if revision else ""
    return f"{column} {value}"


def sort_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the order of models: ours first, numbers in names by their size."""

    def place(column: pd.Series) -> pd.Series:
        if column.name == "model":
            places = {name: number for number, name in enumerate(MODELS)}
            return column.map(places).fillna(len(MODELS))
        return by_numbers(column)

    return table.sort_values(["model", "model_name"], key=place, kind="stable")


def by_numbers(column: pd.Series) -> pd.Series:
    """Return a key that sorts texts by the numbers in them: `2 pairs` before `16 pairs`."""
    keys = {}
    for text in column.unique():
        keys[text] = re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):021.9f}", text)
    return column.map(keys)
