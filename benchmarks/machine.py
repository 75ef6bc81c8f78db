"""What a reader must know of the machine and the software, found without torch, and without names
of hosts or users.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookback.benchmarks.record import Machine

SHARED_GPU = "LOOKBACK_SHARED_GPU"  # set where other cells run on the GPU at the same time
PACKAGES = (
    "lookback",
    "torch",
    "triton",
    "numpy",
    "pandas",
    "transformers",
    "flash-linear-attention",
)


def machine(device: str) -> Machine:
    """The machine that a device ("cpu" or "cuda") stands for; raises ValueError when there is no
    such GPU.
    """
    cores = os.cpu_count() or 1
    cpu = {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_bytes": memory_bytes(),
        "system": platform.system(),
    }
    if device == "cpu":
        return Machine(slug=_slug(f"{cpu['cpu']}-{cores}-cores"), device=str(cpu["cpu"]), facts=cpu)
    gpu = _gpu()
    return Machine(slug=_slug(gpu["gpu"]), device=gpu["gpu"], facts={**cpu, **gpu})


def joules(device: str) -> float | None:
    """What the first visible GPU has used since its driver was loaded; None on a CPU, or where
    nobody tells.

    Of a GPU that several cells share, nobody can tell what each of them used.
    """
    if device != "cuda" or SHARED_GPU in os.environ:
        return None
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(_gpu_handle())) / 1000
    except pynvml.NVMLError:
        return None


def load() -> float:
    """Processes that want a core, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str | None, bool | None]:
    """The commit of this checkout, and whether its code differs from it; None outside a checkout.

    A copy without its history is of the commit that LOOKBACK_COMMIT names; whether it differs
    nobody knows.
    """
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(
            git("status", "--porcelain", "--", ".", ":!results", ":!reports")
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LOOKBACK_COMMIT"), None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64]


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    found = re.search(r"model name\s*:\s*(.+)", info)
    return found[1].strip() if found else platform.processor() or platform.machine()


def memory_bytes() -> int:
    """What processes here may use: the machine's memory, or less where control groups limit it
    (Linux).
    """
    return min(
        [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits(Path("/"))]
    )


def _group_limits(root: Path) -> list[int]:
    """Limits of this process's control groups and those above them, of either version, below a root
    folder.
    """
    limits = []
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        top, name = root / "sys/fs/cgroup", "memory.max"
        if "memory" in controllers.split(","):
            top, name = top / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                    limits.append(int((folder / name).read_text(encoding="ascii")))
    return limits


def _gpu_handle() -> Any:
    """NVML's handle of the first visible GPU; raises NVMLError where there is none."""
    import pynvml

    pynvml.nvmlInit()  # counted, and cheap when it was called before
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    named = (
        handle for handle in handles if pynvml.nvmlDeviceGetUUID(handle).startswith(first)
    )  # CUDA takes prefixes
    return next(named, None) or pynvml.nvmlDeviceGetHandleByUUID(
        first
    )  # a MIG slice is not among the devices


def _gpu() -> dict[str, Any]:
    """Facts of the first visible GPU, as its driver states them."""
    import pynvml

    try:
        handle = _gpu_handle()
        name = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        raise ValueError(f"no CUDA GPU here ({error}): use --device cpu") from None
    readings: dict[str, Callable[[], Any]] = {
        "gpu_memory_bytes": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "gpu_count": pynvml.nvmlDeviceGetCount,
        "driver": pynvml.nvmlSystemGetDriverVersion,
        "power_limit_watts": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "sm_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(
            handle, pynvml.NVML_CLOCK_MEM
        ),
    }
    facts: dict[str, Any] = {"gpu": name}
    for key, read in readings.items():
        try:
            facts[key] = read()
        except pynvml.NVMLError:
            facts[key] = None  # a driver need not tell everything
    return facts
