"""What is missing: measurements that some models have here and others have not."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.frames import Labels, protocol_of
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import in_order

TEXT = """No record, where another model of this report has one: never run, or not yet, or left out because it would \
not have fitted. How many there are, of as many as the model with most has."""


def parts(records: Sequence[Record]) -> list[Part]:
    return [Part("What is missing", TEXT, table=missing_table(records))]


def missing_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a model and measurement (kind, task, length, protocol) of which it has fewer records than another has."""
    labels = Labels.of(records)
    counts: dict[tuple[str, str, int, str], dict[str, int]] = {}
    for record in records:
        cell = record.cell
        place = cell.kind, labels.task(cell), cell.length, "" if cell.kind == "learn" else protocol_of(cell)
        here = counts.setdefault(place, {})
        here[labels.model(cell)] = here.get(labels.model(cell), 0) + 1
    models = in_order(labels.model(record.cell) for record in records)
    rows = [
        {"what": kind, "task": task, "length": length, "with": protocol, "model": model,
         "there are": f"{here.get(model, 0)} of {max(here.values())}"}
        for (kind, task, length, protocol), here in sorted(counts.items())
        for model in models if here.get(model, 0) < max(here.values()) and _asked(model, kind, counts)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _asked(model: str, kind: str, counts: dict[tuple[str, str, int, str], dict[str, int]]) -> bool:
    """Whether the model was measured in this way at all: what only one kind of cell has a name for is no gap."""
    return any(model in here for place, here in counts.items() if place[0] == kind)
