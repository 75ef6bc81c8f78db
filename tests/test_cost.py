"""Memory is counted right, times are summed up right, and every phase is measured."""

import statistics

import pytest
import torch
from torch import nn

from benchmarks import cost as cost_module
from benchmarks.cost import cost, out_of_memory, summary
from benchmarks.memory import LiveBytes, alive_in
from benchmarks.record import Cell
from models.model import build_model, parameter_count
from tasks.task import get_task

FLOAT = 4


def test_live_bytes_of_a_life_known_by_hand() -> None:
    with LiveBytes() as count:
        a = torch.ones(1000)
        b = a + 1
        assert count.now == 2000 * FLOAT
        del a
        assert count.now == 1000 * FLOAT
        c = b.view(10, 100)  # no storage of its own
        d = torch.empty(500)
        assert count.now == 1500 * FLOAT
        del b, c, d
        assert count.now == 0
    assert count.peak == 2000 * FLOAT


def test_what_autograd_keeps_is_alive() -> None:
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes([x]) as count:
        y = x.sin().cos()  # cos keeps its input, sin(x), for the backward pass
        assert count.now == 3 * 1000 * FLOAT
        y.sum().backward()
    del y
    assert count.now == 2 * 1000 * FLOAT  # x and its gradient


def test_the_count_agrees_with_another_counter() -> None:
    """torch's own profiler of allocations sees the same peak in a step of a small network."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    x = torch.randn(32, 64)

    def step() -> None:
        net(x).square().mean().backward()
        net.zero_grad(set_to_none=True)

    step()
    with LiveBytes([*net.parameters(), x]) as count:
        before = count.now
        step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert count.peak - before == pytest.approx(peak, rel=0.001)


@pytest.mark.parametrize("model", ["rwkv", "transformer"])
def test_the_same_run_counts_the_same(cell: Cell, model: str) -> None:
    cell = cell.model_copy(update={"kind": "cost", "model": model, "length": 64, "repeats": 2})
    first, again = (cost(cell, get_task("copy"), lambda *_: None) for _ in range(2))
    for name in ("training", "prefill", "decode"):
        assert first.phases[name].peak_bytes == again.phases[name].peak_bytes
    assert first.state_bytes == again.state_bytes


def test_phases_hold_what_they_must(cell: Cell) -> None:
    cell = cell.model_copy(update={"kind": "cost", "length": 64, "repeats": 5})
    numbers = cost(cell, get_task("copy"), lambda *_: None)
    assert set(numbers.phases) == {"training", "prefill", "decode"} and not numbers.failed
    weights = numbers.parameters * FLOAT
    # weights and both moments of Adam live through a step, gradients come on top
    assert numbers.phases["training"].peak_bytes > 4 * weights
    assert weights < numbers.phases["decode"].peak_bytes < numbers.phases["training"].peak_bytes
    assert [numbers.phases[name].tokens for name in ("training", "prefill", "decode")] == [4 * 64, 4 * 64, 4]
    assert all(phase.seconds.n == 5 for phase in numbers.phases.values())


@pytest.mark.parametrize(
    ("model", "constant"), [("rwkv", True), ("rrwkv", True), ("lstm", True), ("transformer", False)]
)
def test_memory_of_decoding_is_constant_where_the_state_is(cell: Cell, model: str, constant: bool) -> None:
    """To the byte: nothing of what was read before is kept alive by a view."""
    cells = [cell.model_copy(update={"kind": "cost", "model": model, "length": n, "repeats": 1}) for n in (64, 1024)]
    short, long = (cost(c, get_task("copy"), lambda *_: None).phases["decode"].peak_bytes for c in cells)
    assert (short == long) == constant


def test_scratch_inside_our_operator_is_counted() -> None:
    """WKV computes in float64 inside: a count that stopped at the operator's door would miss it."""
    from models.wkv import wkv

    w, k = torch.rand(16), torch.randn(2, 64, 16)
    with LiveBytes([w, k]) as count, torch.no_grad():
        wkv(w, w, k, k)
    results = k.numel() + 3 * 2 * 16
    assert count.peak > (w.numel() + k.numel() + results) * FLOAT + k.numel() * FLOAT
    assert "lookback::wkv_tiled" in count.kernels


def test_out_of_memory_is_a_result_of_one_phase(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell.model_copy(update={"kind": "cost", "repeats": 1})

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost_module, "training_step", full)
    numbers = cost(cell, get_task("copy"), lambda *_: None)
    assert numbers.failed == {"training": "oom"} and set(numbers.phases) == {"prefill", "decode"}


def test_the_cpu_allocator_saying_no_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert out_of_memory(error.value)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_summary_is_median_and_quartiles() -> None:
    times = [1.0, 1.1, 1.2, 1.3, 5.0]
    found = summary(times)
    assert found.median == statistics.median(times) and (found.low, found.high) == (1.1, 1.3) and found.n == 5
    assert found.noisy and not summary([1.0, 1.01, 1.02]).noisy and summary([2.0]).median == 2.0


def test_alive_in_holds_weights_and_moments() -> None:
    model = build_model("rwkv", 10, width=16, depth=1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    with LiveBytes(alive_in(model, optimizer)) as count:
        pass
    assert count.peak >= 4 * parameter_count(model) * FLOAT  # weights, gradients, two moments
