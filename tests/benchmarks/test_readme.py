"""The commands of README and CONTRIBUTING work, and the files that they name exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lookback.benchmarks.storage import read_record, record_files
from tests.command_line import lookback

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.S)


def commands() -> list[str]:
    typed = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines = [line.split(" #")[0].strip() for line in typed]
    inline = [c for page in PAGES for c in re.findall(r"`((?:make|lookback) [^`]+)`", text(page))]
    return sorted(
        {
            line
            for line in [*lines, *inline]
            if line and not re.search(r"NAME|MACHINE|SUITE|TASK|\.py|\bFILE\b", line)
        }
    )


@pytest.mark.parametrize("command", commands())
def test_commands_work(command: str, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        result = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif program == "lookback":
        if "mine.toml" in words:
            pytest.skip("a file of the reader's own")
        result = lookback(*harmless(words, tmp_path))
        assert result.returncode == 0, result.stderr
    else:
        assert program in ("git", "cd", "."), command


def harmless(words: list[str], folder: Path) -> list[str]:
    """The same verb and options, changed to use little time and to write to this folder only."""
    verb = words[0]
    if verb == "run":
        scale = [] if "--scale" in words else ["--scale", "smoke"]
        return [*words, *scale, "--dry-run", "--results", str(folder)]
    if verb == "report":
        return [*words, "--results", "results/published", "--reports", str(folder)]
    if verb == "compare" and "--model" in words:
        return ["compare", "--model", "rrwkv", "results/published", "--help"]
    if verb == "compare":
        machine = "results/published/amd-epyc-avx2-2-cores"  # has few records
        return ["compare", machine, machine]
    if verb == "plot":
        few = ["--suite", "quick", "--results", "results/published"]
        return ["plot", str(folder / words[1]), *words[2:], *few]
    if (
        verb in ("prefetch", "verify", "calibrate") or "--pilot" in words
    ):  # uses the network, or trains
        return [*words, "--help"]
    return words


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_exist(page: str) -> None:
    names = re.findall(r"\]\((?!http)([^)#]+)\)", text(page))
    names += re.findall(
        r"`((?:tasks|models|benchmarks|tests|results|reports|docs|\.ci)/[\w./-]*)`", text(page)
    )
    assert names
    for name in names:
        assert (ROOT / name).exists(), name


def test_examples_run(tmp_path: Path) -> None:
    """The task and the model of CONTRIBUTING are plug-ins, and the model trains on the task."""
    task, model, section = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "echo.py").write_text(task)
    (tmp_path / "averages.py").write_text(model)
    (tmp_path / "section.py").write_text(section)
    assert sum(bool(line.strip()) for line in task.splitlines()) <= 26
    assert sum(bool(line.strip()) for line in model.splitlines()) <= 40
    arguments = [
        "run",
        "quick",
        "--scale",
        "smoke",
        "--device",
        "cpu",
        "--task",
        "echo",
        "--model",
        "averages",
    ]
    plugins = ["--plugin", str(tmp_path / "echo.py"), "--plugin", str(tmp_path / "averages.py")]
    command = [
        sys.executable,
        "-m",
        "lookback",
        *arguments,
        *plugins,
        "--results",
        str(tmp_path / "results"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    records = [read_record(path) for path in record_files(tmp_path / "results")]
    assert {record.cell.kind for record in records} == {"learn", "cost"}
    assert all(record.outcome.status == "ok" and record.cell.task == "echo" for record in records)

    folders = ["--results", str(tmp_path / "results"), "--reports", str(tmp_path / "reports")]
    command = [sys.executable, "-m", "lookback", "report"]  # registers a section
    command += ["--plugin", str(tmp_path / "section.py"), *folders]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (page,) = (tmp_path / "reports").rglob("quick-smoke/README.md")
    assert "Time of a run" in page.read_text()


def test_the_model_of_contributing_keeps_the_contract(tmp_path: Path) -> None:
    """Its forward equals its steps, as every model's must."""
    import torch

    scope: dict[str, object] = {"__name__": "contributing"}
    source = blocks("CONTRIBUTING.md", "python")[1].replace('@register_model("averages")', "")
    exec(source, scope)
    block = scope["AveragesBlock"](8, 0, 1).double()  # type: ignore[operator]
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    state, outputs = block.initial_state(2, x.device, x.dtype), []
    for position in x.unbind(1):
        y, state = block.step(position, state)
        outputs.append(y)
    assert torch.allclose(block(x), torch.stack(outputs, 1))


def test_quotations_are_lines_of_the_report() -> None:
    """Every line of the README between a report's marks is one of the committed report."""
    quoted = re.findall(r"<!-- table of (\S+) -->\n(.*?)\n<!-- end -->", text("README.md"), re.S)
    assert quoted
    for page, lines in quoted:
        report = (ROOT / page).read_text(encoding="utf-8").splitlines()
        assert lines.splitlines() and set(lines.splitlines()) <= set(report), page
