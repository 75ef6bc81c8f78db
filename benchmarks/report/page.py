"""A page a suite and machine: Markdown with figures as SVG, and the numbers behind each figure as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.record import Record, read_record, record_files, write_atomically
from benchmarks.report import figures, frames, style

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=False,
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True,
)  # fmt: skip


TEXT_COLUMNS = ("model", "direction", "pooling", "task", "phase", "unit", "options", "source of the rule", "data")


@dataclass(frozen=True)
class Made:
    """What was made of a suite: a table for the terminal, and the path of the page."""

    table: str
    path: Path


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: the name of its files, its title, and what it shows."""

    name: str
    title: str
    text: str
    drawn: bool


def make_reports(results: Path, reports: Path, suites: Sequence[str]) -> list[Made]:
    """Make the pages of all suites that have records below `results`, or of those named.

    Raises ValueError when there is nothing to report, and names the file of a record that cannot be read.
    """
    if not results.is_dir():
        raise ValueError(f"no folder of records {results}: `lookback run` makes one, --results names another")
    groups: dict[tuple[str, str], list[Record]] = {}
    for path in record_files(results):
        record = read_record(path)
        if not suites or record.suite in suites:
            groups.setdefault((record.machine.slug, record.suite), []).append(record)
    absent = set(suites) - {suite for _, suite in groups}
    if absent or not groups:
        raise ValueError(f"no records of suite {sorted(absent)[0] if absent else ''!r} in {results}: run it first")
    return [make_page(records, reports / slug / suite) for (slug, suite), records in groups.items()]


def make_page(records: Sequence[Record], folder: Path) -> Made:
    """Write one page, its figures and its data into `folder`; records must be of one suite and one machine."""
    labels = frames.Labels.of(records)
    order = style.in_order(labels.model(record.cell) for record in records)
    records = sorted(records, key=lambda record: (order.index(labels.model(record.cell)), record.cell.id))
    scores, costs = frames.scores(records), frames.costs(records)
    data = {
        "score-by-length": scores, "score-by-distance": frames.distances(records),
        "learning-curves": frames.curves(records), "cost-by-length": costs,
    }  # fmt: skip
    drawings = [
        _draw(folder, "score-by-length", figures.score_by_length(scores), "Score against length",
              "Trained at the length of the vertical line, tested at all; shaded: 95 % intervals."),
        _draw(folder, "score-by-distance", figures.score_by_distance(data["score-by-distance"]),
              "Accuracy against distance",
              "How far back what is asked for lay. Bins of half an octave, seeds pooled; shaded: 95 % (Wilson)."),
        _draw(folder, "cost-by-length", figures.cost_by_length(costs), "Cost against length",
              "Medians. Peak memory counts live tensors, weights and optimizer state included."),
        _draw(folder, "learning-curves", figures.learning_curves(data["learning-curves"]), "Learning curves",
              "Score on validation examples during training."),
    ]  # fmt: skip
    for name, frame in data.items():
        if not frame.empty:
            write_atomically(folder / f"{name}.csv", _safe(frame).to_csv(index=False, lineterminator="\n"))
    summary = summarise(scores, costs)
    page = TEMPLATES.get_template("suite.md").render(
        suite=records[0].suite, records=records, failed=[r for r in records if r.outcome.status != "ok"],
        drawings=[drawing for drawing in drawings if drawing.drawn], summary=markdown(summary),
        score_table=markdown(score_table(scores)), cost_table=markdown(cost_table(costs)),
        difference_table=markdown(difference_table(scores)),
        facts=facts(records), seeds=scores["seed"].nunique() if len(scores) else 0,
        task_table=markdown(task_table(records)), model_table=markdown(model_table(records)),
        reconstruction=any(record.cell.model == "rrwkv" for record in records),
    )  # fmt: skip
    write_atomically(folder / "README.md", page)
    return Made(plain(summary), folder / "README.md")


def _draw(folder: Path, name: str, figure: Any, title: str, text: str) -> Drawing:
    if figure is not None:
        style.save(figure, folder / name)
    return Drawing(name, title, text, figure is not None)


def summarise(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """A row a model: each task's score at the training length and at the longest, and cost at the longest length."""
    rows: dict[str, dict[str, str]] = {}
    names = style.in_order([*scores.get("model", []), *costs.get("model", [])])
    if not scores.empty:
        means = frames.over_seeds(scores, [*frames.RUN, "test_length"], "score")
        for model in names:
            for row in means[means["model"] == model].itertuples():
                ends = means[(means["task"] == row.task) & (means["length"] == row.length)]["test_length"]
                if row.test_length in (row.length, ends.max()):
                    rows.setdefault(model, {})[f"{row.task} @{row.test_length}"] = number(float(row.mean), 2)
    if not costs.empty:
        longest = costs["length"].max()
        for model in names:
            here = costs[(costs["model"] == model) & (costs["length"] == longest)].set_index("phase")
            if len(here):
                rows.setdefault(model, {}).update(_cost_cells(here, longest))
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("model").reset_index()
    sizes = pd.concat([frame[["model", "parameters"]] for frame in (scores, costs) if not frame.empty])
    table.insert(1, "parameters", [span(sizes.loc[sizes["model"] == model, "parameters"]) for model in table["model"]])
    return table


def _cost_cells(here: pd.DataFrame, length: int) -> dict[str, str]:
    return {
        f"train tok/s @{length}": number(here.loc["training", "tokens_per_second"]),
        f"train peak @{length}": size(here.loc["training", "peak_bytes"]),
        f"ms/token @{length}": number(here.loc["decode", "seconds"] * 1e3, 2),
        f"state @{length}": size(here.loc["decode", "state_bytes"]),
    }


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Every mean over seeds with its interval, n, and what stood in training too."""
    if scores.empty:
        return scores
    rows = []
    for keys, group in scores.groupby(["task", "length", "test_length", "model"], sort=False):
        mean = frames.over_seeds(group, ["model"], "score").iloc[0]
        interval = "" if math.isnan(mean["low"]) else f"{mean['low']:.3f} to {mean['high']:.3f}"
        rows.append({
            "task": keys[0], "trained at": keys[1], "tested at": keys[2], "model": keys[3],
            "direction": group["direction"].iloc[0], "pooling": group["pooling"].iloc[0],
            "score": f"{mean['mean']:.3f}", "95 % interval": interval, "constant answer": f"{mean['constant']:.3f}",
            "unit": mean["score_unit"], "seeds": mean["seeds"], "answers a seed": group["count"].iloc[0],
            "seen in training": f"{group['seen_in_training'].sum()} of {group['examples'].sum()}",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table if (table["pooling"] != "").any() else table.drop(columns=["direction", "pooling"])


BASELINE = "rwkv"


def difference_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Each model against RWKV, where both were trained from several seeds; empty where none were."""
    if scores.empty or BASELINE not in set(scores["model"]):
        return pd.DataFrame()
    found = frames.differences(scores, BASELINE)
    found = found[found["seeds"] > 1] if len(found) else found
    rows = [
        {"task": row["task"], "trained at": row["trained at"], "tested at": row["tested at"], "model": row["model"],
         f"minus {BASELINE}": f"{row['mean']:+.3f}", "95 % interval": f"{row['low']:+.3f} to {row['high']:+.3f}",
         "seeds": row["seeds"], "apart from zero": "yes" if row["low"] * row["high"] > 0 else "no"}
        for row in found.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Every phase measured: throughput with quartiles and n, memory, state."""
    if costs.empty:
        return costs
    rows = []
    for row in costs.sort_values(["phase", "length"], kind="stable", key=_phases_first).itertuples():
        ok = row.status == "ok"
        rows.append({
            "phase": row.phase, "length": row.length, "batch": row.batch_size, "model": row.model,
            "tokens/s": number(row.tokens_per_second) if ok else row.status,
            "quartiles": f"{number(row.tokens_per_second_low)} to {number(row.tokens_per_second_high)}" if ok else "",
            "n": f"{row.n:.0f}{' (noisy)' if row.noisy else ''}" if ok else "",
            "peak memory": size(row.peak_bytes) if ok else "", "state": size(row.state_bytes),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _phases_first(column: pd.Series) -> pd.Series:
    return column.map(frames.PHASES.index) if column.name == "phase" else column


def task_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each task with its options, its constant answer and the source of its rule."""
    labels = frames.Labels.of(records)
    found = {labels.task(r.cell): (r.cell, r.outcome.task) for r in records if r.outcome.task}
    return pd.DataFrame([
        {"task": name, "options": frames.options(cell.task_options),
         "constant answer": f"{task.constant_score:.4g} {task.score}", "source of the rule": task.source,
         "data": ", ".join(f"{key} {value}" for key, value in task.data.items() if isinstance(value, str))}
        for name, (cell, task) in sorted(found.items())
    ])  # fmt: skip


def model_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each model with its options and sizes; parameters vary with the tasks' vocabularies."""
    labels = frames.Labels.of(records)
    rows = [
        {"model": labels.model(r.cell), "options": frames.options(r.cell.model_options), "width": r.cell.width,
         "depth": r.cell.depth, "parameters": numbers.parameters}
        for r in records if (numbers := r.outcome.learn or r.outcome.cost)
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["model", "options", "width", "depth"], sort=False, as_index=False)
    return groups["parameters"].agg(span)


def facts(records: Sequence[Record]) -> dict[str, str]:
    """Where, with what and when the records were measured."""
    machine = records[0].machine

    def every(values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    loads = [r.machine.facts["load_before"] for r in records if "load_before" in r.machine.facts]
    versions = {name: every(r.versions.get(name, "") for r in records) for name in sorted(records[0].versions)}
    return {
        "device": machine.device,
        "machine": ", ".join(
            f"{k} {v}" for k, v in machine.facts.items() if not k.startswith("load") and v is not None
        ),
        "load average when cells began": f"{min(loads)} to {max(loads)}" if loads else "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "kernels": every(kernel for r in records for kernel in r.outcome.kernels),
        "precision": every(r.cell.precision for r in records),
        "measured": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "commits": every(
            (r.commit or "none")[:12] + (" with changes" if r.uncommitted_changes else "") for r in records
        ),
    }


def number(value: Any, digits: int = 0) -> str:
    """Readable, with thousands apart; empty for nothing."""
    return "" if pd.isna(value) else f"{float(value):,.{digits}f}"


def size(value: Any) -> str:
    """Bytes in the unit that reads best (decimal: 1 KB is 1000 bytes)."""
    if pd.isna(value):
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; columns of numbers to the right."""
    if table.empty:
        return ""
    cells = [[str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    rule = [("---" if column in TEXT_COLUMNS else "---:") for column in table.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(map(str, table.columns)), rule, *cells])


def plain(table: pd.DataFrame) -> str:
    """The same for a terminal."""
    if table.empty:
        return "no cell ended well"
    rows = [list(map(str, table.columns)), *([str(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would take for a formula is marked as text."""
    texts = frame.select_dtypes(include=["object", "string"]).columns
    return frame.assign(**{c: frame[c].map(lambda v: f"'{v}" if str(v)[:1] in "=+-@" else v) for c in texts})
