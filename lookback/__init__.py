"""Lookback: how far back can a sequence model look, and what does it pay for it?

This folder is the import name. The code lies beside it, where a reader of the repository sees it:
`lookback.tasks` in tasks/, `lookback.models` in models/ and `lookback.benchmarks` in benchmarks/.

    from lookback import matrix_state, register_model, register_section, register_task, wkv

    records = lookback.load("results")
    scores = lookback.frame("scores", records)

`import lookback` alone loads neither torch nor pandas: each name brings what it needs.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

# tasks/, models/ and benchmarks/ lie beside this folder.
__path__ = [*__path__, str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from lookback.benchmarks.report.compare import compare_models as compare
    from lookback.benchmarks.report.figure import draw_figure as plot
    from lookback.benchmarks.report.frames import frame
    from lookback.benchmarks.report.make import load
    from lookback.benchmarks.report.section import register_section
    from lookback.models.matrix_state import matrix_state
    from lookback.models.model import register_model
    from lookback.models.wkv import wkv
    from lookback.tasks.task import register_task

__all__ = [
    "compare",
    "frame",
    "load",
    "matrix_state",
    "plot",
    "register_model",
    "register_section",
    "register_task",
    "wkv",
]

_HOME = {
    "compare": ("lookback.benchmarks.report.compare", "compare_models"),
    "frame": ("lookback.benchmarks.report.frames", "frame"),
    "load": ("lookback.benchmarks.report.make", "load"),
    "matrix_state": ("lookback.models.matrix_state", "matrix_state"),
    "plot": ("lookback.benchmarks.report.figure", "draw_figure"),
    "register_model": ("lookback.models.model", "register_model"),
    "register_section": ("lookback.benchmarks.report.section", "register_section"),
    "register_task": ("lookback.tasks.task", "register_task"),
    "wkv": ("lookback.models.wkv", "wkv"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lookback' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
