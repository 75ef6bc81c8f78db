"""How every measurement of this folder is timed, on a CPU and on a GPU.

Each measurement describes itself in pytest-benchmark's `extra_info`, with a `section` of the report
and a `name`, so that `report.py` parses nothing out of a test's name.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CALLS_PER_ROUND = 20 if ON_GPU else 1  # a GPU is waited for once per round, not once per call
SLOW_CALL = 0.5  # seconds; a call that takes longer is a round by itself
SECONDS = 6.0  # for all rounds of one measurement
MOST_ROUNDS, FEWEST_ROUNDS = 20, 3


def measure(benchmark: BenchmarkFixture, call: Callable[[], Any]) -> None:
    """Time `call` in as many rounds as fit into SECONDS, after a warm-up."""

    def run_round(calls: int) -> None:
        for _ in range(calls):
            call()
        if ON_GPU:
            torch.cuda.synchronize()

    def seconds(calls: int) -> float:
        started = time.perf_counter()
        run_round(calls)
        return time.perf_counter() - started

    run_round(1)  # compiles and allocates
    calls = 1 if seconds(1) > SLOW_CALL else CALLS_PER_ROUND
    rounds = int(SECONDS / seconds(calls))
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, rounds))
    benchmark.extra_info |= {
        "calls": calls,
        "device": DEVICE,
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(run_round, args=(calls,), rounds=rounds, iterations=1, warmup_rounds=0)


def skip_without(package: str) -> None:
    """Skip the measurement of a peer whose package is not installed."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[peers]'")


def parameter_id(parameter: object) -> str:
    """The name of a test's parameter, without spaces."""
    return str(parameter).replace(" ", "-")
