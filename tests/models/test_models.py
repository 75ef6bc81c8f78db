"""The contract of every registered model, and each architecture against something independent."""

import math

import pytest
import torch
from torch import Tensor, nn

from lookback.benchmarks.measure.memory import LiveBytes
from lookback.models.classifier import SequenceClassifier
from lookback.models.model import (
    SequenceModel,
    build_model,
    model_names,
    model_options,
    parameter_count,
    register_model,
    state_bytes,
)
from lookback.models.rrwkv import RRWKVBlock
from lookback.models.short_conv import TAPS, ShortConvolution
from lookback.models.transformer import TransformerBlock, alibi_attention

VOCABULARY, WIDTH, DEPTH = 11, 16, 2
RRWKV_OPTIONS = [
    {"interval": 4},
    {"interval": 1},
    {"interval": 64},
    {"interval": 4, "retrospection": "attention"},
    {"interval": 4, "retrospection": "none"},
    {"interval": 4, "squeeze": True},
    {"interval": 4, "squeeze": True, "retrospection": "attention"},
    {"interval": 4, "time_mix": False},
    {"interval": 4, "channel_mix": False},
    {"interval": 4, "time_mix": False, "retrospection": "none"},
    {"interval": 4, "time_mix": False, "channel_mix": False, "retrospection": "attention"},
    {"interval": "none"},
]
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in model_names()),
    *(("rrwkv", options) for options in RRWKV_OPTIONS),
    ("transformer", {"heads": 1}),
    ("transformer", {"positions": "none"}),
    ("transformer", {"positions": "alibi"}),
    ("transformer", {"positions": "absolute"}),
    ("transformer", {"short_conv": True}),
    ("transformer", {"window": 30, "short_conv": True}),
    ("transformer", {"window": 5}),
    ("rwkv", {"short_conv": True}),
    ("rrwkv", {"interval": 4, "short_conv": True}),
    ("lstm", {"short_conv": True}),
    ("rwkv7", {"heads": 1, "short_conv": True}),
    ("gated_deltanet", {"heads": 1, "negative_eigenvalues": True}),
    ("gated_deltanet", {"decay": False, "short_conv": False}),
    ("mamba2", {"short_conv": False, "state_size": 3}),
    ("hybrid", {"pattern": "transformer+rwkv7"}),
    ("hybrid", {"pattern": "rwkv7"}),
    ("hybrid", {"pattern": "mamba2+transformer", "options": {"transformer": {"window": 30}}}),
]


def randomised(name: str, classes: int | None = None, **options: object) -> SequenceModel:
    """Build a model and move it off its initialisation, where many outputs are always zero."""
    torch.manual_seed(0)
    model = build_model(name, VOCABULARY, classes, width=WIDTH, depth=DEPTH, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(batch_size: int = 3, length: int = 23) -> Tensor:
    return torch.randint(
        VOCABULARY, (batch_size, length), generator=torch.Generator().manual_seed(1)
    )


def close(a: Tensor, b: Tensor) -> bool:
    # WKV keeps parts of its state in float32
    return torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@torch.no_grad()
def test_forward_equals_steps(name: str, options: dict[str, object]) -> None:
    model = randomised(name, **options)
    sequences = tokens()
    expected = model(sequences)
    assert expected.shape == (*sequences.shape, VOCABULARY)

    state = model.initial_state(len(sequences))
    stepped = []
    for token in sequences.unbind(1):
        logits, state = model.step(token, state)
        stepped.append(logits)
    assert close(expected, torch.stack(stepped, 1))


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("rrwkv", {"interval": "sqrt"})])
@pytest.mark.parametrize("first", [1, 8, 15])
@torch.no_grad()
def test_steps_after_prefill_equal_forward(
    name: str, options: dict[str, object], first: int
) -> None:
    forward_options = dict(options)
    if options.get("interval") == "sqrt":  # the square root of the length of the prompt
        forward_options["interval"] = math.isqrt(first - 1) + 1
    sequences = tokens()
    expected = randomised(name, **forward_options)(sequences)

    model = randomised(name, **options)
    logits, state = model.prefill(sequences[:, :first])
    assert close(logits, expected[:, first - 1])
    for position in range(first, sequences.shape[1]):
        logits, state = model.step(sequences[:, position], state)
        assert close(logits, expected[:, position])


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("rrwkv", {"interval": "sqrt"})])
@torch.no_grad()
def test_later_tokens_change_nothing_earlier(name: str, options: dict[str, object]) -> None:
    model = randomised(name, **options)
    sequences = tokens()
    before = model(sequences)
    for position in (1, 9, 22):
        changed = sequences.clone()
        changed[:, position:] = (changed[:, position:] + 1) % VOCABULARY
        after = model(changed)
        assert close(before[:, :position], after[:, :position])
        assert not close(before[:, position], after[:, position])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_has_a_gradient(name: str, options: dict[str, object]) -> None:
    model = randomised(name, **options)
    # long enough for three segments of any interval: the decay of mediums acts from the third on
    (model(tokens(length=200)) ** 2).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@torch.no_grad()
def test_reach_is_the_whole_past(name: str, options: dict[str, object]) -> None:
    """The first token changes the last output."""
    model = randomised(name, **options)
    sequences = tokens(length=9 if "window" in options else 40)
    changed = sequences.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert (model(sequences)[:, -1] - model(changed)[:, -1]).abs().max() > 0


@pytest.mark.parametrize(("window", "depth"), [(1, 2), (4, 1), (4, 2), (7, 3)])
def test_a_window_reaches_as_far_as_it_says(window: int, depth: int) -> None:
    """The last output depends on depth x (window - 1) positions before it, and on no others."""
    torch.manual_seed(0)
    blocks = [TransformerBlock(WIDTH, 0, depth, window=window).double() for _ in range(depth)]
    x = torch.randn(1, 40, WIDTH, dtype=torch.float64, requires_grad=True)
    y = x
    for block in blocks:
        y = block(y)
    (gradient,) = torch.autograd.grad(y[0, -1].sum(), x)
    reached = gradient[0].abs().amax(-1) > 0
    assert reached.nonzero()[0].item() == 39 - depth * (window - 1)
    assert reached[39 - depth * (window - 1) :].all()


@torch.no_grad()
def test_a_short_convolution_is_that_of_torch() -> None:
    ours = ShortConvolution(WIDTH)
    theirs = nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH, bias=False, padding=TAPS - 1)
    theirs.weight.copy_(ours.taps.T[:, None])
    x = torch.randn(2, 20, WIDTH)
    y, state = ours(x)
    assert torch.allclose(y, theirs(x.mT)[:, :, :20].mT, atol=1e-6)
    assert torch.equal(state, x[:, -3:])


@torch.no_grad()
def test_alibi_is_its_formula() -> None:
    """Slopes of 8 heads as published: 1/2, 1/4, ..., 1/256; each query by itself."""
    query, key, value = torch.randn(3, 2, 8, 11, 4, dtype=torch.float64)
    mixed = alibi_attention(query, key, value)
    for head in range(8):
        for t in range(11):
            scores = key[:, head, : t + 1] @ query[:, head, t, :, None] / 2  # sqrt(4)
            distance = t - torch.arange(t + 1)
            weights = (scores[..., 0] - distance / 2 ** (head + 1)).softmax(-1)
            expected = (weights[..., None] * value[:, head, : t + 1]).sum(1)
            assert torch.allclose(mixed[:, head, t], expected)


@torch.no_grad()
def test_a_window_bounds_the_cache() -> None:
    block = TransformerBlock(WIDTH, 0, 1, window=5)
    sizes = []
    for length in (3, 5, 50):
        _, state = block.prefill(torch.randn(2, length, WIDTH))
        sizes.append(state_bytes(state))
    assert sizes[0] < sizes[1] == sizes[2] == 2 * 2 * 5 * WIDTH * 4


@pytest.mark.parametrize(
    ("name", "constant"), [("rwkv", True), ("rrwkv", True), ("lstm", True), ("transformer", False)]
)
@torch.no_grad()
def test_state_size(name: str, constant: bool) -> None:
    model = randomised(name)
    short, long = (state_bytes(model.prefill(tokens(length=length))[1]) for length in (64, 1024))
    assert (short == long) == constant
    if not constant:  # positions, batch, layers, key and value, float64
        assert long == 1024 * 3 * DEPTH * 2 * WIDTH * 8


@torch.no_grad()
def test_attention_to_mediums_grows_by_the_interval() -> None:
    model = randomised("rrwkv", retrospection="attention", interval=16)
    sizes = [state_bytes(model.prefill(tokens(length=length))[1]) for length in (160, 320, 480)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 10 * 3 * DEPTH * 2 * WIDTH * 8


def test_attention_to_mediums_is_fused() -> None:
    """With several mediums too, which need a mask."""
    model = build_model("rrwkv", 10, width=16, depth=1, interval=4, retrospection="attention")
    with LiveBytes() as seen:
        model(torch.zeros(2, 24, dtype=torch.int64)).sum().backward()
    assert any(
        "scaled_dot_product" in kernel and "backward" in kernel for kernel in seen.kernels
    ), seen.kernels


def test_the_recurrence_of_an_lstm_is_never_float16() -> None:
    model = build_model("lstm", 10, width=16, depth=1)
    dtypes = []
    model.blocks[0].recurrence.register_forward_hook(
        lambda _, inputs, outputs: dtypes.extend((inputs[0].dtype, outputs[0].dtype))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.zeros(2, 24, dtype=torch.int64))
        model.step(torch.zeros(2, dtype=torch.int64), model.initial_state(2))
    assert dtypes == [torch.float32] * 4
    assert logits.dtype == torch.bfloat16


def test_logits_of_some_positions_are_those_of_all() -> None:
    model = randomised("rwkv")
    positions = torch.tensor([0, 5, 24, 60])
    expected = model(tokens()).flatten(0, 1)[positions]
    assert close(model(tokens(), positions=positions), expected)


def test_a_classifier_reads_up_to_the_last_valid_token() -> None:
    model = randomised("rwkv", classes=4)
    sequences = tokens()
    assert isinstance(model, SequenceClassifier)
    assert model(sequences).shape == (3, 4)

    lengths = torch.tensor([5, 23, 1])
    rows = enumerate(lengths.tolist())
    alone = torch.cat([model(sequences[row : row + 1, :length]) for row, length in rows])
    assert close(model(sequences, lengths=lengths), alone)


@torch.no_grad()
def test_a_causal_classifier_can_be_stepped() -> None:
    """Cost cells measure prefill and decoding of classifiers too."""
    model = randomised("rwkv", classes=4)
    logits, state = model.prefill(tokens()[:, :-1])
    assert close(logits, model(tokens()[:, :-1]))
    logits, _ = model.step(tokens()[:, -1], state)
    assert close(logits, model(tokens()))


def test_dropout_acts_on_the_updates_of_layers_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_model("transformer", VOCABULARY, width=WIDTH, depth=1, dropout=0.25).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = model.embed(tokens(8, 64))
    added = model.blocks[0](x) - x
    dropped = model.run_blocks(model.blocks, x) - x
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    kept = dropped != 0
    assert close(dropped[kept], added[kept] / 0.75)
    assert torch.equal(model.eval().run_blocks(model.blocks, x), model.blocks[0](x))


def test_rrwkv_without_mediums_is_rwkv() -> None:
    models = []
    for name, options in (("rwkv", {}), ("rrwkv", {"interval": "none"})):
        torch.manual_seed(5)
        models.append(build_model(name, VOCABULARY, width=WIDTH, depth=DEPTH, **options))
    for (left_name, left), (right_name, right) in zip(
        *(m.named_parameters() for m in models), strict=True
    ):
        assert left_name == right_name and torch.equal(left, right)
        with torch.no_grad():
            right.add_(noise := 0.3 * torch.randn_like(right))
            left.add_(noise)
    assert torch.equal(models[0](tokens()), models[1](tokens()))


def test_rrwkv_without_shares_and_retrospection_is_rwkv() -> None:
    rrwkv = randomised("rrwkv", interval=4, retrospection="none")
    rwkv = randomised("rwkv")
    with torch.no_grad():
        for name, parameter in rrwkv.named_parameters():
            if "shares" in name:
                parameter.zero_()
    rwkv.load_state_dict({k: v for k, v in rrwkv.state_dict().items() if "mediums" not in k})
    assert close(rrwkv(tokens()), rwkv(tokens()))


def rrwkv_by_hand(block: RRWKVBlock, x: Tensor, interval: int) -> Tensor:
    """Compute one layer by the formulas of the reconstruction, position by position.

    x is (length, width) float64.
    """
    time, channel = block.time_mix, block.channel_mix
    h = block.time_norm(x)
    length, width = h.shape
    zero = torch.zeros(width, dtype=x.dtype)

    def mediums_of(inputs: Tensor, squeeze: nn.Module) -> list[Tensor]:
        mediums = []
        for j in range(length // interval):
            medium = inputs[j * interval : (j + 1) * interval].mean(0)
            if not isinstance(squeeze, nn.Identity):
                hidden = torch.relu(squeeze.down.weight @ medium)
                medium = medium * torch.sigmoid(squeeze.up.weight @ hidden)
            mediums.append(medium)
        return mediums

    def weighted(
        keys: list[Tensor], values: list[Tensor], t: int, rate: Tensor, bonus: Tensor
    ) -> Tensor:
        """The definition of WKV, as two sums."""
        above = below = zero
        for i in range(t + 1):
            weight = torch.exp(keys[i] + (bonus if i == t else -(t - 1 - i) * rate))
            above, below = above + weight * values[i], below + weight
        return above / below

    mediums = mediums_of(h, time.mediums.squeeze)
    rows, keys, values = [], [], []
    for t in range(length):
        finished = t // interval  # segments that ended at or before t - 1
        medium = mediums[finished - 1] if finished else zero
        before = h[t - 1] if t else zero
        x_r, x_k, x_v = (
            mu * h[t] + (1 - mu) * before + nu * medium
            for mu, nu in zip(
                (time.mix_receptance, time.mix_key, time.mix_value),
                time.mediums.shares,
                strict=True,
            )
        )
        keys.append(time.key.weight @ x_k)
        values.append(time.value.weight @ x_v)
        average = weighted(keys, values, t, time.decay.exp(), time.bonus)
        if finished:
            medium_keys = [time.key.weight @ m for m in mediums[:finished]]
            medium_values = [time.value.weight @ m for m in mediums[:finished]]
            retrospect = weighted(
                medium_keys, medium_values, finished - 1, time.medium_decay.exp(), time.medium_bonus
            )
            average = average + torch.sigmoid(time.gate.weight @ h[t]) * retrospect
        rows.append(time.output.weight @ (torch.sigmoid(time.receptance.weight @ x_r) * average))
    x = x + torch.stack(rows)
    y = block.channel_norm(x)
    mediums, rows = mediums_of(y, channel.mediums.squeeze), []
    for t in range(length):
        medium = mediums[t // interval - 1] if t >= interval else zero
        before = y[t - 1] if t else zero
        x_r, x_k = (
            mu * y[t] + (1 - mu) * before + nu * medium
            for mu, nu in zip(
                (channel.mix_receptance, channel.mix_key), channel.mediums.shares, strict=True
            )
        )
        inner = torch.relu(channel.key.weight @ x_k) ** 2
        rows.append(torch.sigmoid(channel.receptance.weight @ x_r) * (channel.value.weight @ inner))
    return x + torch.stack(rows)


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("interval", [1, 3, 8, 30])
@torch.no_grad()
def test_rrwkv_is_its_formulas(interval: int, squeeze: bool) -> None:
    block = randomised("rrwkv", interval=interval, squeeze=squeeze).blocks[1]
    assert isinstance(block, RRWKVBlock)
    x = torch.randn(20, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert close(block(x[None])[0], rrwkv_by_hand(block, x, interval))


@torch.no_grad()
def test_transformer_attends_by_the_formula() -> None:
    """Attention of one head by hand, positions as rotations of complex numbers."""
    block = randomised("transformer", heads=2).blocks[0]
    assert isinstance(block, TransformerBlock)
    x = torch.randn(9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    query, key, value = (
        part.view(9, 2, 8)
        for part in block.query_key_value(block.attention_norm(x)).split(WIDTH, -1)
    )
    mixed = torch.zeros(9, 2, 8, dtype=torch.float64)
    for head in range(2):
        for t in range(9):
            scores = []
            for s in range(t + 1):
                turn = torch.polar(
                    torch.ones(4).double(), (t - s) * 10000 ** -(torch.arange(4).double() / 4)
                )
                q, k = (torch.complex(v[:4], v[4:]) for v in (query[t, head], key[s, head]))
                scores.append((q * turn * k.conj()).real.sum() / 8**0.5)
            share = torch.stack(scores).softmax(0)
            mixed[t, head] = (share[:, None] * value[: t + 1, head]).sum(0)
    after = x + block.attention_output(mixed.flatten(1))
    gate, up = block.mlp.gate_and_value(block.mlp_norm(after)).chunk(2, -1)
    by_hand = after + block.mlp.output(gate * torch.sigmoid(gate) * up)
    assert torch.allclose(block(x[None])[0], by_hand, atol=1e-5)  # angles are float32


@torch.no_grad()
def test_rwkv_equals_that_of_transformers() -> None:
    """With the same weights, another library's RWKV-4 has the same outputs."""
    library = pytest.importorskip("transformers", reason="extra `peers` is not installed")
    config = library.RwkvConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        rescale_every=0,
        use_cache=False,
    )
    theirs = library.RwkvForCausalLM(config).double().eval()
    ours = randomised("rwkv")
    names = {
        "embedding.weight": "rwkv.embeddings.weight",
        "norm.": "rwkv.ln_out.",
        "head.weight": "head.weight",
        "embedding_norm.": "rwkv.blocks.0.pre_ln.",
    }
    inside = {
        "time_norm": "ln1",
        "channel_norm": "ln2",
        "time_mix": "attention",
        "channel_mix": "feed_forward",
        "mix_key": "time_mix_key",
        "mix_value": "time_mix_value",
        "mix_receptance": "time_mix_receptance",
        "decay": "time_decay",
        "bonus": "time_first",
    }
    weights = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if name.startswith("blocks."):
            _, layer, *parts = name.split(".")
            other = f"rwkv.blocks.{layer}." + ".".join(inside.get(part, part) for part in parts)
        else:
            other = next(b + name.removeprefix(a) for a, b in names.items() if name.startswith(a))
        weights[other] = tensor.view_as(weights[other])
    theirs.load_state_dict(weights)
    # the loop of transformers computes in float32
    assert torch.allclose(ours(tokens()), theirs(tokens()).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "matrices"),
    [
        ("transformer", {}, 13),
        ("rwkv", {}, 13),
        ("lstm", {}, 13),
        ("rrwkv", {}, 14),  # the gate
        ("rrwkv", {"squeeze": True}, 15),  # and in each mix two matrices of width^2 / 4
    ],
)
def test_blocks_of_equal_width_have_similar_sizes(
    name: str, options: dict[str, object], matrices: int
) -> None:
    model = build_model(name, VOCABULARY, width=64, depth=1, **options)
    weights = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert weights == matrices * 64**2


def test_published_parameter_count() -> None:
    """Peng et al. 2023: 2VD + 13 D^2 L + D (11 L + 4)."""
    V, D, L = 50, 32, 3
    assert parameter_count(
        build_model("rwkv", V, width=D, depth=L)
    ) == 2 * V * D + 13 * D**2 * L + D * (11 * L + 4)


def test_learning_rates_are_those_the_architecture_declares() -> None:
    groups = build_model("rwkv", VOCABULARY, width=WIDTH, depth=DEPTH).parameter_groups()
    scales = {(g["learning_rate_scale"], g["decay"]): len(g["params"]) for g in groups}
    assert scales[2.0, False] == scales[3.0, False] == DEPTH
    assert sum(len(g["params"]) for g in groups) == len(list(randomised("rwkv").parameters()))
    assert all((p.ndim >= 2) == g["decay"] for g in groups for p in g["params"])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rwkw", {}, "unknown model 'rwkw': expected .*rwkv"),
        ("rrwkv", {"intervall": 3}, "no option 'intervall': expected interval"),
        ("rrwkv", {"heads": 3}, "no option 'heads': expected channel_mix or interval or retrosp"),
        ("lstm", {"interval": 3}, "no option 'interval': expected short_conv"),
        ("rrwkv", {"interval": 0}, "interval 0: expected an integer of at least 1"),
        ("rrwkv", {"interval": True}, "interval True"),
        ("rrwkv", {"retrospection": "some"}, "expected one of recurrent, attention, none"),
        ("transformer", {"heads": 5}, "expected an even width a head"),
    ],
)
def test_wrong_arguments_are_rejected(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model(name, VOCABULARY, width=WIDTH, depth=DEPTH, **options)


def test_sqrt_interval_needs_a_length() -> None:
    model = build_model("rrwkv", VOCABULARY, width=WIDTH, depth=1, interval="sqrt")
    with pytest.raises(ValueError, match="start from prefill"):
        model.initial_state(1)


def test_a_taken_name_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'rwkv' is already registered by lookback.models\.rwkv"):
        register_model("rwkv")(nn.Identity)
    assert model_options("lstm") == {"short_conv": False}
