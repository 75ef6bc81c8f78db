"""What is installed, what is missing, and what will run here."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import machine, versions

OPTIONAL = {
    "triton": "the GPU form of WKV",
    "transformers": "peers in `make speed`",
    "fla": "flash-linear-attention, a peer in `make speed` on a GPU",
}


def findings() -> list[str]:
    """Lines for a terminal."""
    import torch

    from models.wkv import resolve_backend

    lines = [f"{name:14} {version}" for name, version in versions().items()]
    lines += ["", f"{'cpu':14} {machine('cpu').device}, {torch.get_num_threads()} threads of torch"]
    if torch.cuda.is_available():
        gpu = machine("cuda")
        lines += [f"{'gpu':14} {gpu.device}, driver {gpu.facts.get('driver')}, CUDA {torch.version.cuda}"]
    else:
        lines += [f"{'gpu':14} none that torch sees; everything runs on the CPU"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines += [f"{'wkv':14} {resolve_backend('auto', torch.empty(1, 1, 1, device=device))}"]
    lines += [f"{name:14} not installed: {what}" for name, what in OPTIONAL.items() if not find_spec(name)]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return [*lines, f"{'disk':14} {free:.0f} GB free here"]
