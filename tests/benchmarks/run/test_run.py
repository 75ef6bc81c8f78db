"""Cells in processes of their own: every end is recorded, and nothing is measured twice."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lookback.benchmarks.machine import machine, usable_cores
from lookback.benchmarks.measure.cell import measure
from lookback.benchmarks.record import AnyCell
from lookback.benchmarks.report.make import make_pages
from lookback.benchmarks.run import process
from lookback.benchmarks.run.process import default_threads
from lookback.benchmarks.run.runner import WORK, Runner, device_name
from lookback.benchmarks.storage import read_record, record_files, write_record
from lookback.benchmarks.suite import read_suite
from tests.processes import (
    LINUX,
    ROOT,
    processes_of,
    replace_processes,
    runner_of,
    tiny,
    wait_until,
)
from tests.records import as_cost, learn_record

PLUGIN = str(ROOT / "tests" / "plugin_models.py")


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("raises", "error", "this model is broken"),
        ("out-of-memory", "oom", "memory"),
        ("not-a-number", "nan", "the loss is nan at step 2"),
    ],
)
def test_what_a_model_does_is_an_outcome(
    cell: AnyCell, tmp_path: Path, model: str, status: str, words: str
) -> None:
    import tests.plugin_models  # noqa: F401  (once in a process: its decorators register)

    outcome = measure(
        cell.model_copy(update={"model": model}), tmp_path, lambda *progress: None, [False]
    )
    assert outcome.status == status and words in outcome.message


def test_every_end_of_a_process_is_recorded(
    cell: AnyCell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cell of each kind, one that fails, one that kills itself, and one that hangs."""
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    ends = {
        as_cost(cell, {"task": "last-token", "model": "plain", "repeats": 2}): ("ok", ""),
        cell.model_copy(update={"model": "raises"}): ("error", "this model is broken"),
        cell.model_copy(update={"model": "killed"}): ("killed", "SIGKILL: about to die"),
        cell.model_copy(update={"model": "hangs", "time_limit": 8.0}): ("timeout", "8 seconds"),
    }
    runner = runner_of(tmp_path, *ends, plugin=PLUGIN)
    assert runner.run() == 1
    for one, (status, words) in ends.items():
        record = runner.recorded(one)
        assert record is not None and record.cell == one
        assert record.outcome.status == status and words in record.outcome.message
        assert record.machine.facts["threads"] == 1
    assert runner.missing() == [one for one, end in ends.items() if end[0] in ("error", "killed")]
    assert capsys.readouterr().out.count("killed; trying once more") == 1

    timed = runner.recorded(next(iter(ends)))
    assert timed is not None and timed.outcome.cost is not None
    assert timed.outcome.cost.state_bytes == 0
    assert set(timed.outcome.cost.phases) >= {"prefill", "decode"}

    # Only what the failed cells left is kept for the next run.
    work = runner.folder(cell).parent / WORK
    kept = {path.name for path in work.iterdir() if path.is_dir()}
    assert kept == {one.id for one in runner.missing()}


def test_recorded_cells_are_not_measured_again(cell: AnyCell, tmp_path: Path) -> None:
    runner = runner_of(tmp_path, cell)
    path = write_record(runner.folder(cell), learn_record(cell))
    before = path.stat().st_mtime_ns
    assert runner.missing() == [] and runner.run() == 0
    assert path.stat().st_mtime_ns == before and list(record_files(tmp_path)) == [path]


@pytest.mark.parametrize(
    ("setting", "threads"),
    [("3", 3), ("", usable_cores()), ("0", usable_cores()), ("2,1", usable_cores())],
)
def test_threads_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, setting: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert default_threads() == threads


def test_a_device_has_a_name_for_each_machine_job_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners on different devices that share a folder do not wait for each other."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    here = device_name("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert device_name("cuda") == here != device_name("cpu")
    names = {here}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    names.add(device_name("cuda"))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    names.add(device_name("cuda"))
    monkeypatch.setattr("platform.node", lambda: "another-host")
    names.add(device_name("cuda"))
    assert len(names) == 4 and not any("another-host" in name for name in names)


def test_a_cell_that_another_runner_measures_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the tasks of a job array share the cells of one suite; each cell is measured once."""
    locked, free = tiny(), tiny(seed=1)
    runner = runner_of(tmp_path, locked, free)
    measured = []

    def measure_and_release(self: object, cell: AnyCell, *rest: object) -> object:
        measured.append(cell)
        # The other runner records its cell and releases the lock meanwhile.
        write_record(runner.folder(locked), learn_record(locked))
        lock.release()
        return learn_record(cell).outcome

    replace_processes(monkeypatch, measure_and_release)
    work = tmp_path / machine("cpu").slug / WORK
    work.mkdir(parents=True)
    lock = FileLock(work / f"{locked.id}.lock", thread_local=False)
    lock.acquire()
    assert runner.run() == 0
    assert measured == [free] and runner.missing() == []


def test_when_the_budget_is_over_the_cell_saves_and_the_next_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tiny("unhurried", steps=12, validations=2), tiny("lstm")
    runner = runner_of(tmp_path, *cells)

    def end_the_budget_in_training() -> None:
        def is_training() -> bool:
            outputs = tmp_path.glob(f"*/.work/{cells[0].id}/output.txt")
            return any("training" in path.read_text() for path in outputs)

        wait_until(is_training, "training")
        runner.deadline = time.monotonic()

    thread = threading.Thread(target=end_the_budget_in_training)
    thread.start()
    assert runner.run() == 0
    thread.join()
    message = "the time is over with 2 cells left; the same command continues from here"
    assert message in capsys.readouterr().out
    assert list(tmp_path.glob("*/.work/*/rate-0/checkpoint.pt"))
    assert runner.missing() == [*cells] and not list(record_files(tmp_path))

    again = runner_of(tmp_path, *cells)
    assert again.run() == 0 and again.missing() == []
    assert "the time is over" not in capsys.readouterr().out


def test_no_cell_starts_after_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tuple(tiny(seed=seed) for seed in range(3))
    runner = runner_of(tmp_path, *cells)

    def measure_slowly(self: object, cell: AnyCell, *rest: object) -> object:
        runner.deadline = time.monotonic()
        return learn_record(cell).outcome

    replace_processes(monkeypatch, measure_slowly)
    assert runner.run() == 0 and runner.missing() == [*cells[1:]]
    assert "the time is over with 2 cells left" in capsys.readouterr().out


OWN_SUITE = """
title = "My question"
[[grid]]
kind = "learn"
task = "copy"
model = ["rwkv", "lstm"]
width = 8
depth = 1
length = 24
batch_size = 2
steps = 2
[endpoint]
quantity = "score"
task = "copy"
lengths = [24]
difference = 0.1
"""


@pytest.mark.parametrize("scale", ["small", "smoke"])
def test_reports_know_the_title_and_the_endpoint_of_ones_own_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    """Of the last run, although its file is gone; smoke scales decide nothing."""
    path = tmp_path / "distance.toml"  # which is also one of ours
    replace_processes(monkeypatch, lambda _, cell, *rest: learn_record(cell).outcome)
    for title in ("A question", "My question"):  # at the second run, all is recorded
        path.write_text(OWN_SUITE.replace("My question", title))
        suite = read_suite(str(path), scale)
        assert Runner(tmp_path / "results", suite, threads=1).run() == 0
    path.unlink()

    (page,) = make_pages(tmp_path / "results", tmp_path / "reports", [suite.name])
    text = page.path.read_text()
    assert text.startswith("# My question\n")
    assert ("Endpoint: score at 24 tokens" in text) == (scale == "small")


# --- the command itself, as a user starts it


def start(folder: Path) -> subprocess.Popen[str]:
    suite = folder / "slow.toml"
    suite.write_text(
        '[[grid]]\nkind = "learn"\ntask = "copy"\nmodel = "slow"\nwidth = 8\ndepth = 1\n'
        "length = 24\nbatch_size = 2\nsteps = 30\nvalidations = 1\ntest_examples = 2\n"
    )
    command = [sys.executable, "-m", "lookback", "run", str(suite)]
    command += ["--plugin", PLUGIN, "--results", str(folder / "results")]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    """As under `lookback run ... | head -1`."""
    process = start(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert len(list((tmp_path / "results").rglob("copy-*.json"))) == 1


SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    pass
"""


def test_an_interrupt_ends_what_is_still_being_imported(tmp_path: Path) -> None:
    """An exception may be lost there, as in the C++ code of torch, and the run would go on."""
    plugin = tmp_path / "swallows.py"
    plugin.write_text(SWALLOWS)
    command = [sys.executable, "-m", "lookback", "run", "quick", "--plugin", str(plugin)]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        # A job in the background of a script ignores Ctrl-C, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


def wait_until_training(folder: Path) -> None:
    def is_training() -> bool:
        outputs = (folder / "results").glob("*/.work/*/output.txt")
        return any("reading" in path.read_text() for path in outputs)

    wait_until(is_training, "training")


@LINUX
def test_two_runners_that_are_interrupted_and_killed_measure_nothing_twice(tmp_path: Path) -> None:
    first = start(tmp_path)
    wait_until_training(tmp_path)
    first.kill()
    first.wait()
    wait_until(lambda: not processes_of(tmp_path / "results"), "the cell ends with its runner")
    assert not list(record_files(tmp_path / "results"))

    for path in (tmp_path / "results").glob("*/.work/*/output.txt"):
        path.unlink()
    second = start(tmp_path)
    wait_until_training(tmp_path)
    third = start(tmp_path)
    second.send_signal(signal.SIGINT)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 130 and "interrupted; the same command continues" in output
    assert list(tmp_path.glob("results/*/.work/*/rate-0/checkpoint.pt"))

    fourth = start(tmp_path)
    outputs = [runner.communicate(timeout=200)[0] for runner in (third, fourth)]
    assert third.returncode == fourth.returncode == 0, outputs
    (path,) = record_files(tmp_path / "results")
    assert read_record(path).outcome.status == "ok"
    assert sorted(path.parent.iterdir()) == [path, path.with_name("slow.toml")]


def test_a_runner_waits_for_a_device_that_is_in_use(
    cell: AnyCell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another runner holds the device; this one says so, and stops waiting when asked to."""
    runner = runner_of(tmp_path, cell)
    work = tmp_path / runner.machine(cell).slug / ".work"
    work.mkdir(parents=True)
    runner.deadline = time.monotonic() + 2.5
    with FileLock(work / f"{device_name(cell.device)}.lock"):
        assert runner.run() == 0
    assert "another runner measures on this cpu; waiting for it" in capsys.readouterr().out
    assert not list(record_files(tmp_path))
