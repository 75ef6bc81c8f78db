"""The tasks' spec cards as one page, docs/tasks.md, made from the registry: `python -m
lookback.benchmarks.describe.task_page`.

The page is that of a fresh clone: corpora that must be fetched are taken to be absent, so that it
is the same everywhere. What depends on the Python that runs says so by its revision.
"""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from pathlib import Path

from lookback.benchmarks.describe.cards import examples
from lookback.benchmarks.describe.lists import catalogue
from lookback.benchmarks.describe.spec import example
from lookback.tasks.files import data_folder
from lookback.tasks.task import IGNORE, AbsentCorpusError, Batch, Task, get_task

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lookback.tasks.md"
LOOKED_AT = 256  # examples that distances are counted in
LONGEST = 256  # tokens of the sequences that they are counted in
LINES = 40  # of an example

HEAD = """# Tasks

One card a task, made from the registry by `make cards`. `lookback describe NAME` shows any task, yours too, with the
data that are on your machine. Options are given in a suite, `task_options = { pairs = 4 }`; what depends on them is
said here of their defaults.

- **Targets**: position t holds what a model must output having read the tokens up to t; `.` is not asked, nor scored.
- **Distance**: how many positions before the question the information stands that its answer needs. Accuracy is
  also reported by distance. Tasks of one label a sequence, and of text, have none.
- **Constant answer**: what the best answer that never looks at the input scores. A model is judged above it.
- **Splits** never share a stream of examples; those of validation and test are the same for every model and seed.

How answers are scored: [measuring](measuring.md). Corpora, their sizes and terms: [corpora](corpora.md).

"""


def page() -> str:
    """All cards, and before them a table of what there is."""
    entries = catalogue("tasks")
    rows = [f"| [{entry.name}](#{entry.name}) | {entry.summary} |" for entry in entries]
    table = "\n".join(["| task | what it asks |", "| --- | --- |", *rows])
    return HEAD + "\n\n".join([table, *(card(get_task(entry.name)) for entry in entries)]) + "\n"


def card(task: Task) -> str:
    """One task: its rule, its facts, its options, and a real example where its data are at hand."""
    batch = _batch(task)
    facts = {
        "source of the rule": task.source,
        "tokens": f"{task.vocabulary:,}: {_shown(task)}",
        "answers": _asked(task, batch),
        "score": f"{task.score}; a constant answer: {_constant(task)}",
        "distances": _distances(batch),
        "lengths": _lengths(task),
        "examples": ", ".join(f"{split} {size:,}" for split, size in task.sizes.items())
        or "drawn without end",
        "options": ", ".join(f"`{name} = {_toml(value)}`" for name, value in task.options.items())
        or "none",
        "data": _data(task),
        "code": f"`{Path(inspect.getfile(task.sampler)).relative_to(ROOT).as_posix()}`, `{task.sampler.__name__}`",
    }
    table = "\n".join(
        ["| | |", "| --- | --- |", *(f"| {key} | {text} |" for key, text in facts.items())]
    )
    return "\n\n".join(
        [
            f"## {task.name}",
            fenced(inspect.getdoc(task.sampler) or ""),
            table,
            *_example(task, batch),
        ]
    )


def fenced(text: str) -> str:
    """Text as it stands, whatever is in it."""
    return f"````text\n{text}\n````"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _batch(task: Task) -> Batch | None:
    """Examples at a common length, or of one label a sequence a short one; None where data are
    absent.
    """
    length = max((n for n in task.lengths if n <= LONGEST), default=min(task.lengths))
    if task.classes and not task.exact:
        length = min(*task.lengths, 4 * task.shortest)
    try:
        return task.batch("train", 0, 0, 1 if task.classes else LOOKED_AT, length)
    except AbsentCorpusError:
        return None


def _shown(task: Task) -> str:
    """The readable form of a few tokens, where they are more than bytes or grey values."""
    symbols = list(task.symbols)
    if task.vocabulary in (256, 257):
        kind = "grey values" if symbols[0] == "0" else "bytes"
        return kind + (" and the padding" if task.vocabulary == 257 else "")
    few = symbols if len(symbols) <= 20 else [*symbols[:3], "...", *symbols[-3:]]
    return " ".join(symbol if symbol == "..." else f"`{symbol}`" for symbol in few)


def _asked(task: Task, batch: Batch | None) -> str:
    if task.classes:
        read = (
            "both documents are read, each by itself"
            if task.sequences_per_example > 1
            else "the sequence is read"
        )
        return f"one of {task.classes} labels, once {read}: " + " ".join(
            f"`{answer}`" for answer in task.answers
        )
    if batch is None:
        return "at every position"
    asked = batch.targets != IGNORE
    if asked.all():
        return "at every position"
    count, length = int(asked[0].sum()), asked.shape[1]
    where = "at the end" if asked[:, -count:].all() else "other ones in each example"
    return f"at {count} of {length:,} positions, {where}; as many at every length"


def _constant(task: Task) -> str:
    if math.isnan(task.baseline_score):
        return "known once the data are here"
    return f"{task.baseline_score:.4g}"


def _distances(batch: Batch | None) -> str:
    if batch is None or batch.distances is None:
        return "none"
    found = batch.distances[batch.targets != IGNORE]
    span = f"{int(found.min())} to {int(found.max())}, median {int(found.median())}"
    return f"{span}, in {len(batch.tokens)} examples at a length of {batch.tokens.shape[1]}"


def _lengths(task: Task) -> str:
    common = ", ".join(f"{length:,}" for length in sorted(task.lengths))
    if task.exact:
        return f"{common}; no others"
    return f"{common} commonly; any from {task.shortest:,}" + (
        f" in steps of {task.multiple}" * (task.multiple > 1)
    )


def _data(task: Task) -> str:
    """What identifies them, or how to get them."""
    try:
        facts = {key: value for key, value in task.data.items() if key in ("source", "revision")}
    except AbsentCorpusError as error:
        return str(error).replace(str(data_folder()), "data")
    return " ".join(map(str, facts.values())) or "none needed: examples are drawn as they are read"


def _example(task: Task, batch: Batch | None) -> list[str]:
    """One of the first examples of training; nothing where data are absent."""
    if batch is None:
        return []
    text = example(task, batch, 0) if task.classes else examples(task)[0]
    if text.count("\n") > LINES:
        return ["Examples of several sizes: ![pictures with their dots and curves](pathfinder.png)"]
    return [
        "The first example of training" + ("" if task.classes else ", cut short") + ":",
        fenced(text),
    ]


def main() -> None:
    """Write the page; what the environment says of data is put aside meanwhile."""
    for name in [name for name in os.environ if name.startswith("LOOKBACK_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as empty:
        os.environ["LOOKBACK_DATA"] = empty
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
