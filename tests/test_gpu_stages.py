"""`make gpu`: stages end in time and go on; `make gpu-pack`: what is packed runs there, or one line says why not."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import gpu, gpu_pack, speed_report, test_speed
from benchmarks.gpu import Stages, Step
from benchmarks.machine import machine
from benchmarks.record import read_records
from benchmarks.suite import read_suite

ROOT = Path(__file__).parent.parent

# Counts to three, a fifth of a second each, goes on where it was interrupted, and keeps a checkpoint of that.
COUNTS = """
import pathlib, sys, time
place, checkpoint = map(pathlib.Path, sys.argv[1:])
checkpoint.parent.mkdir(parents=True, exist_ok=True)
try:
    for n in range(int(place.read_text()) if place.exists() else 0, 3):
        time.sleep(0.2)
        place.write_text(str(n + 1))
        checkpoint.write_bytes(b"")
        print("counted", n + 1)
except KeyboardInterrupt:
    sys.exit(130)
"""


def counting(place: Path, **options: bool) -> Step:
    checkpoint = place.parent / "results" / machine("cpu").slug / ".work" / place.name / "checkpoint.pt"
    return Step(place.name, ("-c", COUNTS, str(place), str(checkpoint)), **options)


@pytest.fixture
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 5.5)
    monkeypatch.setattr(gpu, "STARTING_SECONDS", 0.0)


def test_a_stage_ends_in_time_goes_on_and_is_not_done_again(
    tmp_path: Path, quick_grace: None, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = {"one": [counting(tmp_path / "a"), counting(tmp_path / "b", printed=True)]}
    stages = lambda budget: Stages(tmp_path / "results", "cpu", 5.5 + budget, plan)  # noqa: E731
    assert stages(0.3).run(["one"], again=False) == 0
    assert not (tmp_path / "b").exists()
    assert "0 of 2 steps done; left: a, b" in capfd.readouterr().out
    assert stages(60).run(["one"], again=False) == 0  # notes are read from the disk, as on another machine
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "3"
    (kept,) = (tmp_path / "results").rglob("one-b.txt")
    assert "counted 3" in kept.read_text() and "torch" in kept.read_text() and "commit" in kept.read_text()
    (tmp_path / "a").unlink()
    assert stages(60).run(["one"], again=True) == 0
    assert "2 of 2 steps done" in capfd.readouterr().out and not (tmp_path / "a").exists()
    assert not list(read_records(tmp_path / "results"))  # what is noted and printed is taken for no record


def test_data_of_one_file_are_brought_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOOKBACK_ENWIK8 names a file, LOOKBACK_IMDB a folder; the commit is no data."""
    monkeypatch.setattr(gpu_pack, "data_folder", lambda: tmp_path / "none")
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "one.parquet").write_bytes(b"1")
    (tmp_path / "enwik8.zip").write_bytes(b"2")
    for name, value in (("IMDB", "imdb"), ("ENWIK8", "enwik8.zip"), ("COMMIT", "imdb")):
        monkeypatch.setenv(f"LOOKBACK_{name}", str(tmp_path / value))
    pack = gpu_pack.Pack(tmp_path / "pack", gpu_pack.Target("3.12", "manylinux_2_28_x86_64", {}), 1e9)
    for name, place in gpu_pack.data_at_hand():
        pack.add_data(name, place)
    there = gpu.brought(tmp_path / "pack")
    assert Path(there["LOOKBACK_ENWIK8"]).name == "enwik8.zip" and Path(there["LOOKBACK_ENWIK8"]).read_bytes() == b"2"
    assert [path.name for path in Path(there["LOOKBACK_IMDB"]).iterdir()] == ["one.parquet"]
    assert "LOOKBACK_COMMIT" not in there


def test_a_step_that_wins_nothing_in_its_time_does_not_stand_in_the_way(
    tmp_path: Path, quick_grace: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its cells begin again whenever they are interrupted: it is said, and comes last, also in the next call."""
    forever = Step("forever", ("-c", "import time; time.sleep(60)"))
    plan = {"one": [forever, counting(tmp_path / "a")]}
    assert Stages(tmp_path / "results", "cpu", 5.5 + 1.2, plan).run(["one"], again=False) == 1
    assert "one: forever: cannot go on where it was, and takes more than" in capfd.readouterr().out
    assert not (tmp_path / "a").exists()
    Stages(tmp_path / "results", "cpu", 5.5 + 1.2, plan).run(["one"], again=False)
    assert (tmp_path / "a").read_text() == "3" and "left: forever" in capfd.readouterr().out


def test_rounds_go_on_until_nothing_is_left_and_tell_what_cannot_end(
    tmp_path: Path, quick_grace: None, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = Step("fails", ("-c", "raise SystemExit('no such thing')"))
    again = Step("again", ("-c", "import time; time.sleep(60)"), resumes=False)
    made = Step("made", ("-c", "print('made here')"), lasting=False)
    plan = {"one": [fails, counting(tmp_path / "a")], "two": [made, counting(tmp_path / "b")], "three": [again]}
    stages = Stages(tmp_path / "results", "cpu", 5.5 + 0.7, plan)
    assert stages.run(list(plan), again=True) == 1
    said = capfd.readouterr().out
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "3"
    assert "one: fails: failed, see above" in said and "no such thing" in said and "made here" in said
    assert "three: again: cannot go on where it was, and takes more than the 6.2 seconds of BUDGET" in said


def test_what_has_grown_is_run_again() -> None:
    run = Step("a", (*gpu.RUN, "copying", "--scale", "small"))
    assert run.key == Step("b", run.command).key != Step("a", (*gpu.RUN, "recall", "--scale", "small")).key


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_the_steps_of_a_stage_leave_out_no_cell_and_ask_for_none_that_is_not_there(scale: str) -> None:
    plan = gpu.stages(scale)
    for stage in ("cost", "recall", "copying", "ablation", "language"):
        cells = read_suite(stage, plan[stage][0].command[5]).cells
        for field, of in (("--seed", "seed"), ("--length", "length")):
            words = [word for step in plan[stage] for word in zip(step.command, step.command[1:], strict=False)]
            asked = [int(value) for option, value in words if option == field]
            assert len(asked) == len(set(asked)) and (not asked or set(asked) == {getattr(cell, of) for cell in cells})
    if scale == "small":  # generation comes last, and the longest length in the first step
        assert plan["cost"][-1].name == "16384" and "131072" in plan["cost"][0].name
        assert [step.name for step in plan["lra"]][:4] == [
            "pictures",
            "listops, seed 0",
            "text, seed 0",
            "pathfinder, seed 0",
        ]


def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    here = ("--results", str(tmp_path / "results"))
    asked = [call("benchmarks.gpu", "costs", *here)]
    if test_speed.DEVICE == "cpu":
        asked.append(call("benchmarks.gpu", "cost", *here))
        assert "no CUDA GPU here" in asked[-1].stderr and "DEVICE=cpu" in asked[-1].stderr
    assert "no stage 'costs': expected one of tests, profile, speed, cost" in asked[0].stderr
    assert all(done.returncode == 2 and done.stderr.count("\n") == 1 for done in asked)
    assert not (tmp_path / "results").exists()


def test_a_python_that_lacks_something_is_told_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.unmet() == []
    found = {"torch": "2.10.0+cu128"}
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: found.get(name, "99"))
    assert gpu.main([]) == 2
    assert "lacks torch>=2.11: bring a pack" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_stage_is_interrupted_goes_on_and_ends(tmp_path: Path) -> None:
    """Copying at smoke scale on the CPU: the first call has time for no cell, or for a few."""
    arguments = ["copying", "--scale", "smoke", "--device", "cpu", "--results", str(tmp_path)]
    started = time.monotonic()
    first = call("benchmarks.gpu", *arguments, "--budget", "36")
    assert first.returncode == 0 and time.monotonic() - started < 46, first.stdout
    second = call("benchmarks.gpu", *arguments, "--budget", "300")
    assert second.returncode == 0 and "1 of 1 steps done" in second.stdout, second.stdout
    assert {record.outcome.status for record in read_records(tmp_path)} == {"ok"}
    assert len(list(read_records(tmp_path))) == len(read_suite("copying", "smoke").cells)


# Profiles


def test_a_profile_names_what_takes_the_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a = test_speed.torch.ones(64, 64)
    info = {
        "section": "step",
        "name": "rwkv",
        "tokens": 4,
        "calls": 1,
        "device": "cpu",
        "profile": test_speed.profiled(lambda: a @ a),
    }
    stats = {"median": 1.0, "iqr": 0.0, "rounds": 3}
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"benchmarks": [{"group": "step 1x4", "extra_info": info, "stats": stats}]}))
    assert speed_report.main([str(path), "--profile"]) == 0
    said = capsys.readouterr().out
    assert "tokens a second" in said and "aten::mm" in said and "samplers" not in said


# Packing


def wheel(folder: Path, name: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        said = "".join(f"Requires-Dist: {need}\n" for need in needs)
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{said}\n"
        )


NEEDS = {
    "alpha": ["beta>=2", "gamma; python_version < '3.12'", "delta; extra == 'more'", "torch"],
    "beta": ["alpha", "epsilon_lib"],
    "epsilon-lib": [],
    "peer": ["torch"],
}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of a few small packages, and a project that wants two of them."""

    def download(wanted: list[Requirement], target: gpu_pack.Target, place: Path) -> None:
        for name in {gpu_pack.canonicalize_name(r.name) for r in wanted}:
            wheel(place, name.replace("-", "_"), *NEEDS[name])

    monkeypatch.setattr(gpu_pack, "download", download)
    groups = {"Lookback": [Requirement("alpha>=1")], "peers": [Requirement("peer")]}
    monkeypatch.setattr(gpu_pack, "groups", lambda: groups)


def have(folder: Path, *lines: str) -> list[str]:
    path = folder / "target.txt"
    path.write_text("\n".join(["torch==2.11.0+cu130", "triton==3.6.0", *lines]))
    return ["--have", str(path), "--to", str(folder / "pack")]


def wheels(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in (folder / "pack/wheels").iterdir()}


def test_what_the_target_lacks_is_packed_and_all_it_needs(
    registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "films"
    data.mkdir()
    (data / "train.parquet").write_bytes(b"0" * 1000)
    monkeypatch.setenv("LOOKBACK_IMDB", str(data))
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path / "none"))
    assert gpu_pack.main(have(tmp_path)) == 0
    assert wheels(tmp_path) == {"alpha", "beta", "epsilon_lib", "peer"}
    brought = gpu.brought(tmp_path / "pack")
    assert (Path(brought["LOOKBACK_IMDB"]) / "train.parquet").stat().st_size == 1000
    assert gpu_pack.main(have(tmp_path, "beta==1.5", "epsilon.lib==7", "peer @ file:///x")) == 0  # over the earlier one
    assert wheels(tmp_path) == {"alpha", "beta"}


def test_what_does_not_fit_is_said(registry: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/mine").write_text("somebody's")
    refused = {
        "expected a pack made earlier, or nothing": have(tmp_path),
        "Lookback takes 0.0 MiB, 0.0 are left of the limit, and nothing runs without": [
            *have(tmp_path),
            "--to",
            str(tmp_path / "b"),
            "--limit",
            "100",
        ],
        "limit '64 MB': expected a number of bytes, as 64M": [*have(tmp_path), "--limit", "64 MB"],
        "the target's Python 3.10: Lookback needs >=3.11": [*have(tmp_path), "--python", "3.10"],
    }
    for line, arguments in refused.items():
        assert gpu_pack.main(arguments) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
    with pytest.raises(ValueError, match="expected manylinux_2_N_x86_64"):
        gpu_pack.Target("3.12", "win_amd64", {}).platforms()
    older = {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"}
    assert older <= set(gpu_pack.Target("3.12", "manylinux_2_28_x86_64", {}).platforms())
    assert not (tmp_path / "b").exists() and (tmp_path / "pack/mine").exists()
    target = tmp_path / "old.txt"
    target.write_text("torch==2.6.0\ntriton==3.6.0\n")
    assert gpu_pack.main(["--have", str(target), "--to", str(tmp_path / "b")]) == 2
    assert "the target's torch, 2.6.0: Lookback needs torch>=2.11, which is never packed" in capsys.readouterr().err
    target.write_text("torch==2.11.0\nwhat is this\n")
    assert gpu_pack.main(["--have", str(target), "--to", str(tmp_path / "b")]) == 2
    assert "line 2: expected NAME==VERSION, found 'what is this'" in capsys.readouterr().err


def test_peers_that_do_not_fit_are_left_out(registry: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_pack.main(have(tmp_path)) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "pack/wheels").iterdir()}
    without = sum(sizes.values()) - sizes["peer-1.0-py3-none-any.whl"]
    assert gpu_pack.main([*have(tmp_path), "--limit", str(without)]) == 0
    assert "left out: peers takes" in capsys.readouterr().out
    assert wheels(tmp_path) == {"alpha", "beta", "epsilon_lib"}
    assert "left out: peers" in (tmp_path / "pack/pack.txt").read_text()


def test_every_pin_of_ours_is_packed_from_what_the_project_says() -> None:
    """Names come from pyproject.toml; torch, Triton and what only fetches or checks are in no group."""
    wanted = {name: {r.name for r in requirements} for name, requirements in gpu_pack.groups().items()}
    assert {"pydantic", "typer", "filelock", "pyarrow", "nvidia-ml-py"} <= wanted["Lookback"]
    assert {"pytest", "pytest-benchmark", "hypothesis"} <= wanted["its tests"]
    assert wanted["peers"] == {"transformers", "flash-linear-attention"}
    assert not {"torch", "triton", "datasets", "ruff"} & set().union(*wanted.values())
