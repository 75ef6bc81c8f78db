"""The overhead of running cells."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lookback.benchmarks.storage import read_records

SMALL_CELLS = """
title = "Learning cells of four steps"
[[grid]]
kind = "learn"
task = ["copy", "mqar"]
model = ["transformer", "rwkv", "rrwkv", "lstm"]
seed = [0, 1]
width = 16
depth = 1
length = 32
batch_size = 2
steps = 4
warmup = 1
validations = 2
test_examples = 4
"""


def cpu_seconds() -> float:
    """Return the CPU time of all processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("suite", ["small cells", "quick"])
def test_harness(benchmark: BenchmarkFixture, tmp_path: Path, suite: str) -> None:
    """`lookback run`: time outside of training, evaluation and cost cells."""
    file = tmp_path / "small-cells.toml"
    file.write_text(SMALL_CELLS, encoding="utf-8")
    command = [sys.executable, "-P", "-m", "lookback", "run"]
    command += ["quick" if suite == "quick" else str(file), "--scale", "small", "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    cpu_before = cpu_seconds()
    started = time.perf_counter()

    def run() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment)

    with contextlib.chdir(tmp_path):
        benchmark.pedantic(run, rounds=1, iterations=1)
    wall = time.perf_counter() - started
    cpu = cpu_seconds() - cpu_before

    cells = 0
    learning = 0.0  # seconds in training and evaluation, of one thread
    timing = 0.0  # seconds of cost cells, which use all cores
    for record in read_records(tmp_path / "results"):
        cells += 1
        if record.outcome.learn is None:
            timing += record.wall_seconds or 0.0
        else:
            learning += record.outcome.learn.seconds + (record.outcome.learn.evaluating or 0.0)
    benchmark.extra_info |= {
        "section": "harness",
        "name": suite,
        "calls": 1,
        "cells": cells,
        "cpu_per_cell": None if timing else (cpu - learning) / cells,
        "wall": wall,
        "outside": 1 - (learning / (os.cpu_count() or 1) + timing) / wall,
    }
