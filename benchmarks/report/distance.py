"""How far back: accuracy by distance as curves and heatmaps, and the effective range of each model."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lookback.benchmarks.record import DistanceScore, Record, Score
from lookback.benchmarks.report import frames
from lookback.benchmarks.report.figures import CONSTANT, heat, lines, of_seeds, score_axis, shade_bar
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.statistics import halfway, wilson_interval
from lookback.benchmarks.report.style import RC, in_order, legend, length_axis, panels
from lookback.benchmarks.report.tables import by_place

ENOUGH = 100  # answers that an accuracy is judged by: its standard error is then 0.05 at most
COLUMNS = 5  # of heatmaps in a row


def parts(records: Sequence[Record]) -> list[Part]:
    distances = several_distances(frames.distances(records))
    if distances.empty:
        return []
    return [
        Part("Accuracy against distance",
             "How far back what is asked for lay. Bins of half an octave; with few models, shaded: from the "
             "least to the greatest of the seeds (of one seed Wilson's 95 %, of its answers); small marks: single "
             "seeds.",
             "score-by-distance", curves(distances), distances),
        Part("Accuracy by distance and length",
             "Distance downwards, test length to the right, seeds pooled; hatched where nothing was asked. The scale "
             "begins at the sighted floor, and what is worse has its colour.",
             "distance-by-length", heatmaps(distances)),
        Part("Effective range",
             "The longest distance up to which accuracy, at it and everywhere nearer, stays above half of what lies "
             f"between the sighted floor and one. Of each seed; bins of under {ENOUGH} answers are pooled with "
             "those behind them, and the range is the far end of the last one that passes: it is known to half an "
             "octave. ≥: it ends where the distances asked end. Shown is the median over seeds (of two in the middle "
             "the shorter); no t interval, since ranges that end at zero or with the test are far from normal. The "
             "interval goes from the shortest of any seed, were each bin's accuracy at the low end of its Wilson "
             "interval (95 %, of its answers), to the longest, were each at the high end. The extremes of n seeds "
             "alone hold the median of all seeds with probability 1 - 2 / 2^n: 75 % for 3, 94 % for 5. Learned: seeds "
             "whose accuracy at the length of training is above half-way. The range of a model without any is that of "
             "a rule that looks nothing up: with few pairs in a long input, the value seen last is often the one "
             "asked for. It stands in no other table.",
             table=range_table(records)),
    ]  # fmt: skip


def several_distances(distances: pd.DataFrame) -> pd.DataFrame:
    """Without tests that have one bin of distance alone, as copying has: scores by length show these."""
    if distances.empty:
        return distances
    bins = distances.groupby(["task", "length", "test_length"], sort=False)["low"].transform("nunique")
    return distances[bins > 1]


# --- curves and heatmaps


def curves(distances: pd.DataFrame) -> Figure:
    """Accuracy against how far back the information lay: a row a task, a column a test length."""
    rows = list(distances.groupby(["task", "length"], sort=False))
    columns = max(group["test_length"].nunique() for _, group in rows)
    with mpl.rc_context(RC):
        figure, axes = panels(len(rows) * columns, rows=len(rows))
        for row, ((task, trained), group) in enumerate(rows):
            lengths = sorted(group["test_length"].unique())
            for column, one in enumerate(axes[row * columns : (row + 1) * columns]):
                if column >= len(lengths):
                    one.set_visible(False)
                    continue
                _curve_panel(one, group[group["test_length"] == lengths[column]])
                one.set_title(f"{task} at {lengths[column]}\ntrained at {trained}")
        legend(figure, axes, of_seeds(distances))
    return figure


def _curve_panel(axes: Axes, group: pd.DataFrame) -> None:
    middle = (group["low"].clip(lower=1) * group["high"].clip(lower=1)) ** 0.5
    group = group.assign(distance=middle, accuracy=group["correct"] / group["count"])
    lines(axes, _over_seeds(group), "distance")
    axes.axhline(group["constant"].iloc[0], **CONSTANT)
    score_axis(axes, "accuracy")
    top = int(group["high"].max())
    length_axis(axes, [2**i for i in range(top.bit_length()) if 2**i >= group["low"].clip(lower=1).min()], "distance")


def _over_seeds(group: pd.DataFrame) -> pd.DataFrame:
    """Means with the extremes of the seeds; of one seed Wilson's interval.

    A t interval of three seeds with a dozen answers in a bin would cover the panel, and hide that some seeds learned.
    """
    means = frames.over_seeds(group, ["model", "distance"], "accuracy")
    extremes = group.groupby(["model", "distance"], sort=False)["accuracy"].agg(["min", "max"]).reset_index()
    several = means["seeds"] > 1
    return means.assign(
        low=means["low"].mask(several, extremes["min"]), high=means["high"].mask(several, extremes["max"])
    )


def pool_seeds(group: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Right answers and all answers of all seeds together: columns correct, count, mean."""
    counts = group.groupby(list(by), as_index=False, sort=False)[["correct", "count"]].sum()
    return counts.assign(mean=counts["correct"] / counts["count"])


def heatmaps(distances: pd.DataFrame) -> Figure | None:
    """Accuracy by distance and test length, a panel a model, for every task with several test lengths."""
    lengths = distances.groupby(["task", "length"], sort=False)["test_length"].transform("nunique")
    tasks = list(distances[lengths > 1].groupby(["task", "length"], sort=False))
    if not tasks:
        return None
    columns = min(COLUMNS, max(group["model"].nunique() for _, group in tasks))
    places = [-(-group["model"].nunique() // columns) * columns for _, group in tasks]  # each task begins a row
    widest = max(group["test_length"].nunique() for _, group in tasks)
    highest = max(group["low"].nunique() for _, group in tasks)
    with mpl.rc_context(RC):
        titles = [line for (task, at), g in tasks for m in set(g["model"]) for line in _title(task, at, m).split("\n")]
        width = max(0.9 + 0.36 * widest, 0.7 + 0.068 * max(map(len, titles)))  # a title's letters are so wide
        size = {"width": width, "height": 0.85 + 0.155 * highest}
        figure, axes = panels(sum(places), rows=sum(places) // columns, **size)
        for number, ((task, trained), group) in enumerate(tasks):
            here = axes[sum(places[:number]) : sum(places[: number + 1])]
            for unused in here[group["model"].nunique() :]:
                unused.set_visible(False)
            for one, model in zip(here, in_order(group["model"]), strict=False):
                heat(one, grid(group[group["model"] == model]), float(group["constant"].iloc[0]), 1.0)
                one.set_title(_title(task, trained, model), fontsize=8)
                one.set_xlabel("test length, tokens", fontsize=7)
                one.set_ylabel("distance", fontsize=7)
        shade_bar(figure, axes, "1")
    return figure


def grid(group: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of one model: a row a bin of distance, nearest first, a column a test length."""
    counts = pool_seeds(group, ["low", "high", "test_length"])
    table = counts.pivot(index=["low", "high"], columns="test_length", values="mean").sort_index()
    table.index = [f"{low}" if low == high else f"{low}–{high}" for low, high in table.index]
    return table


def _title(task: str, trained: int, model: str) -> str:
    """With a long name on several lines, so that it keeps to its panel."""
    return f"{task}, trained at {trained}\n" + model.replace(" ", "\n")


# --- effective range


def pooled(bins: Sequence[DistanceScore], enough: int = ENOUGH) -> list[DistanceScore]:
    """Neighbouring bins put together, nearest first, until each has `enough` answers; a rest at the end is out."""
    found: list[DistanceScore] = []
    open_bins: list[DistanceScore] = []
    for one in sorted(bins, key=lambda one: one.low):
        open_bins.append(one)
        if (count := sum(b.count for b in open_bins)) >= enough:
            correct = sum(b.correct for b in open_bins)
            found.append(DistanceScore(low=open_bins[0].low, high=one.high, correct=correct, count=count))
            open_bins = []
    return found


class Range(NamedTuple):
    """The longest distance up to which accuracy stays above half-way: as found, as the answers allow, as asked."""

    found: int  # 0 where not even the nearest bin passes
    shortest: int  # were each bin's accuracy at the low end of its interval
    longest: int  # were it at the high end
    judged: int  # the longest distance that was asked often enough


def effective_range(test: Score, constant: float) -> Range | None:
    """How far accuracy stays above half-way; None where no distance has answers enough.

    Bins may reach beyond, but a distance is under the length.
    """
    bins = pooled(test.by_distance)
    if not bins:
        return None
    bounds = [wilson_interval(one.correct, one.count) for one in bins]
    bar = halfway(constant)

    def reached(accuracies: Iterable[float]) -> int:
        passed = itertools.takewhile(lambda pair: pair[1] > bar, zip(bins, accuracies, strict=True))
        return max((min(one.high, test.length - 1) for one, _ in passed), default=0)

    return Range(
        reached(one.correct / one.count for one in bins),
        reached(low for low, _ in bounds),
        reached(high for _, high in bounds),
        min(bins[-1].high, test.length - 1),
    )


def ranges(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each test of each run: the columns of `Range`, and whether it learned the task where it was trained."""
    labels, rows = frames.Labels.of(records), []
    for record in records:
        for test in record.outcome.learn.tests if record.outcome.learn else ():
            assert record.outcome.task
            found = (
                effective_range(test, record.outcome.task.sighted_floor(test)) if len(test.by_distance) > 1 else None
            )
            if found:
                fields = frames.fields_of_test(record, test, labels)
                rows.append({**fields, "test_length": test.length, **found._asdict(), "learned": _learned(record)})
    return pd.DataFrame(rows)


def _learned(record: Record) -> bool:
    """Whether accuracy at the length of training, tested or else validated, is above half-way."""
    learned, task = record.outcome.learn, record.outcome.task
    assert learned and task
    at_home = next((test for test in learned.tests if test.length == record.cell.length), learned.validation)
    if at_home is None or at_home.score is None:
        return False
    return at_home.score > halfway(task.sighted_floor(at_home))


def median_range(rows: pd.DataFrame) -> str:
    """The range of a model's seeds, as text; nothing where none of them learned its task."""
    if not rows["learned"].any():
        return ""
    return shown(statistics.median_low(sorted(rows["found"])), int(rows["judged"].max()))


def shown(found: int, judged: int) -> str:
    """A range as text: at least so long, where it ends with what was asked."""
    return f"≥ {found:,}" if found >= judged else f"{found:,}"


def range_table(records: Sequence[Record]) -> pd.DataFrame:
    """Median over seeds of each model's range at each test length, and its interval."""
    found = ranges(records)
    if found.empty:
        return found
    rows = []
    for keys, group in found.groupby(["task", "length", "test_length", "model"], sort=False):
        judged, values = int(group["judged"].max()), sorted(group["found"])
        interval = group["shortest"].min(), group["longest"].max()
        rows.append({
            "task": keys[0], "trained at": keys[1], "tested at": keys[2], "model": keys[3],
            "effective range": shown(statistics.median_low(values), judged),
            "interval": " to ".join(shown(int(v), judged) for v in interval),
            "seeds": len(values), "learned": f"{group['learned'].sum()} of {len(values)}", "asked up to": f"{judged:,}",
        })  # fmt: skip
    return by_place(rows, "task", "trained at", "tested at")


def summary(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Columns of the page's first table, by model: the range in the longest test of each task's longest training."""
    found = ranges(records)
    columns: dict[str, dict[str, str]] = {}
    for task, of_task in found.groupby("task", sort=False) if len(found) else ():
        trained = of_task[of_task["length"] == of_task["length"].max()]
        longest = trained["test_length"].max()
        where = f", trained at {trained['length'].iloc[0]}," if of_task["length"].nunique() > 1 else ""
        for model, group in trained[trained["test_length"] == longest].groupby("model", sort=False):
            columns.setdefault(str(model), {})[f"range in {task}{where} @{longest}"] = median_range(group)
    return columns
