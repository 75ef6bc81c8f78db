"""What is registered, read from the source text: no module is imported, so that a list takes no
time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECORATORS = {"tasks": ("register_task",), "models": ("register_model", "register_family")}


@dataclass(frozen=True)
class Entry:
    """A registration: its name, the file that holds it, and the first line of its docstring.

    Of a block, that of its file: a block's own docstring lists its options. A family of models is
    called PREFIX:TYPE.
    """

    name: str
    file: str
    summary: str


def catalogue(kind: str, plugins: Sequence[str] = ()) -> list[Entry]:
    """Everything of a kind ("tasks" or "models") that our packages and the plug-in files register,
    by name.
    """
    files = [*(ROOT / kind).rglob("*.py"), *(Path(plugin) for plugin in plugins)]
    found = (
        entry
        for file in files
        for decorator in DECORATORS[kind]
        for entry in _entries(file, decorator)
    )
    return sorted(found, key=lambda entry: (":" in entry.name, entry.name))


def _entries(file: Path, decorator: str) -> Iterator[Entry]:
    text = file.read_text(encoding="utf-8")
    if f"@{decorator}(" not in text:
        return
    tree = ast.parse(text)
    shown = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file)
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            if (
                isinstance(call, ast.Call)
                and getattr(call.func, "id", getattr(call.func, "attr", "")) == decorator
            ):
                name, *rest = [arg.value for arg in call.args if isinstance(arg, ast.Constant)] or [
                    None
                ]
                if isinstance(name, str) and decorator == "register_family":
                    yield Entry(f"{name}:TYPE", shown, "".join(map(str, rest)))
                elif isinstance(name, str):
                    docstring = (
                        ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
                    )
                    yield Entry(
                        name, shown, (docstring or ast.get_docstring(tree) or "").split("\n")[0]
                    )
