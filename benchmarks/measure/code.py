"""Digests of the files that a cell is measured with, so that a record knows its code."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from lookback.benchmarks.machine import ROOT
from lookback.benchmarks.plugins import MODULE_PREFIX
from lookback.benchmarks.record import AnyCell, Code, digest
from lookback.models.model import find_architecture
from lookback.tasks.task import get_task


def code_of(cell: AnyCell, suite: str) -> Code:
    """Return the digests of the files that define a cell's task and model, and of its suite.

    The files are Lookback's own, or plug-ins.
    """
    plugins = {}
    sources = {}
    task = get_task(cell.task, cell.task_options)
    for module in (task.sampler.__module__, find_architecture(cell.model).block.__module__):
        path = _file(module)
        if module.startswith("lookback."):
            sources[path.relative_to(ROOT).as_posix()] = _digest((path,))
        else:
            plugins[path.name] = _digest((path, *_modules_beside(path)))
    return Code(plugins=plugins, sources=sources, suite=suite)


def _file(module: str) -> Path:
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        raise ValueError(f"module {module}: expected tasks and models that are defined in a file")
    return Path(file).resolve()


def _modules_beside(plugin: Path) -> list[Path]:
    """Return the files of loaded modules in a plug-in's folder: those that it may have imported."""
    files = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.startswith(("lookback.", MODULE_PREFIX)):
            continue
        path = Path(file).resolve()
        is_beside = path.is_relative_to(plugin.parent) and not path.is_relative_to(sys.prefix)
        if is_beside and path.is_file():  # torch.classes says "_classes.py", wherever one stands
            files.append(path)
    return files


@functools.cache
def _digest(paths: tuple[Path, ...]) -> str:
    return digest(b"\0".join(path.read_bytes() for path in paths))
