"""What was learned: scores by length, in numbers, how many seeds learned at all, and models against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.figures import CONSTANT, lines, of_seeds, score_axis, seed_points
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.statistics import halfway
from lookback.benchmarks.report.style import RC, legend, length_axis, panels
from lookback.benchmarks.report.tables import bounds, by_place, decimal, number

BASELINES = ("rwkv", "transformer")
SOLVED = 0.9
PLACE = ("task", "trained at", "tested at")


def parts(records: Sequence[Record]) -> list[Part]:
    scores = frames.scores(records)
    if scores.empty:
        return []
    return [
        Part("Score against length",
             "Trained at the length of the vertical line, tested at all. With few models, shaded: 95 % "
             "intervals, and small marks: single seeds.",
             "score-by-length", score_by_length(scores), scores),
        Part("Scores",
             "Means over seeds. Where seeds either learn a task or do not, a mean is of neither: learned counts those "
             f"above half of what lies between the sighted floor and one, solved those of {SOLVED} and more; seeds "
             "whose training failed count as not learned.",
             table=score_table(scores, frames.failures(records))),
        Part("Differences, paired by seed",
             "Score of a model minus that of another trained from the same seed on the same batches; t intervals. "
             "Better is who is apart from zero at 95 % for each row alone, not for all rows together.",
             table=difference_table(scores)),
    ]  # fmt: skip


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: each task's score at the training length and at the longest.

    Of a task trained at several lengths, its score at each of these.
    """
    scores = frames.scores(records)
    if scores.empty:
        return {}
    found: dict[str, dict[str, str]] = {}
    means = frames.over_seeds(scores, [*frames.RUN, "test_length"], "score")
    for task, of_task in means.groupby("task", sort=False):
        longest = of_task["test_length"].max() if of_task["length"].nunique() == 1 else 0
        for row in of_task.itertuples():
            if row.test_length in (row.length, longest):
                found.setdefault(row.model, {})[f"{task} @{row.test_length}"] = number(float(row.mean), 2)
    return found


def score_by_length(scores: pd.DataFrame) -> Figure:
    """The score at each test length, a panel a task; a vertical line at the training length."""
    means = frames.over_seeds(scores, ["task", "model", "length", "test_length"], "score")
    groups = list(means.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups), rows=-(-len(groups) // 4))
        for one, ((task, trained), group) in zip(axes, groups, strict=True):
            seed_points(one, scores[(scores["task"] == task) & (scores["length"] == trained)], "test_length", "score")
            lines(one, group, "test_length")
            one.axvline(trained, color="#bbbbbb", linewidth=1, zorder=0)
            one.axhline(group["constant"].iloc[0], **CONSTANT)
            score_axis(one, group["score_unit"].iloc[0])
            one.set_title(f"{task}\ntrained at {trained}")
            length_axis(one, group["test_length"], "test length, tokens")
        legend(figure, axes, of_seeds(scores))
    return figure


# --- scores in numbers


def score_table(scores: pd.DataFrame, failed: frames.Failures | None = None) -> pd.DataFrame:
    """Every mean over seeds with its interval, n, how many learned, and what stood in training too."""
    rows = []
    for keys, group in scores.groupby(["task", "length", "test_length", "model"], sort=False):
        mean = frames.over_seeds(group, ["model"], "score").iloc[0]
        lost = (failed or {}).get((keys[0], keys[1], keys[3]), 0)
        rows.append({
            "task": keys[0], "trained at": keys[1], "tested at": keys[2], "model": keys[3],
            "direction": group["direction"].iloc[0], "pooling": group["pooling"].iloc[0],
            "score": decimal(mean["mean"]), "95 % interval": bounds(mean["low"], mean["high"]),
            "sighted floor": f"{mean['constant']:.3f}", "unit": mean["score_unit"],
            "seeds": f"{mean['seeds']}{f' ({lost} failed)' if lost else ''}", **learned(group, lost),
            "answers a seed": group["count"].iloc[0],
            "seen in training": f"{group['seen_in_training'].sum()} of {group['examples'].sum()}",
        })  # fmt: skip
    table = by_place(rows, *PLACE)
    unused = [] if (table["pooling"] != "").any() else ["direction", "pooling"]
    return table.drop(columns=unused + ([] if (table["learned"] != "").any() else ["learned", "solved"]))


def learned(group: pd.DataFrame, lost: int) -> dict[str, str]:
    """Of the seeds of one mean, how many learned the task and how many solved it; of accuracy alone."""
    if group["score_unit"].iloc[0] != "accuracy":
        return {"learned": "", "solved": ""}
    threshold, n = halfway(group["constant"].iloc[0]), len(group) + lost
    above, solved = (group["score"] > threshold).sum(), (group["score"] >= max(SOLVED, threshold)).sum()
    return {"learned": f"{above} of {n}", "solved": f"{solved} of {n}"}


def difference_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Each model against RWKV and against the Transformer, where both have several seeds; empty where none have."""
    return by_place([
        {"task": row["task"], "trained at": row["trained at"], "tested at": row["tested at"], "model": row["model"],
         "minus": row["against"], "difference": decimal(row["mean"], "+.3f"),
         "95 % interval": bounds(row["low"], row["high"], "+.3f"), "seeds": row["seeds"], "better": better(row)}
        for row in pairs(scores)
    ], *PLACE)  # fmt: skip


def pairs(scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The differences that matter: all to RWKV; to the Transformer neither RWKV's again, nor those of variants.

    Several option sets of a model ask which of its parts help it: its basis is what they are held against.
    """
    for baseline in BASELINES:
        found = frames.differences(scores, baseline)
        for row in found.to_dict("records") if len(found) else ():
            name = row["model"].removesuffix(row["setting"]).rstrip()
            if row["seeds"] > 1 and (baseline == BASELINES[0] or not ("=" in name or name == BASELINES[0])):
                yield row


def better(row: dict[str, Any]) -> str:
    """Who is better in a row of differences: the model, what it is held against, or nobody that could be shown."""
    if not row["low"] * row["high"] > 0:
        return "not shown"
    return str(row["model"] if (row["low"] > 0) == (row["score_unit"] == "accuracy") else row["against"])
