"""Imports the files and packages of a user's own that register tasks, models and sections."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lookback.models.model import model_names
from lookback.tasks.task import task_names


def load_plugins(files: Sequence[str]) -> None:
    """Import the plug-ins of the entry-point group `lookback.plugins`, then the files named.

    A file may import what lies beside it, as a script may. Raises ValueError that names the file
    when it is missing or fails.
    """
    task_names(), model_names()  # register ours first, so that a plug-in cannot take their names
    for entry in importlib.metadata.entry_points(group="lookback.plugins"):
        _load(f"plug-in {entry.name} ({entry.value})", entry.load)
    for file in files:
        path = Path(file)
        if path.suffix != ".py" or not path.is_file():
            raise ValueError(f"plug-in {file}: expected an existing .py file")
        _load(f"plug-in {file}", partial(_import_file, path.resolve()))


def _import_file(path: Path) -> None:
    """Run a file as a module of its own, with its folder first on Python's search path."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"lookback_plugin_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def _load(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {message}") from error
