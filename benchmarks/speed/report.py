"""Runs the measurements of this folder and prints tables: times, ratios, shares of memory's speed.

    python -m lookback.benchmarks.speed.report                   measure everything, then print
    python -m lookback.benchmarks.speed.report -k operator       a part, named as for pytest's -k
    python -m lookback.benchmarks.speed.report -k training_step --profile
                                                                 also where each step's time goes
    python -m lookback.benchmarks.speed.report speed.json        print earlier measurements

The speed of memory is that of a copy, in bytes read and written per second. An operator that takes
no longer than its inputs and outputs would at that speed is at 100 % of it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

MEBIBYTE = 2**20
NOISY = 0.1  # quartiles further apart than this share of the median

Measurement = dict[str, Any]
Measurements = list[Measurement]


def measure(target: Path, selection: str = "") -> int:
    """Run the measurements that `selection` names; return pytest's exit code.

    pytest-benchmark writes them to `target`.
    """
    arguments = [str(Path(__file__).parent), "-k", selection, "--benchmark-json", str(target)]
    plain = ["--benchmark-quiet", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "-q"]
    return int(pytest.main([*arguments, *plain]))


def read_measurements(path: Path) -> dict[str, Measurements]:
    """Read pytest-benchmark's file: by section, `extra_info` with seconds per call and spread."""
    sections: dict[str, Measurements] = {}
    for result in json.loads(path.read_text())["benchmarks"]:
        info, stats = result["extra_info"], result["stats"]
        measurement = info | {
            "group": result["group"],
            "rounds": stats["rounds"],
            "seconds": stats["median"] / info["calls"],
            "spread": stats["iqr"] / stats["median"],
        }
        sections.setdefault(info["section"], []).append(measurement)
    return sections


def table(rows: list[dict[str, str]]) -> str:
    """Align rows of text: the first column to the left, the others to the right."""
    frame = DataFrame(rows)
    first = frame.columns[0]
    width = frame[first].str.len().max()
    frame[first] = frame[first].str.ljust(width)
    return str(frame.to_string(index=False))


def by_group(measurements: Measurements) -> dict[str, Measurements]:
    """Measurements that are to be compared with each other, in the order they were made."""
    groups: dict[str, Measurements] = {}
    for measurement in measurements:
        groups.setdefault(measurement["group"], []).append(measurement)
    return groups


def ratio(measurement: Measurement, group: Measurements, name: str) -> float | None:
    """How many times the seconds of `name` in the same group a measurement takes."""
    if measurement["name"] == name:
        return None
    for other in group:
        if other["name"] == name:
            return float(measurement["seconds"] / other["seconds"])
    return None


def operator_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """A table per shape and direction, with Lookback's operator first."""
    bytes_per_second = None
    for copy in sections.get("copy", []):
        bytes_per_second = copy["bytes"] / copy["seconds"]
        speed = bytes_per_second / 1e9
        yield f"memory: {speed:.1f} GB/s, a copy read and written, on {copy['device']}"
    for title, group in by_group(sections.get("operator", [])).items():
        threads = f", {group[0]['threads']} thread(s)" if group[0]["device"] == "cpu" else ""
        rows = [operator_row(each, group, bytes_per_second) for each in group]
        yield f"{title}{threads}\n{table(rows)}"


def operator_row(
    measurement: Measurement, group: Measurements, bytes_per_second: float | None
) -> dict[str, str]:
    """Time and memory of one operator, and how it compares with Lookback's and with memory."""
    seconds = measurement["seconds"]
    times_ours = ratio(measurement, group, "lookback")
    implementation = f" ({measurement['form']})" if measurement["form"] else ""
    row = {
        "operator": measurement["name"] + implementation,
        "ms": f"{1e3 * seconds:.3f}",
        "lookback is": "" if times_ours is None else f"{times_ours:.1f}x faster",
        "of memory's speed": "",
        "peak MiB": "",
        "rounds": str(measurement["rounds"]),
        "": "",
    }
    if bytes_per_second:
        share = measurement["touched_bytes"] / bytes_per_second / seconds
        row["of memory's speed"] = f"{share:.1%}"
    if measurement["peak_bytes"] is not None:
        row["peak MiB"] = f"{measurement['peak_bytes'] / MEBIBYTE:.0f}"
    if measurement["spread"] > NOISY:
        row[""] = f"noisy: quartiles {measurement['spread']:.0%} apart"
    return row


def step_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """A table per size: training steps of whole models."""
    for title, group in by_group(sections.get("step", [])).items():
        rows = []
        for each in group:
            times_rwkv = ratio(each, group, "rwkv")
            row = {
                "model": each["name"],
                "ms per step": f"{1e3 * each['seconds']:.2f}",
                "tokens per second": f"{each['tokens'] / each['seconds']:,.0f}",
                "rwkv is": "" if times_rwkv is None else f"{times_rwkv:.2f}x as fast",
                "rounds": str(each["rounds"]),
            }
            rows.append(row)
        device = group[0]["device"]
        yield f"training {title} (batch x length x width x depth), {device}\n{table(rows)}"


def decode_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """A token's step beside its matrix products and attention; above them is overhead."""
    variants: dict[str, dict[str, float]] = {}  # model -> variant -> microseconds per token
    for each in sections.get("decode", []):
        microseconds = 1e6 * each["seconds"] / each["tokens"]
        variants.setdefault(each["name"], {})[each["variant"]] = microseconds
    rows = []
    for name, microseconds_of in variants.items():
        step = microseconds_of["step"]
        products = microseconds_of["matrix products"]
        row = {
            "decode 1 x 256 x 256 x 4": name,
            "us per token": f"{step:.0f}",
            "its products": f"{products:.0f}",
            "step is": f"{step / products:.2f}x",
        }
        rows.append(row)
    if rows:
        yield table(rows)


def sampler_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """How many tokens and examples of each task one core makes per second."""
    rows = []
    for each in sections.get("sampler", []):
        row = {
            "samplers, one core": each["name"],
            "million tokens per second": f"{each['tokens'] / each['seconds'] / 1e6:.2f}",
            "examples per second": f"{each['examples'] / each['seconds']:,.0f}",
        }
        rows.append(row)
    if rows:
        yield table(rows)


def record_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """The time to read many records; linear if the time per record stays the same."""
    rows = []
    for each in sections.get("records", []):
        row = {
            "records": each["name"],
            "count": f"{each['records']:,}",
            "seconds": f"{each['seconds']:.2f}",
            "us per record": f"{1e6 * each['seconds'] / each['records']:.0f}",
        }
        rows.append(row)
    if rows:
        yield table(rows)


def harness_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """The overhead of running cells: CPU time per cell, and share of a run."""
    rows = []
    for each in sections.get("harness", []):
        cpu = each["cpu_per_cell"]
        row = {
            "harness": each["name"],
            "cells": str(each["cells"]),
            "CPU s per cell outside": "" if cpu is None else f"{cpu:.2f}",
            "seconds": f"{each['wall']:.0f}",
            "share outside": f"{each['outside']:.0%}",
        }
        rows.append(row)
    if rows:
        yield f"time outside of training, evaluation and cost cells\n{table(rows)}"


def profile_tables(sections: dict[str, Measurements]) -> Iterator[str]:
    """The operators that take the most time of each training step, from torch's profiler."""
    for each in sections.get("step", []):
        yield f"{each['name']}, {each['group']}\n{each['profile']}"


Tables = Callable[[dict[str, Measurements]], Iterator[str]]
REPORT: tuple[Tables, ...] = (
    operator_tables,
    step_tables,
    decode_tables,
    sampler_tables,
    record_tables,
    harness_tables,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if everything was measured, otherwise pytest's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lookback.benchmarks.speed.report", allow_abbrev=False
    )
    parser.add_argument("written", type=Path, nargs="?", help="a file of earlier measurements")
    parser.add_argument("-k", dest="selection", default="", help="a part, named as for pytest's -k")
    parser.add_argument(
        "--profile", action="store_true", help="also print where each training step's time goes"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.written or Path(folder) / "speed.json"
        code = 0 if options.written else measure(path, options.selection)
        if not path.exists() or not path.stat().st_size:
            return code or 1
        sections = read_measurements(path)
    report = (*REPORT, profile_tables) if options.profile else REPORT
    for tables in report:
        for text in tables(sections):
            print(f"\n{text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
