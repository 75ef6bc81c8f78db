"""The RWKV paper's table of enwik8 beside our own records, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Cell, Record
from lookback.benchmarks.report.answers import Question, notes_on, write_answer
from lookback.benchmarks.report.frames import measurement, options
from lookback.benchmarks.report.page import Made
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.published import OURS, published
from lookback.benchmarks.report.statistics import t_interval
from lookback.benchmarks.report.tables import bounds, plain

SUITE, TASK = "paper-rwkv-enwik8", "enwik8"
UNIT = "bits per byte"  # on enwik8 the papers' bits per character

NOT_COMPARABLE = """**What is not comparable.**

- Train: ours is the mean loss of the steps since the last validation but one, with dropout, on weights that change; \
how the paper took its own it does not say.
- Test: ours is of windows drawn from the last five million bytes, each read from nothing, so its first bytes are \
predicted with next to no context. Longer contexts carried from window to window would give less.
- The paper states AdamW, weight decay 0.1, dropout 0.1, batch 16 and a rate of 6e-4; not how long it trained. Steps, \
warm-up and the cosine to zero are ours, and so are other scales than `paper`.
- The paper's RWKV of 6x512 has no test score, and in training it is far below every other row.
- Our Transformer has rotary positions and SwiGLU, which those of the table have not."""

DIFFERENCES = """Our mean test score minus the one that the paper prints for each model of the same name, with the \
95 % interval of ours; the paper's number has none. Below zero ours is better. Where depth and width are not the same, \
it says how far a smaller one is from it, and nothing else."""

STAND_INS = "Texts that need no network. They are not enwik8, and their scores say nothing about it."


def published_rows() -> pd.DataFrame:
    """Bits per character in training and test, of each model of the paper's table; empty where it gives none."""
    rows = []
    for model, group in published("enwik8").groupby("model", sort=False):
        scores = dict(zip(group["task"], group["value"], strict=True))
        named = _named(str(model))
        rows.append({
            "model": named[0], "depth x width": named[1], "train": f"{scores['train']:.3f}",
            "test": f"{scores['test']:.3f}" if "test" in scores else "not given", "from": "the paper",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _named(model: str) -> tuple[str, str]:
    """A published model's name, and its depth x width."""
    name, _, shape = model.rpartition(" ")
    return (name, shape) if "x" in shape else (model, "not stated")


def our_rows(records: Sequence[Record]) -> pd.DataFrame:
    """A row a setting: mean over seeds with its interval."""
    rows = [_row(group) for group in _settings(records)]
    return pd.DataFrame(sorted(rows, key=lambda row: (row["model"], row["depth x width"])))


def _settings(records: Sequence[Record]) -> list[list[Record]]:
    """Records that differ in nothing but their seed, together."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.cell.id):
        found.setdefault(measurement(record, "seed"), []).append(record)
    return list(found.values())


def _tests(records: Sequence[Record]) -> list[float]:
    """Scores of each seed that has one, at the length of training."""
    tests = [test for record in records if record.outcome.learn for test in record.outcome.learn.tests]
    length = records[0].cell.length
    return [test.score for test in tests if test.length == length and test.score is not None]


def _row(records: Sequence[Record]) -> dict[str, str]:
    """What records that differ in nothing but their seed say together."""
    cell, learned = records[0].cell, [record.outcome.learn for record in records if record.outcome.learn]
    trained = [numbers.curve[-1].loss / math.log(2) for numbers in learned if numbers.curve]
    statuses = ", ".join(sorted({record.outcome.status for record in records}))
    return {
        "model": f"{_model(cell)} (ours)",
        "depth x width": f"{cell.depth}x{cell.width}",
        "parameters": f"{learned[0].parameters / 1e6:.2f} M" if learned else "",
        "train": f"{math.fsum(trained) / len(trained):.3f}" if trained else statuses,
        "test": _mean(_tests(records)) or statuses,
        "tokens": f"{cell.steps * cell.batch_size * cell.length / 1e6:.3g} M",
        "from": "our records",
    }


def _model(cell: Cell) -> str:
    return f"{cell.model} {options(cell.model_options)}".rstrip()


def _mean(values: Sequence[float]) -> str:
    """Mean, 95 % interval over seeds and their number; no interval of one."""
    if not values:
        return ""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f} (n = 1)"
    low, high = t_interval(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f}, n = {len(values)})"


def differences(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each of our settings and each published test score of a model of the same name."""
    theirs = published("enwik8").query("task == 'test'")
    lines = []
    for group in _settings(records):
        cell, tests = group[0].cell, _tests(group)
        low, high = t_interval(tests)
        for printed in theirs.itertuples() if tests else ():
            name, shape = _named(str(printed.model))
            if OURS.get(name) == cell.model:
                mean, basis = math.fsum(tests) / len(tests), float(printed.value)
                lines.append({
                    "model": _model(cell), "depth x width": f"{cell.depth}x{cell.width}",
                    "beside": f"{name} {shape}", "paper": f"{basis:.3f}", "ours": f"{mean:.3f}",
                    "difference": f"{mean - basis:+.3f}", "95 % interval": bounds(low - basis, high - basis, "+.3f"),
                    "seeds": len(tests),
                })  # fmt: skip
    return pd.DataFrame(lines)


def make_table(records: Sequence[Record], folder: Path) -> Made:
    """Write the page into `folder`; records must be of one suite and one machine."""
    learned = [record for record in records if record.cell.kind == "learn"]
    of_enwik8 = [record for record in learned if record.cell.task == TASK]
    ours = our_rows(of_enwik8)
    table = pd.concat([published_rows(), ours])[["model", "depth x width", *_more(ours), "train", "test", "from"]]
    table = table.fillna("")
    notes = [NOT_COMPARABLE, *(f"- {note}" for note in notes_on(records))]
    source = published("enwik8")["source"].iloc[0]
    text = (
        f"Bits per character, of which enwik8 has one a byte: lower is better. Published rows are those of {source}, "
        f"at a length of 1024; ours are made from the records of suite {records[0].suite} alone, by "
        "`make paper-rwkv-enwik8`: mean over seeds, 95 % interval (Student's t over seeds), n seeds."
    ) + ("" if len(ours) else "\n\nenwik8 has no record here: below stand the published rows alone.")
    text = "\n\n".join([text, "\n".join(notes)])
    parts = [
        Part("The table", "The published rows, and below them ours.", "enwik8", data=table, table=table),
        Part("How far ours are from the paper's", DIFFERENCES, table=differences(of_enwik8)),
        Part("Stand-ins", STAND_INS, table=stand_ins(learned)),
    ]
    title = f"The RWKV paper's table of enwik8, and {records[0].suite} on {records[0].machine.device}"
    return write_answer(folder, title, text, parts, records, plain(table))


def stand_ins(records: Sequence[Record]) -> pd.DataFrame:
    """Scores on other texts, under their own names; they never enter the table."""
    tasks = {record.cell.task for record in records if record.outcome.task and record.outcome.task.score == UNIT}
    found = [(task, our_rows([r for r in records if r.cell.task == task])) for task in sorted(tasks - {TASK})]
    return pd.concat([rows.assign(task=task)[["task", *rows.columns]] for task, rows in found] or [pd.DataFrame()])


def _more(ours: pd.DataFrame) -> list[str]:
    return ["parameters", "tokens"] if len(ours) else []


QUESTION = Question("enwik8", make_table, SUITE)
