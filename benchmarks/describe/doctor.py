"""Report which packages are installed, which are missing, and which kernels run on this machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import humanize

from lookback.benchmarks.machine import machine, versions
from lookback.benchmarks.record import make_cell

PINS = Path(__file__).parents[2] / "constraints.txt"
MODELS = ("transformer", "rwkv", "rrwkv", "lstm")
OPTIONAL = {
    "triton": "for WKV on a GPU",
    "transformers": "for models named hf:TYPE, and for peers in `make speed`",
    "fla": "flash-linear-attention, for models named fla:TYPE, and for peers in `make speed`",
    "ray": "for several machines, --engine ray",
}


def findings() -> list[str]:
    """Return one line for each fact: its name, and its value."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = versions()
    facts["constraints"] = _compare_with_pins()
    facts["cpu"] = f"{machine('cpu').device}, {torch.get_num_threads()} threads"
    facts["gpu"] = "none; everything runs on the CPU"
    if device == "cuda":
        gpu = machine("cuda")
        driver = gpu.facts.get("driver")
        facts["gpu"] = f"{gpu.device}, driver {driver}, CUDA {torch.version.cuda}"
    for model in MODELS:
        facts[model] = _kernels(model, device)
    facts["disk"] = f"{humanize.naturalsize(shutil.disk_usage(Path.cwd()).free)} free"

    for name, value in sorted(os.environ.items()):
        if name.startswith("LOOKBACK_"):
            facts[name] = value
    for name, purpose in OPTIONAL.items():
        if not find_spec(name):
            facts[name] = f"not installed; needed {purpose}"

    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items()]


def _compare_with_pins() -> str:
    """Return which installed packages have another version than constraints.txt pins."""
    if not PINS.exists():
        return "constraints.txt is not installed; a checkout of Lookback has it"
    lines = PINS.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)

    different = []
    for name, pin in pins.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if version.split("+")[0] != pin:
                different.append(f"{name} {version} (pinned: {pin})")
    if different:
        return f"versions that are not those in constraints.txt: {', '.join(different)}"
    return "all versions as in constraints.txt"


def _kernels(model: str, device: str) -> str:
    """Return the operators that a small forward pass calls, in the precision that suites use."""
    from lookback.benchmarks.measure.cell import kernels_of
    from lookback.tasks.task import get_task

    precision = "bfloat16" if device == "cuda" else "float32"
    fields = {"task": "copy", "model": model, "device": device, "precision": precision}
    size = {"width": 64, "depth": 1, "length": 64, "batch_size": 1}
    cell = make_cell({"kind": "learn", **fields, **size})
    try:
        return f"{', '.join(kernels_of(cell, get_task('copy')))} in {precision}"
    except Exception as error:  # report any fault of this machine
        return f"does not run: {type(error).__name__}: {error}".splitlines()[0]
