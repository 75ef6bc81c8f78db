"""WKV's kernels against the oracle: compiled on a GPU, or in Triton's interpreter.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and other tests import it
without. So on a machine without a GPU, the tests of the arithmetic are skipped at first, and
`test_in_the_interpreter` runs this file again in a process with that setting.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lookback.models.wkv import WKVState, resolve_backend, triton, wkv
from tests.models.test_wkv import (
    EXTREME,
    assert_below,
    extreme_inputs,
    random_grads,
    small_tensors,
    worst_errors,
)
from tests.models.test_wkv_oracle import random_inputs

pytest.importorskip("triton")

ORDINARY, HALF = 1e-5, 2e-2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
arithmetic = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.interpreted(),
    reason="no GPU: runs inside test_in_the_interpreter",
)
on_gpu = (pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="no GPU"))
compiled = pytest.mark.skipif(triton.interpreted(), reason="the interpreter compiles nothing")


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of 4 positions, so that a short sequence has many, and a second group in the scan."""

    def plan(batch_size: int, length: int, channels: int) -> triton.Plan:
        return triton.Plan(chunk=4, unroll=2, sub=2, block=4, chunks=-(-length // 4))

    monkeypatch.setattr(triton, "plan", plan)
    yield


@pytest.mark.skipif(
    DEVICE == "cuda" or triton.interpreted(), reason="the tests below run as they are"
)
def test_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
        "--durations=8",
        __file__,
    ]
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


@arithmetic
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 3), (3, 7, 5), (1, 31, 33), (2, 33, 70), (1, 100, 3)]
)
def test_triton_equals_the_oracle(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(sum(shape))
    inputs = random_inputs(generator, *shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "triton"), ORDINARY)


@arithmetic
@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 5, 5), (1, 68, 3), (1, 71, 3)])
def test_many_chunks(shape: tuple[int, int, int], short_chunks: None) -> None:
    generator = np.random.default_rng(sum(shape))
    inputs = random_inputs(generator, *shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "triton"), ORDINARY)


@arithmetic
def test_random_shape() -> None:
    generator = np.random.default_rng()
    shape = tuple(int(generator.integers(1, top)) for top in (3, 40, 30))
    inputs = random_inputs(generator, *shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "triton"), ORDINARY)


@arithmetic
@pytest.mark.parametrize("length", [100, pytest.param(65536, marks=on_gpu)])
def test_triton_survives_extremes(length: int) -> None:
    generator = np.random.default_rng(3)
    inputs = extreme_inputs(generator, (1, length, 64))
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "triton"), EXTREME)


@arithmetic
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Outputs are rounded once, when they are written: compared with the same inputs in float64."""
    w, u, k, v = (x.detach().to(DEVICE) for x in small_tensors((1, 24, 8)))
    k, v = (x.to(dtype).requires_grad_() for x in (k, v))
    y, state = wkv(w, u, k, v, backend="triton")
    exact_k, exact_v = (x.detach().double().requires_grad_() for x in (k, v))
    exact, _ = wkv(w, u, exact_k, exact_v, backend="reference")
    assert y.dtype == dtype and state.numerator.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=HALF, atol=HALF)
    grads = torch.autograd.grad(y.square().sum(), (k, v))
    for grad, expected in zip(
        grads, torch.autograd.grad(exact.square().sum(), (exact_k, exact_v)), strict=True
    ):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), expected, rtol=HALF, atol=HALF)


@arithmetic
@pytest.mark.parametrize("cut", [1, 10])
def test_state_continues_a_sequence(cut: int, short_chunks: None) -> None:
    """Also in the gradients, which reach the first half only through the state."""
    w, u, k, v = tensors = [
        x.detach().to(DEVICE).requires_grad_() for x in small_tensors((1, 18, 3))
    ]
    whole, last = wkv(w, u, k, v, backend="triton")
    first, middle = wkv(w, u, k[:, :cut], v[:, :cut], backend="triton")
    second, end = wkv(w, u, k[:, cut:], v[:, cut:], middle, backend="triton")
    joined = torch.cat((first, second), dim=1)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(end, last)
    grads = torch.autograd.grad(joined.square().sum(), tensors)
    torch.testing.assert_close(
        grads, torch.autograd.grad(whole.square().sum(), tensors), rtol=1e-5, atol=1e-5
    )


@arithmetic
def test_triton_is_deterministic(short_chunks: None) -> None:
    tensors = [x.detach().to(DEVICE).requires_grad_() for x in small_tensors((2, 10, 3))]

    def run() -> tuple[Tensor, ...]:
        y, _ = wkv(*tensors, backend="triton")
        return y, *torch.autograd.grad(y.square().sum(), tensors)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@arithmetic
def test_keys_of_minus_infinity_add_nothing() -> None:
    """They mask positions. (The first position must have a finite key.)"""
    w, u, k, v = (x.detach().to(DEVICE) for x in small_tensors((1, 9, 3)))
    k[:, 4] = float("-inf")
    y, _ = wkv(w, u, k, v, backend="triton")
    expected, _ = wkv(w, u, k, v, backend="reference")
    torch.testing.assert_close(y, expected)


@arithmetic
@pytest.mark.parametrize("has_state", [True, False])
def test_registered_operator(has_state: bool) -> None:
    tensors = [x.detach().to(DEVICE).requires_grad_() for x in small_tensors((2, 3, 4))]
    state = [
        torch.rand(2, 4, device=DEVICE, requires_grad=True) if has_state else None for _ in range(3)
    ]
    tests = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    )
    torch.library.opcheck(triton.forward, (*tensors, *state), test_utils=tests)


def test_counted_without_a_gpu() -> None:
    """A dry run of a GPU's work without one; backward is called by hand, as autograd needs CUDA."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        w, u = (torch.rand(8, device="cuda") for _ in range(2))
        k, v = (torch.rand(2, 100, 8, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        assert resolve_backend("auto", k) == "triton"
        y, state = wkv(w, u, k, v)
        grads = triton.backward(
            y,
            None,
            None,
            w,
            u,
            k,
            v,
            None,
            None,
            None,
            state.exponent,
            torch.rand(3, device="cuda"),
        )
    assert (y.dtype, state.exponent.dtype) == (torch.bfloat16, torch.float32)
    assert [grad.dtype for grad in grads[:4]] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
    assert counter.get_total_flops() == 2 * 100 * 8 * (triton.FORWARD_FLOPS + triton.BACKWARD_FLOPS)


@compiled
@pytest.mark.parametrize(
    "name",
    ["summaries", "carry_forward", "outputs", "adjoint_summaries", "carry_backward", "gradients"],
)
def test_kernels_compile_for_hopper(name: str) -> None:
    """The interpreter compiles nothing, and compiling needs no GPU."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lookback.models.wkv import backward_kernels, forward_kernels

    module = forward_kernels if hasattr(forward_kernels, name) else backward_kernels
    kernel = getattr(module, name)
    constants = {
        "CHANNELS": 100,
        "BLOCK": 64,
        "CHUNK": 32,
        "UNROLL": 8,
        "SUB": 8,
        "GROUPS": 2,
        "GROUP": 16,
    }
    constants |= {"CARRIED": True, "STATE": True, "FULL": False}
    half = {"k_ptr", "v_ptr", "y_ptr", "grad_y_ptr", "grad_k_ptr", "grad_v_ptr"}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in half:
            signature[argument] = "*bf16"
        else:
            signature[argument] = "*fp32" if argument.endswith("_ptr") else "i32"
    used = {x: value for x, value in constants.items() if x in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=used)
    assert compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm[
        "cubin"
    ]


def test_triton_requires_a_gpu() -> None:
    with pytest.raises(ValueError, match="expected CUDA tensors, got meta"):
        resolve_backend("triton", torch.zeros(1, 1, 1, device="meta"))
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        resolve_backend("triton", torch.zeros(1, 1, 1, dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
@pytest.mark.parametrize("shape", [(8, 1000, 768), (1, 20000, 100), (64, 64, 256)])
def test_triton_equals_tiled_at_full_size(shape: tuple[int, int, int]) -> None:
    """At sizes where `plan` takes longer chunks; the CPU form is compared with the oracle above."""
    tensors = [x.detach().requires_grad_() for x in small_tensors(shape)]
    moved = [x.detach().to(DEVICE).requires_grad_() for x in tensors]
    (expected, state), (y, after) = wkv(*tensors), wkv(*moved)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(WKVState(*(x.cpu() for x in after)), state, rtol=1e-4, atol=1e-5)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad((y * weights.to(DEVICE)).sum(), moved)
    for grad, exact in zip(
        grads, torch.autograd.grad((expected * weights).sum(), tensors), strict=True
    ):
        assert float((grad.cpu() - exact).abs().max() / exact.abs().max()) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_autocast_and_compile() -> None:
    w, u, k, v = (x.detach().to(DEVICE).requires_grad_() for x in small_tensors((2, 300, 64)))
    project = torch.nn.Linear(64, 64, device=DEVICE)

    def loss(k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            y, _ = wkv(w, u, project(k), project(v))
        assert y.dtype == torch.bfloat16
        return y.float().square().mean()

    torch.testing.assert_close(
        torch.compile(loss, fullgraph=True)(k, v), loss(k, v), rtol=HALF, atol=HALF
    )
