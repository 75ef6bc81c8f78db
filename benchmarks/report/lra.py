"""The RWKV paper's table of Long Range Arena beside our own records: `python -m benchmarks.report.lra`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.record import Record, Score, read_records, write_atomically
from benchmarks.report.frames import options
from benchmarks.report.page import TEMPLATES, Made
from benchmarks.report.statistics import t_interval, wilson_interval
from benchmarks.report.tables import markdown, plain

PUBLISHED = Path(__file__).parent.parent / "published.csv"
TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
TITLES = dict(zip(TASKS, ("ListOps", "Text", "Retrieval", "Image", "Pathfinder", "Path-X"), strict=True))
CHANCE_AT_PATHX = 50.0  # percent: what a model that fails is counted as
READ = {"S4": "bidirectional", "RWKV": "causal"}  # in the setting that each paper's own code states

Group = dict[str, list[Record]]  # the records of one row: each task's, one a seed


def published() -> pd.DataFrame:
    """Numbers of papers, each with its source: a row for each of comparison, model and task."""
    return pd.read_csv(PUBLISHED)


def averages(scores: dict[str, float]) -> tuple[float, float]:
    """Percent: the mean of all six tasks, a failed Path-X counted as chance, and that of the other five.

    Not a number where any other task is missing: then there is nothing to compare with.
    """
    five = [scores.get(task, math.nan) for task in TASKS[:-1]]
    six = [*five, scores.get("pathx", CHANCE_AT_PATHX)]
    return math.fsum(six) / 6, math.fsum(five) / 5


def published_rows() -> list[dict[str, str]]:
    table = published()
    rows = []
    for name, group in table[table["comparison"] == "lra"].groupby("model", sort=False):
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
    table = published()
    found = table[table["comparison"] == "lra-constant"].set_index("task")["value"]
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
        setting = json.dumps({**json.loads(cell.canonical()), "seed": None}, sort_keys=True)
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


def mean_of(records: Sequence[Record]) -> tuple[float, str]:
    """Percent over seeds, and the same with its interval and n; not a number and the status where none ended well."""
    tests = [test for record in records if (test := _tested(record))]
    if not tests:
        return math.nan, ", ".join(sorted({record.outcome.status for record in records}))
    values = [100 * float(test.score or 0) for test in tests]
    mean = math.fsum(values) / len(values)
    low, high = t_interval(values)
    if len(values) == 1:
        low, high = (100 * bound for bound in wilson_interval(tests[0].correct, tests[0].count))
    return mean, f"{mean:.2f} ({low:.1f} to {high:.1f}, n = {len(values)})"


def our_row(row: tuple[str, str, str], group: Group) -> dict[str, str]:
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


def stand_ins(rows: dict[tuple[str, str, str], Group]) -> pd.DataFrame:
    """Scores on tasks that are none of the six, under their own names; they never enter the table or its averages."""
    lines = [
        {"task": task, **dict(zip(("model", "direction", "pooling"), row, strict=True)), "percent": mean_of(records)[1]}
        for row, group in rows.items() for task, records in group.items() if task not in TASKS
    ]  # fmt: skip
    return pd.DataFrame(sorted(lines, key=lambda line: line["task"]))


def on_the_way(rows: dict[tuple[str, str, str], Group]) -> pd.DataFrame:
    """Validation accuracy after some epochs, S4's beside ours: at the same epoch, or where ours ended before it."""
    table = published()
    sizes = table[table["comparison"] == "lra-train-size"].set_index("task")["value"]
    lines = []
    for row in table[table["comparison"] == "lra-on-the-way"].itertuples():
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
    """Write the table's page and its CSV into `folder`; records must be of one suite and one machine."""
    rows = rows_of(sorted(records, key=lambda record: record.cell.id))
    ours = [our_row(row, group) for row, group in sorted(rows.items()) if set(group) & set(TASKS)]
    table = pd.DataFrame([*published_rows(), constant_row(), *ours]).fillna("")
    write_atomically(folder / "lra-table.csv", table.to_csv(index=False, lineterminator="\n"))
    page = TEMPLATES.get_template("lra.md").render(
        suite=records[0].suite, device=records[0].machine.device, table=markdown(table), ours=len(ours),
        stand_ins=markdown(stand_ins(rows)), on_the_way=markdown(on_the_way(rows)),
        source=published().query("comparison == 'lra'")["source"].iloc[0],
        reconstruction=any(record.cell.model == "rrwkv" for record in records),
        seeds=max(len(found) for group in rows.values() for found in group.values()),
    )  # fmt: skip
    write_atomically(folder / "lra-table.md", page)
    return Made(plain(table.drop(columns=["size", "from"])), folder / "lra-table.md")


def make_tables(results: Path, reports: Path, suite: str) -> list[Made]:
    """The table of each machine that has records of the suite; raises ValueError when none has."""
    groups: dict[str, list[Record]] = {}
    for record in read_records(results, [suite]):
        groups.setdefault(record.machine.slug, []).append(record)
    if not groups:
        raise ValueError(f"no records of suite {suite!r} in {results}: run it first")
    return [make_table(records, reports / slug / suite) for slug, records in groups.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="small", choices=("smoke", "small", "paper"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    given = parser.parse_args()
    suite = "lra" if given.scale == "small" else f"lra-{given.scale}"
    for made in make_tables(given.results, given.reports, suite):
        print(f"{made.table}\n\n{made.path}")


if __name__ == "__main__":
    main()
