"""Command lines: output, and for wrong use one clear line, exit code 2 and no file touched."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lookback.benchmarks.describe.lists import catalogue
from lookback.models.model import model_names
from lookback.tasks.task import task_names
from tests.command_line import lookback

ROOT = Path(__file__).parents[2]
PLUGIN = str(ROOT / "tests" / "plugin_models.py")


def test_lists_hold_what_is_registered() -> None:
    """The list is read from the source; the registries say whether it read well."""
    assert [entry.name for entry in catalogue("tasks")] == [
        n for n in task_names() if n != "last-token"
    ]
    ours = [entry.name for entry in catalogue("models") if ":" not in entry.name]
    assert set(ours) <= set(model_names()) and {"transformer", "rwkv", "rrwkv", "lstm"} <= set(ours)
    assert all(
        entry.summary and (ROOT / entry.file).is_file()
        for kind in ("tasks", "models")
        for entry in catalogue(kind)
    )


def test_list_answers_at_once() -> None:
    command = [sys.executable, "-m", "lookback", "list", "tasks", "--json"]  # what users start
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and not result.stderr
    entries = json.loads(result.stdout)
    assert {"copy", "recall", "python"} <= {entry["name"] for entry in entries}
    assert "plain" in lookback("list", "models", "--plugin", PLUGIN).stdout
    assert "quick" in lookback("list", "suites").stdout


@pytest.mark.parametrize("name", ["recall", "parity", "python", "rrwkv", "quick", "transformer"])
def test_describe_shows_a_card(name: str) -> None:
    result = lookback("describe", name)
    assert result.returncode == 0 and name in result.stdout
    if name in ("recall", "parity"):
        assert "tokens" in result.stdout and "targets" in result.stdout


def test_a_guest_is_told_that_no_pilot_chose_its_learning_rate(tmp_path: Path) -> None:
    arguments = ["run", "tracking", "--scale", "smoke", "--task", "parity"]
    arguments += ["--seed", "0", "--dry-run", "--device", "cpu", "--results", str(tmp_path)]
    guest = lookback(*arguments, "--model", "hybrid")
    assert "no pilot chose the learning rate of hybrid at 0.001" in guest.stderr
    assert not lookback(*arguments, "--model", "hybrid", "--learning-rate", "0.01").stderr
    assert not lookback(*arguments, "--model", "rwkv").stderr


def test_dry_run_tells_and_touches_nothing(tmp_path: Path) -> None:
    arguments = ["run", "quick", "--scale", "smoke", "--model", "rwkv", "--dry-run"]
    arguments += ["--results", str(tmp_path / "r")]
    result = lookback(*arguments, "--device", "cpu")
    assert (
        result.returncode == 0 and "parameters" in result.stdout and "to measure" in result.stdout
    ), result
    assert "too big for" in result.stdout and " MB" in result.stdout and "FLOP" in result.stdout
    text = lookback(*arguments, "--task", "copy", "--device", "cpu", "--json").stdout
    fields = {"id", "width", "parameters", "step_flops", "flops", "peak_bytes", "seconds", "state"}
    assert fields <= set(json.loads(text)[0])
    assert not (tmp_path / "r").exists()


def test_gpu_hours_are_planned_without_a_gpu(tmp_path: Path) -> None:
    arguments = ["run", "quick", "--scale", "smoke", "--model", "lstm", "--task", "copy"]
    arguments += ["--results", str(tmp_path / "r")]
    result = lookback(*arguments, "--device", "cuda", "--dry-run", "--assume-flops", "1e12")
    assert result.returncode == 0 and "GPU hours" in result.stdout, result


def test_sizes_are_matched_as_a_suite_asks(tmp_path: Path) -> None:
    (tmp_path / "fair.toml").write_text(
        '[match]\nto = "transformer"\n[[grid]]\nkind = "cost"\ntask = "copy"\n'
        'model = ["transformer", "rrwkv"]\n'
        "width = 64\ndepth = 2\nlength = 64\nbatch_size = 1\n"
    )
    suite = str(tmp_path / "fair.toml")
    assert "agree with those of transformer within 2 %" in lookback("describe", suite).stdout
    arguments = ["run", suite, "--device", "cpu", "--dry-run", "--json"]
    arguments += ["--results", str(tmp_path / "r")]
    first, other = json.loads(lookback(*arguments).stdout)
    assert first["width"] == 64 > other["width"]
    assert abs(other["parameters"] / first["parameters"] - 1) < 0.02
    rejected = lookback(*arguments, "--tolerance", "0.0001")
    assert rejected.returncode == 2 and "nearest is width" in rejected.stderr


TAKEN = """
from torch import nn
from lookback.models.model import register_model
register_model("rwkv")(nn.Identity)
"""
BROKEN = '[[grid]]\nkind = "learn"\ntask = "copy"\nmodle = "rwkv"\n'


def test_a_library_model_with_many_options_shows_some() -> None:
    """hf:llama has a dozen fields; its card is for reading."""
    options = lookback("describe", "hf:llama").stdout.partition("options ")[2].splitlines()[0]
    assert options.count(" = ") == 8 and options.endswith("other fields")


NAMED_AS_A_SUITE = '''
"""Echoes its input."""

from torch import nn

from lookback import register_model


@register_model("reach")
class Echo(nn.Module):
    def __init__(self, width, layer, depth):
        super().__init__()

    def forward(self, x):
        return x

    def initial_state(self, batch_size, device, dtype):
        return ()

    def step(self, x, state):
        return x, state
'''


def test_a_plugins_model_that_has_the_name_of_a_suite_is_described_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(NAMED_AS_A_SUITE)
    # In a process of its own: the model would stay registered in this one.
    command = [sys.executable, "-m", "lookback", "describe", "reach", "--plugin", "mine.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Suite reach: " in result.stdout and "Echoes its input" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quik"], "unknown suite 'quik': expected quick"),
        (["run", "nowhere.toml"], "does not exist"),
        (["run", "BROKEN"], "modle: unknown field; known are"),
        (["run", "quick", "--scale", "huge"], "no scale 'huge'"),
        (["run", "tracking", "--pilot", "--seed", "3"], "expected no --seed"),
        (["run", "quick", "--task", "coppy"], "unknown task 'coppy'"),
        (["run", "quick", "--model", "rwk"], "unknown model 'rwk': expected"),
        (
            ["run", "quick", "--task", "copy", "--length", "7"],
            "no sequences of length 7: expected at least 20",
        ),
        (["run", "quick", "--length", "0"], "length: "),
        (["run", "quick", "--seed", "-1"], "seed: "),
        (["run", "quick", "--device", "cuda"], "use --device cpu"),
        (["run", "quick", "--device", "tpu"], "tpu"),
        (["run", "quick", "--share", "0.5"], "expected --engine ray too"),
        (["run", "quick", "--budget", "-1"], "Invalid value for '--budget'"),
        (["run", "quick", "--colour", "red"], "--colour"),
        (["run", "quick", "--plugin", "nothing.py"], "expected an existing .py file"),
        (
            ["run", "quick", "--plugin", "TAKEN"],
            "'rwkv' is already registered by lookback.models.rwkv",
        ),
        (["describe", "nothing"], "unknown task, model or suite 'nothing'"),
        (["describe", "recal"], "expected recall, or one that a --plugin file registers"),
        (["list", "things"], "'things' is not one of 'tasks', 'models', 'suites'"),
        (["run", "quick", "--length", "abc"], "Invalid value for '--length'"),
        (["run", "quick", "--tolerance", "-1"], "Invalid value for '--tolerance'"),
        (["run"], "Missing argument"),
        (["report", "--results", "nowhere"], "no folder of records nowhere"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "broken.toml").write_text(BROKEN)
    (tmp_path / "taken.py").write_text(TAKEN)
    files = {"BROKEN": "broken.toml", "TAKEN": "taken.py"}
    arguments = [str(tmp_path / files[word]) if word in files else word for word in arguments]
    if arguments[0] == "run":
        arguments += ["--results", str(tmp_path / "results")]
    result = lookback(*arguments)
    assert result.returncode == 2, result
    assert (
        words in result.stderr
        and result.stderr.startswith("lookback: ")
        and result.stderr.count("\n") == 1
    )
    assert not (tmp_path / "results").exists()


def test_help_names_every_verb() -> None:
    text = lookback("--help").stdout
    assert all(verb in text for verb in ("list", "describe", "run", "report", "doctor"))


def test_doctor_says_what_runs() -> None:
    text = lookback("doctor").stdout
    assert ("torch" in text and "wkv" in text and "tiled" in text) or "triton" in text
    assert (
        "scaled_dot_product" in text and "does not run" not in text and "in constraints.txt" in text
    )


def test_an_installation_without_a_checkout_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel holds neither published records nor pinned versions."""
    monkeypatch.setattr("lookback.benchmarks.storage.PUBLISHED_RECORDS", tmp_path / "none")
    monkeypatch.setattr("lookback.benchmarks.describe.doctor.PINS", tmp_path / "none.txt")
    for arguments in ("verify", "report --published", "compare --model mine --published"):
        result = lookback(*arguments.split())
        assert result.returncode == 2
        assert result.stderr.startswith("lookback: no published records are installed")
    assert "constraints.txt is not installed" in lookback("doctor").stdout


def test_the_version_is_that_of_the_package() -> None:
    result = lookback("--version")
    assert result.returncode == 0 and result.stdout == f"lookback {version('lookback')}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_signs_shows_others(encoding: str) -> None:
    """The card of python shows spaces as a sign that neither encoding has."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "lookback", "describe", "python"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    assert b"?" in result.stdout
