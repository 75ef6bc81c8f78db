"""Measures `benchmarks/speed/test_speed.py` and prints what it says: times, ratios, and shares of
the memory floor.

    python -m lookback.benchmarks.speed.report                 measure, then print
    python -m lookback.benchmarks.speed.report -k operator     a part, as pytest's -k names it
    python -m lookback.benchmarks.speed.report -k training_step --profile     with what takes the time of each training step
    python -m lookback.benchmarks.speed.report speed.json      print what pytest-benchmark wrote earlier

The memory floor is the time that a copy takes for the bytes that an operator must touch once; a
share of 100 % is the speed of memory.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

MEBIBYTE = 2**20
NOISY = 0.1  # quartiles further apart than this share of the median


def measure(target: Path, chosen: str = "") -> int:
    """Runs the benchmarks that `chosen` names, without their own table; the exit code of pytest."""
    plain = ["--benchmark-quiet", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "-q"]
    file = str(Path(__file__).with_name("test_speed.py"))
    return int(pytest.main([file, "-k", chosen, "--benchmark-json", str(target), *plain]))


def rows(results: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The measurements of a section: their extra_info with median and spread, in seconds a call."""
    found = []
    for result in results["benchmarks"]:
        info, stats = result["extra_info"], result["stats"]
        if info.get("section") == section:
            seconds = {
                "seconds": stats["median"] / info["calls"],
                "spread": stats["iqr"] / stats["median"],
            }
            found.append(info | seconds | {"group": result["group"], "rounds": stats["rounds"]})
    return found


def operator_lines(results: dict[str, Any]) -> Iterator[str]:
    """A table a shape and direction, our operator first."""
    copies = rows(results, "copy")
    rate = copies[0]["bytes"] / copies[0]["seconds"] if copies else None
    measured = rows(results, "operator")
    if rate:
        yield f"memory: {rate / 1e9:.1f} GB/s, a copy read and written, on {copies[0]['device']}"
    for group in dict.fromkeys(row["group"] for row in measured):
        members = [row for row in measured if row["group"] == group]
        ours = next((row["seconds"] for row in members if row["name"] == "lookback"), None)
        yield ""
        yield (
            f"{group}, {members[0]['threads']} thread(s)"
            if members[0]["device"] == "cpu"
            else group
        )
        yield f"  {'operator':<26}{'ms':>10}{'lookback is':>14}{'of the floor':>14}{'peak MiB':>10}{'rounds':>8}"
        for row in members:
            yield operator_line(row, ours, rate)


def operator_line(row: dict[str, Any], ours: float | None, rate: float | None) -> str:
    """One operator: its time, how many times faster ours is, its share of the floor, its memory."""
    name = f"{row['name']} ({row['form']})" if row["form"] else row["name"]
    ratio = f"{row['seconds'] / ours:.1f}x faster" if ours and row["name"] != "lookback" else ""
    share = f"{row['touched_bytes'] / rate / row['seconds']:.1%}" if rate else ""
    noisy = f"  noisy: quartiles {row['spread']:.0%} apart" if row["spread"] > NOISY else ""
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MEBIBYTE:.0f}"
    return f"  {name:<26}{1e3 * row['seconds']:>10.3f}{ratio:>14}{share:>14}{memory:>10}{row['rounds']:>8}{noisy}"


def step_lines(results: dict[str, Any]) -> Iterator[str]:
    """Training steps of whole models, those of a size beside each other."""
    measured = rows(results, "step")
    for group in dict.fromkeys(row["group"] for row in measured):
        members = [row for row in measured if row["group"] == group]
        ours = next((row["seconds"] for row in members if row["name"] == "rwkv"), None)
        yield ""
        yield f"training {group} (batch x length x width x depth), {members[0]['device']}"
        yield f"  {'model':<30}{'ms a step':>12}{'tokens a second':>18}{'rwkv is':>14}{'rounds':>8}"
        for row in members:
            ratio = (
                f"{row['seconds'] / ours:.2f}x as fast" if ours and row["name"] != "rwkv" else ""
            )
            rate = f"{row['tokens'] / row['seconds']:,.0f}"
            yield f"  {row['name']:<30}{1e3 * row['seconds']:>12.2f}{rate:>18}{ratio:>14}{row['rounds']:>8}"


def decode_lines(results: dict[str, Any]) -> Iterator[str]:
    """A token's step beside the matrix products and attention in it: what is over twice them is our
    own code's cost.
    """
    if not rows(results, "decode"):
        return
    yield ""
    yield f"{'decode, 1 x 256 x 256 x 4':<32}{'us a token':>12}{'its products':>14}{'step is':>10}"
    found = {
        (row["name"], row["what"]): 1e6 * row["seconds"] / row["tokens"]
        for row in rows(results, "decode")
    }
    for name in dict.fromkeys(name for name, _ in found):
        step, products = found[name, "step"], found[name, "its products"]
        yield f"  {name:<30}{step:>12.0f}{products:>14.0f}{step / products:>9.2f}x"


def sampler_lines(results: dict[str, Any]) -> Iterator[str]:
    """How many tokens and examples of each task one core makes in a second."""
    if not rows(results, "sampler"):
        return
    yield ""
    yield f"{'samplers, one core':<32}{'million tokens a second':>26}{'examples a second':>20}"
    for row in rows(results, "sampler"):
        tokens, examples = row["tokens"] / row["seconds"] / 1e6, row["examples"] / row["seconds"]
        yield f"  {row['name']:<30}{tokens:>26.2f}{examples:>20,.0f}"


def record_lines(results: dict[str, Any]) -> Iterator[str]:
    """What many records cost to look through; where it is linear, that of a record stays as it is."""
    if not rows(results, "records"):
        return
    yield ""
    yield f"{'records':<32}{'of':>12}{'seconds':>12}{'us a record':>14}"
    for row in rows(results, "records"):
        each = 1e6 * row["seconds"] / row["records"]
        yield f"  {row['name']:<30}{row['records']:>12,}{row['seconds']:>12.2f}{each:>14.0f}"


SECTIONS = (operator_lines, step_lines, decode_lines, sampler_lines, record_lines)


def profile_lines(results: dict[str, Any]) -> Iterator[str]:
    """The operators that take the most time of each training step, as torch's profiler saw one."""
    for row in rows(results, "step"):
        yield f"\n{row['name']}, {row['group']}\n{row['profile']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where everything was measured, else pytest's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lookback.benchmarks.speed.report", allow_abbrev=False
    )
    parser.add_argument("written", type=Path, nargs="?", help="what pytest-benchmark wrote earlier")
    parser.add_argument("-k", dest="chosen", default="", help="a part, as pytest's -k names it")
    parser.add_argument(
        "--profile", action="store_true", help="print what takes the time of each training step"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.written or Path(folder) / "speed.json"
        code = 0 if options.written else measure(path, options.chosen)
        if not path.exists() or not path.stat().st_size:
            return code or 1
        results = json.loads(path.read_text())
    for section in (*SECTIONS, *([profile_lines] if options.profile else [])):
        if lines := list(section(results)):
            print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
