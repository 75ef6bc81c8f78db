"""WKV on the CPU: every implementation against the oracle, and the contract of `wkv`."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lookback.models.wkv import WKVState, empty_state, resolve_backend, tiled, wkv, wkv_step
from tests.models.test_wkv_oracle import (
    INPUTS,
    OUTPUTS,
    Array,
    Arrays,
    oracle,
    random_inputs,
    raw_grads,
)

ORDINARY, EXTREME = 1e-6, 5e-5  # largest relative error of y and of any gradient
UNDERFLOW = 1e-30  # smaller true gradients count as 0
SHAPES = [
    (1, 1, 1),
    (1, 2, 3),
    (3, 7, 5),
    (2, 64, 33),
    (1, 257, 5),
    (2, 1000, 9),
    (5, 130, 301),
    (7, 1, 3),
    (3, 33, 1),
]


def as_float32(arrays: Arrays) -> Arrays:
    """Rounds to float32, so that the oracle and the operator receive the same numbers."""
    return {name: x.astype(np.float32).astype(float) for name, x in arrays.items()}


def run_wkv(inputs: Arrays, grads: Arrays, backend: str) -> tuple[Arrays, Arrays]:
    """Returns the outputs of `wkv` in float32, and the gradients of all inputs.

    The outputs are y, the mean of the values so far, and the logarithm of their total weight: the
    state in a form that does not depend on its choice of exponent.
    """
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    tensors = [
        torch.tensor(inputs[name], dtype=torch.float32, device=device, requires_grad=True)
        for name in INPUTS
    ]
    y, state = wkv(*tensors[:4], WKVState(*tensors[4:]), backend=backend)
    outputs = {
        "y": y,
        "mean": state.numerator / state.denominator,
        "mass": state.denominator.log() + state.exponent,
    }
    upstream = [torch.tensor(grads[name], dtype=torch.float32, device=device) for name in outputs]
    gradients = torch.autograd.grad(tuple(outputs.values()), tensors, upstream)
    named = {name: x.cpu().numpy() for name, x in zip(INPUTS, gradients, strict=True)}
    return {name: x.detach().cpu().numpy() for name, x in outputs.items()}, named


def run_oracle(inputs: Arrays, grads: Arrays) -> tuple[Arrays, Arrays, Arrays]:
    """Returns the same from the oracle, and the sizes of the summands of its gradients."""
    outputs, differentiate = oracle(inputs)
    a, b, p = (outputs[name] for name in OUTPUTS[1:])
    grad_sums = {
        "numerator": grads["mean"] / b,
        "denominator": (grads["mass"] - grads["mean"] * a / b) / b,
    }
    gradients, _ = differentiate({"y": grads["y"], **grad_sums, "exponent": grads["mass"]})
    # its two summands cancel as well
    grad_sums["denominator"] = (np.abs(grads["mass"]) + np.abs(grads["mean"] * a / b)) / b
    _, sizes = differentiate({"y": grads["y"], **grad_sums, "exponent": grads["mass"]})
    return {"y": outputs["y"], "mean": a / b, "mass": np.log(b) + p}, gradients, sizes


def error(measured: Array, expected: Array, size: Array | None = None) -> float:
    """Largest error, relative to the largest entry of the same channel of `size` or `expected`."""
    size = np.abs(expected if size is None else size)
    size = size.max(axis=tuple(range(size.ndim - 1)))
    return float((np.abs(measured - expected) / (size + UNDERFLOW)).max())


def worst_errors(inputs: Arrays, grads: Arrays, backend: str) -> dict[str, float]:
    """Returns the error of every output and gradient in float32."""
    inputs, grads = as_float32(inputs), as_float32(grads)
    outputs, gradients = run_wkv(inputs, grads, backend)
    expected, expected_gradients, sizes = run_oracle(inputs, grads)
    averaged = np.concatenate(
        (inputs["v"], (inputs["numerator"] / inputs["denominator"])[:, None]), axis=1
    )
    output_sizes = {"mean": averaged, "mass": np.maximum(1, np.abs(expected["mass"]))}
    errors = {
        name: error(outputs[name], expected[name], output_sizes.get(name)) for name in outputs
    }
    for name in INPUTS:
        errors[f"grad {name}"] = error(gradients[name], expected_gradients[name], sizes[name])
    return errors


def random_grads(generator: np.random.Generator, inputs: Arrays) -> Arrays:
    """Gradients of the outputs of `run_wkv`."""
    grads = raw_grads(generator, inputs)
    return {"y": grads["y"], "mean": grads["numerator"], "mass": grads["denominator"]}


def assert_below(errors: dict[str, float], bar: float) -> None:
    too_large = {name: f"{x:.1e}" for name, x in errors.items() if not x <= bar}
    assert not too_large, f"errors above {bar:.0e}: {too_large}"


def extreme_inputs(
    generator: np.random.Generator, shape: tuple[int, int, int], largest_key: float = 60
) -> Arrays:
    """Inputs with keys up to +-60 and decay rates from 1e-6 to 148."""
    decays = np.exp(generator.uniform(math.log(1e-6), math.log(148), shape[2]))
    decays[0], decays[-1] = 1e-6, 148
    keys = generator.uniform(-largest_key, largest_key, shape)
    return random_inputs(generator, *shape) | {"w": decays, "k": keys}


def small_tensors(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Returns w, u, k, v, all requiring gradients."""
    inputs = random_inputs(np.random.default_rng(seed), *shape)
    return [
        torch.tensor(inputs[name], dtype=dtype, requires_grad=True) for name in ("w", "u", "k", "v")
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_tiled_equals_the_oracle(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(sum(shape))
    inputs = random_inputs(generator, *shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "tiled"), ORDINARY)


@pytest.mark.parametrize("shape", SHAPES)
def test_tiled_gradients_entry_by_entry(shape: tuple[int, int, int]) -> None:
    """Without a float32 state in between, even small differences of large summands are exact."""
    generator = np.random.default_rng(sum(shape))
    inputs = as_float32(random_inputs(generator, *shape))
    grads = as_float32(random_grads(generator, inputs))
    grads |= {name: 0 * grads[name] for name in ("mean", "mass")}
    _, gradients = run_wkv(inputs, grads, "tiled")
    _, expected, _ = run_oracle(inputs, grads)
    for name in INPUTS:
        np.testing.assert_allclose(
            gradients[name], expected[name].astype(float), rtol=ORDINARY, atol=1e-12
        )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch_size=st.integers(1, 4),
    length=st.integers(1, 150),
    channels=st.integers(1, 40),
)
def test_tiled_equals_the_oracle_on_random_shapes(
    seed: int, batch_size: int, length: int, channels: int
) -> None:
    generator = np.random.default_rng(seed)
    inputs = random_inputs(generator, batch_size, length, channels)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "tiled"), ORDINARY)


@pytest.mark.parametrize("shape", [(2, 500, 9), (1, 65536, 3)])
def test_tiled_survives_extremes(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(3)
    inputs = extreme_inputs(generator, shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "tiled"), EXTREME)


def test_float64_stays_float64() -> None:
    """And any use of the outgoing state has the right gradient, even of its exponent alone."""
    generator = np.random.default_rng(4)
    inputs = random_inputs(generator, 2, 40, 5)
    grads = raw_grads(generator, inputs)
    expected, differentiate = oracle(inputs)
    tensors = [torch.tensor(inputs[name], requires_grad=True) for name in INPUTS]
    y, state = wkv(*tensors[:4], WKVState(*tensors[4:]))
    outputs = (y, *state)
    gradients = torch.autograd.grad(
        outputs, tensors, [torch.tensor(grads[name]) for name in OUTPUTS]
    )
    for name, x in zip(OUTPUTS, outputs, strict=True):
        assert error(x.detach().numpy(), expected[name]) < 1e-13
    for name, x in zip(INPUTS, gradients, strict=True):
        assert error(x.numpy(), differentiate(grads)[0][name]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    generator = np.random.default_rng(5)
    inputs = random_inputs(generator, 2, 50, 8)
    w, u = (torch.tensor(inputs[name], dtype=torch.float32) for name in ("w", "u"))
    k, v = (torch.tensor(inputs[name]).to(dtype).requires_grad_() for name in ("k", "v"))
    y, state = wkv(w, u, k, v, backend=backend)
    exact, _ = wkv(w, u, k.double(), v.double(), backend="reference")
    assert y.dtype == dtype
    assert all(part.dtype == torch.float32 for part in state)
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)
    assert all(grad.dtype == dtype for grad in torch.autograd.grad(y.sum(), (k, v)))


@pytest.mark.parametrize("spread", [280, 320])
def test_both_sides_of_the_range_check(spread: float) -> None:
    """Keys whose exponentials float64 just holds, around 0 and around 5000, and keys beyond."""
    for centre in (0, 5000):
        generator = np.random.default_rng(6)
        inputs = extreme_inputs(generator, (2, 300, 5), spread) | {"u": generator.uniform(-1, 1, 5)}
        inputs["k"][0, :2, 0] = spread, -spread
        inputs["k"] += centre
        inputs["exponent"] += centre
        keys, rates = (torch.tensor(inputs[name], dtype=torch.float32) for name in ("k", "w"))
        bonus, exponent = (
            torch.tensor(inputs[name], dtype=torch.float32) for name in ("u", "exponent")
        )
        assert math.isnan(tiled.linear_shift(rates, bonus, keys, exponent)) == (spread > 300)
        assert_below(worst_errors(inputs, random_grads(generator, inputs), "tiled"), EXTREME)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_space_equals_the_oracle(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "LARGEST_EXPONENT", -1.0)  # nothing fits
    generator = np.random.default_rng(sum(shape))
    inputs = random_inputs(generator, *shape)
    assert_below(worst_errors(inputs, random_grads(generator, inputs), "tiled"), ORDINARY)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_first_output_is_the_first_value(backend: str) -> None:
    w, u, k, v = small_tensors((2, 3, 4))
    y, _ = wkv(w, u, 50 * k, v, backend=backend)
    torch.testing.assert_close(y[:, 0], v[:, 0])


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("cut", [1, 17, 59])
def test_state_continues_a_sequence(backend: str, cut: int) -> None:
    """Also in the gradients, which reach the first half only through the state."""
    w, u, k, v = tensors = small_tensors((2, 60, 5), torch.float64)
    whole, last = wkv(w, u, k, v, backend=backend)
    first, middle = wkv(w, u, k[:, :cut], v[:, :cut], backend=backend)
    second, end = wkv(w, u, k[:, cut:], v[:, cut:], middle, backend=backend)
    joined = torch.cat((first, second), dim=1)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(end, last)
    weights = torch.randn(
        whole.shape, dtype=whole.dtype, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(
        torch.autograd.grad((joined * weights).sum(), tensors),
        torch.autograd.grad((whole * weights).sum(), tensors),
    )


def test_steps_equal_the_whole_sequence() -> None:
    w, u, k, v = (x.detach() for x in small_tensors((2, 200, 5)))
    whole, last = wkv(w, u, k, v)
    state, outputs = empty_state(2, 5), []
    for t in range(200):
        y, state = wkv_step(w, u, k[:, t], v[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


def test_a_float32_step_does_not_drift() -> None:
    """Neglecting the rounding error of exponent - w would cost 6e-4 here."""
    generator = np.random.default_rng(7)
    inputs = random_inputs(generator, 1, 30000, 16)
    inputs = as_float32(inputs | {"k": generator.uniform(-60, 60, inputs["k"].shape)})
    _, expected = run_wkv_forward(inputs, torch.float64)
    _, state = run_wkv_forward(inputs, torch.float32)
    ratio = state.numerator.double() / state.denominator
    torch.testing.assert_close(
        ratio, expected.numerator / expected.denominator, rtol=EXTREME, atol=EXTREME
    )
    mass = expected.denominator.log() + expected.exponent
    torch.testing.assert_close(
        state.denominator.double().log() + state.exponent, mass, rtol=0, atol=EXTREME
    )


def run_wkv_forward(inputs: Arrays, dtype: torch.dtype) -> tuple[Tensor, WKVState]:
    w, u, k, v, *state = (torch.tensor(inputs[name], dtype=dtype) for name in INPUTS)
    return wkv(
        w, u, k, v, WKVState(*state), backend="reference" if dtype == torch.float32 else "tiled"
    )


def test_reference_gradients() -> None:
    tensors = small_tensors((2, 4, 3), torch.float64)
    state = [
        torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        for i in range(3)
    ]

    def run(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, after = wkv(w, u, k, v, WKVState(*state), backend="reference")
        return y, *after

    assert torch.autograd.gradcheck(run, [*tensors, *(part.requires_grad_() for part in state)])


def test_tiled_is_deterministic() -> None:
    tensors = small_tensors((3, 300, 20))

    def run() -> tuple[Tensor, ...]:
        y, _ = wkv(*tensors)
        return y, *torch.autograd.grad(y.square().sum(), tensors)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_inputs_may_be_views() -> None:
    w, u, k, v = small_tensors((3, 20, 8))
    expected, _ = wkv(w[::2], u[::2], k[..., ::2].contiguous(), v[..., ::2].contiguous())
    torch.testing.assert_close(wkv(w[::2], u[::2], k[..., ::2], v[..., ::2])[0], expected)


@pytest.mark.parametrize("keep", [True, False])
def test_registered_operator(keep: bool) -> None:
    tensors = small_tensors((2, 9, 4))
    state = [part.requires_grad_() for part in empty_state(2, 4)]
    arguments = (*tensors, *state) if keep else tuple(x.detach() for x in (*tensors, *state))
    torch.library.opcheck(tiled.forward, (*arguments, keep))


def test_compiled_in_one_graph() -> None:
    tensors = small_tensors((2, 9, 4))

    def loss(*tensors: Tensor) -> Tensor:
        y, state = wkv(*tensors)
        return y.square().sum() + (state.numerator / state.denominator).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*tensors), tensors),
        torch.autograd.grad(loss(*tensors), tensors),
    )


def test_counted_without_being_computed() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        w, u, k, v = (
            torch.rand(shape, requires_grad=True) for shape in ((4,), (4,), (2, 9, 4), (2, 9, 4))
        )
        y, _ = wkv(w, u, k, v)
        y.sum().backward()
    assert y.shape == v.shape and k.grad is not None and k.grad.shape == k.shape
    assert counter.get_total_flops() == 2 * 9 * 4 * (tiled.FORWARD_FLOPS + tiled.BACKWARD_FLOPS)


def test_inference_saves_nothing() -> None:
    w, u, k, v = (x.detach() for x in small_tensors((2, 9, 4)))
    *_, carries, _ = tiled.forward(w, u, k, v, *empty_state(2, 4), False)
    assert carries.numel() == 0


def test_auto_is_tiled_on_a_cpu() -> None:
    assert resolve_backend("auto", torch.zeros(1, 1, 1)) == "tiled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backend": "cuda"},
            "unknown wkv backend 'cuda'; expected one of auto, reference, tiled, triton",
        ),
        (
            {"k": torch.zeros(3, 4)},
            r"expected k of shape \(batch, length, channels\), none of them 0, got \(3, 4\)",
        ),
        ({"k": torch.zeros(2, 0, 4)}, "none of them 0"),
        ({"v": torch.zeros(2, 3, 5)}, r"expected v of shape \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"w": torch.zeros(1, 4)}, r"expected w of shape \(4,\)"),
        ({"u": torch.zeros(3)}, r"expected u of shape \(4,\)"),
        (
            {"k": torch.zeros(2, 3, 4, dtype=torch.int64)},
            "expected k of a floating dtype, got torch.int64",
        ),
        ({"v": torch.zeros(2, 3, 4, device="meta")}, "expected v on cpu, where k is, got meta"),
        ({"state": empty_state(1, 4)}, r"expected the state's numerator of shape \(2, 4\)"),
        ({"state": empty_state(2, 4, dtype=torch.float64)}, "torch.float32, on cpu, got"),
        ({"state": empty_state(2, 4)[:2]}, "got 2 parts"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "w": torch.zeros(4),
        "u": torch.zeros(4),
        "k": torch.zeros(2, 3, 4),
        "v": torch.zeros(2, 3, 4),
    }
    with pytest.raises(ValueError, match=message):
        wkv(**(arguments | change))


def test_tiled_requires_a_cpu() -> None:
    with pytest.raises(ValueError, match="expected CPU tensors, got meta"):
        resolve_backend("tiled", torch.zeros(1, 1, 1, device="meta"))
