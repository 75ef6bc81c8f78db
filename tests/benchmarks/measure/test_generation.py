"""Generation: what it generates, what it keeps, and that the states of recurrent models do not
grow.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lookback.benchmarks.measure import cost as cost_module
from lookback.benchmarks.measure.cost import cost
from lookback.benchmarks.record import Cell, CostNumbers
from lookback.models.model import build_model, parameter_count
from lookback.models.transformer import CACHE_PAGE
from lookback.tasks.task import get_task

WIDTH, DEPTH, BATCH, LENGTH, FLOAT = 16, 2, 3, 300, 4
FLOATS = {
    "rwkv": 5,
    "rrwkv": 13,
    "lstm": 2,
}  # widths of numbers that each block keeps, see their states


def generated(cell: Cell, model: str) -> CostNumbers:
    sizes = {"width": WIDTH, "depth": DEPTH, "batch_size": BATCH, "length": LENGTH}
    changed = {
        "kind": "cost",
        "task": "python",
        "model": model,
        "repeats": 1,
        "generate": True,
        **sizes,
    }
    return cost(cell.model_copy(update=changed), get_task("python"), lambda *_: None)


@pytest.mark.parametrize("model", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_bytes_are_those_of_the_state(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(cost_module, "GENERATIONS", 1)
    numbers = generated(cell, model)
    points = numbers.generation
    assert not numbers.failed
    assert [p.tokens for p in points] == [1, 2, 4, 8, 16, 32, 64, 128, 256, LENGTH]
    assert all(0 < a.seconds < b.seconds for a, b in pairwise(points))
    for point in points:
        pages = -(-point.tokens // CACHE_PAGE)
        floats = FLOATS.get(model, 2 * CACHE_PAGE * pages) * WIDTH
        assert point.state_bytes == floats * FLOAT * DEPTH * BATCH
    beside = {p.alive_bytes - p.state_bytes for p in points if p.alive_bytes is not None}
    assert len(beside) == 1, "what is alive beside the state never grows"
    assert beside.pop() >= numbers.parameters * FLOAT


def test_it_is_what_reading_everything_again_would_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = build_model("rwkv", 11, width=WIDTH, depth=DEPTH).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    step, seen = model.step, []

    def watched(token: Tensor, state: object) -> object:
        seen.append(token)
        return step(token, state)

    monkeypatch.setattr(model, "step", watched)
    first = torch.tensor([1, 5, 7])
    with torch.no_grad():
        cost_module._generate(model, first, 20, lambda *_: None)
        read = torch.stack(seen, 1)  # (batch, 20)
        assert torch.equal(read[:, 0], first) and len(read.unique()) > 4
        assert torch.equal(model(read).argmax(-1)[:, :-1], read[:, 1:])


def test_generation_that_fails_leaves_the_phases(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost_module, "_generate", full)
    numbers = generated(cell.model_copy(), "lstm")
    assert numbers.failed == {"generation": "oom"} and numbers.generation == ()
    assert set(numbers.phases) == {"training", "prefill", "decode"}
    assert numbers.parameters == parameter_count(build_model("lstm", 256, width=WIDTH, depth=DEPTH))
