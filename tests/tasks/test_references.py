"""The references of a task are what they are called, and the floor of recall."""

from collections import Counter
from math import log

import numpy as np
import pytest
import torch

from lookback.tasks.references import NGram
from lookback.tasks.task import IGNORE, Batch, Options, Task, get_task


def reference(task: Task, name: str, batch: Batch) -> list[bool]:
    return task.references[name](batch, Options(**task.options)).tolist()


@pytest.mark.parametrize(
    ("name", "options"), [("recall", {"pairs": 4, "alphabet": 8}), ("mqar", {"vocabulary": 64})]
)
def test_value_references_count_what_stood_before_the_question(
    name: str, options: dict[str, int]
) -> None:
    """Against a loop over each sequence."""
    task = get_task(name, options)
    batch = task.batch("test", 0, 0, 16, 64)
    size = 8 if name == "recall" else 32
    values = range(size, 2 * size)
    last, commonest = [], []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        for position, target in enumerate(targets):
            if target >= 0:
                seen = [token for token in tokens[: position + 1] if token in values]
                last.append(seen[-1] == target)
                most = max(Counter(seen).values())
                commonest.append((min(v for v in seen if seen.count(v) == most)) == target)
    assert reference(task, "last value", batch) == last
    assert reference(task, "commonest value in sight", batch) == commonest


def test_the_sighted_floor_of_recall_is_far_above_a_constant_answer() -> None:
    """With 4 values of 8, naming the commonest is right at 0.41, a constant at 0.125."""
    task = get_task("recall", {"pairs": 4, "alphabet": 8, "questions": 8})
    right: list[bool] = []
    for index in range(32):
        right += reference(task, "commonest value in sight", task.batch("test", 0, index, 32, 276))
    # Of four values drawn from eight, the largest count over four is known by enumeration.
    counts = [max(Counter(drawn).values()) for drawn in np.ndindex(8, 8, 8, 8)]
    expected = sum(counts) / len(counts) / 4
    assert expected == pytest.approx(0.41, abs=0.01)
    assert sum(right) / len(right) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_an_ngram_is_its_formula(order: int) -> None:
    """Against counts of strings, byte after byte; each prediction is a distribution."""
    text = b"abracadabra, abracadabra; a cadaver and a bra" * 2
    model = NGram(np.frombuffer(text, dtype=np.uint8), order)

    def probability(context: bytes, byte: int) -> float:
        share = 1 / 256
        for size in range(order):
            if size > len(context):
                break
            suffix = context[len(context) - size :]
            followers = [
                text[i + size] for i in range(len(text) - size) if text[i : i + size] == suffix
            ]
            if followers:
                distinct = len(set(followers))
                share = (followers.count(byte) + distinct * share) / (len(followers) + distinct)
        return share

    scored_text = b"abba cadabra"
    tokens = torch.tensor([list(scored_text[:-1])])
    targets = torch.tensor([list(scored_text[1:])])
    expected = [
        -log(probability(scored_text[:i], scored_text[i])) for i in range(1, len(scored_text))
    ]
    assert model.losses(Batch(tokens, targets)).tolist() == pytest.approx(expected)
    total = sum(
        float((-model.losses(Batch(tokens[:, :4], torch.tensor([[-100, -100, -100, byte]])))).exp())
        for byte in range(256)
    )
    assert total == pytest.approx(1.0)


def test_counting_a_quarter_of_the_input_is_not_enough_for_the_majority() -> None:
    task = get_task("majority", {"margin": 0})
    batch = task.batch("test", 0, 0, 64, 256)
    right = reference(task, "commonest of the last quarter", batch)
    expected = []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        for position, target in enumerate(targets):
            if target != IGNORE:
                seen = tokens[position - 63 : position + 1]
                counts = [seen.count(symbol) for symbol in range(4)]
                expected.append(counts.index(max(counts)) == target)
    assert right == expected
    assert 0.4 < np.mean(right) < 0.55
