"""Faults: no finished record is lost or changed, no process is left, and the next run ends right.

Processes are killed, disks are full and folders are read-only for real, if the tests may mount
them. The process of a cell takes seconds to start, so long campaigns are `slow`, and a short one of
each kind always runs.
"""

import contextlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.measure import checkpoint
from lookback.benchmarks.measure.checkpoint import NAMES, State
from lookback.benchmarks.measure.step import make_model, make_optimizer
from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.record import FINAL, Cell, Outcome
from lookback.benchmarks.report.make import make_pages
from lookback.benchmarks.run import process
from lookback.benchmarks.storage import read_record, read_records, record_files, write_record
from lookback.tasks.task import get_task
from tests.processes import (
    LINUX,
    PLUGIN,
    ROOT,
    SWEPT,
    is_running,
    processes_of,
    replace_processes,
    runner_of,
    tiny,
    untimed,
    untimed_record,
    wait_until,
)
from tests.records import learn_record

# --- processes killed at random moments

RUN = """
import signal, sys
from pathlib import Path
from lookback.benchmarks.record import make_cell
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite
import json
cells = tuple(make_cell(fields) for fields in json.loads(sys.argv[2]))
suite = Suite("faults", "", cells)
sys.exit(Runner(Path(sys.argv[1]), suite, plugins=sys.argv[3:], threads=1).run())
"""
MOMENTS = {
    "starting": "job.json",
    "training": "rate-0/checkpoint.pt",
    "at the second rate": "rate-1/checkpoint.pt",
}


def start(folder: Path, *cells: Cell) -> subprocess.Popen[str]:
    listed = json.dumps([cell.model_dump(mode="json") for cell in cells])
    command = [sys.executable, "-c", RUN, str(folder), listed, PLUGIN]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(runner: subprocess.Popen[str]) -> None:
    runner.kill()
    runner.wait()
    assert runner.stdout is not None
    runner.stdout.close()


def process_of_cell(runner: subprocess.Popen[str]) -> int | None:
    """The process that measures the runner's cell."""
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    for child in children.read_text().split() if children.exists() else []:
        try:
            if b"lookback.benchmarks.measure" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        except OSError:
            continue
    return None


def finished(folder: Path) -> dict[Path, bytes]:
    """Contents of all final records, each of which must be readable."""
    records = {path: read_record(path) for path in record_files(folder)}
    assert all(record.cell.id == path.stem for path, record in records.items())
    return {
        path: path.read_bytes()
        for path, record in records.items()
        if record.outcome.status in FINAL
    }


def kill(folder: Path, runner: subprocess.Popen[str], whom: str, moment: str, wait: float) -> None:
    """Kill a runner or its cell's process some time after a moment, if it still runs."""

    def is_reached() -> bool:
        files = folder.glob(f"*/.work/*/{MOMENTS[moment]}")
        return runner.poll() is not None or any(files)

    wait_until(is_reached, moment)
    time.sleep(wait)
    before = finished(folder)
    if whom == "cell":  # the runner tries once more by itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_of_cell(runner) or runner.pid, signal.SIGKILL)
    else:
        end(runner)
        wait_until(lambda: not processes_of(folder), "a process is left")
    after = finished(folder)
    assert {path: after.get(path) for path in before} == before


def campaign(folder: Path, cells: tuple[Cell, ...], kills: list[tuple[str, str, float]]) -> None:
    """Kill several times, then run to the end: the records are as if nothing had happened."""
    runner = start(folder / "results", *cells)
    for whom, moment, wait in kills:
        if runner.poll() is not None:
            end(runner)
            runner = start(folder / "results", *cells)
        kill(folder / "results", runner, whom, moment, wait)
    end(runner)
    runner = start(folder / "results", *cells)
    output, _ = runner.communicate(timeout=600)
    assert runner.returncode == 0, output
    records = {
        record.cell.id: record for record in map(read_record, record_files(folder / "results"))
    }
    for cell in cells:
        undisturbed = learn(
            cell, get_task(cell.task), folder / cell.id, lambda *_: None, lambda: False
        )
        assert untimed_record(records[cell.id]) == untimed(undisturbed)
    assert not processes_of(folder)


@LINUX
def test_killed_cells_and_runners_lose_nothing(tmp_path: Path) -> None:
    """Kills at both learning rates: curves, trials and tests are the same to the last bit."""
    kills = [("cell", "training", 0.0), ("runner", "at the second rate", 0.0)]
    campaign(tmp_path, (tiny(**SWEPT),), kills)


@LINUX
def test_nothing_is_left_of_a_killed_runner_nor_of_what_its_cell_started(tmp_path: Path) -> None:
    runner = start(tmp_path, tiny("has-a-process", steps=1000))
    wait_until(lambda: is_running("sleep 876543"), "the cell's own process")
    end(runner)
    wait_until(lambda: not processes_of(tmp_path), "a cell is left")
    wait_until(lambda: not is_running("sleep 876543"), "what the cell started is left", 30)


@LINUX
@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    chance = random.Random(8)
    kills = [
        (chance.choice(["cell", "runner"]), chance.choice([*MOMENTS]), chance.uniform(0, 1.5) ** 2)
        for _ in range(20)
    ]
    cells = tuple(
        tiny(model, **{**SWEPT, "steps": 600}) for model in ("rwkv", "lstm", "transformer")
    )
    campaign(tmp_path, cells, kills)


# --- asked to stop, at every stage

STAGES = {
    "starting": "",
    "training": "training 24",
    "validating": "scoring 24",
    "testing": "scoring 32",
}


def run_and_signal(
    folder: Path, cell: Cell, stage: str, number: signal.Signals
) -> tuple[int, bool]:
    """Run a cell, and signal this process when the cell is at a stage: exit code, whether sent."""
    sent = threading.Event()

    def watch() -> None:
        for _ in range(24000):
            texts = [
                path.read_text(errors="replace")
                for path in folder.glob(f"*/.work/{cell.id}/output.txt")
            ]
            if any(STAGES[stage] in text for text in texts):
                os.kill(os.getpid(), number)
                sent.set()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    code = runner_of(folder, cell).run()
    thread.join()
    return code, sent.is_set()


def check_stop(folder: Path, stage: str, number: signal.Signals, output: Callable[[], str]) -> None:
    cell = tiny("unhurried", steps=6, validations=2, test_lengths=[32])
    code, sent = run_and_signal(folder, cell, stage, number)
    assert sent and code == 128 + number
    assert "interrupted; the same command continues from here" in output()
    assert not processes_of(folder)
    runner = runner_of(folder, cell)
    if stage == "testing":  # its end was near, and is kept
        assert runner.missing() == []
        return
    assert runner.missing() == [cell] and not list(record_files(folder))
    kept = list(folder.glob("*/.work/*/rate-0/checkpoint.pt"))
    assert len(kept) == (0 if stage == "starting" else 1)


@LINUX
@pytest.mark.parametrize(
    ("stage", "number"), [("starting", signal.SIGTERM), ("testing", signal.SIGINT)]
)
def test_asked_to_stop_it_saves_what_it_can(
    tmp_path: Path, stage: str, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stop(tmp_path, stage, number, lambda: capsys.readouterr().out)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_at_every_stage(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in STAGES:
        folder = tmp_path / stage
        check_stop(folder, stage, number, lambda: capsys.readouterr().out)
        runner = runner_of(folder, tiny("unhurried", steps=6, validations=2, test_lengths=[32]))
        assert runner.run() == 0 and runner.missing() == []


Stubbed = Callable[[Outcome | Callable[[Cell], Outcome]], None]


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Stubbed:
    """Gives cells an outcome without starting a process, to test what happens around them."""

    def put(outcome: Outcome | Callable[[Cell], Outcome]) -> None:
        outcome_of = outcome if callable(outcome) else lambda cell: outcome
        replace_processes(monkeypatch, lambda self, cell, *rest: outcome_of(cell))

    return put


def ended_well(cell: Cell) -> Outcome:
    return learn_record(cell).outcome


def test_asked_to_stop_while_recording_it_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: Stubbed
) -> None:
    """The signal comes during the write: the record is whole, and no other cell starts."""
    cells = tuple(tiny(seed=seed) for seed in range(3))
    instead(ended_well)
    flush = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (os.kill(os.getpid(), signal.SIGTERM), flush(handle))
    )
    runner = runner_of(tmp_path, *cells)
    assert runner.run() == 143
    assert runner.missing() == [*cells[1:]]
    monkeypatch.undo()
    instead(ended_well)
    assert runner_of(tmp_path, *cells).run() == 0


def test_asked_to_stop_between_two_cells_none_is_begun(tmp_path: Path, instead: Stubbed) -> None:
    begun = []

    def measure(cell: Cell) -> Outcome:
        begun.append(cell)
        os.kill(os.getpid(), signal.SIGINT)
        return ended_well(cell)

    instead(measure)
    runner = runner_of(tmp_path, tiny(), tiny(seed=1))
    assert runner.run() == 130 and begun == [tiny()] and runner.missing() == [tiny(seed=1)]


# --- ends that are results


@LINUX
def test_a_leak_and_what_is_left_behind_end_with_their_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ends at a lower limit than the machine's, and the clock jumps."""
    monkeypatch.setenv("LOOKBACK_TEST_JUMPING_CLOCK", "1")
    monkeypatch.setattr(time, "time", lambda: random.uniform(-1e9, 4e9))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, hard))
    try:
        cells = tiny("leaks"), tiny("leaves-a-process")
        runner = runner_of(tmp_path, *cells)
        assert runner.run() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    found = [runner.recorded(cell) for cell in cells]
    assert [record and record.outcome.status for record in found] == ["oom", "ok"]
    assert found[0] is not None and "memory" in found[0].outcome.message
    wait_until(lambda: not is_running("sleep 987654"), "what a cell left behind is there still", 30)
    assert not processes_of(tmp_path)
    assert runner_of(tmp_path, *cells).missing() == []


@LINUX
@pytest.mark.slow
def test_every_end_is_a_status_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A leak without torch, and a timeout under a clock that jumps."""
    monkeypatch.setattr(process, "GRACE_SECONDS", 1.0)
    monkeypatch.setenv("LOOKBACK_TEST_JUMPING_CLOCK", "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, hard))
    cells = tiny("leaks-lists"), tiny("unhurried", steps=100000, time_limit=20.0)
    try:
        assert runner_of(tmp_path, *cells).run() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    found = [runner_of(tmp_path, *cells).recorded(cell) for cell in cells]
    assert [record and record.outcome.status for record in found] == ["oom", "timeout"]
    output = capsys.readouterr().out
    assert "oom in" in output and "timeout in" in output and "not done after 20 seconds" in output
    assert not processes_of(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU to run out of its memory"
)
def test_a_gpu_without_memory_left_is_a_result(tmp_path: Path) -> None:
    cell = tiny("transformer", device="cuda", width=1 << 12, batch_size=1 << 12, length=1 << 12)
    runner = runner_of(tmp_path, cell)
    assert runner.run() == 0
    record = runner.recorded(cell)
    assert (
        record is not None and record.outcome.status == "oom" and "memory" in record.outcome.message
    )


# --- disks that are full, folders that cannot be written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, if this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs Linux and root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / ".ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_full_disk_ends_the_run_and_loses_nothing(
    small_disk: Path, capsys: pytest.CaptureFixture[str], instead: Stubbed
) -> None:
    cells = tuple(tiny(seed=seed) for seed in range(4))
    instead(ended_well)
    assert runner_of(small_disk, cells[0]).run() == 0
    (path,) = record_files(small_disk)
    before = path.read_bytes()
    ballast = fill(small_disk)
    assert runner_of(small_disk, *cells).run() == 1
    output = capsys.readouterr().out
    assert (
        f"cannot be recorded in {path.parent}: No space left on device" in output
        and "Traceback" not in output
    )
    assert output.count("cannot be recorded") == 1  # the other cells would be measured for nothing
    assert [*path.parent.iterdir()] == [path] and path.read_bytes() == before
    ballast.unlink()
    assert (
        runner_of(small_disk, *cells).run() == 0 and runner_of(small_disk, *cells).missing() == []
    )
    assert path.read_bytes() == before


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk: Path) -> None:
    cell = tiny()
    model, optimizer = trained(cell)
    state = State(step=1, seen=[torch.zeros(2, dtype=torch.int64)])
    checkpoint.save(small_disk, model, optimizer, state, cell)
    ballast = fill(small_disk)
    with pytest.raises(OSError, match=r"checkpoint .* cannot be written") as error:
        checkpoint.save(small_disk, model, optimizer, State(step=2, seen=state.seen), cell)
    assert "\n" not in str(error.value)
    ballast.unlink()
    assert [path.name for path in small_disk.iterdir()] == [NAMES[0]]
    assert checkpoint.load(small_disk, *trained(cell), cell).step == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], instead: Stubbed
) -> None:
    """If everything is recorded, nothing needs to be written, and there is no message."""
    results, cells = tmp_path / "results", (tiny(), tiny(seed=1))
    instead(ended_well)
    assert runner_of(results, cells[0]).run() == 0
    before = {path: path.read_bytes() for path in record_files(results)}
    for arguments in (
        ["--bind", str(results), str(results)],
        ["-o", "remount,ro,bind", str(results)],
    ):
        if (
            sys.platform != "linux"
            or subprocess.run(["mount", *arguments], capture_output=True).returncode
        ):
            pytest.skip("a folder that root cannot write needs Linux and root to mount it")
    try:
        instead(lambda cell: pytest.fail("measured for nothing"))
        assert runner_of(results, *cells).run() == 1
        assert (
            "cannot be recorded in" in (output := capsys.readouterr().out)
            and "Read-only file system" in output
        )
        assert runner_of(results, cells[0]).run() == 0
        assert len(list(read_records(results))) == 1
    finally:
        subprocess.run(["umount", "-l", str(results)], check=True)
    assert {path: path.read_bytes() for path in record_files(results)} == before


# --- files that are torn, or not ours


TORN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: bytes(len(whole)),
    "conflict": lambda whole: b"<<<<<<< ours\n" + whole,
    "noise": lambda whole: random.Random(0).randbytes(len(whole)),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_record_is_kept_aside_and_measured_again(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str], instead: Stubbed
) -> None:
    cells = tuple(tiny(seed=seed) for seed in range(3))
    instead(ended_well)
    runner = runner_of(tmp_path, *cells)
    assert runner.run() == 0
    path = runner.path(cells[1])
    for name in (
        f"{path.name}.corrupt",
        f"{path.name}.corrupt1",
    ):  # twice: the first is not written over either
        torn = TORN[how](path.read_bytes())
        path.write_bytes(torn)
        capsys.readouterr()
        assert (
            runner.missing() == [cells[1]] and path.read_bytes() == torn
        )  # looking changes nothing
        assert runner.run() == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
        assert str(path) in line and "measured again" in line
        assert (path.parent / name).read_bytes() == torn and read_record(path).cell == cells[1]
    assert len(list(record_files(tmp_path))) == 3


def test_what_may_be_somebodys_result_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], instead: Stubbed
) -> None:
    """Records of another schema, with unknown fields, edited, or of another cell are kept."""
    cells = tuple(tiny(seed=seed) for seed in range(7))
    instead(ended_well)
    runner = runner_of(tmp_path, *cells)
    assert runner.run() == 0
    whole = [json.loads(runner.path(cell).read_text()) for cell in cells]
    changed = {
        cells[0]: {**whole[0], "schema_version": 0},
        cells[1]: {**whole[1], "schema_version": 2},
        cells[2]: {**whole[2], "field_of_a_newer_version": 1},
        cells[3]: {**whole[3], "cell_id": "x"},
        cells[4]: whole[6],
        cells[5]: ["a", "list"],
    }
    for cell, content in changed.items():
        runner.path(cell).write_text(json.dumps(content))
    runner.path(cells[6]).unlink()
    before = {cell: runner.path(cell).read_bytes() for cell in changed}
    capsys.readouterr()
    assert runner.missing() == [cells[6]] and runner.run() == 1  # the others are measured
    output = capsys.readouterr().out
    for cell in changed:
        (line,) = [line for line in output.splitlines() if str(runner.path(cell)) in line]
        assert "not measured, nor overwritten" in line and "move it away" in line
    assert {cell: runner.path(cell).read_bytes() for cell in changed} == before
    assert read_record(runner.path(cells[6])).cell == cells[6]


def test_a_report_leaves_out_what_cannot_be_read_and_says_so(
    tmp_path: Path, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results" / "some-machine" / "suite"
    good = [
        write_record(folder, learn_record(cell.model_copy(update={"seed": seed})))
        for seed in range(3)
    ]
    good[1].write_bytes(good[1].read_bytes()[:100])
    good[2].write_text(good[2].read_text().replace('"schema_version": 1', '"schema_version": 7'))
    (made,) = make_pages(tmp_path / "results", tmp_path / "reports", ["suite"])
    output = capsys.readouterr().err.splitlines()
    assert [line.startswith("lookback: left out: ") for line in output] == [True, True]
    assert good[1].name in output[0]
    assert good[2].name in output[1] and "schema_version" in output[1]
    assert "1 records" in made.path.read_text()


def test_what_a_kill_leaves_beside_a_record_is_no_record(tmp_path: Path, cell: Cell) -> None:
    path = write_record(tmp_path, learn_record(cell))
    for cut in (0, 1, 100):
        (tmp_path / f".{path.name}.abc{cut}").write_bytes(path.read_bytes()[:cut])
    assert list(record_files(tmp_path)) == [path]


# --- checkpoints


def trained(cell: Cell) -> tuple[object, object]:
    model = make_model(cell, get_task(cell.task))
    return model, make_optimizer(model, cell.learning_rate, cell.weight_decay)


def test_torn_checkpoints_give_the_one_before_or_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training from damaged checkpoints ends with the same bits, and a line says so."""
    cell = tiny(steps=4, validations=4, dropout=0.1)
    task = get_task(cell.task)
    whole = untimed(learn(cell, task, tmp_path / "whole", lambda *_: None, lambda: False))
    steps = itertools.count()
    with pytest.raises(Exception, match="stopped after step 3"):
        learn(cell, task, tmp_path / "half", lambda *_: None, lambda: next(steps) == 2)
    kept = {name: (tmp_path / "half" / "rate-0" / name).read_bytes() for name in NAMES}
    chance = random.Random(0)
    newest = kept[NAMES[0]]
    damaged = [newest[: chance.randrange(len(newest))] for _ in range(4)] + [
        b"",
        bytes(len(newest)),
    ]
    for number, (content, before) in enumerate(
        [*((d, kept[NAMES[1]]) for d in damaged), (b"x", b"y")]
    ):
        folder = tmp_path / str(number) / "rate-0"
        folder.mkdir(parents=True)
        for name, found in zip(NAMES, (content, before), strict=True):
            (folder / name).write_bytes(found)
        capsys.readouterr()
        assert untimed(learn(cell, task, folder.parent, lambda *_: None, lambda: False)) == whole
        output = capsys.readouterr().out.splitlines()
        assert len(output) == (2 if content == b"x" else 1) and all(
            "cannot be resumed" in line for line in output
        )


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    """Tensors are checked when read: training never continues from altered weights."""
    cell = tiny()
    model, optimizer = trained(cell)
    checkpoint.save(
        tmp_path, model, optimizer, State(step=1, seen=[torch.zeros(2, dtype=torch.int64)]), cell
    )
    # type: ignore[attr-defined]
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = (tmp_path / NAMES[0]).read_bytes()
    chance, beginnings = random.Random(1), 0
    for _ in range(40):
        place = chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        (tmp_path / NAMES[0]).write_bytes(flipped)
        again, its = trained(cell)
        state = checkpoint.load(tmp_path, again, its, cell)
        beginnings += state.step == 0
        for name, tensor in again.state_dict().items():  # type: ignore[attr-defined]
            assert torch.equal(tensor, saved[name]), (place, name)
    assert beginnings


def test_a_checkpoint_of_another_cell_is_not_gone_on_from(tmp_path: Path) -> None:
    """Another learning rate with the same shapes, and a step that no run of this cell reaches."""
    cell = tiny()
    seen = [torch.zeros(2, dtype=torch.int64)]
    checkpoint.save(tmp_path, *trained(cell), State(step=1, seen=seen), cell)
    assert checkpoint.load(tmp_path, *trained(cell), cell).step == 1
    assert checkpoint.load(tmp_path, *trained(cell), tiny(learning_rate=0.5)).step == 0
    checkpoint.save(tmp_path, *trained(cell), State(step=10**9, seen=seen), cell)
    (tmp_path / NAMES[1]).unlink()
    assert checkpoint.load(tmp_path, *trained(cell), cell).step == 0
