"""Facts about the machine and its software that a record states.

Read without torch. They contain no names of hosts or users.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookback.benchmarks.record import Machine

ROOT = Path(__file__).resolve().parents[1]
SHARED_GPU = "LOOKBACK_SHARED_GPU"  # set if other cells run on the GPU at the same time
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
    """Return the machine whose CPU or first GPU a cell on this device ("cpu", "cuda") uses.

    Raises ValueError if there is no such GPU.
    """
    cores = os.cpu_count() or 1
    cpu_name = _cpu_name()
    facts: dict[str, Any] = {
        "cpu": cpu_name,
        "cores": cores,
        "memory_bytes": memory_bytes(),
        "system": platform.system(),
    }
    if device == "cpu":
        return Machine(slug=_slug(f"{cpu_name}-{cores}-cores"), device=cpu_name, facts=facts)

    facts |= _gpu_facts()
    return Machine(slug=_slug(facts["gpu"]), device=facts["gpu"], facts=facts)


def joules(device: str) -> float | None:
    """Return the energy that the first visible GPU has used since its driver was loaded.

    None on a CPU, for a GPU without such a counter, and for a GPU that several cells share.
    """
    if device != "cuda" or SHARED_GPU in os.environ:
        return None
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(_gpu_handle())) / 1000
    except pynvml.NVMLError:
        return None


def load() -> float:
    """Return the load average of the last minute: processes that run or wait for a core."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


CODE = ("lookback", "tasks", "models", "benchmarks", "pyproject.toml", "constraints.txt")


def commit() -> tuple[str | None, bool | None]:
    """Return the commit of Lookback's code, and whether the code has uncommitted changes.

    Outside a checkout of Lookback, for example in an installed wheel, the commit is that of the
    environment variable LOOKBACK_COMMIT, or None; whether the code was changed is then unknown.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")).samefile(ROOT):
            changes = _git("status", "--porcelain", "--", *CODE)  # a log beside it changes nothing
            return _git("rev-parse", "HEAD"), bool(changes)
    except FileNotFoundError:  # git is not installed
        pass
    except subprocess.CalledProcessError as error:
        # Git trusts no checkout of another user. Elsewhere it fails outside any repository.
        if "dubious ownership" in error.stderr and (ROOT / ".git").exists():
            _warn_once(
                "records will not state the commit: git refuses to read a checkout of another"
                " user; allow it with `git config --global --add safe.directory FOLDER`"
            )
    return os.environ.get("LOOKBACK_COMMIT"), None


def _git(*arguments: str) -> str:
    """Return the output of git in Lookback's root; raises CalledProcessError if it fails."""
    environment = {**os.environ, "LC_ALL": "C"}  # its messages in English
    finished = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


@functools.cache
def _warn_once(message: str) -> None:
    print(f"lookback: {message}", file=sys.stderr)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64]


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        match = re.search(r"model name\s*:\s*(.+)", information)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Return the memory that processes may use: the machine's, or less in a limited cgroup."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *cgroup_limits(Path("/"))])


def cgroup_limits(root: Path) -> list[int]:
    """Return the memory limits of this process's control groups and their parents, in bytes.

    Reads versions 1 and 2 of control groups (Linux) below a root folder.
    """
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return []

    limits = []
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top = root / "sys/fs/cgroup"
            file_name = "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            top = root / "sys/fs/cgroup/memory"
            file_name = "memory.limit_in_bytes"
        else:
            continue

        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((folder / file_name).read_text(encoding="ascii")))
    return limits


def _gpu_handle() -> Any:
    """Return NVML's handle of the first visible GPU; raises NVMLError if there is none."""
    import pynvml

    pynvml.nvmlInit()  # counts its calls, and is cheap after the first
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)

    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(first):  # CUDA accepts prefixes
            return handle
    return pynvml.nvmlDeviceGetHandleByUUID(first)  # a MIG slice has no index


def _gpu_facts() -> dict[str, Any]:
    """Return facts of the first visible GPU; None for those that its driver does not report."""
    import pynvml

    try:
        handle = _gpu_handle()
        name = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        raise ValueError(f"no CUDA GPU here ({error}): use --device cpu") from None

    sm = pynvml.NVML_CLOCK_SM
    memory = pynvml.NVML_CLOCK_MEM
    readings: dict[str, Callable[[], Any]] = {
        "gpu_memory_bytes": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "gpu_count": pynvml.nvmlDeviceGetCount,
        "driver": pynvml.nvmlSystemGetDriverVersion,
        "power_limit_watts": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "sm_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, sm),
        "memory_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, memory),
    }
    facts: dict[str, Any] = {"gpu": name}
    for key, read in readings.items():
        try:
            facts[key] = read()
        except pynvml.NVMLError:
            facts[key] = None
    return facts
