"""Cells in processes of their own: everything that can happen to one is recorded, and nothing is
measured twice.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lookback.benchmarks.record import Cell, Outcome
from lookback.benchmarks.run.runner import Runner, cores, default_threads
from lookback.benchmarks.storage import read_record, record_files
from lookback.benchmarks.suite import Suite
from tests.records import as_cost

ROOT = Path(__file__).parents[3]
PLUGIN = str(ROOT / "tests" / "plugin_models.py")
LOOKBACK = [sys.executable, "-m", "lookback.benchmarks.cli"]


def outcome(cell: Cell, folder: Path) -> Outcome:
    """Run one cell and read its record."""
    runner = Runner(folder, Suite("suite", "", (cell,)), plugins=[PLUGIN], threads=1)
    code = runner.run()
    (path,) = record_files(folder)
    record = read_record(path)
    assert record.cell == cell and record.machine.facts["threads"] == 1
    assert code == (0 if record.outcome.status in ("ok", "oom", "nan", "timeout") else 1)
    return record.outcome


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("plain", "ok", ""),
        ("raises", "error", "this model is broken"),
        ("out-of-memory", "oom", "memory"),
        ("not-a-number", "nan", "the loss is nan at step 2"),
        ("killed", "killed", "SIGKILL: about to die"),
    ],
)
def test_every_end_is_recorded(
    cell: Cell, tmp_path: Path, model: str, status: str, words: str
) -> None:
    found = outcome(cell.model_copy(update={"model": model}), tmp_path)
    assert found.status == status and words in found.message


def test_a_cell_that_hangs_is_ended(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookback.benchmarks.run.runner.GRACE_SECONDS", 0.5)
    found = outcome(cell.model_copy(update={"model": "hangs", "time_limit": 6.0}), tmp_path)
    assert found.status == "timeout" and "6 seconds" in found.message


def test_tasks_and_costs_of_a_plugin(cell: Cell, tmp_path: Path) -> None:
    found = outcome(as_cost(cell, {"task": "last-token", "model": "plain", "repeats": 2}), tmp_path)
    assert (
        found.cost is not None
        and found.cost.state_bytes == 0
        and set(found.cost.phases) >= {"prefill", "decode"}
    )


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), ("", cores()), ("0", cores()), ("2,1", cores())]
)
def test_threads_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert default_threads() == threads


def test_what_is_recorded_is_not_measured_again(cell: Cell, tmp_path: Path) -> None:
    runner = Runner(tmp_path, Suite("suite", "", (cell,)), threads=1)
    assert runner.run() == 0
    (path,) = record_files(tmp_path)
    before = path.stat().st_mtime_ns
    assert runner.missing() == [] and runner.run() == 0
    assert path.stat().st_mtime_ns == before
    assert not [
        p for p in (path.parent.parent / ".work").rglob("*") if p.is_file() and p.suffix != ".lock"
    ]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    suite = folder / "slow.toml"
    suite.write_text(
        '[[grid]]\nkind = "learn"\ntask = "copy"\nmodel = "slow"\nwidth = 8\ndepth = 1\nlength = 24\nbatch_size = 2\n'
        "steps = 30\nvalidations = 1\ntest_examples = 2\n"
    )
    command = [
        *LOOKBACK,
        "run",
        str(suite),
        "--plugin",
        PLUGIN,
        "--results",
        str(folder / "results"),
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(folder: Path, name: str) -> Path:
    for _ in range(600):
        if found := list(folder.rglob(name)):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no {name}")


def wait_until_reading(folder: Path) -> Path:
    """Until the slow model's process is in the middle of training."""
    for _ in range(600):
        output = wait_for(folder, "output.txt")
        if "reading" in output.read_text():
            return output
        time.sleep(0.1)
    raise AssertionError("no training")


def test_interrupted_it_saves_and_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until_reading(tmp_path)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in said
    assert not list(record_files(tmp_path / "results"))
    assert wait_for(tmp_path, "checkpoint.pt")
    process = start(tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    (path,) = record_files(tmp_path / "results")
    assert read_record(path).outcome.status == "ok"


@pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel ties processes together on Linux alone"
)
def test_a_killed_runner_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path)
    job = wait_until_reading(tmp_path).parent / "job.json"
    process.kill()
    process.wait()
    for _ in range(100):
        listed = subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        if str(job) not in listed:
            break
        time.sleep(0.1)
    assert str(job) not in listed
    assert not list(record_files(tmp_path / "results"))


def test_two_runners_measure_nothing_twice(tmp_path: Path) -> None:
    first, second = start(tmp_path), start(tmp_path)
    said = [process.communicate(timeout=200)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    (path,) = record_files(tmp_path / "results")
    assert read_record(path).outcome.status == "ok"
    assert any("waiting for it" in text for text in said)
    assert list(path.parent.iterdir()) == [path]
