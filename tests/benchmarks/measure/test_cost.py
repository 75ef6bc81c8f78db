"""Memory, operations and times are measured correctly, in every phase."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from lookback.benchmarks.measure import cost as cost_module
from lookback.benchmarks.measure import operations
from lookback.benchmarks.measure.cost import cost, out_of_memory, summary
from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.record import Cell, CostCell, CostNumbers, Job, Outcome
from lookback.models.model import build_model, parameter_count
from lookback.tasks.task import get_task
from tests.records import as_cost

FLOAT = 4
ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "tests" / "plugin_models.py"


def measure_in_process(
    cell: CostCell, folder: Path, threads: int = 1, data_limit: int = 0
) -> CostNumbers:
    """Measure a cell in a new process, as the runner does, perhaps with limited memory (bytes)."""
    command = [sys.executable, "-m", "lookback.benchmarks.measure", str(folder / "job.json")]
    reader, writer = os.pipe()
    job = Job(
        cell=cell,
        plugins=(PLUGIN,),
        folder=folder,
        outcome=folder / "outcome.json",
        progress=writer,
        parent=os.getpid(),
        threads=threads,
    )
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(job.model_dump_json())
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[writer])
    if data_limit:
        _, maximum = resource.prlimit(process.pid, resource.RLIMIT_DATA)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (data_limit, maximum))
    assert process.wait() == 0
    os.close(reader)
    os.close(writer)

    outcome = Outcome.model_validate_json((folder / "outcome.json").read_bytes())
    assert outcome.cost is not None
    assert outcome.status == next(iter(outcome.cost.failed.values()), "ok")
    return outcome.cost


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
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert count.peak - before == pytest.approx(peak, rel=0.001)


@pytest.mark.parametrize("model", ["rwkv", "transformer"])
def test_the_same_run_counts_the_same(cell: Cell, model: str) -> None:
    cell = as_cost(cell, {"model": model, "length": 64, "repeats": 2})
    first, again = (cost(cell, get_task("copy"), lambda *_: None) for _ in range(2))
    for name in ("training", "prefill", "decode"):
        assert first.phases[name].peak_bytes == again.phases[name].peak_bytes
    assert first.state_bytes == again.state_bytes


def test_phases_hold_what_they_must(cell: Cell) -> None:
    cell = as_cost(cell, {"length": 64, "repeats": 5})
    numbers = cost(cell, get_task("copy"), lambda *_: None)
    assert set(numbers.phases) == {"training", "prefill", "decode"} and not numbers.failed
    weights = numbers.parameters * FLOAT
    # weights and both moments of Adam live through a step, gradients come on top
    assert numbers.phases["training"].peak_bytes > 4 * weights
    assert weights < numbers.phases["decode"].peak_bytes < numbers.phases["training"].peak_bytes
    assert [numbers.phases[name].tokens for name in ("training", "prefill", "decode")] == [
        4 * 64,
        4 * 64,
        4,
    ]
    assert all(phase.seconds.n == 5 for phase in numbers.phases.values())


@pytest.mark.parametrize(
    ("model", "constant"), [("rwkv", True), ("rrwkv", True), ("lstm", True), ("transformer", False)]
)
def test_memory_of_decoding_is_constant_where_the_state_is(
    cell: Cell, model: str, constant: bool
) -> None:
    """To the byte: no view keeps the prompt alive."""
    cells = [as_cost(cell, {"model": model, "length": n, "repeats": 1}) for n in (64, 512)]
    short, long = (
        cost(c, get_task("copy"), lambda *_: None).phases["decode"].peak_bytes for c in cells
    )
    assert (short == long) == constant


def test_scratch_inside_our_operator_is_counted() -> None:
    """WKV computes in float64 inside, which a count of inputs and outputs would miss."""
    from lookback.models.wkv import wkv

    w, k = torch.rand(16), torch.randn(2, 64, 16)
    with LiveBytes([w, k]) as count, torch.no_grad():
        wkv(w, w, k, k)
    results = k.numel() + 3 * 2 * 16
    assert count.peak > (w.numel() + k.numel() + results) * FLOAT + k.numel() * FLOAT
    assert "lookback::wkv_tiled" in count.kernels


def test_out_of_memory_is_a_result_of_one_phase(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = as_cost(cell, {"repeats": 1})

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost_module, "training_step", full)
    numbers = cost(cell, get_task("copy"), lambda *_: None)
    assert numbers.failed == {"training": "oom"} and set(numbers.phases) == {"prefill", "decode"}


def test_a_machine_that_is_full_is_a_result_of_one_phase(cell: Cell, tmp_path: Path) -> None:
    """Two matrices of length x length do not fit into 640 MB; prefill, in steps, does."""
    cell = as_cost(cell, {"model": "all-to-all", "length": 8192, "batch_size": 1})
    numbers = measure_in_process(
        cell.model_copy(update={"repeats": 1, "width": 4}), tmp_path, data_limit=5 << 27
    )
    assert numbers.failed == {"training": "oom"} and set(numbers.phases) == {"prefill", "decode"}


def test_a_phase_that_does_not_end_leaves_time_for_the_others(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_module, "training_step", lambda *_: time.sleep(3600))
    cell = as_cost(cell, {"repeats": 1, "time_limit": 8.0})
    numbers = cost(cell, get_task("copy"), lambda *_: None)
    assert numbers.failed == {"training": "timeout"} and set(numbers.phases) == {
        "prefill",
        "decode",
    }


def test_long_repeats_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "TIMING_SECONDS", 0.02)
    slow, quick = lambda: time.sleep(0.01), lambda: None
    slow_work = cost_module.Workload(slow, slow, [], 1)
    quick_work = cost_module.Workload(quick, quick, [], 1)
    assert len(cost_module._time_cpu(slow_work, 20)) == cost_module.MIN_REPEATS
    assert len(cost_module._time_cpu(slow_work, 2)) == 2
    assert len(cost_module._time_cpu(quick_work, 20)) == 20


def test_compiled_cells_compile_prefill_and_step_too(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", watched)
    cell = as_cost(cell, {"repeats": 1, "depth": 2})
    model = build_model("rwkv", 10, width=16, depth=2)
    monkeypatch.setattr(cost_module, "make_model", lambda *_: model)
    assert not cost(cell, get_task("copy"), lambda *_: None).failed and compiled == []
    assert not cost(
        cell.model_copy(update={"compile": True}), get_task("copy"), lambda *_: None
    ).failed
    assert compiled == ["prefill", "step"] * 2


def expected_flops(
    model: str, width: int, depth: int, length: int, context: int
) -> tuple[int, int, int]:
    """Of a training step, prefill and decode of one sequence: two for each weight, position and
    pass, and the mixing.

    RWKV's paper has 2 (2 vocabulary width + 13 width^2 depth) a token; looking up an embedding
    costs nothing here.
    """
    block, head = 2 * 13 * width**2, 2 * 256 * width
    if model == "rrwkv":
        block += 2 * width**2  # the gate
    per_token, mixing, backward, decoding = length * block, 0, 0, 0
    if model == "transformer":
        # Scores and sums over the positions up to each; on the way back five products, not two.
        pairs = length * (length + 1) // 2
        mixing, backward, decoding = 4 * pairs * width, 10 * pairs * width, 4 * context * width
    if model in ("rwkv", "rrwkv"):
        mixing, backward = 12 * length * width, 36 * length * width
    if model == "rrwkv":  # mediums: a key and a value, and WKV over them
        mediums = length // 16
        per_token += mediums * 2 * 2 * width**2
        mixing, backward = mixing + 12 * mediums * width, backward + 36 * mediums * width
    training = depth * (3 * per_token + mixing + backward) + 3 * length * head
    return training, depth * (per_token + mixing) + head, depth * (block + decoding) + head


@pytest.mark.parametrize("model", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_operations_are_those_of_the_formulas(cell: Cell, model: str) -> None:
    sizes = {"width": 32, "depth": 2, "length": 72, "batch_size": 1}
    cell = as_cost(cell, {"task": "python", "model": model, "repeats": 1, **sizes})
    phases = cost(cell, get_task("python"), lambda *_: None).phases
    training, prefill, decode = expected_flops(
        model, 32, 2, 72, 72 + 3
    )  # the third token is the one counted
    assert (phases["training"].flops, phases["prefill"].flops) == (training, prefill)
    assert phases["decode"].flops == decode


def test_attention_is_counted_by_the_argument_that_makes_it_causal() -> None:
    for operator, place in {**operations.FORWARD, **operations.BACKWARD}.items():
        assert operator.default._schema.arguments[place].name == "is_causal"


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_causal_kernel_computes_half_of_the_pairs(is_causal: bool) -> None:
    batch, heads, length, width = 2, 3, 10, 8
    tensors = [torch.rand(batch, heads, length, width, requires_grad=True) for _ in range(3)]
    with operations.counter() as counted:
        scaled_dot_product_attention(*tensors, is_causal=is_causal).sum().backward()
    pairs = sum(t + 1 if is_causal else length for t in range(length))
    assert counted.get_total_flops() == (2 + 5) * 2 * batch * heads * pairs * width


def test_fresh_processes_and_other_threads_count_the_same(cell: Cell, tmp_path: Path) -> None:
    cell = as_cost(cell, {"model": "rrwkv", "length": 40, "repeats": 2, "generate": True})
    first, again = (
        measure_in_process(cell, tmp_path / str(threads), threads) for threads in (1, 2)
    )
    for name in ("training", "prefill", "decode"):
        counted = [(run.phases[name].peak_bytes, run.phases[name].flops) for run in (first, again)]
        assert counted[0] == counted[1], name
    assert first.state_bytes == again.state_bytes
    points = [
        [(p.tokens, p.state_bytes, p.alive_bytes) for p in run.generation] for run in (first, again)
    ]
    assert points[0] == points[1]


def test_an_error_of_the_cpu_allocator_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert out_of_memory(error.value)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not out_of_memory(RuntimeError("cache slot out of memory table range"))
    assert not out_of_memory(ValueError("the map ran out of memory"))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: out of memory\nCUDA kernel errors might be reported later",
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "Triton Error [CUDA]: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_messages_of_gpu_libraries_are_out_of_memory(message: str) -> None:
    assert out_of_memory(RuntimeError(message))


def test_cudnn_attention_is_off_while_lengths_change(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles a graph for every length, and decoding makes the context longer."""
    enabled = {}
    for phase in ("training", "prefill", "decode"):
        measure = getattr(cost_module, f"measure_{phase}")

        def watched(*arguments: Any, phase: str = phase, measure: Any = measure) -> Any:
            enabled[phase] = torch.backends.cuda.cudnn_sdp_enabled()
            return measure(*arguments)

        monkeypatch.setattr(cost_module, f"measure_{phase}", watched)
    cost(as_cost(cell, {"repeats": 1}), get_task("copy"), lambda *_: None)
    assert enabled == {"training": True, "prefill": True, "decode": False}


def test_summary_is_median_and_quartiles() -> None:
    times = [1.0, 1.1, 1.2, 1.3, 5.0]
    found = summary(times)
    assert (
        found.median == statistics.median(times)
        and (found.low, found.high) == (1.1, 1.3)
        and found.n == 5
    )
    assert found.noisy and not summary([1.0, 1.01, 1.02]).noisy and summary([2.0]).median == 2.0
    assert not summary([0.952, 1.0, 1.048]).noisy  # quartiles 0.976 and 1.024
    assert summary([0.89, 1.0, 1.11]).noisy  # quartiles 0.945 and 1.055
    assert (
        summary([1.0, 1.0, 1.0], drift=0.11).noisy
        and not summary([1.0, 1.0, 1.0], drift=0.09).noisy
    )


@pytest.mark.parametrize(("after", "noisy"), [(1.05, False), (1.3, True), (0.7, True)])
def test_a_change_of_speed_during_a_phase_is_noisy(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, after: float, noisy: bool
) -> None:
    seconds = iter([1.0, after] * 3)
    monkeypatch.setattr(cost_module, "reference_workload_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(cost_module, "_time_cpu", lambda work, repeats: [1.0] * 5)
    phases = cost(as_cost(cell), get_task("copy"), lambda *_: None).phases
    assert [phase.seconds.noisy for phase in phases.values()] == [noisy] * 3
    assert all(
        phase.reference_seconds == pytest.approx((1 + after) / 2) for phase in phases.values()
    )


def test_the_speed_of_a_matrix_product_is_that_of_its_multiplications(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of matrices of side n takes 2 n^3 operations, counted by torch."""
    side = cost_module.MATMUL_SIDE["cpu"]
    with FlopCounterMode(display=False) as counted:
        torch.ones(side, side) @ torch.ones(side, side)
    monkeypatch.setattr(cost_module, "_time_cpu", lambda work, repeats: [0.5, 9.0, 0.25])
    numbers = cost(as_cost(cell), get_task("copy"), lambda *_: None)
    assert numbers.matmul_flops_per_second == counted.get_total_flops() / 0.5


def test_alive_in_holds_weights_and_moments() -> None:
    model = build_model("rwkv", 10, width=16, depth=1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    with LiveBytes(alive_in(model, optimizer)) as count:
        pass
    assert count.peak >= 4 * parameter_count(model) * FLOAT  # weights, gradients, two moments
