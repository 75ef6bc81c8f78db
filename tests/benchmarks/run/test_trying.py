"""What a user meets who tries a model of her own: errors, a limit, and the debugger."""

import subprocess
import sys
from pathlib import Path

import pytest

from lookback.benchmarks.machine import ROOT
from lookback.benchmarks.record import AnyCell, Outcome, Record
from lookback.benchmarks.run.progress import error_place
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.suite import Suite, limit_steps
from tests.processes import tiny
from tests.records import as_cost, record

BROKEN = '''
"""Broken."""

import torch
from torch import nn

from lookback import register_model


@register_model("broken")
class Broken(nn.Module):
    def __init__(self, width, layer, depth):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return self.mix(x) / (1 // 0)

    def initial_state(self, batch_size, device, dtype):
        return torch.zeros(batch_size)

    def step(self, x, state):
        return x, state
'''


def failing(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Make every cell end with an error."""

    def measure(self: Runner, cell: AnyCell, *_: object) -> Record:
        return record(cell, Outcome(status="error", message=message))

    monkeypatch.setattr(Runner, "measure", measure)


@pytest.mark.parametrize(("keep_going", "measured"), [(False, 2), (True, 4)])
def test_the_same_error_twice_stops_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    keep_going: bool,
    measured: int,
) -> None:
    failing(monkeypatch, "Traceback ...\nRuntimeError: shapes")
    cells = tuple(tiny("rwkv", seed=seed) for seed in range(4))
    runner = Runner(tmp_path, Suite("mine", "", cells), keep_going=keep_going)
    assert runner.run() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("RuntimeError: shapes" in line for line in lines) == measured
    assert any("--keep-going measures the others" in line for line in lines) != keep_going


def test_an_error_is_shown_with_the_users_own_line() -> None:
    library = f"{sys.base_prefix}/lib/python3/site-packages/torch/nn.py"
    message = (
        f'File "{ROOT}/models/contract.py", line 41, in check\n'
        f'File "{library}", line 1778, in call\n'
        'File "/home/me/mine.py", line 12, in forward\n'
        f'File "{library}", line 3, in matmul\nRuntimeError: shapes'
    )
    assert error_place(message) == "/home/me/mine.py:12"
    assert error_place(message.replace("/home/me", str(Path.cwd()))) == "mine.py:12"
    assert error_place("loss was not finite") == ""


def test_a_suite_that_is_only_tried() -> None:
    learn = tiny("rwkv", tokens=100_000, warmup=50, test_examples=4000)
    timed = as_cost(learn)
    tried = limit_steps(Suite("mine", "", (learn, timed)), 2)
    assert tried.name == "mine-limit"
    first, second = tried.cells
    assert first.kind == "learn" and second.kind == "cost"
    assert (first.steps, first.warmup, first.tokens, first.test_examples) == (2, 2, None, 16)
    assert second.repeats == 1


def test_a_shorter_cell_does_not_limit_those_behind_it() -> None:
    cells = (tiny("rwkv", steps=3), tiny("rwkv", steps=50, seed=1))
    tried = limit_steps(Suite("mine", "", cells), 20)
    assert [cell.steps for cell in tried.cells if cell.kind == "learn"] == [3, 20]


SUITE = """
plugins = ["broken.py"]
[[grid]]
kind = "learn"
task = "copy"
model = "broken"
length = 32
batch_size = 2
"""


@pytest.mark.parametrize("named_by", ["option", "suite"])
def test_debugging_shows_the_whole_traceback(tmp_path: Path, named_by: str) -> None:
    """Of a plug-in that --plugin names, or the suite it stands beside."""
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    suite = tmp_path / "mine.toml"
    suite.write_text(SUITE)
    arguments = [str(suite)]
    if named_by == "option":
        arguments = ["quick", "--plugin", str(plugin), "--model", "broken"]
    options = ["--scale", "smoke", "--device", "cpu", "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "lookback", "run", *arguments, *options]
    result = subprocess.run(
        [*command, "--debug"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert not (tmp_path / "results").exists()
