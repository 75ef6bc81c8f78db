"""Imports the user's files and packages that register tasks, models and sections."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lookback.models.model import model_names
from lookback.tasks.task import task_names

GROUP = "lookback.plugins"  # of entry points
MODULE_PREFIX = "lookback_plugin_"  # of the modules that plug-in files become


def load_plugins(files: Sequence[str]) -> None:
    """Import the plug-ins of the entry-point group `lookback.plugins`, then these files.

    A file may import the modules beside it, as a script may. A file that is already loaded is not
    loaded again. Raises ValueError that names the file if it does not exist or fails. An installed
    package that fails is reported and left out: its user may have asked for something else.
    """
    # Our own tasks and models are registered first, so that a plug-in cannot take their names.
    task_names()
    model_names()

    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            _load(f"plug-in {entry.name} ({entry.value})", entry.load)
        except ValueError as error:
            print(f"lookback: left out: {error}", file=sys.stderr)
    for file in files:
        path = Path(file)
        if path.suffix != ".py" or not path.is_file():
            raise ValueError(f"plug-in {file}: expected an existing .py file")
        _load(f"plug-in {file}", partial(_import_file, path.resolve()))


def _import_file(path: Path) -> None:
    """Import a file, with its folder first on Python's search path."""
    # The path is part of the name, because files in two folders may share a stem.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{MODULE_PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return

    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _load(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {message}") from error
