"""Facts about the machine and its software that a record states.

Read without torch. They contain no names of hosts or users.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
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
V1_MEMORY = "memory.limit_in_bytes"  # of version 1 of control groups
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
    cores = min([os.cpu_count() or 1, *cpu_quotas(Path("/"))])
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": cores,
        "memory_bytes": memory_bytes(),
        "system": platform.system(),
    }
    if device == "cpu":
        facts["instruction_set"] = instruction_set()
        # Clouds give one name to CPUs of which one is twice as fast as the other.
        name = ", ".join(filter(None, (facts["cpu"], facts["instruction_set"])))
        return Machine(slug=_slug(f"{name}-{cores}-cores"), device=name, facts=facts)

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


def cpu_name(root: Path = Path("/")) -> str:
    """Return the name of the CPU: of x86 from cpuinfo, of ARM its maker, part and board.

    Two ARM machines of as many cores must not share a name, or one's times count as the other's.
    """
    information = _cpuinfo(root)
    match = re.search(r"model name\s*:\s*(.+)", information)
    if match:
        return match[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout.strip()

    words = [platform.machine()]
    for label in ("implementer", "part"):
        match = re.search(rf"CPU {label}\s*:\s*(\w+)", information)
        words += [f"{label} {match[1]}"] if match else []
    with contextlib.suppress(OSError):
        model = (root / "proc/device-tree/model").read_text(encoding="utf-8")
        words.append(model.strip("\0 \n"))
    return " ".join(words) if len(words) > 1 else platform.processor() or platform.machine()


def instruction_set(root: Path = Path("/")) -> str | None:
    """Return the widest vector instructions that torch uses on an x86 CPU; None on others.

    The order of sums depends on them, and so do the last digits of scores.
    """
    information = _cpuinfo(root)
    match = re.search(r"^flags\s*:(.*)$", information, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    if flags >= {"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma"}:
        return "AVX-512"
    return "AVX2" if flags >= {"avx2", "fma"} else None


def _cpuinfo(root: Path) -> str:
    """Return what Linux says of the CPUs; "" elsewhere."""
    try:
        return (root / "proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def memory_bytes() -> int:
    """Return the memory that processes may use: the machine's, or less in a limited cgroup."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *cgroup_limits(Path("/"))])


def cgroup_limits(root: Path) -> list[int]:
    """Return the memory limits of this process's control groups and their parents, in bytes."""
    texts = [*_cgroup_files(root, "", "memory.max"), *_cgroup_files(root, "memory", V1_MEMORY)]
    return [int(text) for text in texts if text.strip().isdecimal()]  # no limit: "max"


def cpu_quotas(root: Path) -> list[int]:
    """Return the CPUs that this process's control groups and their parents allow, rounded up."""
    pairs = [text.split() for text in _cgroup_files(root, "", "cpu.max")]
    quotas = _cgroup_files(root, "cpu", "cpu.cfs_quota_us")
    periods = _cgroup_files(root, "cpu", "cpu.cfs_period_us")
    pairs += [list(pair) for pair in zip(quotas, periods, strict=False)]
    cpus = []
    for pair in pairs:
        if len(pair) == 2 and all(text.strip().isdecimal() for text in pair) and int(pair[1]):
            cpus.append(max(1, math.ceil(int(pair[0]) / int(pair[1]))))  # no limit: "max", or -1
    return cpus


def usable_cores() -> int:
    """Return the cores that this process may use: by its affinity, and by its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min([allowed, *cpu_quotas(Path("/"))])


def _cgroup_files(root: Path, controller: str, name: str) -> list[str]:
    """Return the texts of a file in this process's control group and all groups above it (Linux).

    `controller` is empty for version 2 of control groups.
    """
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return []
    texts = []
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controller
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    texts.append((folder / name).read_text(encoding="ascii"))
    return texts


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
