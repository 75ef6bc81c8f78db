"""Cells spread over a real local Ray cluster and over jobs of submitit's: the same records, and
nothing left behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookback.benchmarks.cli import Engine, run
from lookback.benchmarks.machine import joules, machine
from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.record import Cell, Machine, Record, make_cell
from lookback.benchmarks.run.ray_engine import (
    ClusterRunner,
    Room,
    join_ray,
    node_of_slurm,
    on_ray,
    on_slurm,
    one_type,
    room_of,
)
from lookback.benchmarks.run.runner import Notes, Runner
from lookback.benchmarks.storage import read_record, record_files
from lookback.benchmarks.suite import Suite
from lookback.tasks.task import get_task
from tests.records import learn_record
from tests.test_faults import (
    LINUX,
    PLUGIN,
    SWEPT,
    TINY,
    learned_of,
    processes_of,
    said_of,
    tiny,
    wait_until,
)

ROOT = Path(__file__).parents[3]
TIMED = {"kind": "cost", "repeats": 2}


def runner_of(folder: Path, *cells: Cell, threads: int = 1) -> Runner:
    return Runner(folder, Suite("spread", "", cells), plugins=[PLUGIN], threads=threads)


# --- what a cell takes


@pytest.mark.parametrize(
    ("fields", "node", "threads", "share", "taken"),
    [
        ({}, Room(8), 0, 1.0, Room(8)),
        ({}, Room(8), 2, 1.0, Room(2)),
        ({}, Room(8), 64, 1.0, Room(8)),
        (TIMED, Room(8), 2, 1.0, Room(8)),  # on a CPU the node is the device
        ({"device": "cuda"}, Room(64, 8), 0, 1.0, Room(8, 1)),
        ({"device": "cuda"}, Room(64, 8), 0, 0.25, Room(2, 0.25)),
        ({"device": "cuda"}, Room(64, 8), 5, 0.25, Room(5, 0.25)),
        ({"device": "cuda"}, Room(4, 8), 0, 1.0, Room(1, 1)),
        (
            {"device": "cuda", **TIMED},
            Room(64, 8),
            0,
            0.25,
            Room(8, 1),
        ),  # a timed cell shares with nobody
        ({"device": "cuda", "processes": 2}, Room(64, 8), 0, 0.25, Room(16, 2)),
    ],
)
def test_what_a_cell_takes(
    fields: dict[str, object], node: Room, threads: int, share: float, taken: Room
) -> None:
    assert room_of(tiny(**fields), node, threads, share) == taken


def test_what_no_node_has_is_told() -> None:
    with pytest.raises(ValueError, match="takes 2 GPUs: expected at most the 1 of a node"):
        room_of(tiny(device="cuda", processes=2), Room(8, 1))


def test_a_run_is_of_one_type_of_machine() -> None:
    """The one that can do most, unless another is named."""
    found = {
        node: (Machine(slug=slug, device=slug), room)
        for node, slug, room in [
            ("1", "a", Room(64, 4)),
            ("2", "b", Room(96, 8)),
            ("3", "a", Room(64, 8)),
        ]
    }
    assert one_type(found, "") == "a" and one_type(found, "b") == "b"
    with pytest.raises(ValueError, match="--machine c: expected one of a, b"):
        one_type(found, "c")


def test_nobody_knows_what_a_cell_used_of_a_shared_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lookback.benchmarks.machine._gpu_handle", lambda: pytest.fail("asked the GPU")
    )
    monkeypatch.setenv("LOOKBACK_SHARED_GPU", "1")
    assert joules("cuda") is None


def test_a_record_from_a_disk_that_is_not_ours_is_written_down(tmp_path: Path) -> None:
    cell = tiny()
    record = learn_record(cell)
    runner = ClusterRunner(tmp_path, Suite("spread", "", (cell,)), machines={"cpu": record.machine})
    runner._keep(record, Notes())
    path = tmp_path / record.machine.slug / "spread" / f"{cell.id}.json"
    assert read_record(path) == record
    written = path.stat().st_mtime_ns
    runner._keep(record, Notes())  # a node that shares our disk has written it by itself
    assert path.stat().st_mtime_ns == written and runner.missing() == []


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    runner = runner_of(tmp_path, tiny())
    with pytest.raises(
        ValueError, match=r"no Ray cluster at '127.0.0.1:9': .* expected the HOST:PORT of its head"
    ):
        join_ray("127.0.0.1:9")
    with pytest.raises(ValueError, match="expected --device cuda or --device cpu"):
        run("quick", engine=Engine.slurm, results=tmp_path)
    with pytest.raises(ValueError, match="--slurm partition: expected NAME=VALUE"):
        on_slurm(runner, ["partition"])
    if not shutil.which("sbatch"):
        with pytest.raises(ValueError, match="expected sbatch here"):
            on_slurm(runner)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "extra"), [("ray", "ray"), ("submitit", "slurm")])
def test_a_missing_extra_is_named(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match=rf"the extra '{extra}': pip install"):
        join_ray() if package == "ray" else on_slurm(runner_of(tmp_path, tiny()))


# --- Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two CPUs on this machine: its address."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("lookback.benchmarks.run.ray_engine.cores", lambda: 2)
        join_ray()
    import ray

    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def worker_of(cell: Cell, folder: Path) -> int | None:
    """The process of Ray's whose child measures the cell."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if (
                f"{cell.id}/job.json" in (line := path.read_bytes().decode(errors="replace"))
                and str(folder) in line
            ):
                return int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return None


def undisturbed(cell: Cell, folder: Path) -> object:
    return learned_of(learn(cell, get_task(cell.task), folder, lambda *_: None, lambda: False))


@LINUX
def test_a_suite_on_a_cluster_one_of_whose_workers_is_killed(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as without a cluster, to the last bit; nothing beside a timed cell; and a
    resume.
    """
    cells = (
        tiny(**SWEPT),
        tiny("lstm"),
        tiny("lstm", seed=1),
        make_cell({**TINY, "model": "rwkv", **TIMED}),
    )
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
    assert killed and f"{cells[0].id}: its worker is gone" in (said := capsys.readouterr().out)
    assert "trying once more" in said and "4 cells, 0 recorded, 4 to measure" in said
    records = {cell: runner.recorded(cell) for cell in cells}
    assert all(record and record.machine.slug == machine("cpu").slug for record in records.values())
    assert all(record and record.machine.facts["threads"] == 1 for record in records.values())
    for cell in cells[:3]:
        assert said_of(records[cell]) == undisturbed(cell, tmp_path / cell.id)
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
        "lookback.benchmarks.cli",
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
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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
    """Once: all save and end. Twice, or killed, the runner leaves nothing behind either, and no
    checkpoint is lost.
    """
    runner = start(tmp_path, cluster)
    wait_until_training(tmp_path)
    runner.send_signal(signal.SIGINT)
    said, _ = runner.communicate(timeout=120)
    assert runner.returncode == 130 and "interrupted; the same command goes on from here" in said, (
        said
    )
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
    said, _ = runner.communicate(timeout=120)
    assert runner.returncode in (130, 143) and "goes on from here" in said, said
    wait_until(lambda: not processes_of(tmp_path), "a process is left", 30)

    runner = start(tmp_path, cluster)
    wait_until_training(tmp_path)
    runner.kill()
    runner.communicate()
    wait_until(lambda: not processes_of(tmp_path), "a process is left", 60)
    assert all(path.exists() for path in kept) and not list(record_files(tmp_path / "results"))


# --- Slurm, whose place submitit's jobs on this machine take


@LINUX
def test_a_suite_as_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = tiny("lstm"), tiny("no-such-model")
    spread = on_slurm(runner_of(tmp_path / "results", *cells), ["partition=any"], system="local")
    assert spread.run() == 1
    assert "2 cells, 0 recorded, 2 to measure" in capsys.readouterr().out
    found = [spread.recorded(cell) for cell in cells]
    assert [record and record.outcome.status for record in found] == ["ok", "error"]
    assert said_of(found[0]) == undisturbed(cells[0], tmp_path / "here")
    assert spread.missing() == [cells[1]]


def test_a_node_has_more_than_a_job_on_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm's scontrol prints a node (its manual): a job of one GPU sees one, and the node has
    eight.
    """
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ \"$*\" = 'show node n7 --oneliner' ] && echo 'NodeName=n7 CPUAlloc=1 CPUTot=128 "
        "Gres=gpu:a100:8 CfgTRES=cpu=128,mem=1000G,billing=128,gres/gpu=8,gres/gpu:a100=8 AllocTRES=cpu=1,gres/gpu=1'\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert node_of_slurm("cpu") == (machine("cpu"), Room(128, 8.0))
    monkeypatch.delenv("SLURMD_NODENAME")
    assert node_of_slurm("cpu")[1] == Room(machine("cpu").facts["cores"], 0.0)


def test_a_first_job_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails:
        def submit(self, *arguments: object) -> None:
            raise RuntimeError("the disk is gone")

    spread = on_slurm(runner_of(tmp_path / "results", tiny()), system="debug")
    monkeypatch.setattr(spread, "_executor", lambda *arguments, **options: Fails())
    with pytest.raises(OSError, match="a first job could not say what a node is: the disk is gone"):
        spread.run()


def test_arrays_of_equals_and_the_options_of_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sbatch would be called with: submitit writes it into the file that it submits."""
    cells = tiny(), tiny(seed=1), make_cell({**TINY, "model": "rwkv", **TIMED})
    spread = on_slurm(runner_of(tmp_path, *cells), ["partition=long", "nice=10"], system="debug")
    spread.machines["cpu"], spread.rooms["cpu"] = machine("cpu"), Room(8)
    asked = []
    monkeypatch.setattr(
        "submitit.AutoExecutor.update_parameters",
        lambda self, **parameters: asked.append(parameters),
    )
    spread._submit(cells)
    assert len(asked) == 2 and all(
        p["slurm_partition"] == "long" and p["slurm_nice"] == 10 for p in asked
    )
    assert [(p["cpus_per_task"], p.get("slurm_exclusive")) for p in asked] == [(1, None), (8, True)]
    assert all(p["timeout_min"] * 60 >= 2 * cells[0].time_limit for p in asked)
