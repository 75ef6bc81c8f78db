"""One figure from records: `lookback plot`, and `lookback.plot` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import plots
from lookback.benchmarks.report.frames import FRAMES, IDENTITY, frame
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.statistics import summarise

PANELS = ["suite", "machine", "task_name", "trained_length", "test_length", "phase", "batch"]
SETTINGS = ("width", "depth", "training", "batch", "trained_length", "test_length")
MODEL_AND_TASK = ("suite", "task", "task_options", "model", "model_options")
LOGARITHMIC = ("seconds", "bytes", "flops", "share")  # quantities that span orders of magnitude


def draw_figure(
    records: Sequence[Record],
    x: str,
    y: str,
    output: str | Path,
    frame_name: str = "",
    style: str = "page",
    title: str = "",
) -> pd.DataFrame:
    """Draw `y` against `x`, a line per model with its interval over seeds, into a file.

    A panel for each task, length and machine. Returns the numbers that are drawn. Raises
    ValueError if no frame of these records has both columns.
    """
    rows = find_frame(records, x, y, frame_name)
    rows = rows[rows[x].notna() & rows[y].notna()]
    varied = [name for name in PANELS if name in rows and name not in (x, y)]
    columns = [*IDENTITY, *varied, *(["unit"] if "unit" in rows else []), x]
    keys = [name for name in dict.fromkeys(columns) if name == x or not follows(rows, name, x)]
    means = add_names(summarise(rows, keys, y))
    panel = [name for name in ["task_name", *varied] if name in means]
    label = means["unit"].iloc[0] if y == "score" else y.replace("_", " ")
    log_y = any(y.endswith(word) for word in LOGARITHMIC)
    with plots.style(style):
        figure = plots.curves(means, x, panel, "", label, log_y)
        plots.save(figure.draw(style, title), Path(output))
    return means


def follows(rows: pd.DataFrame, column: str, x: str) -> bool:
    """Return whether `x` says the value of a column in SETTINGS within each model and task.

    Such a column splits no line: widths may belong to lengths, and tests to trained lengths.
    """
    if column not in SETTINGS:
        return False
    groups = rows.groupby([*MODEL_AND_TASK, x], dropna=False)[column]
    return bool((groups.nunique(dropna=False) == 1).all())


def find_frame(records: Sequence[Record], x: str, y: str, name: str = "") -> pd.DataFrame:
    """Return the named frame, or else the first one that has both columns."""
    known: dict[str, list[str]] = {}
    for candidate in [name] if name else FRAMES:
        rows = frame(candidate, records)
        if x in rows and y in rows and rows[x].notna().any():
            return rows
        if not rows.empty:
            known[candidate] = [str(column) for column in rows if column not in IDENTITY]
    lists = "; ".join(
        f"{frame_name}: {', '.join(columns)}" for frame_name, columns in known.items()
    )
    raise ValueError(f"no frame has columns {x!r} and {y!r}: expected two of {lists}")
