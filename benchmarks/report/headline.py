"""What a page says first: a sentence a task on what was learned, and what the longest length costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.statistics import halfway, t_interval
from lookback.benchmarks.report.tables import bounds

NAMED = 4  # models that a sentence names; of more, how many they are and where they end
COSTS = "What length costs, in words"  # the part whose sentences are told again


def headline(records: Sequence[Record], parts: Sequence[Part]) -> list[str]:
    """Sentences from the records, with the numbers that they stand on."""
    return [*of_scores(records), *of_costs(parts)]


def of_scores(records: Sequence[Record]) -> list[str]:
    """A sentence a task: the models in the order of their scores, trained at its longest length and asked farthest."""
    scores = frames.scores(records)
    found = []
    for task, group in scores.groupby("task", sort=False) if len(scores) else ():
        trained = group["length"].max()
        group = group[group["length"] == trained]
        tested = group["test_length"].max()
        asked_there = group[group["test_length"] == tested]
        means = frames.over_seeds(asked_there, ["model"], "score").dropna(subset=["mean"])
        if len(means):
            asked = "" if tested == trained else f", asked at {tested:,}"
            found.append(f"**{task}**, trained at {trained:,}{asked}: {ranking(means, asked_there)}")
    return found


def ranking(means: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The best model with its interval, those behind it, the sighted floor, and what cannot be told from it.

    That is by differences paired by seed, where there are several, and by intervals of one seed's answers otherwise.
    """
    unit, constant = means["score_unit"].iloc[0], float(means["constant"].iloc[0])
    best, *others = means.sort_values("mean", ascending=unit != "accuracy", kind="stable").to_dict("records")
    named, rest = (others, []) if len(others) < NAMED else (others[: NAMED - 1], others[NAMED - 1 :])
    interval = bounds(best["low"], best["high"], ".2f")
    words = [f"{best['model']} {best['mean']:.2f}{f' ({interval})' if interval else ''}"]
    words += [f"{row['model']} {row['mean']:.2f}" for row in named]
    words += [f"{len(rest)} more down to {rest[-1]['mean']:.2f}"] if rest else []
    text = f"{', '.join(words)}; the sighted floor {constant:.2f} ({unit})."
    if unit == "accuracy" and best["mean"] < halfway(constant):
        return f"{text} None learned it, which would take {halfway(constant):.2f}."
    alike = [row["model"] for row in others if _alike(best, row, scores)]
    several = f"{len(alike)} others" if len(alike) > NAMED else ", ".join(alike)
    return f"{text} Not told apart: {best['model']} and {several}." if alike else text


def _alike(one: dict[str, Any], other: dict[str, Any], scores: pd.DataFrame) -> bool:
    by_seed = [scores[scores["model"] == row["model"]].set_index("seed")["score"] for row in (one, other)]
    apart = (by_seed[0] - by_seed[1]).dropna()
    if len(apart) > 1:
        low, high = t_interval([float(x) for x in apart])
        return low <= 0 <= high
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])


def of_costs(parts: Sequence[Part]) -> list[str]:
    """What the report of costs says of the protocol that it puts first."""
    words = [part.text.split("\n\n")[0] for part in parts if part.title == COSTS]
    return [sentence for text in words for sentence in re.split(r"(?<=\.) (?=At )", text)]
