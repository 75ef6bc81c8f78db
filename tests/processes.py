"""Helpers of tests that start, stop and kill the processes of cells."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lookback.benchmarks.record import AnyCell, LearnNumbers, Outcome, Record, make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite

ROOT = Path(__file__).parents[1]
PLUGIN = str(ROOT / "tests" / "fault_models.py")
TINY = {
    "kind": "learn",
    "task": "copy",
    "width": 8,
    "depth": 1,
    "length": 24,
    "batch_size": 2,
    "steps": 2,
    "warmup": 1,
    "validations": 1,
    "validation_examples": 2,
    "test_examples": 2,
}
SWEPT = {  # two learning rates, with checkpoints in both
    "steps": 120,
    "validations": 6,
    "dropout": 0.1,
    "learning_rates": [1e-3, 3e-3],
    "validation_examples": 8,
}
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are tied and found as on Linux"
)


def tiny(model: str = "rwkv", **fields: object) -> AnyCell:
    """A cell that is measured in a moment, once its process has started."""
    return make_cell({**TINY, "model": model, **fields})


def runner_of(folder: Path, *cells: AnyCell, plugin: str = PLUGIN) -> Runner:
    return Runner(folder, Suite("faults", "", cells), plugins=[plugin], threads=1)


def replace_processes(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., Outcome]) -> None:
    """Let a method of Runner measure cells in place of their processes; no server starts either."""
    monkeypatch.setattr(Runner, "_in_own_process", measure)
    monkeypatch.setattr(Runner, "_serving", lambda *_: contextlib.nullcontext())


def command_lines() -> dict[int, str]:
    """Command lines of all processes, by process id."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        lines[int(path.parent.name)] = line.strip()
    return lines


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name a file in this folder."""
    return [
        line
        for process, line in command_lines().items()
        if str(folder) in line and process != os.getpid()
    ]


def is_running(command: str) -> bool:
    return command in command_lines().values()


def wait_until(condition: Callable[[], object], message: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {message}"
        time.sleep(0.02)


def untimed(numbers: LearnNumbers) -> object:
    """Results of training without times and energy: equal to the last bit in equal runs."""
    dumped = numbers.model_dump()
    for part in (dumped, *dumped["curve"], *dumped["trials"], *dumped["reached"]):
        for key in ("seconds", "waiting", "evaluating", "saving", "joules"):
            part.pop(key, None)
    return dumped


def untimed_record(record: Record | None) -> object:
    """The same of a record, which must be one of a successful training."""
    assert record is not None and record.outcome.status == "ok", record
    assert record.outcome.learn is not None
    return untimed(record.outcome.learn)
