"""What was learned: scores by length and by distance, on the way, in numbers, and against each other."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from benchmarks.record import Record
from benchmarks.report import figures, frames
from benchmarks.report.parts import Part
from benchmarks.report.tables import bounds, number

BASELINE = "rwkv"


def parts(records: Sequence[Record]) -> list[Part]:
    scores = frames.scores(records)
    if scores.empty:
        return []
    distances, curves = frames.distances(records), frames.curves(records)
    return [
        Part("Score against length",
             "Trained at the length of the vertical line, tested at all; shaded: 95 % intervals.", "score-by-length",
             figures.score_by_length(scores), scores),
        Part("Accuracy against distance",
             "How far back what is asked for lay. Bins of half an octave, seeds pooled; shaded: 95 % (Wilson).",
             "score-by-distance", figures.score_by_distance(distances), distances),
        Part("Learning curves", "Score on validation examples during training.", "learning-curves",
             figures.learning_curves(curves), curves),
        Part("Scores", table=score_table(scores)),
        Part("Differences, paired by seed",
             "Score of a model minus that of RWKV trained from the same seed on the same batches; t intervals. What is "
             "apart from zero here is so at 95 % for each row alone, not for all rows together.",
             table=difference_table(scores)),
    ]  # fmt: skip


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: each task's score at the training length and at the longest."""
    scores = frames.scores(records)
    if scores.empty:
        return {}
    found: dict[str, dict[str, str]] = {}
    means = frames.over_seeds(scores, [*frames.RUN, "test_length"], "score")
    for row in means.itertuples():
        ends = means[(means["task"] == row.task) & (means["length"] == row.length)]["test_length"]
        if row.test_length in (row.length, ends.max()):
            found.setdefault(row.model, {})[f"{row.task} @{row.test_length}"] = number(float(row.mean), 2)
    return found


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Every mean over seeds with its interval, n, and what stood in training too."""
    rows = []
    for keys, group in scores.groupby(["task", "length", "test_length", "model"], sort=False):
        mean = frames.over_seeds(group, ["model"], "score").iloc[0]
        rows.append({
            "task": keys[0], "trained at": keys[1], "tested at": keys[2], "model": keys[3],
            "direction": group["direction"].iloc[0], "pooling": group["pooling"].iloc[0],
            "score": f"{mean['mean']:.3f}", "95 % interval": bounds(mean["low"], mean["high"]),
            "constant answer": f"{mean['constant']:.3f}",
            "unit": mean["score_unit"], "seeds": mean["seeds"], "answers a seed": group["count"].iloc[0],
            "seen in training": f"{group['seen_in_training'].sum()} of {group['examples'].sum()}",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table if (table["pooling"] != "").any() else table.drop(columns=["direction", "pooling"])


def difference_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Each model against RWKV, where both were trained from several seeds; empty where none were."""
    if BASELINE not in set(scores["model"]):
        return pd.DataFrame()
    found = frames.differences(scores, BASELINE)
    found = found[found["seeds"] > 1] if len(found) else found
    rows = [
        {"task": row["task"], "trained at": row["trained at"], "tested at": row["tested at"], "model": row["model"],
         f"minus {BASELINE}": f"{row['mean']:+.3f}", "95 % interval": bounds(row["low"], row["high"], "+.3f"),
         "seeds": row["seeds"], "apart from zero": "yes" if row["low"] * row["high"] > 0 else "no"}
        for row in found.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows)
