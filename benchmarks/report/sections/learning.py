"""How training went, and how far back gradients arrive."""

from __future__ import annotations

import pandas as pd

from lookback.benchmarks.report import plots
from lookback.benchmarks.report.frames import IDENTITY
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.section import Content, register_section
from lookback.benchmarks.report.statistics import summarise


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
