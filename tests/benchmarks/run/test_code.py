"""A record knows the code that it was made with, and other code is measured anew."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.measure import code
from lookback.benchmarks.plugins import MODULE_PREFIX
from lookback.benchmarks.record import Outcome
from lookback.benchmarks.storage import read_record, record_files
from lookback.models import model
from tests.command_line import lookback
from tests.processes import replace_processes
from tests.records import learn_record

PLUGIN = '''
import torch
from torch import nn
from lookback.models.model import register_model
from own_scale import SCALE

@register_model("scaled")
class Scaled(nn.Module):
    """Looks at the present token alone."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + SCALE * self.linear(x)

    def initial_state(self, batch_size, device, dtype):
        return ()

    def step(self, x, state):
        return self.forward(x), state
'''
SUITE = """
title = "one cell"
[defaults]
model = "scaled"
width = 8
depth = 1
[[grid]]
kind = "learn"
task = "copy"
length = 24
batch_size = 2
steps = 2
warmup = 1
validations = 1
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite and a plug-in that imports a module beside it; cells are not run."""
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "own_scale.py").write_text("SCALE = 1.0\n")
    replace_processes(monkeypatch, lambda self, cell, *rest: learn_record(cell).outcome)
    return tmp_path


def run(folder: Path, *options: str) -> str:
    """Run the suite as a new process would: with nothing of the plug-in loaded."""
    model._architectures.pop("scaled", None)
    code._digest.cache_clear()
    for name in [*sys.modules]:
        if name == "own_scale" or name.startswith(MODULE_PREFIX):
            del sys.modules[name]
    arguments = [folder / "suite.toml", "--plugin", folder / "plugin.py", "--device", "cpu"]
    result = lookback(
        "run",
        *map(str, arguments),
        "--results",
        str(folder / "results"),
        "--scale",
        "small",
        *options,
    )
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


def only_record(folder: Path) -> Path:
    (path,) = record_files(folder / "results")
    return path


@pytest.mark.parametrize("changed", ["plugin.py", "own_scale.py"])
def test_a_changed_plugin_is_measured_again(own: Path, changed: str) -> None:
    """So is one whose imported module has changed."""
    assert "0 recorded, 1 to measure" in run(own)
    assert "1 recorded, 0 to measure" in run(own)
    before = read_record(only_record(own)).code
    with (own / changed).open("a") as file:
        file.write("# edited\n")
    assert "0 recorded, 1 to measure" in run(own)
    after = read_record(only_record(own)).code
    assert before.plugins != after.plugins and before.sources == after.sources
    assert not list(own.rglob("*.old"))


def test_the_old_record_is_kept_until_the_new_one_is_final(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(own)
    old = only_record(own).read_text()
    with (own / "plugin.py").open("a") as file:
        file.write("# edited\n")
    failed = Outcome(status="error", message="broken")
    replace_processes(monkeypatch, lambda self, cell, *rest: failed)
    run(own)
    (aside,) = own.rglob("*.old")
    assert aside.read_text() == old
    replace_processes(monkeypatch, lambda self, cell, *rest: learn_record(cell).outcome)
    run(own)
    assert not list(own.rglob("*.old"))


def test_a_user_may_stand_in_the_folder_of_her_plugin(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.classes` has a relative file name, which then seems to lie beside the plug-in."""
    run(own)
    monkeypatch.chdir(own)
    assert not Path(torch.classes.__file__).is_absolute()
    assert code._modules_beside(own / "plugin.py") == [own / "own_scale.py"]


def test_again_measures_anew_and_keeps_the_record_meanwhile(own: Path) -> None:
    run(own)
    first = only_record(own)
    first.write_text(first.read_text().replace('"score": 0.8', '"score": 0.7'))
    assert "1 records set aside" in run(own, "--again")
    assert '"score": 0.8' in only_record(own).read_text()
    assert "1 recorded, 0 to measure" in run(own)


def test_a_record_names_the_files_of_its_model_task_and_suite(own: Path) -> None:
    run(own)
    recorded = read_record(only_record(own)).code
    assert set(recorded.plugins) == {"plugin.py"}
    assert set(recorded.sources) == {"tasks/copying.py"} and recorded.suite


def test_a_run_says_which_records_other_versions_of_lookback_made(own: Path) -> None:
    run(own)
    path = only_record(own)
    content = json.loads(path.read_text())
    content["code"]["sources"]["tasks/copying.py"] = "0" * 16
    path.write_text(json.dumps(content))
    output = run(own)
    assert "1 recorded, 0 to measure" in output
    assert "1 of the records were made by other versions of tasks/copying.py" in output
