"""What `cost` cells have in common while the length grows, and what their models are called."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Cell, Record
from benchmarks.report.frames import Labels


def names_of(records: Sequence[Record]) -> dict[str, str]:
    """What each cell's model is called, by the cell's id: with what tells it apart where a name has several set-ups."""
    labels = Labels.of(records)
    sets: dict[tuple[str, str], set[str]] = {}
    for cell in (record.cell for record in records if record.cell.kind == "cost"):
        sets.setdefault((labels.model(cell), protocol_of(cell)), set()).add(_setup(cell))
    several = {key for key, found in sets.items() if len(found) > 1}
    return {
        r.cell_id: labels.model(r.cell)
        + (f" {_setup(r.cell)}" if (labels.model(r.cell), protocol_of(r.cell)) in several else "")
        for r in records if r.cell.kind == "cost"
    }  # fmt: skip


def _setup(cell: Cell) -> str:
    return f"{cell.depth}x{cell.width} {cell.precision}" + (" compiled" if cell.compile else "")


def protocol_of(cell: Cell) -> str:
    """What is held while the length grows."""
    if cell.batch_tokens:
        return f"{cell.batch_tokens:,} tokens a batch"
    return f"{cell.batch_size} sequence{'' if cell.batch_size == 1 else 's'} a batch"
