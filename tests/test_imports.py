"""Which module may import which: the directions of DESIGN, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
B = "lookback.benchmarks"
MEASURED = {"lookback.tasks", "lookback.models", f"{B}.record", f"{B}.storage", f"{B}.machine"}
DESCRIBED = {"lookback.tasks", "lookback.models", f"{B}.plugins"}
LIGHT = {f"{B}.record", f"{B}.storage"}

ALLOWED = {
    "lookback": {"lookback.tasks", "lookback.models", f"{B}.report"},
    "lookback.tasks": set(),
    "lookback.models": set(),
    f"{B}.record": set(),
    f"{B}.storage": {f"{B}.record"},
    f"{B}.machine": {f"{B}.record"},
    f"{B}.suite": {f"{B}.record"},
    f"{B}.plugins": {"lookback.tasks", "lookback.models"},
    f"{B}.measure": MEASURED | {f"{B}.plugins"},
    f"{B}.run": LIGHT | {f"{B}.suite", f"{B}.machine"},
    f"{B}.plan": MEASURED | {f"{B}.measure", f"{B}.run", f"{B}.suite"},
    f"{B}.describe": DESCRIBED | {f"{B}.record", f"{B}.machine", f"{B}.measure"},
    f"{B}.report": LIGHT | {f"{B}.suite"},  # for the endpoints
    f"{B}.speed": MEASURED | {f"{B}.measure", f"{B}.run", f"{B}.suite", f"{B}.report"},
    f"{B}.cli": {B},
}
"""The row of a module is the longest name here that holds it; it may import what its row lists, and
its own room.
"""

NO_TORCH = (
    "record",
    "storage",
    "suite",
    "machine",
    "run.cell_server",
    "run.process",
    "run.published",
    "run.progress",
    "run.runner",
    "run.ray_engine",
    "report.make",
    "report.compare",
    "report.figure",
    "cli",
)


def modules() -> dict[str, Path]:
    """Every module of the package, by its import name."""
    files = {"lookback": ROOT / "lookback" / "__init__.py"}
    for folder in ("tasks", "models", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            files[f"lookback.{name.removesuffix('.__init__')}"] = path
    return files


def imported(path: Path) -> set[str]:
    """Names that a file imports, absolute; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def row_of(module: str) -> str:
    """The row that a module belongs to; fails where it has none."""
    if module in ("lookback", "lookback.tasks", "lookback.models"):
        return module
    rows = [row for row in ALLOWED if row != "lookback" and holds(row, module)]
    assert rows or module == B, (
        f"{module} has no row in tests/test_imports.py: say what it may import"
    )
    return max(rows, key=len, default=B)


def holds(room: str, module: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_rows(module: str) -> None:
    row = row_of(module)
    allowed = ALLOWED.get(row, set()) | {row}
    for name in imported(modules()[module]):
        if holds("lookback", name):
            assert any(holds(room, name) for room in allowed), f"{module} must not import {name}"


def test_a_module_without_a_row_is_found() -> None:
    with pytest.raises(AssertionError, match="has no row"):
        row_of(f"{B}.new_module")


@pytest.mark.parametrize("module", NO_TORCH)
def test_torch_stays_out(module: str) -> None:
    heavy = "('torch', 'lookback.tasks.task', 'lookback.models.model')"
    code = f"import sys, {B}.{module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_import_name_is_light() -> None:
    code = "import sys, lookback; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
