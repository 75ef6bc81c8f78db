"""Cells spread over a real local Ray cluster: the same records, and no process is left."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookback.benchmarks.machine import joules, machine
from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.record import AnyCell, Machine, Record, make_cell
from lookback.benchmarks.run import ray_engine
from lookback.benchmarks.run.progress import MessageLog
from lookback.benchmarks.run.ray_engine import RayRunner, Resources, join_ray, on_ray, resources_of
from lookback.benchmarks.storage import read_record, record_files
from lookback.benchmarks.suite import Suite
from lookback.tasks.task import get_task
from tests.processes import (
    LINUX,
    PLUGIN,
    SWEPT,
    TINY,
    command_lines,
    processes_of,
    runner_of,
    tiny,
    untimed,
    untimed_record,
    wait_until,
)
from tests.records import learn_record

TIMED = {"kind": "cost", "repeats": 2}


def timed_cell(**fields: object) -> AnyCell:
    """A cost cell with the fields that it shares with the tiny ones."""
    shared = {name: TINY[name] for name in ("task", "width", "depth", "length", "batch_size")}
    return make_cell({**shared, "model": "rwkv", **TIMED, **fields})


# --- what a cell takes


@pytest.mark.parametrize(
    ("cell", "node", "threads", "share", "taken"),
    [
        (tiny(), Resources(8), 0, 1.0, Resources(1)),
        (tiny(), Resources(8), 2, 1.0, Resources(2)),
        (tiny(), Resources(8), 64, 1.0, Resources(8)),
        (timed_cell(), Resources(8), 2, 1.0, Resources(8)),  # on a CPU the node is the device
        (tiny(device="cuda"), Resources(64, 8), 0, 1.0, Resources(8, 1)),
        (tiny(device="cuda"), Resources(64, 8), 0, 0.25, Resources(2, 0.25)),
        (tiny(device="cuda"), Resources(64, 8), 5, 0.25, Resources(5, 0.25)),
        (tiny(device="cuda"), Resources(4, 8), 0, 1.0, Resources(1, 1)),
        # a timed cell shares no GPU
        (timed_cell(device="cuda"), Resources(64, 8), 0, 0.25, Resources(8, 1)),
        (tiny(device="cuda", processes=2), Resources(64, 8), 0, 0.25, Resources(16, 2)),
    ],
)
def test_the_resources_that_a_cell_takes(
    cell: AnyCell, node: Resources, threads: int, share: float, taken: Resources
) -> None:
    assert resources_of(cell, node, threads, share) == taken


def test_a_cell_that_no_node_can_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="takes 2 GPUs: expected at most the 1 of a node"):
        resources_of(tiny(device="cuda", processes=2), Resources(8, 1))


def test_nodes_of_several_types_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [(Machine(slug=slug, device=slug), Resources(8)) for slug in ("b", "a", "b")]
    monkeypatch.setattr(ray_engine, "_nodes", lambda device: nodes)
    with pytest.raises(ValueError, match=r"differ \(a, b\): expected nodes of one type") as error:
        on_ray(runner_of(tmp_path, tiny()))
    assert "\n" not in str(error.value)


def test_the_energy_of_a_cell_on_a_shared_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lookback.benchmarks.machine._gpu_handle", lambda: pytest.fail("asked the GPU")
    )
    monkeypatch.setenv("LOOKBACK_SHARED_GPU", "1")
    assert joules("cuda") is None


def test_a_record_from_a_disk_that_is_not_ours_is_written_home(tmp_path: Path) -> None:
    cell = tiny()
    record = learn_record(cell)
    runner = RayRunner(tmp_path, Suite("spread", "", (cell,)), machines={"cpu": record.machine})
    runner._write_home(record, MessageLog())
    path = tmp_path / record.machine.slug / "spread" / f"{cell.id}.json"
    assert read_record(path) == record
    written = path.stat().st_mtime_ns
    runner._write_home(record, MessageLog())  # a node that shares our disk has written it itself
    assert path.stat().st_mtime_ns == written and runner.missing() == []


def test_a_missing_cluster_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"no Ray cluster at '127.0.0.1:9': .* expected the HOST:PORT of its head"
    ):
        join_ray("127.0.0.1:9")


def test_the_folder_of_a_killed_cluster_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of one whose process lives stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "lookback-ray-theirs").mkdir()  # without a lock: nobody knows whose it is
    living = Path(ray_engine._make_folder())
    code = "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
    code += "from lookback.benchmarks.run import ray_engine\n"
    code += "print(ray_engine._make_folder(), flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    assert killed.exists() and killed != living
    newest = Path(ray_engine._make_folder())
    assert living.exists() and newest.exists() and not killed.exists()
    assert (tmp_path / "lookback-ray-theirs").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match="the extra 'ray': pip install"):
        join_ray()


# --- Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two CPUs on this machine: its address."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("lookback.benchmarks.run.ray_engine.usable_cores", lambda: 2)
        join_ray()
    import ray

    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def worker_of(cell: AnyCell, folder: Path) -> int | None:
    """The process of Ray whose child measures the cell."""
    for process, line in command_lines().items():
        if f"{cell.id}/job.json" in line and str(folder) in line:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            return int(fields[1])
    return None


def undisturbed(cell: AnyCell, folder: Path) -> object:
    return untimed(learn(cell, get_task(cell.task), folder, lambda *_: None, lambda: False))


@LINUX
def test_a_suite_on_a_cluster_one_of_whose_workers_is_killed(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as without a cluster; nothing runs beside a timed cell; nothing twice."""
    cells = (tiny(**SWEPT), tiny("lstm"), tiny("lstm", seed=1), timed_cell())
    results = tmp_path / "results"
    killed = []

    def kill() -> None:
        wait_until(
            lambda: list(results.glob(f"*/.work/{cells[0].id}/rate-0/checkpoint.pt")),
            "a checkpoint",
        )
        if worker := worker_of(cells[0], tmp_path):
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    thread = threading.Thread(target=kill)
    thread.start()
    runner = on_ray(runner_of(results, *cells))
    assert runner.run() == 0
    thread.join()
    assert killed and f"{cells[0].id}: its worker is gone" in (output := capsys.readouterr().out)
    assert "trying once more" in output and "4 cells, 0 recorded, 4 to measure" in output
    records = {cell: runner.recorded(cell) for cell in cells}
    assert all(record and record.machine.slug == machine("cpu").slug for record in records.values())
    assert all(record and record.machine.facts["threads"] == 1 for record in records.values())
    for cell in cells[:3]:
        assert untimed_record(records[cell]) == undisturbed(cell, tmp_path / cell.id)
    check_alone(records[cells[3]], [records[cell] for cell in cells[:3]])
    before = {path: path.stat().st_mtime_ns for path in record_files(results)}
    assert on_ray(runner_of(results, *cells)).run() == 0
    assert "4 recorded, 0 to measure" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in record_files(results)} == before
    assert not processes_of(tmp_path)


def check_alone(timed: Record, others: list[Record]) -> None:
    assert timed.outcome.status == "ok" and timed.outcome.cost is not None
    for other in others:
        assert other.ended <= timed.started or other.started >= timed.ended


def start(folder: Path, address: str) -> subprocess.Popen[str]:
    suite = folder / "slow.toml"
    fields = {**TINY, "model": "unhurried", "steps": 1000, "seed": [0, 1]}
    suite.write_text(
        "[[grid]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    )
    command = [
        sys.executable,
        "-m",
        "lookback",
        "run",
        str(suite),
        "--engine",
        "ray",
        "--address",
        address,
    ]
    command += [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--plugin",
        PLUGIN,
        "--results",
        str(folder / "results"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until_training(folder: Path) -> None:
    def training() -> bool:
        outputs = [path.read_text() for path in folder.glob("results/*/.work/*/output.txt")]
        return sum("training" in text for text in outputs) == 2

    for path in folder.glob("results/*/.work/*/output.txt"):
        path.unlink()
    wait_until(training, "two cells in training")


@LINUX
@pytest.mark.slow
def test_asked_to_stop_cells_save_wherever_they_are(cluster: str, tmp_path: Path) -> None:
    """Asked once, all cells save. Asked twice or killed, no process and no checkpoint is lost."""
    runner = start(tmp_path, cluster)
    wait_until_training(tmp_path)
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=120)
    assert (
        runner.returncode == 130 and "interrupted; the same command continues from here" in output
    ), output
    kept = list(tmp_path.glob("results/*/.work/*/rate-0/checkpoint.pt"))
    assert (
        len(kept) == 2
        and not processes_of(tmp_path)
        and not list(record_files(tmp_path / "results"))
    )

    runner = start(tmp_path, cluster)
    wait_until_training(tmp_path)
    runner.send_signal(signal.SIGTERM)
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=120)
    assert runner.returncode in (130, 143) and "continues from here" in output, output
    wait_until(lambda: not processes_of(tmp_path), "a process is left", 30)

    runner = start(tmp_path, cluster)
    wait_until_training(tmp_path)
    runner.kill()
    runner.communicate()
    wait_until(lambda: not processes_of(tmp_path), "a process is left", 60)
    assert all(path.exists() for path in kept) and not list(record_files(tmp_path / "results"))
