"""Making data: one batch after another of every task, on one core."""

import itertools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lookback.benchmarks.speed.timing import measure
from lookback.tasks.task import AbsentCorpusError, get_task, task_names

TOKENS = 65536  # per batch


@pytest.mark.parametrize("name", task_names())
def test_sampler(benchmark: BenchmarkFixture, name: str) -> None:
    """A batch of about TOKENS tokens, at the first of the task's lengths."""
    task = get_task(name)
    length = task.lengths[0]
    tokens_per_example = length * task.sequences_per_example
    examples = max(1, TOKENS // tokens_per_example)
    try:
        task.batch("train", 0, 0, 1, length)
    except AbsentCorpusError as error:
        pytest.skip(str(error))
    benchmark.group = "samplers"
    benchmark.extra_info |= {
        "section": "sampler",
        "name": name,
        "tokens": examples * tokens_per_example,
        "examples": examples,
    }
    numbers = itertools.count()
    measure(benchmark, lambda: task.batch("train", 1, next(numbers), examples, length))
