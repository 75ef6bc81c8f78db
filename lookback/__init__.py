"""Lookback: how far back can a sequence model look, and what does it pay for it?

This folder is the import name. The code lies beside it, where a reader of the repository sees it:
`lookback.tasks` in tasks/, `lookback.models` in models/ and `lookback.benchmarks` in benchmarks/.

    from lookback import matrix_state, register_model, register_task, wkv

`import lookback` alone loads neither torch nor pandas: each name brings what it needs.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__path__ = [
    *__path__,
    str(Path(__file__).parents[1]),
]  # tasks/, models/ and benchmarks/ lie beside this folder

if TYPE_CHECKING:
    from lookback.models.matrix_state import matrix_state
    from lookback.models.model import register_model
    from lookback.models.wkv import wkv
    from lookback.tasks.task import register_task

__all__ = ["matrix_state", "register_model", "register_task", "wkv"]

_HOME = {
    "matrix_state": "lookback.models.matrix_state",
    "register_model": "lookback.models.model",
    "register_task": "lookback.tasks.task",
    "wkv": "lookback.models.wkv",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lookback' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
