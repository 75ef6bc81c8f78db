"""The matrix-state operator, beside the same chunks under plain autograd, and beside WKV-4."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lookback.benchmarks.measure.memory import LiveBytes
from lookback.benchmarks.speed.timing import DEVICE, ON_GPU, measure, parameter_id
from lookback.models.matrix_state import CHUNK, empty_state, matrix_state
from lookback.models.matrix_state.chunked import compute_segment
from lookback.models.wkv import wkv

BATCH = 8
SHAPES = [(4, 64, 256), (4, 64, 1024), (4, 64, 4096), (2, 32, 256), (2, 32, 1024), (2, 32, 4096)]
if ON_GPU:
    SHAPES = [(12, 64, 1024), (12, 64, 4096)]
NAMES = ("lookback", "plain autograd", "wkv")


def operator_inputs(model: str, heads: int, size: int, length: int) -> list[Tensor | None]:
    """Return q, k, v, w, a and b as a model has them, with gradients."""
    shape = (BATCH, length, heads, size)
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, k, v, b = (torch.randn(shape, device=DEVICE, generator=generator) for _ in range(4))
    k = torch.nn.functional.normalize(k, dim=-1)
    decay_shape = shape if model == "rwkv7" else (*shape[:3], 1)
    w = -0.6 * torch.rand(decay_shape, device=DEVICE, generator=generator)
    a = None if model == "mamba2" else -0.5 * k
    inputs = [q, k, v, w, a, 0.5 * b if model == "rwkv7" else None]
    return [None if x is None else x.detach().requires_grad_() for x in inputs]


def operator_call(name: str, model: str, shape: tuple[int, int, int]) -> Callable[[], Any]:
    """Return a forward and backward pass of an operator."""
    inputs: Any = operator_inputs(model, *shape)
    heads, size, _ = shape
    if name == "wkv":
        keys, values = (inputs[i].detach().flatten(2).requires_grad_() for i in (1, 2))
        rate, bonus = (torch.ones(heads * size, device=DEVICE).requires_grad_() for _ in range(2))
        inputs = [rate, bonus, keys, values]

    def run() -> Tensor:
        if name == "wkv":
            return wkv(*inputs)[0]
        if name == "lookback":
            q, k, v, w, a, b = inputs
            return matrix_state(q, k, v, w, a, b, lowest=-0.6)[0]
        state = empty_state(BATCH, heads, size, size, torch.device(DEVICE))
        return compute_segment(inputs, state, CHUNK)[0]

    grad = torch.ones_like(run())
    leaves = [x for x in inputs if x is not None]
    return lambda: torch.autograd.grad(run(), leaves, grad)


@pytest.mark.parametrize("name", NAMES, ids=parameter_id)
@pytest.mark.parametrize("shape", SHAPES, ids=parameter_id)
@pytest.mark.parametrize("model", ["rwkv7", "gated_deltanet", "mamba2"])
def test_matrix_state_operator(
    benchmark: BenchmarkFixture, model: str, shape: tuple[int, int, int], name: str
) -> None:
    """One forward and backward pass, with its peak memory, on one thread."""
    heads, size, length = shape
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call = operator_call(name, model, shape)
        benchmark.group = f"matrix_state as in {model}, {heads} heads of {size}, {BATCH} x {length}"
        benchmark.extra_info |= {
            "section": "operator",
            "name": name,
            "direction": "forward+backward",
            "form": "",
            "shape": [BATCH, length, heads, size],
            "touched_bytes": 9 * 4 * BATCH * length * heads * size,
        }
        measure(benchmark, call)
        with LiveBytes(()) as live:
            call()
        benchmark.extra_info["peak_bytes"] = live.peak
    finally:
        torch.set_num_threads(threads)
