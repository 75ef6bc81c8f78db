"""The RWKV paper's table of enwik8 beside our own records: `python -m benchmarks.report.enwik8`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.record import Record, read_records, write_atomically
from benchmarks.report.frames import options
from benchmarks.report.lra import published
from benchmarks.report.page import TEMPLATES, Made
from benchmarks.report.statistics import t_interval
from benchmarks.report.tables import markdown, plain

SUITE, TASK = "paper-rwkv-enwik8", "enwik8"
UNIT = "bits per byte"  # on enwik8 the papers' bits per character


def published_rows() -> pd.DataFrame:
    """Bits per character in training and test, of each model of the paper's table; empty where it gives none."""
    found = published().query("comparison == 'enwik8'")
    rows = []
    for model, group in found.groupby("model", sort=False):
        scores = dict(zip(group["task"], group["value"], strict=True))
        name, _, shape = str(model).rpartition(" ")
        named = (name, shape) if "x" in shape else (str(model), "not stated")
        rows.append({
            "model": named[0], "depth x width": named[1], "train": f"{scores['train']:.3f}",
            "test": f"{scores['test']:.3f}" if "test" in scores else "not given", "from": "the paper",
        })  # fmt: skip
    return pd.DataFrame(rows)


def our_rows(records: Sequence[Record]) -> pd.DataFrame:
    """A row a setting: mean over seeds with its interval."""
    settings: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.cell.id):
        setting = {**json.loads(record.cell.canonical()), "seed": None}
        settings.setdefault(json.dumps(setting, sort_keys=True), []).append(record)
    rows = [_row(group) for group in settings.values()]
    return pd.DataFrame(sorted(rows, key=lambda row: (row["model"], row["depth x width"])))


def _row(records: Sequence[Record]) -> dict[str, str]:
    """What records that differ in nothing but their seed say together."""
    cell, learned = records[0].cell, [record.outcome.learn for record in records if record.outcome.learn]
    tests = [t.score for numbers in learned for t in numbers.tests if t.length == cell.length and t.score is not None]
    trained = [numbers.curve[-1].loss / math.log(2) for numbers in learned if numbers.curve]
    statuses = ", ".join(sorted({record.outcome.status for record in records}))
    return {
        "model": f"{cell.model} {options(cell.model_options)}".rstrip() + " (ours)",
        "depth x width": f"{cell.depth}x{cell.width}",
        "parameters": f"{learned[0].parameters / 1e6:.2f} M" if learned else "",
        "train": f"{math.fsum(trained) / len(trained):.3f}" if trained else statuses,
        "test": _mean(tests) or statuses,
        "tokens": f"{cell.steps * cell.batch_size * cell.length / 1e6:.3g} M",
        "from": "our records",
    }


def _mean(values: Sequence[float]) -> str:
    """Mean, 95 % interval over seeds and their number; no interval of one."""
    if not values:
        return ""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f} (n = 1)"
    low, high = t_interval(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f}, n = {len(values)})"


def make_table(records: Sequence[Record], folder: Path) -> Made:
    """Write the page and its CSV into `folder`; records must be of one suite and one machine."""
    learned = [record for record in records if record.cell.kind == "learn"]
    ours = our_rows([record for record in learned if record.cell.task == TASK])
    standing_in = {record.cell.task for record in learned if record.outcome.task and record.outcome.task.score == UNIT}
    stand_ins = []
    for task in sorted(standing_in - {TASK}):
        stand_ins.append(our_rows([record for record in learned if record.cell.task == task]))
        stand_ins[-1].insert(0, "task", task)
    table = pd.concat([published_rows(), ours])[["model", "depth x width", *_more(ours), "train", "test", "from"]]
    table = table.fillna("")
    write_atomically(folder / "enwik8.csv", table.to_csv(index=False, lineterminator="\n"))
    page = TEMPLATES.get_template("enwik8.md").render(
        suite=records[0].suite, device=records[0].machine.device, table=markdown(table), ours=len(ours),
        stand_ins=markdown(pd.concat(stand_ins)) if stand_ins else "",
        source=published().query("comparison == 'enwik8'")["source"].iloc[0],
        reconstruction=any(record.cell.model == "rrwkv" for record in records),
    )  # fmt: skip
    write_atomically(folder / "README.md", page)
    return Made(plain(table), folder / "README.md")


def _more(ours: pd.DataFrame) -> list[str]:
    return ["parameters", "tokens"] if len(ours) else []


def make_tables(results: Path, reports: Path, scale: str) -> list[Made]:
    """The page of each machine that has records at a scale; raises ValueError when none has."""
    ending = "" if scale == "small" else f"-{scale}"
    groups: dict[str, list[Record]] = {}
    for record in read_records(results, [SUITE + ending]):
        groups.setdefault(record.machine.slug, []).append(record)
    if not groups:
        raise ValueError(f"no records of suite {SUITE + ending!r} in {results}: run it first")
    return [make_table(records, reports / slug / f"{TASK}{ending}") for slug, records in groups.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="small", choices=("smoke", "small", "paper"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    given = parser.parse_args()
    for made in make_tables(given.results, given.reports, given.scale):
        print(f"{made.table}\n\n{made.path}")


if __name__ == "__main__":
    main()
