"""Lookback beside a user's own packages models/, tasks/ and benchmarks/, and its wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lookback.benchmarks.storage import read_record, record_files

ROOT = Path(__file__).parents[2]
DRIVER = """
import shlex, sys
from lookback.benchmarks.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["lookback", *shlex.split(line)]
    try:
        main()
    except SystemExit as end:
        print(f"== {end.code or 0} {line}", flush=True)
"""
"""Runs several command lines in one process, because importing torch takes seconds."""

PLUGIN = """
import os
from pathlib import Path

from lookback.models.model import register_model
from models import SIZE, Block

import benchmarks
import tasks

assert Path(os.environ["LOOKBACK_DATA"], "notes.txt").read_text() == "of the user"
register_model("mine")(Block)
"""
MODELS = """
import torch
from torch import nn

SIZE = 3


class Block(nn.Module):
    def __init__(self, width, layer, depth):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(x)

    def initial_state(self, batch_size, device, dtype):
        return ()

    def step(self, x, state):
        return self.forward(x), state
"""
SUITE = """
[[grid]]
kind = "learn"
task = "copy"
model = ["mine", "other"]
width = 8
depth = 1
length = 24
batch_size = 2
steps = 2
warmup = 1
validations = 1
validation_examples = 2
test_examples = 2
"""
COMMANDS = {
    "list models --plugin mine.py": 0,
    "describe mine.toml": 0,
    "describe mine --plugin mine.py": 0,
    "run mine.toml --dry-run --device cpu --plugin mine.py --plugin other/mine.py": 0,
    "run mine.toml --device cpu --plugin mine.py --plugin other/mine.py --results records": 0,
    "report mine.toml --results records --reports pages": 0,
    "compare records records": 0,
    "prefetch copy": 0,
    "doctor": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's repository with packages of our folders' names, a suite and two plug-ins."""
    for package, source in (("models", MODELS), ("tasks", ""), ("benchmarks", "")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source)
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "mine.toml").write_text(SUITE)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("of the user")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(PLUGIN.replace('"mine"', '"other"'))
    return tmp_path


def test_verbs_work_beside_packages_of_the_same_names(folder: Path) -> None:
    """Paths are relative to the user's folder, also in the process of a cell."""
    environment = {**os.environ, "PYTHONPATH": ".", "LOOKBACK_DATA": "notes"}
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="\n".join(COMMANDS),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    ends = [line for line in result.stdout.splitlines() if line.startswith("== ")]
    assert ends == [f"== {code} {command}" for command, code in COMMANDS.items()], (
        result.stdout + result.stderr
    )
    records = [read_record(path) for path in record_files(folder / "records")]
    assert sorted(record.cell.model for record in records) == ["mine", "other"]
    assert all(record.outcome.status == "ok" for record in records)
    assert list((folder / "pages").rglob("index.html"))


def test_the_wheel_holds_one_name_with_suites_and_templates(tmp_path: Path) -> None:
    """Built from a copy, because a build leaves files in the folder of the source."""
    source = tmp_path / "source"
    for name in ("lookback", "tasks", "models", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"lookback"}
    for pattern in ("*.py", "suites/*.toml", "report/templates/*", "published.csv"):
        for path in (ROOT / "benchmarks").rglob(pattern):
            assert f"lookback/{path.relative_to(ROOT).as_posix()}" in names, path
