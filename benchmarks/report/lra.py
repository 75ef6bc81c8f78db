"""The RWKV paper's table of Long Range Arena beside our own records, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Record, Score
from lookback.benchmarks.report.answers import Question, notes_on, write_answer
from lookback.benchmarks.report.frames import measurement, options
from lookback.benchmarks.report.page import Made
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.published import OURS, published
from lookback.benchmarks.report.statistics import t_interval, wilson_interval
from lookback.benchmarks.report.tables import bounds, plain

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
TITLES = dict(zip(TASKS, ("ListOps", "Text", "Retrieval", "Image", "Pathfinder", "Path-X"), strict=True))
CHANCE_AT_PATHX = 50.0  # percent: what a model that fails is counted as
READ = {"S4": "bidirectional", "RWKV": "causal"}  # in the setting that each paper's own code states

AVERAGES = """**Averages.** Both are computed here, for every row: over six tasks, Path-X counted as 50 where it \
fails, and over the other five. The printed ones follow the first for most rows, the second for Hrrformer, and neither \
for RWKV: its printed 72.07 stands beside 68.20 and 71.84. Rows of ours have averages when all six tasks were run."""

NOT_COMPARABLE = """**What is not comparable.**

- All published rows but RWKV's were cited, not run, by that paper, with sizes and budgets of their own.
- S4 reads in both directions; RWKV's public code reads causally. Ours say which they do; read both ways, a model has \
a second stack of blocks, and so nearly twice the parameters.
- ListOps and Pathfinder: the published files have no seed, and papers split Pathfinder differently; ours are drawn by \
the same rules unless the task says `released`. So no two test sets are the same.
- Text: published numbers are validated on the test reviews; ours on a tenth of the training reviews. Image: ours is \
in grey; the public RWKV code reads it in colour. Retrieval: ours trains on the training file; that code on the test \
file.
- Pre-training on a task's own data brings plain Transformers level with S4 (Amos et al. 2023, arXiv 2310.02980): \
this table alone settles no comparison."""

DIFFERENCES = """Our mean minus the number that the paper prints for the model of the same name, in points of percent, \
with the 95 % interval of ours; the paper's number has none. It is what the sizes, budgets and data named above change \
together, and no verdict on either."""

ON_THE_WAY = """Validation accuracy in percent @ epoch of training. S4's are from its authors' notes; ours are at the \
same epoch, or where they ended before it."""

STAND_INS = """Tasks of the same shapes that need no network. They are not the tasks above, and their scores say \
nothing about them."""

Group = dict[str, list[Record]]  # the records of one row: each task's, one a seed


def averages(scores: dict[str, float]) -> tuple[float, float]:
    """Percent: the mean of all six tasks, a failed Path-X counted as chance, and that of the other five.

    Not a number where any other task is missing: then there is nothing to compare with.
    """
    five = [scores.get(task, math.nan) for task in TASKS[:-1]]
    six = [*five, scores.get("pathx", CHANCE_AT_PATHX)]
    return math.fsum(six) / 6, math.fsum(five) / 5


def published_rows() -> list[dict[str, str]]:
    """The rows of the paper's table, percents as texts, with both averages computed."""
    rows = []
    for name, group in published("lra").groupby("model", sort=False):
        of_task = group.set_index("task")
        scores = {task: float(of_task.loc[task, "value"]) for task in TASKS if not pd.isna(of_task.loc[task, "value"])}
        settings = "; ".join(dict.fromkeys(s for s in group["setting"] if s not in ("fails", "as printed")))
        rows.append({
            "model": str(name), "direction": READ.get(str(name), "not stated"), "size": "",
            **{TITLES[task]: f"{scores[task]:.2f}" if task in scores else "fails" for task in TASKS},
            **_averages(scores), "as printed": f"{of_task.loc['average', 'value']:.2f}", "from": settings,
        })  # fmt: skip
    return rows


def _averages(scores: dict[str, float]) -> dict[str, str]:
    six, five = averages(scores)
    return {"average of six": _percent(six), "average without Path-X": _percent(five)}


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def constant_row() -> dict[str, str]:
    """What the commonest label scores, as a row of the same table."""
    found = published("lra-constant").set_index("task")["value"]
    scores = {task: float(found[task]) for task in TASKS}
    return {
        "model": "constant answer", **{TITLES[task]: _percent(scores[task]) for task in TASKS}, **_averages(scores),
        "from": "share of the commonest label",
    }  # fmt: skip


def rows_of(records: Iterable[Record]) -> dict[tuple[str, str, str], Group]:
    """Records by (model with its options, direction, pooling), and in these by task with its options.

    Where several settings were run for one place of the table, it holds the one with the best mean validation.
    """
    settings: dict[tuple[str, str, str], dict[str, dict[str, list[Record]]]] = {}
    for record in records:
        cell = record.cell
        if cell.kind != "learn":
            continue
        row = f"{cell.model} {options(cell.model_options)}".rstrip(), cell.direction, cell.pooling
        task = f"{cell.task} {options(cell.task_options)}".rstrip()
        setting = measurement(record, "seed")
        settings.setdefault(row, {}).setdefault(task, {}).setdefault(setting, []).append(record)
    return {
        row: {task: max(found.values(), key=_validation) for task, found in by_task.items()}
        for row, by_task in settings.items()
    }


def _validation(records: Sequence[Record]) -> float:
    found = [r.outcome.learn.validation for r in records if r.outcome.learn]
    scores = [score.score for score in found if score and score.score is not None]
    return math.fsum(scores) / len(scores) if scores else -math.inf


def _tested(record: Record) -> Score | None:
    tests = record.outcome.learn.tests if record.outcome.learn else ()
    return next((test for test in tests if test.length == record.cell.length and test.score is not None), None)


def interval_of(records: Sequence[Record]) -> tuple[float, float, float, int]:
    """Percent over seeds, the bounds of its interval, and n; of one seed Wilson's, of its answers."""
    tests = [test for record in records if (test := _tested(record))]
    if not tests:
        return math.nan, math.nan, math.nan, 0
    values = [100 * float(test.score or 0) for test in tests]
    low, high = t_interval(values)
    if len(values) == 1:
        low, high = (100 * bound for bound in wilson_interval(tests[0].correct, tests[0].count))
    return math.fsum(values) / len(values), low, high, len(values)


def mean_of(records: Sequence[Record]) -> tuple[float, str]:
    """Percent over seeds, and the same with its interval and n; not a number and the status where none ended well."""
    mean, low, high, n = interval_of(records)
    if not n:
        return mean, ", ".join(sorted({record.outcome.status for record in records}))
    return mean, f"{mean:.2f} ({low:.1f} to {high:.1f}, n = {n})"


def our_row(row: tuple[str, str, str], group: Group) -> dict[str, str]:
    """The means of our records of one model and reading, as a row of the same table."""
    found = {task: mean_of(group[task]) for task in TASKS if task in group}
    scores = {task: mean for task, (mean, _) in found.items() if not math.isnan(mean)}
    complete = {} if set(scores) < set(TASKS) else scores  # a task that was not run is not one that failed
    return {
        "model": f"{row[0]} (ours)", "direction": row[1], "size": _sizes(group, [t for t in TASKS if t in group]),
        **{TITLES[task]: found[task][1] if task in found else "" for task in TASKS},
        **_averages(complete), "from": f"{row[2]} pooling, our records",
    }  # fmt: skip


def _sizes(group: Group, tasks: Sequence[str]) -> str:
    """Depth x width and parameters, of each task where they differ."""
    records = [group[task][0] for task in tasks]
    shapes = dict.fromkeys(f"{record.cell.depth}x{record.cell.width}" for record in records)
    counts = sorted(record.outcome.learn.parameters for record in records if record.outcome.learn)
    if not counts:
        return ", ".join(shapes)
    low, high = counts[0], counts[-1]
    return f"{', '.join(shapes)}: {low / 1e6:.2f}" + (f" to {high / 1e6:.2f}" if high > low else "") + " M"


def differences(rows: dict[tuple[str, str, str], Group]) -> pd.DataFrame:
    """A row for each number of ours that has one of the paper's beside it: the same task, a model of the same name."""
    printed = published("lra").set_index(["model", "task"])["value"]
    lines = []
    for row, group in sorted(rows.items()):
        for name in (
            name for name, model in OURS.items() if group and model == next(iter(group.values()))[0].cell.model
        ):
            for task in (task for task in TASKS if task in group and not pd.isna(printed[name, task])):
                mean, low, high, n = interval_of(group[task])
                theirs = float(printed[name, task])
                if n:
                    lines.append({
                        "task": TITLES[task], "model": row[0], "direction": row[1], "pooling": row[2],
                        "paper": f"{theirs:.2f}", "ours": f"{mean:.2f}", "difference": f"{mean - theirs:+.2f}",
                        "95 % interval": bounds(low - theirs, high - theirs, "+.2f"), "seeds": n,
                    })  # fmt: skip
    return pd.DataFrame(lines)


def stand_ins(rows: dict[tuple[str, str, str], Group]) -> pd.DataFrame:
    """Scores on tasks that are none of the six, under their own names; they never enter the table or its averages."""
    lines = [
        {"task": task, **dict(zip(("model", "direction", "pooling"), row, strict=True)), "percent": mean_of(records)[1]}
        for row, group in rows.items() for task, records in group.items() if task not in TASKS
    ]  # fmt: skip
    return pd.DataFrame(sorted(lines, key=lambda line: line["task"]))


def on_the_way(rows: dict[tuple[str, str, str], Group]) -> pd.DataFrame:
    """Validation accuracy after some epochs, S4's beside ours: at the same epoch, or where ours ended before it."""
    sizes = published("lra-train-size").set_index("task")["value"]
    lines = []
    for row in published("lra-on-the-way").itertuples():
        epochs = int(str(row.setting).removeprefix("epoch "))
        line = {"task": TITLES[str(row.task)], "S4": f"{float(row.value):.0f} @ {epochs}"}
        for key, group in rows.items():
            if points := _points(group.get(str(row.task), []), float(sizes[row.task]), epochs):
                line[f"{key[0]}, {key[1]}"] = points
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _points(records: Sequence[Record], size: float, epochs: int) -> str:
    """Mean validation accuracy, percent, at the curves' last points up to so many epochs, and which epoch that is."""
    found = []
    for record in records:
        curve = record.outcome.learn.curve if record.outcome.learn else ()
        steps = epochs * size / record.cell.batch_size
        before = [point for point in curve if point.step <= steps] or list(curve[:1])
        found += [(100 * point.validation, point.step * record.cell.batch_size / size) for point in before[-1:]]
    if not found:
        return ""
    score, epoch = (math.fsum(part) / len(found) for part in zip(*found, strict=True))
    return f"{score:.0f} @ {epoch:.2g}"


def make_table(records: Sequence[Record], folder: Path) -> Made:
    """Write the table's page into `folder`; records must be of one suite and one machine."""
    rows = rows_of(records)
    ours = [our_row(row, group) for row, group in sorted(rows.items()) if set(group) & set(TASKS)]
    table = pd.DataFrame([*published_rows(), constant_row(), *ours]).fillna("")
    source = published("lra")["source"].iloc[0]
    notes = [NOT_COMPARABLE, *(f"- {note}" for note in notes_on(records))]
    text = (
        f"Accuracy in percent. Published rows are those of {source}; ours are made from the records of suite "
        f"{records[0].suite} alone, by `make paper-rwkv-lra`: mean over seeds, 95 % interval (Student's t over seeds; "
        "of one seed Wilson's, of its answers), n seeds."
    ) + ("" if ours else "\n\nNone of the six tasks has a record here: there are only the stand-ins below.")
    text = "\n\n".join([text, "\n".join(notes)])
    parts = [
        Part("The table", AVERAGES, "lra-table", data=table, table=table),
        Part("How far ours are from the paper's", DIFFERENCES, table=differences(rows)),
        Part("On the way", ON_THE_WAY, table=on_the_way(rows)),
        Part("Stand-ins", STAND_INS, table=stand_ins(rows)),
    ]
    title = f"The RWKV paper's table of Long Range Arena, and {records[0].suite} on {records[0].machine.device}"
    return write_answer(folder, title, text, parts, records, plain(table.drop(columns=["size", "from"])))


QUESTION = Question("lra-table", make_table, "lra")
