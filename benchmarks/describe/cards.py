"""Cards of tasks and models: for a terminal, and as the page docs/tasks.md.

`python -m lookback.benchmarks.describe.cards` writes the page. Corpora that must be fetched are
absent from it, so that it is the same on every machine; what depends on the version of Python names
the version.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from lookback.benchmarks.describe.data_sets import example, summarise
from lookback.benchmarks.describe.lists import catalogue
from lookback.benchmarks.plugins import load_plugins
from lookback.models.model import (
    build_model,
    find_architecture,
    model_names,
    model_options,
    parameter_count,
)
from lookback.tasks.files import data_folder
from lookback.tasks.task import IGNORE, AbsentCorpusError, Batch, Task, get_task, task_names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tasks.md"
DISTANCE_EXAMPLES = 256  # examples that distances are counted in
DISTANCE_LENGTH = 256  # most tokens of each of them
SHORT_LENGTH = 24  # tokens of the sequences that a card shows
MAX_SYMBOLS = 20  # that a card lists
MAX_OPTIONS = 8  # of a model
MAX_LINES = 40  # of an example on the page

HEAD = """# Tasks

One card per task, made from the registry by `make cards`. `lookback describe NAME` shows the card
of any task, also of your own, with the data on your machine. Options are set in a suite,
`task_options = { pairs = 4 }`; the cards describe the default options.

- **Targets**: position t holds what a model must output after reading the tokens up to t; `.` is
  neither asked nor scored.
- **Distance**: how many positions before a question the information for its answer lies. Accuracy
  is also reported by distance. Tasks with one label per sequence, and text, have no distances.
- **Constant baseline**: the score of the best answer that never looks at the input. Judge a model
  by how far it is above this.
- **Splits** never share a stream of examples; validation and test are the same for every model and
  seed.

How answers are scored: [measuring](measuring.md). Corpora, their sizes and terms:
[corpora](corpora.md).

"""


def card(name: str, plugins: Sequence[str] = ()) -> str:
    """Return the card of a task or model for a terminal; raises ValueError if there is neither."""
    load_plugins(list(plugins))
    if name in task_names():
        return task_card(get_task(name))
    if ":" in name or name in model_names():
        return model_card(name)
    near = difflib.get_close_matches(name, [*task_names(), *model_names()])
    expected = " or ".join(near) or "a name that `lookback list` tasks, models or suites shows"
    raise ValueError(
        f"unknown task, model or suite {name!r}: expected {expected}, "
        "or one that a --plugin file registers"
    )


def task_card(task: Task) -> str:
    """Return a task's rule, facts and examples for a terminal."""
    facts = task_facts(task)
    examples: list[str] = []
    with contextlib.suppress(AbsentCorpusError):  # then the fact `data` says how to get them
        if task.classes and task.sizes:
            summary, examples = summarise(task)
            facts |= summary
        else:
            examples = sequence_examples(task)
    return "\n\n".join([f"{task.name}: {inspect.getdoc(task.sampler)}", _lines(facts), *examples])


def task_facts(task: Task) -> dict[str, str]:
    """Return fact -> text, in the order of a card."""
    batch = _sample(task)
    sizes = [f"{split} {size:,}" for split, size in task.sizes.items()]
    baseline = f"{task.baseline_score:.4g}"
    if math.isnan(task.baseline_score):
        baseline = "known once the data are on this machine"
    return {
        "source of the rule": task.source,
        "tokens": f"{task.vocabulary:,}: {_symbols(task)}",
        "answers": _answers(task, batch),
        "score": f"{task.score}; constant baseline: {baseline}",
        "distances": _distances(batch),
        "lengths": _lengths(task),
        "examples": ", ".join(sizes) or "unlimited, drawn at random",
        "options": ", ".join(f"{key} = {_toml(value)}" for key, value in task.options.items())
        or "none",
        "data": _data(task),
        "code": f"`{task.sampler.__module__}`, `{task.sampler.__name__}`",
    }


def _lines(facts: dict[str, str]) -> str:
    """Render facts for a terminal."""
    width = max(map(len, facts))
    return "\n".join(f"{key:{width}}  {text}" for key, text in facts.items())


def _markdown(facts: dict[str, str]) -> str:
    """Render facts as a table of Markdown."""
    rows = ["| | |", "| --- | --- |"]
    for key, text in facts.items():
        rows.append(f"| {key} | {text} |")
    return "\n".join(rows)


def _sample(task: Task) -> Batch | None:
    """Return examples at a common length; None if the data are absent.

    One short example is enough of a task with one label per sequence.
    """
    length = max((n for n in task.lengths if n <= DISTANCE_LENGTH), default=min(task.lengths))
    if task.classes and not task.exact:
        length = min(*task.lengths, 4 * task.shortest)
    try:
        return task.batch("train", 0, 0, 1 if task.classes else DISTANCE_EXAMPLES, length)
    except AbsentCorpusError:
        return None


def _symbols(task: Task) -> str:
    """Return the readable form of a task's tokens: all of them, or the first and last."""
    symbols = [f"`{symbol}`" for symbol in task.symbols]
    if len(symbols) > MAX_SYMBOLS:
        symbols[3:-3] = ["..."]
    return " ".join(symbols)


def _answers(task: Task, batch: Batch | None) -> str:
    if task.classes:
        per = "pair of sequences" if task.sequences_per_example > 1 else "sequence"
        return f"one of {task.classes} labels per {per}: {', '.join(task.answers)}"

    asked = None if batch is None else batch.targets != IGNORE  # (batch, length)
    if asked is None or asked.all():
        return "at every position"
    return f"{asked[0].sum()} per sequence; the number is the same at every length"


def _distances(batch: Batch | None) -> str:
    if batch is None or batch.distances is None:
        return "none"
    distances = batch.distances[batch.targets != IGNORE]
    return (
        f"{int(distances.min())} to {int(distances.max())}, median {int(distances.median())}, "
        f"in {len(batch.tokens)} examples of length {batch.tokens.shape[1]}"
    )


def _lengths(task: Task) -> str:
    usual = ", ".join(f"{length:,}" for length in sorted(task.lengths))
    if task.exact:
        return f"{usual}; no others"
    multiples = f" in steps of {task.multiple}" if task.multiple > 1 else ""
    return f"usually {usual}; any from {task.shortest:,}{multiples}"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _data(task: Task) -> str:
    """Return source and revision of a task's data, or how to get them."""
    try:
        data = task.data
    except AbsentCorpusError as error:
        return str(error).replace(str(data_folder()), "data")
    identity = [str(data[key]) for key in ("source", "revision") if key in data]
    return " ".join(identity) or "none needed: examples are generated"


def sequence_examples(task: Task) -> list[str]:
    """Return two short sequences of a task that asks positions."""
    length = max(task.shortest, SHORT_LENGTH)
    length += -length % task.multiple
    batch = task.batch("train", 0, 0, 2, length)
    return [_aligned_example(task, batch, row) for row in range(len(batch.tokens))]


def _aligned_example(task: Task, batch: Batch, row: int) -> str:
    """Return tokens, targets and distances of one sequence, aligned by position."""
    lines: dict[str, list[str]] = {"tokens": [], "targets": []}
    if batch.distances is not None:
        lines["distances"] = []

    for position, target in enumerate(batch.targets[row].tolist()):
        asked = target != IGNORE
        lines["tokens"].append(task.symbols[int(batch.tokens[row, position])])
        lines["targets"].append(task.answers[target] if asked else ".")
        if batch.distances is not None:
            distance = str(int(batch.distances[row, position]))
            lines["distances"].append(distance if asked else ".")

    widths = [max(map(len, column)) for column in zip(*lines.values(), strict=True)]
    rows = []
    for name, texts in lines.items():
        aligned = [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
        rows.append(f"{name:10} {' '.join(aligned)}")
    return "\n".join(rows)


def model_card(name: str) -> str:
    """Return the docstring of a model's module, its block, its options and parameters."""
    architecture = find_architecture(name)
    block = architecture.block
    module = inspect.getdoc(sys.modules[block.__module__]) or ""
    with torch.device("meta"):  # no memory for weights
        model = build_model(name, vocabulary=256, width=768, depth=12)
    options = [f"{key} = {_toml(value)}" for key, value in model_options(name).items()]
    if len(options) > MAX_OPTIONS:
        options[MAX_OPTIONS:] = [f"and {len(options) - MAX_OPTIONS} other fields"]
    facts = {
        "options": ", ".join(options) or "none",
        "parameters": f"{parameter_count(model):,} at width 768, depth 12, vocabulary 256",
    }
    if architecture.spec_with(architecture.defaults).needs_gpu:
        facts["device"] = "its kernels need a GPU"

    paragraphs = [f"{name}: {module}"]
    if block.__doc__:
        paragraphs.append(inspect.cleandoc(block.__doc__))
    return "\n\n".join([*paragraphs, _lines(facts)])


def page() -> str:
    """Return docs/tasks.md: a table of all tasks, then their cards."""
    entries = catalogue("tasks")
    rows = ["| task | question |", "| --- | --- |"]
    for entry in entries:
        rows.append(f"| [{entry.name}](#{entry.name}) | {entry.summary} |")
    sections = [_section(get_task(entry.name)) for entry in entries]
    return HEAD + "\n\n".join(["\n".join(rows), *sections]) + "\n"


def _section(task: Task) -> str:
    """Return the card of a task for the page, with an example if the data need no fetching."""
    paragraphs = [
        f"## {task.name}",
        fenced(inspect.getdoc(task.sampler) or ""),
        _markdown(task_facts(task)),
    ]
    batch = _sample(task)
    if batch is None:
        return "\n\n".join(paragraphs)

    text = example(task, batch, 0) if task.classes else sequence_examples(task)[0]
    if text.count("\n") > MAX_LINES:
        picture = "![pictures with their dots and curves](pathfinder.png)"
        paragraphs.append(f"Examples of several sizes: {picture}")
    else:
        shortened = "" if task.classes else ", shortened"
        paragraphs += [f"The first training example{shortened}:", fenced(text)]
    return "\n\n".join(paragraphs)


def fenced(text: str) -> str:
    """Return a code block that Markdown shows unchanged."""
    return f"````text\n{text}\n````"


def main() -> None:
    """Write the page, ignoring the settings and data of this machine."""
    for name in [name for name in os.environ if name.startswith("LOOKBACK_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as empty:
        os.environ["LOOKBACK_DATA"] = empty
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
