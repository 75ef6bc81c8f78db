"""Cards of tasks and models, for people."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from lookback.benchmarks.describe.spec import spec
from lookback.benchmarks.plugins import load_plugins
from lookback.models.model import (
    build_model,
    model_names,
    model_options,
    parameter_count,
    registered_block,
)
from lookback.tasks.task import IGNORE, AbsentCorpusError, Batch, Task, get_task, task_names


def card(name: str, plugins: Sequence[str] = ()) -> str:
    """The card of a task or of a model; raises ValueError when nothing has this name."""
    load_plugins(plugins)
    if name in task_names():
        return task_card(get_task(name))
    if ":" in name or name in model_names():
        return model_card(name)
    raise ValueError(
        f"nothing is called {name!r}: `lookback list` tasks, models or suites shows what there is"
    )


def task_card(task: Task) -> str:
    """The rule of a task, its facts and options, what is known of its data, and examples."""
    data, examples = _data(task)
    facts = {
        "rule": task.source,
        "vocabulary": f"{task.vocabulary} tokens",
        "answers": f"{task.classes} classes, one a sequence"
        if task.classes
        else "one at every position that is asked",
        "score": f"{task.score}; {_constant(task)}",
        "lengths": f"{', '.join(map(str, task.lengths))}{_other_lengths(task)}",
        "options": ", ".join(f"{key}={value!r}" for key, value in task.options.items()) or "none",
        **data,
    }
    lines = [f"{key:12} {value}" for key, value in facts.items()]
    return "\n\n".join(
        [f"{task.name}: {inspect.getdoc(task.sampler)}", "\n".join(lines), *examples]
    )


def _data(task: Task) -> tuple[dict[str, Any], list[str]]:
    """What identifies a task's data, and examples; how to get the data, where they are not here."""
    try:
        facts = {f"data {key}": value for key, value in task.data.items()}
        return facts, [spec(task)] if task.classes and task.sizes else examples(task)
    except AbsentCorpusError as error:
        return {"data": f"not here: {error}"}, []


def _constant(task: Task) -> str:
    if math.isnan(task.baseline_score):
        return "what a constant answer has is known once the data are here"
    return f"a constant answer has {task.baseline_score:.4g}"


def _other_lengths(task: Task) -> str:
    return (
        "; no others"
        if task.exact
        else f" commonly; from {task.shortest} in steps of {task.multiple}"
    )


def examples(task: Task) -> list[str]:
    """Two short sequences of a task whose positions are asked: tokens, targets and distances under
    each other.
    """
    length = max(task.shortest, 24)
    length += -length % task.multiple
    batch = task.batch("train", 0, 0, 2, length)
    return [_example(task, batch, row) for row in range(len(batch.tokens))]


def _example(task: Task, batch: Batch, row: int) -> str:
    """Tokens, targets and distances of one sequence, under each other."""
    tokens = [task.symbols[int(token)] for token in batch.tokens[row]]
    asked = batch.targets[row] != IGNORE
    targets = [
        task.answers[int(t)] if ask else "."
        for t, ask in zip(batch.targets[row], asked, strict=True)
    ]
    lines = {"tokens": tokens, "targets": targets}
    if batch.distances is not None:
        pairs = zip(batch.distances[row].tolist(), asked, strict=True)
        lines["distances"] = [str(distance) if ask else "." for distance, ask in pairs]
    widths = [max(len(line[i]) for line in lines.values()) for i in range(len(tokens))]
    return "\n".join(
        f"{name:10} "
        + " ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for name, line in lines.items()
    )


def model_card(name: str) -> str:
    """The equations of a model as its file states them, its options, and its parameters at two
    sizes.
    """
    block = registered_block(name)
    module = inspect.getdoc(sys.modules[block.__module__]) or ""
    options = ", ".join(f"{key}={value!r}" for key, value in model_options(name).items()) or "none"
    with torch.device("meta"):
        sizes = [
            (w, d, parameter_count(build_model(name, 256, width=w, depth=d)))
            for w, d in ((64, 2), (768, 12))
        ]
    sizes_text = "; ".join(
        f"{count:,} at width {width}, depth {depth}, vocabulary 256"
        for width, depth, count in sizes
    )
    own = inspect.getdoc(block) if block.__doc__ else ""
    return "\n\n".join(
        part
        for part in (f"{name}: {module}", own, f"options      {options}\nparameters   {sizes_text}")
        if part
    )
