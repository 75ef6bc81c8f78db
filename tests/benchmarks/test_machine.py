"""Facts of the machine and of the code are read correctly."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lookback.benchmarks import machine
from lookback.benchmarks.machine import (
    cgroup_limits,
    commit,
    cpu_name,
    cpu_quotas,
    instruction_set,
    joules,
)


def test_control_groups_limit_memory(tmp_path: Path) -> None:
    """Of either version, the group's own limit and those above it; "max" is none."""
    for path, text in {
        "proc/self/cgroup": "5:cpu:/jobs/a\n4:memory:/jobs/a\n0::/jobs/a\n",
        "sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "4000\n",
        "sys/fs/cgroup/jobs/a/memory.max": "max\n",
        "sys/fs/cgroup/jobs/memory.max": "3000\n",
        "sys/fs/cgroup/cpu/jobs/a/memory.max": "1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert sorted(cgroup_limits(tmp_path)) == [3000, 4000, 9223372036854771712]
    assert cgroup_limits(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/jobs/cpu.max": "200000 100000\n"}, [2]),
        ({"sys/fs/cgroup/jobs/a/cpu.max": "50000 100000\n"}, [1]),
        ({"sys/fs/cgroup/jobs/cpu.max": "max 100000\n"}, []),
        (
            {
                "sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "100000\n",
            },
            [3],
        ),
        (
            {
                "sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "100000\n",
            },
            [],
        ),
    ],
)
def test_control_groups_limit_cpus(tmp_path: Path, files: dict[str, str], cpus: list[int]) -> None:
    """In a container with two CPUs of 64, cells must not take 64 threads."""
    memberships = "5:cpu,cpuacct:/jobs/a\n0::/jobs/a\n"
    for path, text in {"proc/self/cgroup": memberships, **files}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cpu_quotas(tmp_path) == cpus


def test_arm_machines_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    names = set()
    for maker, part, board in (
        ("0x41", "0xd0c", ""),
        ("0x41", "0xd40", ""),
        ("0x61", "0x022", "M1"),
    ):
        root = tmp_path / maker / part
        (root / "proc/device-tree").mkdir(parents=True)
        information = f"processor\t: 0\nCPU implementer\t: {maker}\nCPU part\t: {part}\n"
        (root / "proc/cpuinfo").write_text(information)
        if board:
            (root / "proc/device-tree/model").write_text(f"{board}\0")
        names.add(cpu_name(root))
    assert names == {
        "aarch64 implementer 0x41 part 0xd0c",
        "aarch64 implementer 0x41 part 0xd40",
        "aarch64 implementer 0x61 part 0x022 M1",
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse4_2 avx avx2 fma avx512f avx512dq avx512bw avx512vl", "AVX-512"),
        ("fpu sse4_2 avx avx2 fma avx512f", "AVX2"),  # the first AVX-512 chips: torch uses AVX2
        ("fpu sse4_2", None),
    ],
)
def test_cpus_of_one_name_differ_in_their_instruction_sets(
    tmp_path: Path, flags: str, expected: str | None
) -> None:
    (tmp_path / "proc").mkdir()
    information = f"model name\t: AMD EPYC\nflags\t\t: {flags}\nbugs\t\t: none\n"
    (tmp_path / "proc/cpuinfo").write_text(information)
    assert instruction_set(tmp_path) == expected


def test_a_cpu_is_named_with_its_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one name, one machine may be twice as fast as the other; times must not be mixed."""
    monkeypatch.setattr(machine, "cpu_name", lambda: "AMD EPYC")
    monkeypatch.setattr(machine, "cpu_quotas", lambda root: [2])
    names = []
    for instructions in ("AVX-512", "AVX2", None):
        monkeypatch.setattr(machine, "instruction_set", lambda found=instructions: found)
        found = machine.machine("cpu")
        names.append((found.slug, found.device))
    assert names == [
        ("amd-epyc-avx-512-2-cores", "AMD EPYC, AVX-512"),
        ("amd-epyc-avx2-2-cores", "AMD EPYC, AVX2"),
        ("amd-epyc-2-cores", "AMD EPYC"),
    ]


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="torch was told what to use")
def test_the_instruction_set_is_the_one_that_torch_finds() -> None:
    import torch

    found = {"AVX512": "AVX-512", "AVX2": "AVX2"}.get(torch.backends.cpu.get_cpu_capability())
    assert instruction_set() == found


@pytest.mark.parametrize(
    ("visible", "device"),
    [
        (None, "GPU-aaaa"),
        ("1,0", "GPU-bbbb"),
        ("GPU-bbbb,GPU-aaaa", "GPU-bbbb"),
        ("GPU-bb", "GPU-bbbb"),
        ("MIG-cccc", "MIG-cccc"),
    ],
)
def test_energy_is_read_of_the_gpu_that_is_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str
) -> None:
    """The first in CUDA_VISIBLE_DEVICES: a number, a name, or the beginning of a name."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    answers = {
        "Init": lambda: None,
        "DeviceGetCount": lambda: 2,
        "DeviceGetUUID": str,
        "DeviceGetHandleByUUID": str,
        "DeviceGetHandleByIndex": ("GPU-aaaa", "GPU-bbbb").__getitem__,
        "DeviceGetTotalEnergyConsumption": {device: 7000}.__getitem__,  # of no other device
    }
    for name, answer in answers.items():
        monkeypatch.setattr(f"pynvml.nvml{name}", answer)
    assert joules("cuda") == 7


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose root is taken for Lookback's."""
    monkeypatch.delenv("LOOKBACK_COMMIT", raising=False)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "code.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "First")
    return tmp_path


def test_the_commit_is_that_of_the_checkout(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert commit() == (head, False)
    (checkout / "results").mkdir()
    (checkout / "results" / "record.json").write_text("{}")
    (checkout / "run.log").write_text("a log beside the code")
    assert commit() == (head, False)
    (checkout / "models" / "code.py").write_text("changed")
    assert commit() == (head, True)
    git(checkout, "checkout", "models/code.py")
    (checkout / "models" / "new.py").write_text("which registers a model")
    assert commit() == (head, True)


def test_the_commit_of_a_surrounding_repository_is_not_taken(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel may be installed inside a checkout of the user's own project."""
    installed = checkout / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(machine, "ROOT", installed)
    assert commit() == (None, None)
    monkeypatch.setenv("LOOKBACK_COMMIT", "1234")
    assert commit() == ("1234", None)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_checkout_of_another_user_is_reported_once(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("SUDO_UID", "GIT_CONFIG_COUNT"):
        monkeypatch.delenv(name, raising=False)
    shutil.chown(checkout, 12345)
    shutil.chown(checkout / ".git", 12345)
    machine._warn_once.cache_clear()
    assert commit() == commit() == (None, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert "git refuses to read a checkout of another user" in line
