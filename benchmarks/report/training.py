"""On the way: learning curves, what the learning rates gave, and what it took to learn."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lookback.benchmarks.record import LearnNumbers, Record, Trial
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.figures import CONSTANT, of_seeds, score_axis
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, in_order, legend, looks, panels
from lookback.benchmarks.report.tables import by_place, number


def parts(records: Sequence[Record]) -> list[Part]:
    curves = frames.curves(records)
    if curves.empty:
        return []
    edges = at_edge(records)
    warning = f" **Picked at the edge of its grid, so that a better rate may lie beyond:** {'; '.join(edges)}."
    return [
        Part("Learning curves", "Score on validation examples during training.", "learning-curves",
             learning_curves(curves), curves),
        Part("Learning rates",
             "Every model tried the same rates; the one that validated best, alone, was tested. Shown is the mean "
             "validation score over seeds at the end of training, and how many seeds picked the rate (×)."
             + (warning if edges else " No rate was picked at the edge of its grid where one inside did worse."),
             table=rate_table(records)),
        Part("Time to learn",
             "What had been spent at the first validation with that accuracy: medians over the seeds that got there "
             "(of two in the middle the lower). Steps are known to the distance between validations, which the "
             "learning curves show. Seconds are of training steps on this machine, at the learning rate that was "
             "picked, and of whatever else it did meanwhile (see the load when cells began): what a step costs is for "
             "the suite `cost` to say.",
             table=time_table(records)),
    ]  # fmt: skip


def learning_curves(curves: pd.DataFrame) -> Figure:
    """The validation score on the way, a panel a task; a thin line a seed."""
    groups = list(curves.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups), rows=-(-len(groups) // 4))
        for one, ((task, trained), group) in zip(axes, groups, strict=True):
            style = looks(group["model"])
            for model in in_order(group["model"]):
                for seed, (_, run) in enumerate(group[group["model"] == model].groupby("seed")):
                    shown = {**style[model], "marker": "", "label": None if seed else model}
                    one.plot(run["step"], run["validation"], **shown)
            one.axhline(group["constant"].iloc[0], **CONSTANT)
            score_axis(one, group["score_unit"].iloc[0])
            one.set_title(f"{task}\ntrained at {trained}")
            one.set_xlabel("training step")
        legend(figure, axes, of_seeds(curves))
    return figure


# --- learning rates


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each learning rate that a run tried: columns learning_rate, validation, picked, edge."""
    labels, rows = frames.Labels.of(records), []
    for record in records:
        if numbers := record.outcome.learn:
            fields = frames.run_fields(record, labels)
            edge = edge_of(numbers, fields["score_unit"] == "accuracy")
            for trial in numbers.trials:
                picked = trial.learning_rate == numbers.learning_rate
                score = math.nan if trial.validation is None else trial.validation
                rows.append({**fields, "learning_rate": trial.learning_rate, "validation": score, "picked": picked,
                             "edge": edge if picked else ""})  # fmt: skip
    return pd.DataFrame(rows)


def edge_of(numbers: LearnNumbers, higher_is_better: bool) -> str:
    """`lowest` or `highest` where that rate was picked and none inside the grid validated as well; else empty."""
    rates = sorted(numbers.trials, key=lambda trial: trial.learning_rate)
    if len(rates) < 2 or numbers.learning_rate not in (rates[0].learning_rate, rates[-1].learning_rate):
        return ""
    side = "lowest" if numbers.learning_rate == rates[0].learning_rate else "highest"
    picked = rates[0] if side == "lowest" else rates[-1]
    inside = [_goodness(trial, higher_is_better) for trial in rates[1:-1]]
    return side if _goodness(picked, higher_is_better) > max(inside, default=-math.inf) else ""


def _goodness(trial: Trial, higher_is_better: bool) -> float:
    if trial.validation is None:
        return -math.inf
    return trial.validation if higher_is_better else -trial.validation


def rate_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a model, task and length, a column a rate; empty where each run had one rate alone."""
    found = trials(records)
    if found.empty:
        return found
    rows = []
    for keys, group in found.groupby(["task", "length", "model"], sort=False):
        columns = {f"rate {rate:g}": "" for rate in sorted(found["learning_rate"].unique())}
        for rate, at_rate in group.groupby("learning_rate"):
            columns[f"rate {rate:g}"] = _at_rate(at_rate)
        edges = Counter(edge for edge in group["edge"] if edge)
        rows.append({
            "task": keys[0], "length": keys[1], "model": keys[2], "unit": group["score_unit"].iloc[0], **columns,
            "seeds": group["seed"].nunique(),
            "at the edge": ", ".join(f"{side} in {n}" for side, n in sorted(edges.items())),
        })  # fmt: skip
    return by_place(rows, "task", "length")


def _at_rate(group: pd.DataFrame) -> str:
    """Mean over the seeds that stayed finite, how many did not, and how many picked it."""
    finite, lost = group["validation"].dropna(), int(group["validation"].isna().sum())
    words = [f"{finite.mean():.3f}"] if len(finite) else []
    words += [f"({lost} not finite)"] if lost else []
    words += [f"×{group['picked'].sum()}"] if group["picked"].any() else []
    return " ".join(words)


def at_edge(records: Sequence[Record]) -> list[str]:
    """What a reviewer must know: whose picked rate was at the edge of the grid, in how many seeds."""
    table = rate_table(records)
    return [
        f"{row['model']} on {row['task']} at {row['length']} ({row['at the edge']} of {row['seeds']} seeds)"
        for row in table.to_dict("records") if row["at the edge"]
    ]  # fmt: skip


# --- time to learn


def time_table(records: Sequence[Record]) -> pd.DataFrame:
    """Steps, seconds, tokens and joules to each accuracy that was reached; empty where nobody noted them."""
    labels = frames.Labels.of(records)
    groups: dict[tuple[str, int, str], list[LearnNumbers]] = {}
    goals = sorted({goal.score for r in records if r.outcome.learn for goal in r.outcome.learn.reached})
    for record in records:
        numbers, task = record.outcome.learn, record.outcome.task
        if numbers and task and task.score == "accuracy" and numbers.learning_rate is not None:
            key = labels.task(record.cell), record.cell.length, labels.model(record.cell)
            groups.setdefault(key, []).append(numbers)
    lost = frames.failures(records)
    rows = [_time_row(key, goal, runs, lost.get(key, 0)) for key, runs in groups.items() for goal in goals]
    table = by_place(rows, "task", "length")
    return table if len(table) and (table["joules"] != "").any() else table.drop(columns="joules", errors="ignore")


def _time_row(key: tuple[str, int, str], goal: float, runs: Sequence[LearnNumbers], lost: int) -> dict[str, object]:
    found = [reached for run in runs for reached in run.reached if reached.score == goal]

    def median(name: str, digits: int = 0) -> str:
        values = [value for reached in found if (value := getattr(reached, name)) is not None]
        return number(statistics.median_low(values), digits) if values else ""

    return {
        "task": key[0], "length": key[1], "model": key[2], "accuracy": f"{goal:g}",
        "seeds": f"{len(found)} of {len(runs) + lost}", "steps": median("step"), "seconds": median("seconds", 1),
        "tokens": median("tokens"), "joules": median("joules"),
    }  # fmt: skip
