"""Generation yields the most likely tokens, and recurrent states do not grow."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lookback.benchmarks.measure import cost as cost_module
from lookback.benchmarks.measure import generation
from lookback.benchmarks.measure.cost import cost
from lookback.benchmarks.measure.generation import Decoder, _copy, generate
from lookback.benchmarks.record import Cell, CostCell, CostNumbers
from lookback.models.model import build_model, parameter_count
from lookback.models.transformer import CACHE_PAGE
from lookback.tasks.task import get_task
from tests.records import as_cost

WIDTH, DEPTH, BATCH, LENGTH, FLOAT = 16, 2, 3, 300, 4
FLOATS = {"rwkv": 5, "rrwkv": 13, "lstm": 2}  # vectors in the state of one block


def generated(cell: Cell, model: str) -> CostNumbers:
    sizes = {"width": WIDTH, "depth": DEPTH, "batch_size": BATCH, "length": LENGTH}
    changes = {"task": "python", "model": model, "repeats": 1, "generate": True, **sizes}
    return cost(as_cost(cell, changes), get_task("python"), lambda *_: None)


@pytest.mark.parametrize("model", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_bytes_are_those_of_the_state(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(generation, "PASSES", 1)
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


def test_tokens_are_those_of_reading_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
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
        generate(Decoder(model, model.initial_state(3)), first, 20, lambda *_: None)
        read = torch.stack(seen, 1)  # (batch, 20)
        assert torch.equal(read[:, 0], first) and len(read.unique()) > 4
        assert torch.equal(model(read).argmax(-1)[:, :-1], read[:, 1:])


def test_generation_that_fails_leaves_the_phases(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost_module, "measure_generation", full)
    numbers = generated(cell, "lstm")
    assert numbers.failed == {"generation": "oom"} and numbers.generation == ()
    assert set(numbers.phases) == {"training", "prefill", "decode"}
    assert numbers.parameters == parameter_count(build_model("lstm", 256, width=WIDTH, depth=DEPTH))


def cost_cell(cell: Cell, device: str) -> CostCell:
    return as_cost(cell, {"model": "rwkv", "device": device})


def test_no_graph_is_captured_on_a_cpu(cell: Cell) -> None:
    model = build_model("rwkv", 11, width=WIDTH, depth=DEPTH)
    decoder = Decoder(model, model.initial_state(2))
    assert not decoder.capture(torch.zeros(2, dtype=torch.int64), cost_cell(cell, "cpu"))
    assert decoder.graph is None


def test_a_state_with_python_numbers_is_not_captured(cell: Cell) -> None:
    """A number may decide what the next step computes; a graph would not notice its change."""
    model = build_model("rwkv", 11, width=WIDTH, depth=DEPTH)
    decoder = Decoder(model, [*model.initial_state(2), 3])
    assert not decoder.capture(torch.zeros(2, dtype=torch.int64), cost_cell(cell, "cuda"))


def test_copying_a_state_into_itself_keeps_every_value() -> None:
    """A step may shift its state: the new older token is the old newer one, in the same memory."""
    older, newer = torch.zeros(2), torch.ones(2)
    fresh = torch.full((2,), 2.0)
    _copy([newer, fresh], [older, newer])
    assert older.tolist() == [1, 1] and newer.tolist() == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model_name", ["rwkv", "lstm", "transformer", "rrwkv"])
def test_replayed_steps_generate_what_eager_ones_do(cell: Cell, model_name: str) -> None:
    torch.manual_seed(0)
    model = build_model(model_name, 11, width=WIDTH, depth=DEPTH).cuda().eval()
    first = torch.tensor([1, 5, 7], device="cuda")
    tokens: dict[bool, list[Tensor]] = {False: [], True: []}
    for is_captured, outputs in tokens.items():
        with torch.inference_mode():
            decoder = Decoder(model, model.initial_state(3))
        if is_captured and not decoder.capture(first, cost_cell(cell, "cuda")):
            pytest.skip(f"the state of {model_name} does not keep its shapes")
        token = first
        with torch.inference_mode():
            for _ in range(40):
                token = decoder.step(token).argmax(-1)
                outputs.append(token)
    assert torch.equal(torch.stack(tokens[True]), torch.stack(tokens[False]))
