"""Trained short, tested long: a matrix of scores by training and test length, and loss by position in the context."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.figures import CONSTANT, heat, lines, of_seeds, score_axis, shade_bar
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import RC, in_order, legend, length_axis, panels

COLUMNS = 5  # panels in a row


def parts(records: Sequence[Record]) -> list[Part]:
    scores, positions = frames.scores(records), frames.positions(records)
    return [
        Part("Trained at one length, tested at others",
             "Mean score over seeds; framed: the length of training. Where a task was trained at one length, models "
             "stand under each other; else each has a matrix, training length downwards. The scale begins at the "
             "constant answer, and what is worse has its colour; its best is an accuracy of 1, or of bits per byte "
             "the lowest here; hatched: not tested.",
             "extrapolation", matrices(scores)),
        Part("Loss by position in the context",
             "Bits per byte of a prediction against how many tokens had been read, in the longest test, in bins of "
             "half an octave; the vertical line is the training length; shaded: 95 % (t over seeds). A model that "
             "uses its context falls to the right, and one that cannot extrapolate rises beyond the line.",
             "loss-by-position", by_position(positions), positions),
    ]  # fmt: skip


# --- scores by training and test length


def matrices(scores: pd.DataFrame) -> Figure | None:
    """A panel a task, or a task and model, for the tasks that were tested at several lengths or trained at several."""
    blocks = (
        [block for _, group in scores.groupby("task", sort=False) for block in _blocks(group)] if len(scores) else []
    )
    if not blocks:
        return None
    columns = min(COLUMNS, max(len(block) for block in _rows(blocks)))
    rows = [row[first : first + columns] for row in _rows(blocks) for first in range(0, len(row), columns)]
    widest = max(grid.shape[1] for _, _, grid, _ in blocks)
    highest = max(grid.shape[0] for _, _, grid, _ in blocks)
    names = max(len(str(name)) for _, _, grid, _ in blocks for name in grid.index)
    with mpl.rc_context(RC):
        size = {"width": 0.5 + 0.055 * names + 0.42 * widest, "height": 0.95 + 0.19 * highest}
        figure, axes = panels(len(rows) * columns, rows=len(rows), **size)
        for row, here in enumerate(rows):
            for column, one in enumerate(axes[row * columns : (row + 1) * columns]):
                if column < len(here):
                    _panel(one, *here[column])
                else:
                    one.set_visible(False)
        shade_bar(figure, axes, "best")
    return figure


Block = tuple[str, str, pd.DataFrame, pd.DataFrame]
"""A panel to be: its task, its title, the scores it shows, and the rows of the frame that they are from."""


def _blocks(scores: pd.DataFrame) -> list[Block]:
    """The panels of one task; none where it was trained and tested at one length alone."""
    task = str(scores["task"].iloc[0])
    if scores["test_length"].nunique() < 2 and scores["length"].nunique() < 2:
        return []
    if scores["length"].nunique() == 1:
        return [(task, f"{task}, trained at {scores['length'].iloc[0]}", grid(scores, "model"), scores)]
    models = in_order(scores["model"])
    return [(task, f"{task}\n{model}", grid(scores[scores["model"] == model], "length"), scores) for model in models]


def _rows(blocks: Sequence[Block]) -> list[list[Block]]:
    """Panels side by side: those of one task, or of all tasks that have one panel each."""
    by_task: dict[str, list[Block]] = {}
    for block in blocks:
        by_task.setdefault(block[0], []).append(block)
    single = [found[0] for found in by_task.values() if len(found) == 1]
    return [*([single] if single else []), *(found for found in by_task.values() if len(found) > 1)]


def grid(scores: pd.DataFrame, rows: str) -> pd.DataFrame:
    """Mean score over seeds: a row a model or a training length, a column a test length."""
    means = frames.over_seeds(scores, [rows, "test_length"], "score")  # of a seed that is not finite there is no mean
    table = means.pivot(index=rows, columns="test_length", values="mean")
    return table.loc[in_order(table.index)] if rows == "model" else table.sort_index()


def _panel(axes: Axes, task: str, title: str, table: pd.DataFrame, scores: pd.DataFrame) -> None:
    of_accuracy = scores["score_unit"].iloc[0] == "accuracy"
    best = 1.0 if of_accuracy else float(scores["score"].min())
    heat(axes, table, float(scores["constant"].iloc[0]), best)
    axes.set_title(title + ("" if of_accuracy else f"\n{scores['score_unit'].iloc[0]}"), fontsize=8)
    axes.set_xlabel("test length, tokens", fontsize=7)
    if table.index.name == "length":
        axes.set_ylabel("training length", fontsize=7)
    trained = [(row, length) for row, length in enumerate(table.index)] if table.index.name == "length" else [
        (row, scores["length"].iloc[0]) for row in range(len(table))
    ]  # fmt: skip
    for row, length in trained:
        if length in table.columns:
            column = list(table.columns).index(length)
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=1.2, clip_on=False))


# --- loss by position


def by_position(positions: pd.DataFrame) -> Figure | None:
    """Bits against tokens read, a panel a task and training length: of its longest test."""
    if positions.empty:
        return None
    groups = list(positions.groupby(["task", "length"], sort=False))
    with mpl.rc_context(RC):
        figure, axes = panels(len(groups), rows=-(-len(groups) // 4), width=4.0)
        for one, ((task, trained), group) in zip(axes, groups, strict=True):
            longest = group["test_length"].max()
            group = group[group["test_length"] == longest]
            read = ((group["low"] + 1) * (group["high"] + 1)) ** 0.5  # position 0 is answered having read one token
            means = frames.over_seeds(group.assign(read=read), ["model", "read"], "bits")
            lines(one, means, "read")
            one.axvline(trained, color="#bbbbbb", linewidth=1, zorder=0)
            one.axhline(group["constant"].iloc[0], **CONSTANT)
            score_axis(one, group["score_unit"].iloc[0])
            one.set_title(f"{task} at {longest}\ntrained at {trained}")
            length_axis(one, [2**i for i in range(int(longest).bit_length()) if 2**i <= longest], "tokens read")
        legend(figure, axes, of_seeds(positions))
    return figure
