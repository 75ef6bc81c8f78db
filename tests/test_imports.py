"""Who may know whom: DESIGN's arrows, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEASURING = {"tasks", "models", "benchmarks.record", "benchmarks.step", "benchmarks.memory", "benchmarks.parallel"}
ALLOWED = {
    "tasks": {"tasks"},
    "models": {"models"},
    "benchmarks.record": set(),
    "benchmarks.memory": set(),
    "benchmarks.catalogue": set(),
    "benchmarks.machine": {"benchmarks.record"},
    "benchmarks.suite": {"benchmarks.record"},
    "benchmarks.parallel": {"models"},
    "benchmarks.step": {"tasks", "models", "benchmarks.record", "benchmarks.parallel"},
    "benchmarks.evaluate": MEASURING,
    "benchmarks.checkpoint": MEASURING,
    "benchmarks.train": MEASURING
    | {"benchmarks.evaluate", "benchmarks.checkpoint", "benchmarks.machine", "benchmarks.reach"},
    "benchmarks.reach": MEASURING | {"benchmarks.evaluate"},
    "benchmarks.cost": MEASURING | {"benchmarks.flops", "benchmarks.machine"},
    "benchmarks.flops": {"models"},
    "benchmarks.predict": MEASURING | {"benchmarks.cost", "benchmarks.evaluate", "benchmarks.flops"},
    "benchmarks.sizes": {"benchmarks.predict", "benchmarks.record", "benchmarks.suite"},
    "benchmarks.plan": {"benchmarks.predict", "benchmarks.record", "benchmarks.run"},
    "benchmarks.run": {"benchmarks.suite", "benchmarks.record", "benchmarks.machine"},
    "benchmarks.engines": {"benchmarks.run", "benchmarks.suite", "benchmarks.record", "benchmarks.machine"},
    "benchmarks.report": {"benchmarks.report", "benchmarks.record"},
}
NO_TORCH = (
    "benchmarks.record",
    "benchmarks.suite",
    "benchmarks.run",
    "benchmarks.engines",
    "benchmarks.report",
    "benchmarks.cli",
)


def modules() -> dict[str, Path]:
    files = [path for package in ("tasks", "models", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
            for path in files}  # fmt: skip


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def room(module: str, rooms: object) -> str | None:
    """The longest name in `rooms` that holds the module."""
    names = [name for name in rooms if module == name or module.startswith(f"{name}.")]  # type: ignore[attr-defined]
    return max(names, key=len, default=None)


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_run_one_way(module: str) -> None:
    here = room(module, ALLOWED)
    if here is None:
        return
    for name in imported(modules()[module]):
        if name.split(".")[0] in ("tasks", "models", "benchmarks") and name != "benchmarks":
            allowed = room(name, ALLOWED[here]) or any(other.startswith(f"{name}.") for other in ALLOWED[here])
            assert allowed or room(name, [here]), f"{module} must not know {name}"


@pytest.mark.parametrize("module", NO_TORCH)
def test_torch_stays_out(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'tasks.task', 'models.model') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
