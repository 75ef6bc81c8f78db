"""Runs the console script within the tests; a process would take seconds to import torch."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from lookback.benchmarks.cli import main

ROOT = Path(__file__).parents[1]


def lookback(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `lookback` with these arguments in the checkout; return its exit code and output."""
    output = io.StringIO()
    errors = io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["lookback", *arguments]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    code = int(end.value.code or 0)
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())
