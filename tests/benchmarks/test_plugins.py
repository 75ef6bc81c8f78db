"""An installed package of a user, whose tasks and models are available without a flag."""

import csv
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lookback.benchmarks.storage import read_record, record_files

ROOT = Path(__file__).parents[2]
MODULE = '''
"""Means of what was read."""

import torch
from torch import nn

from lookback.models.model import register_model
from lookback.tasks.task import Batch, register_task

from acme_memory.layers import Mix


@register_model("acme-mean")
class MeanBlock(nn.Module):
    """Options: `bias` of the mix."""

    def __init__(self, width, layer, depth, *, bias: bool = True):
        super().__init__()
        self.mix = Mix(width, bias)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + self.mix(x.cumsum(1) / count)

    def initial_state(self, batch_size, device, dtype):
        return torch.zeros(batch_size, self.mix.in_features, device=device, dtype=dtype), 0

    def step(self, x, state):
        total, count = state[0] + x, state[1] + 1
        return x + self.mix(total / count), (total, count)


@register_task("acme-first", vocabulary=4, baseline_score=0.25, lengths=(16,), source="Acme",
               symbols="abcd")
def sample_first(batch_size, length, generator):
    """Say the first token, again and again.

        tokens   c a b
        targets  c c c
    """
    tokens = torch.randint(4, (batch_size, length), generator=generator)
    return Batch(tokens, tokens[:, :1].expand_as(tokens).clone())
'''
LAYERS = """
from torch import nn


class Mix(nn.Linear):
    def __init__(self, width, bias):
        super().__init__(width, width, bias=bias)
"""
SUITE = """
[defaults]
task = "acme-first"
width = 16
depth = 2
length = 16
batch_size = 2

[[grid]]
kind = "learn"
model = "acme-mean"
steps = 3
warmup = 1
validations = 1
validation_examples = 2
test_examples = 2

[[grid]]
kind = "cost"
model = "acme-mean"
model_options = { bias = false }
repeats = 2
"""


def wheel(folder: Path, module: str = MODULE) -> Path:
    """Write a wheel of the package, whose entry point names the plug-in."""
    about = "acme_memory-1.2.dist-info"
    files = {
        "acme_memory/__init__.py": "",
        "acme_memory/layers.py": LAYERS,
        "acme_memory/lookback.py": module,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: acme-memory\nVersion: 1.2\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{about}/entry_points.txt": "[lookback.plugins]\nacme = acme_memory.lookback\n",
    }
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        (name, "", "") for name in [*files, f"{about}/RECORD"]
    )
    path = folder / "acme_memory-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, f"{about}/RECORD": table.getvalue()}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed it."""
    folder = tmp_path_factory.mktemp("acme")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    subprocess.run(
        [*pip, "--target", str(folder / "site"), str(wheel(folder))],
        check=True,
        capture_output=True,
    )
    return folder / "site"


def lookback(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lookback", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_installed_package_is_measured(site: Path, tmp_path: Path) -> None:
    """Its model and its task, in the processes that measure too."""
    (tmp_path / "acme.toml").write_text(SUITE)
    result = lookback(
        site,
        "run",
        str(tmp_path / "acme.toml"),
        "--device",
        "cpu",
        "--results",
        str(tmp_path / "results"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = [read_record(path) for path in record_files(tmp_path / "results")]
    assert sorted((r.cell.kind, r.cell.model) for r in records) == [
        ("cost", "acme-mean"),
        ("learn", "acme-mean"),
    ]
    assert all(
        r.outcome.status == "ok" and r.outcome.task and r.outcome.task.source == "Acme"
        for r in records
    )
    (costs,) = (r.outcome.cost for r in records if r.outcome.cost)
    assert costs.state_bytes == 2 * 2 * 16 * 4  # layers, batch, width, float32
    assert (
        costs.parameters == 4 * 16 * 2 + 2 * 16 + 2 * 16 * 16
    )  # embedding and head, norm, mixes without bias


def test_it_is_described(site: Path) -> None:
    card = lookback(site, "describe", "acme-mean").stdout
    assert "Means of what was read" in card and "bias = true" in card


def test_without_it_nothing_is_known_of_it(tmp_path: Path) -> None:
    result = lookback(tmp_path, "describe", "acme-mean")
    assert result.returncode == 2 and "unknown task, model or suite 'acme-mean'" in result.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "import acme_nowhere\n",
            "plug-in acme (acme_memory.lookback) cannot be loaded: ModuleNotFoundError",
        ),
        (
            MODULE.replace("acme-mean", "lstm"),
            "'lstm' is already registered by lookback.models.lstm",
        ),
        (MODULE.replace("acme-mean", "hf:mean"), "expected at most 64 lower-case letters"),
    ],
)
def test_a_broken_one_is_named_and_left_out(tmp_path: Path, module: str, words: str) -> None:
    with zipfile.ZipFile(wheel(tmp_path, module)) as archive:  # as pip lays it out
        archive.extractall(tmp_path / "site")
    result = lookback(tmp_path / "site", "describe", "recall")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "left out" in line]
    assert words in line
    assert "Traceback" not in result.stderr


def test_it_is_listed_without_being_imported(site: Path) -> None:
    assert "acme-mean" in lookback(site, "list", "models").stdout
    assert "acme-first" in lookback(site, "list", "tasks").stdout
