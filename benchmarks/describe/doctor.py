"""What is installed, what is missing, and what will run here."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from lookback.benchmarks.machine import machine, versions
from lookback.benchmarks.record import LearnCell

PINS = Path(__file__).parents[2] / "constraints.txt"
OPTIONAL = {
    "triton": "the GPU form of WKV",
    "transformers": "models named hf:TYPE, and peers in `make speed`",
    "fla": "flash-linear-attention: models named fla:TYPE, and a peer in `make speed` on a GPU",
    "ray": "several machines, --engine ray",
}
SHOWN = 8  # packages that are not as pinned


def findings() -> list[str]:
    """Lines for a terminal."""
    import torch

    lines = [f"{name:14} {version}" for name, version in versions().items()]
    lines += [f"{'pinned':14} {_pinned()}"]
    lines += ["", f"{'cpu':14} {machine('cpu').device}, {torch.get_num_threads()} threads of torch"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        gpu = machine("cuda")
        lines += [
            f"{'gpu':14} {gpu.device}, driver {gpu.facts.get('driver')}, CUDA {torch.version.cuda}"
        ]
    else:
        lines += [f"{'gpu':14} none that torch sees; everything runs on the CPU"]
    lines += [
        f"{model:14} {_kernels(model, device)}"
        for model in ("transformer", "rwkv", "rrwkv", "lstm")
    ]
    lines += [f"{'processes':14} {_together()}"]
    lines += [
        f"{name:14} not installed: {what}" for name, what in OPTIONAL.items() if not find_spec(name)
    ]
    lines += [
        f"{'set':14} {name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("LOOKBACK_")
    ]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return [*lines, f"{'disk':14} {free:.0f} GB free here"]


def _pinned() -> str:
    """Which of the packages installed here have another version than constraints.txt says."""
    pins = dict(
        line.split("==") for line in PINS.read_text(encoding="utf-8").splitlines() if "==" in line
    )
    other = []
    for name, pin in pins.items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if there.split("+")[0] != pin:
            other.append(f"{name} {there} ({pin})")
    more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    return (
        f"otherwise than in constraints.txt: {', '.join(other[:SHOWN])}{more}"
        if other
        else "as in constraints.txt"
    )


def _kernels(model: str, device: str) -> str:
    """The operators that a small forward pass of a model calls here, in the precision that suites
    use on the device.
    """
    from lookback.benchmarks.measure.cell import kernels_of
    from lookback.tasks.task import get_task

    precision = "bfloat16" if device == "cuda" else "float32"
    cell = LearnCell.model_validate(
        {
            "kind": "learn",
            "task": "copy",
            "model": model,
            "width": 64,
            "depth": 1,
            "length": 64,
            "batch_size": 1,
            "device": device,
            "precision": precision,
        }
    )
    try:
        return f"{', '.join(kernels_of(cell, get_task('copy')))} in {precision}"
    except Exception as error:  # whatever is wrong with this machine is what is asked for
        return f"does not run: {type(error).__name__}: {error}".splitlines()[0]


def _together() -> str:
    """How many processes can train one cell together, and by what they talk."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        return "one a cell: this torch is built without torch.distributed"
    backends = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    names = [name for name, there in backends.items() if there]
    return f"several can train one cell together ({', '.join(names)}); {torch.cuda.device_count()} GPUs here"
