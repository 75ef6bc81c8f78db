"""RWKV-7, Gated DeltaNet, Mamba-2 and hybrids, against other code or equations token by token."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lookback.models.gated_deltanet import GatedDeltaNetBlock
from lookback.models.mamba2 import Mamba2Block
from lookback.models.model import build_model, parameter_count
from lookback.models.rwkv7 import RWKV7Block, rank
from lookback.tasks.task import get_task

Weights = Mapping[str, np.ndarray]


def off_initialisation(block: torch.nn.Module) -> Weights:
    """Move a block off its initialisation; return its weights as NumPy arrays in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return {name: weight.detach().double().numpy() for name, weight in block.named_parameters()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean() + 1e-5) * weight


def rwkv7_layer(w: Weights, x: np.ndarray, heads: int, first: np.ndarray | None):
    """RWKV-7's layer (Peng et al. 2025, section 4) on x (length, width), position by position."""
    length, width = x.shape
    size = width // heads
    state = np.zeros((heads, size, size))
    h_before, y_before = np.zeros(width), np.zeros(width)
    outputs, values = [], []
    t = {name.removeprefix("time_mix."): value for name, value in w.items()}
    for position in range(length):
        h = layer_norm(x[position], w["time_norm.weight"], w["time_norm.bias"])
        mixed = {c: h + (h_before - h) * t[f"mix_{c}"] for c in "rwkvag"}
        r = t["receptance.weight"] @ mixed["r"]
        k = t["key.weight"] @ mixed["k"]
        v = t["value.weight"] @ mixed["v"]
        values.append(v)
        if first is not None:
            share = sigmoid(t["v0"] + mixed["v"] @ t["v1"] @ t["v2"])
            v = v + (first[position] - v) * share
        decay = np.exp(-math.exp(-0.5) * sigmoid(t["w0"] + np.tanh(mixed["w"] @ t["w1"]) @ t["w2"]))
        eta = sigmoid(t["a0"] + mixed["a"] @ t["a1"] @ t["a2"])
        gate = sigmoid(mixed["g"] @ t["g1"]) @ t["g2"]
        kappa = k * t["k_k"]
        replaced = k * (1 + (eta - 1) * t["k_a"])
        output = np.zeros(width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            unit = kappa[part] / np.linalg.norm(kappa[part])
            transition = np.diag(decay[part]) - np.outer(unit, unit * eta[part])
            state[head] = state[head] @ transition + np.outer(v[part], replaced[part])
            o = state[head] @ r[part]
            o = (o - o.mean()) / np.sqrt(o.var() + 1e-5 * size)
            o = o * t["head_norm.weight"][part] + t["head_norm.bias"][part]
            output[part] = o + (r[part] * replaced[part] * t["r_k"][head]).sum() * v[part]
        z = x[position] + t["output.weight"] @ (output * gate)
        y = layer_norm(z, w["channel_norm.weight"], w["channel_norm.bias"])
        mixed_y = y + (y_before - y) * w["channel_mix.mix_k"]
        hidden = np.maximum(w["channel_mix.key.weight"] @ mixed_y, 0) ** 2
        outputs.append(z + w["channel_mix.value.weight"] @ hidden)
        h_before, y_before = h, y
    return np.stack(outputs), np.stack(values)


@torch.no_grad()
def test_rwkv7_is_the_papers_layer_position_by_position() -> None:
    torch.manual_seed(0)
    blocks = [RWKV7Block(12, layer, 2, heads=3) for layer in range(2)]
    weights = [off_initialisation(block) for block in blocks]
    x = torch.randn(1, 40, 12)
    y, first_value = blocks[0](x)
    y, _ = blocks[1](y, first_value)

    expected, first = rwkv7_layer(weights[0], x[0].double().numpy(), 3, None)
    expected, _ = rwkv7_layer(weights[1], expected, 3, first)
    np.testing.assert_allclose(y[0].numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gated_deltanet_is_the_papers_layer_position_by_position() -> None:
    torch.manual_seed(0)
    block = GatedDeltaNetBlock(16, 0, 1, heads=2)
    w = off_initialisation(block)
    x = torch.randn(1, 30, 16)
    actual = block(x)[0].numpy()

    key_size, value_size = block.key_size, block.value_size
    state = np.zeros((2, value_size, key_size))
    past = np.zeros((4, sum(block.widths)))  # of the convolution, oldest first
    for position, x_t in enumerate(x[0].double().numpy()):
        h = rms_norm(x_t, w["mixer_norm.weight"])
        past = np.vstack([past[1:], w["query_key_value.weight"] @ h])
        mixed = silu((past * w["convolution.taps"]).sum(0))
        q, k, v = np.split(mixed, np.cumsum(block.widths)[:-1])
        beta = sigmoid(w["beta.weight"] @ h)
        step = np.log1p(np.exp(w["alpha.weight"] @ h + w["dt_bias"]))
        alpha = np.exp(-np.exp(w["A_log"]) * step)
        gate = silu(w["gate.weight"] @ h)
        outputs = []
        for n in range(2):
            keys = slice(n * key_size, (n + 1) * key_size)
            values = slice(n * value_size, (n + 1) * value_size)
            query = q[keys] / np.linalg.norm(q[keys]) / math.sqrt(key_size)
            key = k[keys] / np.linalg.norm(k[keys])
            kept = alpha[n] * state[n] @ (np.eye(key_size) - beta[n] * np.outer(key, key))
            state[n] = kept + beta[n] * np.outer(v[values], key)
            outputs.append(rms_norm(state[n] @ query, w["output_norm.weight"]) * gate[values])
        z = x_t + w["output.weight"] @ np.concatenate(outputs)
        g, u = np.split(w["mlp.gate_and_value.weight"] @ rms_norm(z, w["mlp_norm.weight"]), 2)
        expected = z + w["mlp.output.weight"] @ (silu(g) * u)
        np.testing.assert_allclose(actual[position], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mamba2_is_the_mixer_of_transformers() -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    block = Mamba2Block(16, 0, 1, heads=4, state_size=8)
    off_initialisation(block)
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, state_size=8, expand=2, n_groups=1, chunk_size=16
    )
    theirs: Any = Mamba2Mixer(config, layer_idx=0)
    theirs.in_proj.weight.copy_(block.input.weight)
    theirs.conv1d.weight.copy_(block.convolution.taps.T[:, None])
    theirs.conv1d.bias.copy_(block.convolution.bias)
    for name in ("dt_bias", "A_log", "D"):
        getattr(theirs, name).copy_(getattr(block, name))
    theirs.norm.weight.copy_(block.output_norm.weight)
    theirs.norm.variance_epsilon = block.output_norm.eps
    theirs.out_proj.weight.copy_(block.output.weight)

    x = torch.randn(2, 50, 16)
    expected = x + theirs(block.norm(x))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_rwkv7_declares_its_groups() -> None:
    """w0 learns twice as fast; low-rank matrices, vectors and norms do not decay."""
    model = build_model("rwkv7", 11, width=16, depth=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, fast = set(), set()
    for group in model.parameter_groups():
        members = {names[id(parameter)].rpartition("time_mix.")[2] for parameter in group["params"]}
        decayed |= members if group["decay"] else set()
        fast |= members if group["learning_rate_scale"] == 2 else set()
    assert fast == {"w0"}
    assert {"key.weight", "embedding.weight", "head.weight"} <= decayed
    assert not decayed & {"w1", "w2", "v1", "g2", "r_k", "mix_r", "k_a"}


@pytest.mark.parametrize(
    ("width", "ranks"),
    [
        (32, (8, 8, 8)),
        (64, (16, 16, 16)),
        (128, (32, 32, 64)),
        (768, (64, 32, 128)),
        (2048, (128, 64, 224)),
    ],
)
def test_ranks_are_those_of_the_authors(width: int, ranks: tuple[int, int, int]) -> None:
    """For w and a, for v, and for the gate: 2.5, 1.7 and 5 times sqrt(width), in steps of 32."""
    assert (rank(width, 2.5), rank(width, 1.7), rank(width, 5)) == ranks


def test_a_hybrid_has_the_layers_of_its_pattern() -> None:
    pattern = "rwkv+rwkv+transformer"
    model = build_model("hybrid", 11, width=16, depth=6, pattern=pattern)
    names = [type(block.block).__name__ for block in model.blocks]
    assert names == ["RWKVBlock", "RWKVBlock", "TransformerBlock"] * 2
    assert type(model.embedding_norm).__name__ == "LayerNorm"
    scales = {group["learning_rate_scale"] for group in model.parameter_groups()}
    assert scales == {1.0, 2.0, 3.0}


def test_a_hybrid_of_one_model_is_that_model() -> None:
    for name in ("rwkv", "rwkv7", "mamba2"):
        torch.manual_seed(0)
        hybrid = build_model("hybrid", 11, width=16, depth=2, pattern=name)
        torch.manual_seed(0)
        alone = build_model(name, 11, width=16, depth=2)
        tokens = torch.arange(11)[None]
        assert parameter_count(hybrid) == parameter_count(alone)
        assert torch.equal(hybrid(tokens), alone(tokens))


def test_a_hybrid_takes_guests() -> None:
    model = build_model("hybrid", 11, width=16, depth=2, pattern="hf:llama+rwkv7").eval()
    tokens = torch.randint(11, (1, 20))
    expected = model(tokens)[:, -1]
    logits, _ = model.prefill(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": ""}, "expected names of other models"),
        ({"pattern": "rwkv+hybrid"}, "expected names of other models"),
        ({"pattern": 3}, "expected names of other models"),
        ({"pattern": "rwkv+nobody"}, "unknown model 'nobody'"),
        ({"options": {"lstm": {}}}, "expected a model of"),
        ({"options": {"rwkv": {"windows": 3}}}, "no option 'windows'"),
    ],
)
def test_a_hybrid_of_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model("hybrid", 11, width=16, depth=2, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate", "score"),
    [("rwkv7", 3e-3, 0.95), ("gated_deltanet", 3e-3, 0.95), ("mamba2", 1e-2, 0.6)],
)
def test_the_models_learn_to_recall(name: str, rate: float, score: float) -> None:
    """MQAR with 4 pairs at length 64, 32 sequences a step, width 64, two layers.

    They learn it suddenly. After half of these steps some seeds still score 0.2, and on which seeds
    depends on how a processor rounds.
    """
    steps = 1200
    torch.manual_seed(0)
    task = get_task("mqar", {"pairs": 4, "vocabulary": 64})
    model = build_model(name, task.vocabulary, width=64, depth=2)
    groups = [
        {"params": group["params"], "weight_decay": 0.1 if group["decay"] else 0.0}
        for group in model.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
        batch = task.batch("train", 0, step, 32, 64)
        index = batch.target_indices()
        logits = model(batch.tokens, index)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets.flatten()[index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    batch = task.batch("test", 0, 0, 256, 64)
    index = batch.target_indices()
    with torch.no_grad():
        answers = model.eval()(batch.tokens, index).argmax(-1)
    assert (answers == batch.targets.flatten()[index]).float().mean() > score
