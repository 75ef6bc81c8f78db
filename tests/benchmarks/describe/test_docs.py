"""The documents are true of the code: links, commands, names, the page of tasks, docstrings, and
the workflow.
"""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from lookback.benchmarks import record
from lookback.benchmarks.cli import app
from lookback.benchmarks.suite import suite_names
from lookback.models.model import model_names
from lookback.tasks.task import task_names

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
MEASURING = (ROOT / "docs/measuring.md").read_text(encoding="utf-8")
REPORTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("reports/**/*.md"))
"""Pages of the house, and those that are made from records."""


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text(page), flags=re.S | re.M)


def anchors(page: str) -> set[str]:
    """What GitHub calls a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *REPORTS])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        name, _, place = link.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.exists(), link
        assert not place or place in anchors(there.resolve().relative_to(ROOT).as_posix()), link


def commands(page: str) -> list[str]:
    """What a page tells people to type: lines of blocks, and what stands inline."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text(page), re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [
        line.strip()
        for line in text(page).splitlines()
        if re.match(r" {4}(lookback|make|pip) ", line)
    ]
    inline = re.findall(r"`((?:lookback|make) [^`]+)`", prose(page))
    found = [
        part.strip() for line in [*lines, *inline] for part in re.split(r" #|;|&&|\||>", line)[:1]
    ]
    return sorted({line for line in found if re.match(r"(lookback|make)\b", line)})


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in commands(page)]
)
def test_commands_parse(page: str, line: str) -> None:
    """Verbs and options exist, names are known, targets are in the Makefile. Nothing is run."""
    program, *words = shlex.split(line)
    if program == "make":
        assert {word for word in words if "=" not in word} <= targets()
        return
    check(words)


def check(words: list[str]) -> None:
    """Fail where the command line would refuse these words."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in verbs, words[0]
    options = {option for parameter in verbs[words[0]].params for option in parameter.opts}
    named = {"--model": model_names(), "--task": task_names()}
    for word, value in zip(words[1:], [*words, ""][2:], strict=True):
        assert not word.startswith("--") or word in options, word
        assert word not in named or value in named[word] or ":" in value or "--plugin" in words, (
            value
        )
    if words[0] in ("run", "reach") and words[1:] and not words[1].startswith("--"):
        assert words[1] in suite_names() or words[1].endswith(".toml") or words[1].isupper(), words[
            1
        ]


@cache
def targets() -> set[str]:
    """Of the Makefile; `make -n` says which of the words in it are some."""
    lines = text("Makefile").splitlines()
    return {
        name
        for line in lines
        if (found := re.match(r"([a-z0-9 -]+):(?!=)", line))
        for name in found[1].split()
    }


def test_a_wrong_command_is_found() -> None:
    """The check above can fail."""
    for line in ("frobnicate", "run quick --modle rwkv", "run quick --model rwvk", "run no-such"):
        with pytest.raises(AssertionError):
            check(line.split())
    assert "bench" in targets() and "no-such-target" not in targets()


# --- pages and the code they speak of


def test_names_in_measuring_exist() -> None:
    """Where it says `file.py` (`function`, ...), that file defines those."""
    found = re.findall(r"`([\w/]+\.py)`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?", MEASURING)
    assert len(found) > 25
    for file, names in found:
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
    evident = {"length", "examples", "tests", "learning_rate", "steps", "phases", "generation"}
    for kind in numbers:
        for field in kind.model_fields:
            assert field in evident or f"`{field}`" in MEASURING, f"{kind.__name__}.{field}"
    for status in record.Status.__args__:  # type: ignore[attr-defined]
        assert f"`{status}`" in MEASURING


def test_the_page_of_tasks_is_made_from_them(tmp_path: Path) -> None:
    """Card by card; those of text of another Python than the page was made with are left out."""
    code = f"from pathlib import Path; from benchmarks import cards; cards.PAGE = Path({str(tmp_path / 'x')!r})"
    subprocess.run([sys.executable, "-c", f"{code}; cards.main()"], cwd=ROOT, check=True)
    made, page = ((tmp_path / "x").read_text(encoding="utf-8"), text("docs/tasks.md"))
    for now, committed in zip(made.split("\n## "), page.split("\n## "), strict=True):
        revision = [
            re.findall(r"\| data \| (Python standard library .+) \|", card)
            for card in (now, committed)
        ]
        assert now == committed or revision[0] != revision[1], (
            f"{committed.split()[0]}: run `make cards`"
        )


PACKAGES = ("tasks", "models", "benchmarks")
OF_A_BLOCK = ("forward", "prefill", "initial_state", "step")
"""What blocks have in common is said once, by `register_model`."""
BY_CUSTOM = ("parts", "main")
"""A module's share of a report's page, and what runs where a file is run."""


def undocumented(file: Path, methods: bool) -> list[str]:
    """Public functions and classes of a file without a docstring, and their methods where these are
    asked for.
    """
    tree, found = ast.parse(file.read_text(encoding="utf-8")), []

    def look(node: ast.Module | ast.ClassDef, inside: str) -> None:
        for part in node.body:
            if isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith("_"):
                if not ast.get_docstring(part) and part.name not in (
                    OF_A_BLOCK if inside else BY_CUSTOM
                ):
                    found.append(f"{inside}{part.name}")
                if isinstance(part, ast.ClassDef) and methods:
                    look(part, f"{part.name}.")

    look(tree, "")
    return found if ast.get_docstring(tree) or not tree.body else ["the file itself", *found]


@pytest.mark.parametrize(
    "file", [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))], ids=str
)
def test_everything_public_is_documented(file: Path) -> None:
    assert (
        undocumented(
            file,
            methods=file.is_relative_to(ROOT / "tasks") or file.is_relative_to(ROOT / "models"),
        )
        == []
    )


# --- what a server runs


def workflow() -> dict[str, object]:
    (path,) = (ROOT / ".github/workflows").glob("*.yml")
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_the_workflow_calls_targets_that_exist() -> None:
    # type: ignore[attr-defined]
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    called = [
        word
        for step in steps
        for words in re.findall(r"\bmake ([a-z -]+)", step.get("run", ""))
        for word in words.split()
    ]
    assert {"lint", "test", "smoke"} <= set(called) <= targets()
    assert all(set(step) & {"run", "uses"} for step in steps)
