"""The matrix-state operator, against loops over positions written from the papers' equations."""

import gc
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lookback.benchmarks.measure.memory import LiveBytes
from lookback.models.matrix_state import empty_state, matrix_state
from lookback.models.matrix_state.chunked import compute_segment

BATCH, HEADS, KEY, VALUE = 2, 3, 8, 6
LENGTHS = [1, 2, 17, 257, 1000]
Tensors = dict[str, Tensor]


# Each model's published inputs, its recurrence in its own notation, and its call of the operator.


def rwkv7_inputs(length: int, decay: Callable[[tuple[int, ...]], Tensor]) -> Tensors:
    shape = (BATCH, length, HEADS, KEY)
    return {
        "r": torch.randn(shape),
        "w": decay(shape),
        "k": torch.randn(shape),
        "v": torch.randn(BATCH, length, HEADS, VALUE),
        "kappa": normalize(torch.randn(shape), dim=-1),
        "eta": torch.rand(shape),
        "S": torch.randn(BATCH, HEADS, VALUE, KEY),
    }


def rwkv7_loop(x: Tensors) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} (diag(w_t) - kappa' (kappa * eta)) + v' k, o_t = S_t r (Peng et al. 2025)."""
    state, outputs = x["S"], []
    for t in range(x["r"].shape[1]):
        kappa, eta = x["kappa"][:, t], x["eta"][:, t]
        transition = torch.diag_embed(x["w"][:, t].exp())
        transition = transition - kappa[..., :, None] * (kappa * eta)[..., None, :]
        state = state @ transition + x["v"][:, t][..., None] * x["k"][:, t][..., None, :]
        outputs.append((state @ x["r"][:, t][..., None])[..., 0])
    return torch.stack(outputs, 1), state.mT


def rwkv7_call(x: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    read, target = -x["kappa"], x["kappa"] * x["eta"]
    return matrix_state(x["r"], x["k"], x["v"], x["w"], read, target, state)


def deltanet_inputs(length: int, decay: Callable[[tuple[int, ...]], Tensor]) -> Tensors:
    shape = (BATCH, length, HEADS, KEY)
    return {
        "q": torch.randn(shape) * KEY**-0.5,
        "k": normalize(torch.randn(shape), dim=-1),
        "v": torch.randn(BATCH, length, HEADS, VALUE),
        "g": decay((BATCH, length, HEADS)),
        "beta": torch.rand(BATCH, length, HEADS),
        "S": torch.randn(BATCH, HEADS, VALUE, KEY),
    }


def deltanet_loop(x: Tensors) -> tuple[Tensor, Tensor]:
    """S_t = alpha S_{t-1} (I - beta k k') + beta v k', o_t = S_t q (Yang et al. 2024)."""
    state, outputs = x["S"], []
    for t in range(x["q"].shape[1]):
        k, beta = x["k"][:, t], x["beta"][:, t][..., None, None]
        alpha = x["g"][:, t].exp()[..., None, None]
        erase = torch.eye(KEY, dtype=k.dtype) - beta * k[..., :, None] * k[..., None, :]
        write = beta * x["v"][:, t][..., None] * k[..., None, :]
        state = alpha * state @ erase + write
        outputs.append((state @ x["q"][:, t][..., None])[..., 0])
    return torch.stack(outputs, 1), state.mT


def deltanet_call(x: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    g, beta = x["g"][..., None], x["beta"][..., None]
    read = -beta * g.exp() * x["k"]
    return matrix_state(x["q"], x["k"], beta * x["v"], g, read, state=state)


def mamba2_inputs(length: int, decay: Callable[[tuple[int, ...]], Tensor]) -> Tensors:
    return {
        "C": torch.randn(BATCH, length, HEADS, KEY),
        "B": torch.randn(BATCH, length, HEADS, KEY),
        "x": torch.randn(BATCH, length, HEADS, VALUE),
        "dtA": decay((BATCH, length, HEADS)),
        "dt": torch.rand(BATCH, length, HEADS),
        "S": torch.randn(BATCH, HEADS, VALUE, KEY),
    }


def mamba2_loop(x: Tensors) -> tuple[Tensor, Tensor]:
    """h_t = e^{dt A} h_{t-1} + dt B x, y_t = C h_t (Dao and Gu 2024), h of (value, key)."""
    state, outputs = x["S"], []
    for t in range(x["C"].shape[1]):
        stepped = x["dt"][:, t][..., None] * x["x"][:, t]
        state = x["dtA"][:, t].exp()[..., None, None] * state
        state = state + torch.einsum("bhv,bhk->bhvk", stepped, x["B"][:, t])
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, x["C"][:, t]))
    return torch.stack(outputs, 1), state.mT


def mamba2_call(x: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    return matrix_state(
        x["C"], x["B"], x["dt"][..., None] * x["x"], x["dtA"][..., None], state=state
    )


MODELS = {
    "rwkv7": (rwkv7_inputs, rwkv7_loop, rwkv7_call),
    "gated_deltanet": (deltanet_inputs, deltanet_loop, deltanet_call),
    "mamba2": (mamba2_inputs, mamba2_loop, mamba2_call),
}


def one_channel_forgets(shape: tuple[int, ...]) -> Tensor:
    """Decays of which one channel's, or one head's, must not spoil the others."""
    w = -0.1 * torch.rand(shape)
    w[..., 0] = -20.0
    return w


DECAYS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "published": lambda shape: -math.exp(-0.5) * torch.rand(shape),
    "none": torch.zeros,
    "to -20": lambda shape: -20 * torch.rand(shape),
    "all -20": lambda shape: torch.full(shape, -20.0),
    "resets": lambda shape: torch.where(torch.rand(shape) < 0.1, -20.0, -0.1),
    "one channel, or head": one_channel_forgets,
}


def relative_error(actual: Tensor, expected: Tensor, floor: float = 1e-6) -> float:
    """Norm of the difference over that of the truth, or over the floor if that is larger."""
    scale = max(float(expected.detach().norm()), floor)
    return float((actual.detach().double() - expected.detach()).norm()) / scale


def in_pieces(call: Callable[..., tuple[Tensor, Tensor]], x: Tensors, first: int):
    """Call the operator on the first positions, and then on the rest with the state carried."""
    state = x["S"].mT
    outputs = []
    for part in (slice(None, first), slice(first, None)):
        piece = {name: value if name == "S" else value[:, part] for name, value in x.items()}
        if piece["v" if "v" in x else "x"].shape[1]:
            output, state = call(piece, state)
            outputs.append(output)
    return torch.cat(outputs, 1), state


def check(model: str, decay: str, length: int, first: int, dtype: torch.dtype, bound: float):
    """Compare values, state and all gradients with the loop in float64."""
    make, loop, call = MODELS[model]
    torch.manual_seed(length)
    inputs = {name: value.to(dtype) for name, value in make(length, DECAYS[decay]).items()}
    x = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    truth = {name: value.double().requires_grad_() for name, value in inputs.items()}

    output, state = in_pieces(call, x, first)
    expected = loop(truth)
    assert output.dtype == dtype
    grads = [torch.randn_like(value) for value in expected]
    actual_grads = torch.autograd.grad(
        (output, state), list(x.values()), [grad.to(dtype) for grad in grads]
    )
    true_grads = torch.autograd.grad(expected, list(truth.values()), grads)

    assert relative_error(output, expected[0]) < bound
    assert relative_error(state, expected[1]) < bound
    largest = max(float(true.norm()) for true in true_grads)
    for name, actual, true in zip(x, actual_grads, true_grads, strict=True):
        # A strong decay's own gradient is next to nothing: it has the rounding of the others.
        is_strong = name in ("w", "g", "dtA") and decay != "published"
        assert relative_error(actual, true, largest if is_strong else 1e-6) < bound, name


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("model", MODELS)
def test_float64_equals_the_papers_loop(model: str, length: int) -> None:
    for first in {0, length // 3}:
        check(model, "published", length, first, torch.float64, 1e-13)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("model", MODELS)
def test_float32_is_as_exact_as_float32(model: str, decay: str, length: int) -> None:
    for first in {0, length // 3}:
        check(model, decay, length, first, torch.float32, 3e-6)


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 70), chunk=st.integers(1, 40), model=st.sampled_from(sorted(MODELS)))
def test_the_chunk_changes_nothing(length: int, chunk: int, model: str) -> None:
    torch.manual_seed(0)
    shape = (BATCH, length, HEADS, KEY)
    q, k, a = (torch.randn(shape).double() for _ in range(3))
    v = torch.randn(BATCH, length, HEADS, VALUE).double()
    w = -torch.rand(shape if model == "rwkv7" else (*shape[:3], 1)).double()
    rest = {"rwkv7": (0.1 * a, k), "gated_deltanet": (-0.1 * k, None), "mamba2": (None, None)}
    expected = matrix_state(q, k, v, w, *rest[model], chunk=1)
    actual = matrix_state(q, k, v, w, *rest[model], chunk=chunk)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("per_channel", [False, True])
def test_minus_infinity_forgets_everything(per_channel: bool) -> None:
    """A border between documents: what follows is as if nothing had come before."""
    torch.manual_seed(0)
    q, k = normalize(torch.randn(2, 1, 50, 2, 4), dim=-1).unbind(0)
    v = torch.randn(1, 50, 2, 4, requires_grad=True)
    w = -0.1 * torch.rand(1, 50, 2, 4 if per_channel else 1)
    w[:, 20] = -torch.inf
    a = -0.5 * k
    a[:, 20] = 0  # which would read the state before the border
    output, state = matrix_state(q, k, v, w, a, k)
    fresh, fresh_state = matrix_state(*(x[:, 20:] for x in (q, k, v, w, a, k)))
    torch.testing.assert_close(output[:, 20:], fresh)
    torch.testing.assert_close(state, fresh_state)
    (gradient,) = torch.autograd.grad(output.sum(), v)
    assert gradient.isfinite().all()


def test_bfloat16_goes_in_and_out_and_float32_is_inside() -> None:
    torch.manual_seed(0)
    x = [y.bfloat16().requires_grad_() for y in torch.randn(4, 1, 300, 2, 8).unbind(0)]
    q, k, v, a = x
    w = -torch.rand(1, 300, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = matrix_state(q, k, v, w, 0.05 * a, k)
        output.float().square().sum().backward()
    exact = matrix_state(*(y.detach().double() for y in (q, k, v, w, 0.05 * a, k)))
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(state, exact[1]) < 1e-2  # of inputs rounded to bfloat16: 0.05 a
    assert relative_error(output, exact[0]) < 1e-2
    assert all(y.grad is not None and y.grad.dtype == torch.bfloat16 for y in x)


def test_the_same_key_again_and_again() -> None:
    """beta = 2 without decay is a reflection, which neither grows nor shrinks."""
    torch.manual_seed(0)
    k = normalize(torch.randn(1, 1, 1, 16), dim=-1).expand(1, 1000, 1, 16)
    q, v = torch.randn(2, 1, 1000, 1, 16).unbind(0)
    w = torch.zeros(1, 1000, 1, 1)
    actual = matrix_state(q, k, 2 * v, w, -2 * k)
    exact = matrix_state(*(x.double() for x in (q, k, 2 * v, w, -2 * k)), chunk=1)
    rounding = torch.finfo(torch.float32).eps / 2
    assert relative_error(actual[0], exact[0]) < 2 * 1000 * rounding  # of k'k, at each step


def test_memory_of_the_backward_pass_is_linear() -> None:
    """Indexing in a loop would write a full-size gradient for each position: length squared."""

    def peak(length: int) -> int:
        shape = (1, length, 2, 16)
        q, k, a = (torch.randn(shape, requires_grad=True) for _ in range(3))
        v = torch.randn(shape, requires_grad=True)
        w = (-torch.rand(shape)).requires_grad_()
        gc.collect()
        with LiveBytes((q, k, v, w, a)) as live:
            matrix_state(q, k, v, w, -0.1 * a, k)[0].sum().backward()
        return live.peak

    short, long = peak(2048), peak(8192)
    assert long < 4.5 * short


def test_a_segment_counts_as_one_function() -> None:
    """What `Segments` differentiates is what it computes: no gradient of the state is lost."""
    torch.manual_seed(0)
    x = [y.double().requires_grad_() for y in torch.randn(5, 1, 12, 2, 4).unbind(0)]
    q, k, v, a, b = x
    w = (-torch.rand(1, 12, 2, 4)).double().requires_grad_()
    state = torch.randn(1, 2, 4, 4).double().requires_grad_()

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v, w, a, b, state = tensors
        return matrix_state(q, k, v, w, 0.1 * a, b, state, chunk=4)

    assert torch.autograd.gradcheck(call, (q, k, v, w, a, b, state))
    plain = compute_segment((q, k, v, w, 0.1 * a, b), state, 4)
    torch.testing.assert_close(call(q, k, v, w, a, b, state), plain)


def test_transformers_has_the_same_gated_delta_rule() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    reference = inspect.unwrap(torch_recurrent_gated_delta_rule)  # not the kernel of fla
    torch.manual_seed(0)
    x = deltanet_inputs(100, DECAYS["published"])
    output, state = deltanet_call(x, torch.zeros(BATCH, HEADS, KEY, VALUE))
    theirs, their_state = reference(
        x["q"] * KEY**0.5, x["k"], x["v"], x["g"], x["beta"], None, output_final_state=True
    )
    assert relative_error(output, theirs.double()) < 1e-6
    assert relative_error(state, their_state.double()) < 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": torch.ones(1, 3, 2)}, "expected k of shape"),
        ({"q": torch.ones(1, 3, 2, 5)}, "expected q of shape"),
        ({"w": torch.ones(1, 3, 2, 2)}, "expected w of shape"),
        ({"v": torch.ones(1, 4, 2, 4)}, "expected v of shape"),
        ({"q": torch.ones(1, 3, 2, 4, dtype=torch.int64)}, "floating dtype"),
        ({"b": torch.ones(1, 3, 2, 4)}, "expected a too"),
        ({"state": torch.ones(1, 2, 4, 5)}, "expected state of shape"),
    ],
)
def test_wrong_inputs_are_rejected(changes: Tensors, words: str) -> None:
    inputs = {name: torch.ones(1, 3, 2, 4) for name in ("q", "k", "v", "w")}
    with pytest.raises(ValueError, match=words):
        matrix_state(**{**inputs, **changes})


def test_empty_state_is_float32_unless_it_is_float64() -> None:
    sizes = (1, 2, 3, 4, torch.device("cpu"))
    assert empty_state(*sizes, torch.bfloat16).dtype == torch.float32
    assert empty_state(*sizes, torch.float64).dtype == torch.float64
