"""Scores against distance, length, window, options, state and learning rate."""

from __future__ import annotations

import json

import pandas as pd

from lookback.benchmarks.report import plots
from lookback.benchmarks.report.endpoints import MODEL, PAIR
from lookback.benchmarks.report.frames import IDENTITY, largest
from lookback.benchmarks.report.names import add_names, by_numbers
from lookback.benchmarks.report.section import Content, register_section
from lookback.benchmarks.report.statistics import named, paired, standings, summarise

TEST = [*IDENTITY, "test_length", "test_options", "unit"]
AT_DISTANCES = (4, 16, 64, 256, 1024, 4096)
FEWEST_ANSWERS = 20  # of a bin, or it is not drawn
FEWEST_BINS = 4  # of a test, or a line by distance says nothing


@register_section("Score against learning rate", of="rates")
def score_by_rate(rates: pd.DataFrame) -> Content:
    """Validation score at several learning rates: how wide the window of rates is in which a model
    learns. Shaded: 95 % intervals over seeds."""
    keys = [name for name in IDENTITY if name != "training"]
    means = summarise(rates, [*keys, "unit", "rate"], "validation")
    several = means.groupby(keys, dropna=False)["rate"].transform("nunique") > 1
    if not several.any():
        return Content()
    panel = ["task_name", "trained_length"]
    return Content(plots.curves(add_names(means[several]), "rate", panel, "learning rate"))


@register_section("Accuracy against distance", of="distances")
def accuracy_by_distance(distances: pd.DataFrame) -> Content:
    """How far back the answer lay, in bins of half an octave. Shaded: 95 % intervals over seeds;
    dotted: the sighted floor, the best score of an answer without a model."""
    is_drawn = (distances["count"] >= FEWEST_ANSWERS) & (distances["farthest"] > 0)
    rows = distances[is_drawn]  # zero has no place on the axis
    bins = rows.groupby(["task", "task_options", "trained_length", "test_length"])["distance"]
    rows = rows[bins.transform("nunique") >= FEWEST_BINS]
    if rows.empty:
        return Content()
    keys = [*TEST, "nearest", "farthest", "distance"]
    means = add_names(summarise(rows, keys, "score"))
    panel = ["task_name", "trained_length", "test_length"]
    return Content(plots.curves(means, "distance", panel, "tokens back"), _at_distances(means))


def _at_distances(means: pd.DataFrame) -> pd.DataFrame:
    keys = ["task_name", "trained_length"]
    longest = largest(means, "test_length", keys)
    rows = []
    for key, group in longest.groupby([*keys, "test_length", "model_name"], sort=False):
        row = dict(zip([*keys, "read_at", "model_name"], key, strict=True))
        for distance in AT_DISTANCES:
            near = group[(group["nearest"] <= distance) & (group["farthest"] >= distance)]
            if len(near):
                row[f"at {distance:,}"] = near["mean"].iloc[0]
        rows.append(row | {"sighted_floor": group["floor"].iloc[0]})
    return pd.DataFrame(rows).sort_values(keys, kind="stable")


@register_section("Score against length", of="scores")
def score_by_length(scores: pd.DataFrame) -> Content:
    """Trained at one length, tested at several. Shaded: 95 % intervals over seeds; dotted: the
    sighted floor, the best score of an answer without a model."""
    runs = scores.groupby(["task", "task_options", "trained_length"])["test_length"]
    rows = scores[runs.transform("nunique") > 1]
    if rows.empty:
        return Content()
    means = add_names(summarise(rows, TEST, "score"))
    panel = ["task_name", "trained_length", "test_options"]
    return Content(plots.curves(means, "test_length", panel, "tokens read"))


@register_section("Score against window", of="scores")
def score_by_window(scores: pd.DataFrame) -> Content:
    """Transformers that see so many positions back in each layer, beside full attention and other
    models at the trained length. Where a narrow window scores as full attention does, the task
    needs no range. The table has the differences to full attention, paired by seed."""
    rows = scores[scores["test_length"] == scores["trained_length"]]
    windowed = rows[[list(json.loads(text)) == ["window"] for text in rows["model_options"]]]
    if windowed.empty:
        return Content()
    tasks = windowed[PAIR].drop_duplicates()
    plain = rows[rows["model_options"] == "{}"].merge(tasks, on=PAIR)

    both = pd.concat([windowed, plain]).assign(model_options="{}")  # one line with full attention
    both = both.assign(window=both["model.window"].fillna(both["trained_length"]))
    means = add_names(summarise(both, [*MODEL, "unit", "window"], "score"))
    figure = plots.curves(means, "window", ["task_name", "trained_length"], "positions in sight")

    full = plain[plain["model"].isin(windowed["model"])]
    pairs = paired(windowed, full, PAIR, "score")
    gains = add_names(named(summarise(pairs, MODEL, "difference"), "difference"))
    columns = ["task_name", "trained_length", "model_name", "difference", "difference_low"]
    return Content(figure, gains[[*columns, "difference_high", "seeds"]])


@register_section("Score against an option", of="scores")
def score_by_option(scores: pd.DataFrame) -> Content:
    """Trained on a range of an option, tested at several of its values."""
    for option in [name for name in scores if name.startswith("test.")]:
        rows = scores[scores[option] > 0]
        if rows[option].nunique() >= 3:
            means = add_names(summarise(rows, [*TEST, option], "score"))
            panel = ["task_name", "trained_length", "test_length"]
            return Content(plots.curves(means, option, panel, option.removeprefix("test.")))
    return Content()


@register_section("Score against state", of="scores", folded=True)
def score_by_state(scores: pd.DataFrame) -> Content:
    """Models in several sizes, by the bytes of state that they keep after a sequence of the trained
    length. Shaded: 95 % intervals over seeds."""
    training = ["task", "task_options", "trained_length", "reading"]
    of_model = scores.groupby([*training, "model", "model_options"])["state_bytes"]
    sizes = of_model.transform("nunique").groupby([scores[name] for name in training])
    rows = scores[sizes.transform("max") > 1]
    if rows.empty:
        return Content()
    keys = [name for name in TEST if name not in ("width", "depth", "training")]
    means = summarise(rows[rows["state_bytes"].notna()], [*keys, "state_bytes"], "score")
    panel = ["task_name", "trained_length", "test_length", "test_options"]
    return Content(plots.curves(add_names(means), "state_bytes", panel, "bytes of state"))


@register_section("Scores", of="scores", folded=True)
def score_table(scores: pd.DataFrame) -> Content:
    """Means over seeds with 95 % intervals; of one seed, over its test sequences. *Learned*: an
    accuracy at least 0.1 above the sighted floor."""
    means = add_names(summarise(scores, TEST, "score"))
    if means.empty:
        return Content()
    keys = ["task_name", "trained_length", "test_length", "test_options"]
    means = means.sort_values("test_options", key=by_numbers, kind="stable")
    means = means.sort_values(keys[:3], kind="stable")
    means = named(means, "score").rename(columns={"floor": "sighted_floor"})
    columns = [*keys, "model_name", "score", "score_low", "score_high", "sighted_floor", "mark"]
    return Content(table=means.assign(mark=standings(means))[[*columns, "seeds"]])
