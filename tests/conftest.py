"""What tests share: one thread, so that tests side by side do not wait for each other, and a small
cell.
"""

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: processes that tests start inherit it

import pytest
import torch

from lookback.benchmarks.record import Cell, LearnCell

torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and processes that tests interrupt inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What the libraries keep for good is not gone through at each of a cell's collections of
    garbage.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def no_yardsticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of tests say nothing of a machine's speed, so that it need not be measured."""
    monkeypatch.setattr("lookback.benchmarks.measure.cost.REFERENCE_RUNS", 1)
    monkeypatch.setattr("lookback.benchmarks.measure.cost.MATMUL_SIDE", {"cpu": 64, "cuda": 64})


@pytest.fixture
def cell() -> Cell:
    """A cell of `learn` that takes a second."""
    return LearnCell(
        kind="learn",
        task="copy",
        model="rwkv",
        width=16,
        depth=1,
        length=24,
        batch_size=4,
        steps=6,
        warmup=2,
        validations=3,
        test_examples=40,
        test_lengths=(24, 40),
    )
