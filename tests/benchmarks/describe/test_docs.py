"""The documents agree with the code: links, commands, names, the page of tasks, docstrings, CI."""

import ast
import json
import os
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from lookback.benchmarks import record
from lookback.benchmarks.cli import app
from lookback.benchmarks.describe import cards
from lookback.benchmarks.suite import suite_names
from lookback.models.model import model_names
from lookback.tasks.task import task_names

ROOT = Path(__file__).parents[3]
WRITTEN = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in WRITTEN)
REPORTS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("reports/published/**/*.md")
)


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text(page), flags=re.S | re.M)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *REPORTS])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


def commands(page: str) -> list[str]:
    """Return the commands of a page: those in blocks of code, indented lines and inline code."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text(page), re.S | re.M)
    lines = "\n".join(blocks).splitlines()
    lines += re.findall(r"^ {4}((?:lookback|make|pip) .*)$", text(page), re.M)
    lines += re.findall(r"`((?:lookback|make) [^`]+)`", prose(page))
    starts = {re.split(r" #|;|&&|\||>", line)[0].strip() for line in lines}
    return sorted(line for line in starts if re.match(r"(lookback|make)\b", line))


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in commands(page)]
)
def test_commands_parse(page: str, line: str) -> None:
    """Verbs, options, names and targets exist. No command is run."""
    program, *words = shlex.split(line)
    if program == "make":
        assert {word for word in words if "=" not in word} <= targets()
    else:
        check(words)


def check(words: list[str]) -> None:
    """Fail if the command line would refuse these words."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in verbs, words[0]

    options = {option for parameter in verbs[words[0]].params for option in parameter.opts}
    names = {"--model": model_names(), "--task": task_names()}
    for word, value in pairwise([*words[1:], ""]):
        assert not word.startswith("--") or word in options, word
        # Reports and comparisons read records of any model, also of a plug-in.
        if word in names and words[0] in ("run", "calibrate") and "--plugin" not in words:
            assert value in names[word] or ":" in value, value

    if words[0] == "run" and words[1:] and not words[1].startswith("--"):
        suite = words[1]
        assert suite in suite_names() or suite.endswith(".toml") or suite.isupper(), suite


@cache
def targets() -> set[str]:
    """Return the targets of the Makefile."""
    rules = re.findall(r"^([a-z0-9 -]+):(?!=)", text("Makefile"), re.M)
    return set(" ".join(rules).split())


def test_a_wrong_command_is_found() -> None:
    for line in ("frobnicate", "run quick --modle rwkv", "run quick --model rwvk", "run no-such"):
        with pytest.raises(AssertionError):
            check(line.split())
    assert "bench" in targets() and "no-such-target" not in targets()


def test_names_in_measuring_exist() -> None:
    """A file that is followed by names, `file.py` (`function`, ...), defines them."""
    pattern = r"`([\w/]+\.py)`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?"
    references = re.findall(pattern, text("docs/measuring.md"))
    assert len(references) > 25
    for file, names in references:
        code = text(file)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def |class )?{name}\b", code, re.M), (file, name)


def test_every_number_of_a_record_is_explained() -> None:
    numbers = (
        record.Score,
        record.LearnNumbers,
        record.Timing,
        record.Phase,
        record.Generated,
        record.CostNumbers,
    )
    measuring = text("docs/measuring.md")
    evident = {"length", "examples", "tests", "learning_rate", "steps", "phases", "generation"}
    for kind in numbers:
        for field in kind.model_fields:
            assert field in evident or f"`{field}`" in measuring, f"{kind.__name__}.{field}"
    for status in record.Status.__args__:  # type: ignore[attr-defined]
        assert f"`{status}`" in measuring


def test_the_page_of_tasks_is_made_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare card by card, except text of another Python than the page was made with."""
    monkeypatch.setattr(cards, "PAGE", tmp_path / "tasks.md")
    for name in [name for name in os.environ if name.startswith("LOOKBACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOOKBACK_DATA", "")  # main sets it; this restores it afterwards
    cards.main()

    fresh = cards.PAGE.read_text(encoding="utf-8").split("\n## ")
    committed = text("docs/tasks.md").split("\n## ")
    python = r"\| data \| (Python standard library .+) \|"
    for new, old in zip(fresh, committed, strict=True):
        same_python = re.findall(python, new) == re.findall(python, old)
        assert new == old or not same_python, f"{old.split()[0]}: run `make cards`"


# Documented by `register_model` and `Block`.
BLOCK_METHODS = ("forward", "prefill", "initial_state", "step", "read")
UNDOCUMENTED = ("parts", "main")  # a report's sections, and the entry point of a module
PUBLIC_FILES = [
    path
    for package in ("tasks", "models", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def undocumented(node: ast.Module | ast.ClassDef, exempt: tuple[str, ...]) -> list[str]:
    """Return the public functions and classes in a module or class that have no docstring."""
    names = []
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if not ast.get_docstring(child) and child.name not in exempt:
            names.append(child.name)
    return names


@pytest.mark.parametrize("file", PUBLIC_FILES, ids=str)
def test_everything_public_is_documented(file: Path) -> None:
    """Every module, function and class has a docstring; in tasks/ and models/ methods, too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body
    assert undocumented(tree, UNDOCUMENTED) == []
    if not file.is_relative_to(ROOT / "benchmarks"):
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in classes:
            if not node.name.startswith("_"):
                assert undocumented(node, BLOCK_METHODS) == [], node.name


def test_the_workflow_calls_targets_that_exist() -> None:
    (path,) = (ROOT / ".github/workflows").glob("*.yml")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all("run" in step or "uses" in step for step in steps)

    scripts = "\n".join(step.get("run", "") for step in steps)
    called = set(" ".join(re.findall(r"\bmake ([a-z -]+)", scripts)).split())
    assert {"lint", "test", "smoke"} <= called <= targets()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run in their order, and the last one compares two models."""
    notebook = json.loads(text("docs/reports.ipynb"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for source in sources:
        exec(source, scope)
    assert len(scope["scores"]) > 0
    assert (tmp_path / "accuracy-against-distance.png").stat().st_size > 2000
    rows = eval(sources[-1].splitlines()[-1], scope)
    assert {"difference", "verdict"} <= set(rows)
