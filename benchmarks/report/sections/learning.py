"""How training went, and how far back gradients arrive."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lookback.benchmarks.report import plots
from lookback.benchmarks.report.endpoints import MODEL, PAIR, is_plain
from lookback.benchmarks.report.frames import IDENTITY, largest
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.section import Content, register_section
from lookback.benchmarks.report.statistics import named, paired, summarise


@register_section("Learning curves", of="curves", folded=True)
def learning_curves(curves: pd.DataFrame) -> Content:
    """Score on validation examples during training, by tokens. Shaded: 95 % intervals."""
    means = add_names(summarise(curves, [*IDENTITY, "unit", "tokens"], "validation"))
    panel = ["task_name", "trained_length"]
    return Content(plots.curves(means, "tokens", panel, "training tokens"))


@register_section("Reach of gradients", of="gradients")
def reach_of_gradients(gradients: pd.DataFrame) -> Content:
    """RMS gradient of an output with respect to inputs so many tokens back, relative to distance
    zero. It shows what can arrive, not what a model makes of it."""
    keys = [*IDENTITY, "when", "distance"]
    means = add_names(summarise(gradients, keys, "share"))
    means = means[means["mean"] > 0]
    panel = ["task_name", "trained_length", "when"]
    return Content(plots.curves(means, "distance", panel, "tokens back", "relative gradient", True))


def gradient_ratios(gradients: pd.DataFrame, model: str, against: str) -> pd.DataFrame:
    """Return a row per task and model: its gradient over that of another model.

    After training, from the farthest bin of distances, each relative to distance zero. `ratio` is
    the geometric mean over seeds, paired by seed, with its 95 % interval.
    """
    if gradients.empty:
        return gradients
    rows = gradients[(gradients["when"] == "trained") & (gradients["share"] > 0)]
    rows = largest(rows, "distance", PAIR)
    rows = rows.assign(log=np.log(rows["share"]))
    ours, theirs = rows[rows["model"] == model], rows[is_plain(rows, against)]
    pairs = paired(ours, theirs, [*PAIR, "distance"], "log")
    ratios = named(summarise(pairs, [*MODEL, "distance"], "difference"), "ratio")
    columns = ["ratio", "ratio_low", "ratio_high"]
    ratios[columns] = np.exp(ratios[columns].astype(float))
    back = ratios["distance"].round().astype(int).astype(str)
    return ratios.assign(quantity="gradient from " + back + " tokens back")
