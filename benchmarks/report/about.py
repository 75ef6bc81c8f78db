"""What the numbers are of: cells that failed, tasks, models, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from benchmarks.record import Record
from benchmarks.report.frames import Labels, options
from benchmarks.report.parts import Part
from benchmarks.report.tables import span


def parts(records: Sequence[Record]) -> list[Part]:
    return [
        Part("What did not end well", table=failed_table(records)),
        Part("Tasks", table=task_table(records)),
        Part("Models", table=model_table(records)),
        Part("How it was measured", table=pd.DataFrame(facts(records).items(), columns=["what", ""])),
    ]


def failed_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each cell that ended otherwise than ok, and the last line of why."""
    return pd.DataFrame([
        {"cell": r.cell_id, "status": r.outcome.status,
         "message": (r.outcome.message.strip().splitlines() or [""])[-1]}
        for r in records if r.outcome.status != "ok"
    ])  # fmt: skip


def task_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each task with its options, its constant answer and the source of its rule."""
    labels = Labels.of(records)
    found = {labels.task(r.cell): (r.cell, r.outcome.task) for r in records if r.outcome.task}
    return pd.DataFrame([
        {"task": name, "options": options(cell.task_options),
         "constant answer": f"{task.constant_score:.4g} {task.score}", "source of the rule": task.source,
         "data": ", ".join(f"{key} {value}" for key, value in task.data.items() if isinstance(value, str))}
        for name, (cell, task) in sorted(found.items())
    ])  # fmt: skip


def model_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each model with its options and sizes; parameters vary with the tasks' vocabularies."""
    labels = Labels.of(records)
    rows = [
        {"model": labels.model(r.cell), "options": options(r.cell.model_options), "width": r.cell.width,
         "depth": r.cell.depth, "parameters": numbers.parameters}
        for r in records if (numbers := r.outcome.learn or r.outcome.cost)
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["model", "options", "width", "depth"], sort=False, as_index=False)
    return groups["parameters"].agg(span)


def facts(records: Sequence[Record]) -> dict[str, str]:
    """Where, with what and when the records were measured."""
    machine = records[0].machine
    loads = [r.machine.facts["load_before"] for r in records if "load_before" in r.machine.facts]
    versions = {name: _every(r.versions.get(name, "") for r in records) for name in sorted(records[0].versions)}
    return {
        "device": machine.device,
        "machine": ", ".join(
            f"{k} {v}" for k, v in machine.facts.items() if not k.startswith("load") and v is not None
        ),
        "load average when cells began": f"{min(loads)} to {max(loads)}" if loads else "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "kernels": _every(kernel for r in records for kernel in r.outcome.kernels),
        "precision": _every(r.cell.precision for r in records),
        "measured": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "commits": _every(
            (r.commit or "none")[:12] + (" with changes" if r.uncommitted_changes else "") for r in records
        ),
    }


def _every(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values}))
