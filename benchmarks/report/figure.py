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
    keys = list(dict.fromkeys([*IDENTITY, *varied, *(["unit"] if "unit" in rows else []), x]))
    changes_with = {"trained_length": "width", "learning_rate": "training", "rate": "training"}
    keys = [name for name in keys if name != changes_with.get(x)]
    means = add_names(summarise(rows, keys, y))
    panel = [name for name in ["task_name", *varied] if name in means]
    label = means["unit"].iloc[0] if y == "score" else y.replace("_", " ")
    log_y = any(y.endswith(word) for word in LOGARITHMIC)
    with plots.style(style):
        figure = plots.curves(means, x, panel, "", label, log_y)
        plots.save(figure.draw(style, title), Path(output))
    return means


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
