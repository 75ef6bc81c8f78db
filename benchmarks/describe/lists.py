"""List registered tasks and models by reading source text: importing them would take seconds."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECORATORS = {"tasks": ("register_task",), "models": ("register_model", "register_family")}


@dataclass(frozen=True)
class Entry:
    """A registered task, model or suite.

    The summary of a task is the first paragraph of its sampler's docstring, and that of a model the
    first paragraph of its file's. A family of models is called PREFIX:TYPE.
    """

    name: str
    file: str
    summary: str


def catalogue(kind: str, plugins: Sequence[str] = ()) -> list[Entry]:
    """Return all "tasks" or "models" that Lookback and plug-ins register, by name.

    Plug-ins are these files and those of installed packages.
    """
    entries: list[Entry] = []
    for file in [*(ROOT / kind).rglob("*.py"), *map(Path, plugins), *_installed()]:
        entries += _entries(file, DECORATORS[kind])
    return sorted(entries, key=lambda entry: (":" in entry.name, entry.name))


def _installed() -> Iterator[Path]:
    """Yield the files of the plug-ins of installed packages, without importing them."""
    for entry in importlib.metadata.entry_points(group="lookback.plugins"):
        with contextlib.suppress(ImportError, ValueError):  # of the package around the module
            spec = importlib.util.find_spec(entry.module)
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin)


def _entries(file: Path, decorators: Sequence[str]) -> Iterator[Entry]:
    text = file.read_text(encoding="utf-8")
    if not any(f"@{decorator}(" in text for decorator in decorators):
        return

    shown = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            if not isinstance(call, ast.Call):
                continue
            decorator = getattr(call.func, "id", getattr(call.func, "attr", ""))
            texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            if decorator not in decorators or not texts or not isinstance(texts[0], str):
                continue

            if decorator == "register_family":
                yield Entry(f"{texts[0]}:TYPE", shown, "".join(map(str, texts[1:])))
            else:
                docstring = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
                docstring = docstring or ast.get_docstring(tree) or ""
                yield Entry(texts[0], shown, " ".join(docstring.split("\n\n")[0].split()))
