"""What is registered, read from the source text: no module is imported, so that a list takes no time."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DECORATORS = {"tasks": "register_task", "models": "register_model"}


@dataclass(frozen=True)
class Entry:
    """A registration: its name, the file that holds it, and the first line of its docstring.

    Of a block, that of its file: a block's own docstring lists its options.
    """

    name: str
    file: str
    summary: str


def catalogue(kind: str, plugins: Sequence[str] = ()) -> list[Entry]:
    """Everything of a kind ("tasks" or "models") that our packages and the plug-in files register, by name."""
    files = [*(ROOT / kind).rglob("*.py"), *(Path(plugin) for plugin in plugins)]
    return sorted((entry for file in files for entry in _entries(file, DECORATORS[kind])), key=lambda e: e.name)


def _entries(file: Path, decorator: str) -> Iterator[Entry]:
    text = file.read_text(encoding="utf-8")
    if f"@{decorator}(" not in text:
        return
    tree = ast.parse(text)
    shown = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file)
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == decorator:
                name = call.args[0] if call.args else None
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    docstring = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
                    yield Entry(name.value, shown, (docstring or ast.get_docstring(tree) or "").split("\n")[0])
