"""Every registered model: its contract. And each architecture against something independent."""

import math

import pytest
import torch
from torch import Tensor, nn

from lookback.benchmarks.measure.memory import LiveBytes
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
from lookback.models.transformer import TransformerBlock

VOCABULARY, WIDTH, DEPTH = 11, 16, 2
RRWKV_OPTIONS = [
    {"interval": 4},
    {"interval": 1},
    {"interval": 64},
    {"interval": 4, "retrospection": "attention"},
    {"interval": 4, "retrospection": "none"},
    {"interval": 4, "squeeze": False},
    {"interval": 4, "time_mix": False},
    {"interval": 4, "channel_mix": False},
    {"interval": 4, "time_mix": False, "retrospection": "none"},
    {"interval": 4, "time_mix": False, "channel_mix": False, "retrospection": "attention"},
    {"interval": "none"},
]
VARIANTS = [(name, {}) for name in model_names()] + [
    ("rrwkv", options) for options in RRWKV_OPTIONS
]
VARIANTS += [("transformer", {"heads": 1})]


def randomised(name: str, classes: int | None = None, **options: object) -> SequenceModel:
    """A model away from its initialisation, where many outputs are zero whatever the input."""
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
    return torch.allclose(
        a, b, rtol=1e-6, atol=1e-6
    )  # states are float32 where the operator keeps them so


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@torch.no_grad()
def test_forward_equals_steps(name: str, options: dict[str, object]) -> None:
    model, read = randomised(name, **options), tokens()
    at_once = model(read)
    assert at_once.shape == (*read.shape, VOCABULARY)
    state, one_by_one = model.initial_state(len(read)), []
    for token in read.unbind(1):
        logits, state = model.step(token, state)
        one_by_one.append(logits)
    assert close(at_once, torch.stack(one_by_one, 1))


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("rrwkv", {"interval": "sqrt"})])
@pytest.mark.parametrize("first", [1, 8, 15])
@torch.no_grad()
def test_prefill_goes_on_as_forward(name: str, options: dict[str, object], first: int) -> None:
    if options.get("interval") == "sqrt":  # the interval is that of what prefill read
        options_at_once: dict[str, object] = {**options, "interval": math.isqrt(first - 1) + 1}
    else:
        options_at_once = options
    model, read = randomised(name, **options), tokens()
    at_once = randomised(name, **options_at_once)(read)
    logits, state = model.prefill(read[:, :first])
    assert close(logits, at_once[:, first - 1])
    for position in range(first, read.shape[1]):
        logits, state = model.step(read[:, position], state)
        assert close(logits, at_once[:, position])


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("rrwkv", {"interval": "sqrt"})])
@torch.no_grad()
def test_later_tokens_change_nothing_earlier(name: str, options: dict[str, object]) -> None:
    model, read = randomised(name, **options), tokens()
    before = model(read)
    for position in (1, 9, 22):
        changed = read.clone()
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
    """The first token changes the last output: nothing in the stack cuts the past off."""
    model, read = randomised(name, **options), tokens(length=40)
    changed = read.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert (model(read)[:, -1] - model(changed)[:, -1]).abs().max() > 0


@pytest.mark.parametrize(
    ("name", "constant"), [("rwkv", True), ("rrwkv", True), ("lstm", True), ("transformer", False)]
)
@torch.no_grad()
def test_state_size(name: str, constant: bool) -> None:
    model = randomised(name)
    short, long = (state_bytes(model.prefill(tokens(length=length))[1]) for length in (64, 1024))
    assert (short == long) == constant
    if not constant:
        assert (
            long == 1024 * 3 * DEPTH * 2 * WIDTH * 8
        )  # positions, batch, layers, key and value, float64


@torch.no_grad()
def test_attention_to_mediums_grows_by_the_interval() -> None:
    model = randomised("rrwkv", retrospection="attention", interval=16)
    sizes = [state_bytes(model.prefill(tokens(length=length))[1]) for length in (160, 320, 480)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 10 * 3 * DEPTH * 2 * WIDTH * 8


def test_attention_to_mediums_is_fused() -> None:
    """Also where the mediums are several, which take a mask."""
    model = build_model("rrwkv", 10, width=16, depth=1, interval=4, retrospection="attention")
    with LiveBytes() as seen:
        model(torch.zeros(2, 24, dtype=torch.int64)).sum().backward()
    assert any(
        "scaled_dot_product" in kernel and "backward" in kernel for kernel in seen.kernels
    ), seen.kernels


def test_the_recurrence_of_an_lstm_is_never_float16() -> None:
    model = build_model("lstm", 10, width=16, depth=1)
    kept = []
    model.blocks[0].recurrence.register_forward_hook(
        lambda _, given, found: kept.extend((given[0], found[0]))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.zeros(2, 24, dtype=torch.int64))
    assert [tensor.dtype for tensor in kept] == [
        torch.float32
    ] * 2 and logits.dtype == torch.bfloat16


def test_asked_positions_are_those_of_all() -> None:
    model, read = randomised("rwkv"), tokens()
    asked = torch.tensor([0, 5, 24, 60])
    assert close(model(read, asked=asked), model(read).flatten(0, 1)[asked])


def test_classes_answer_at_the_last_valid_token() -> None:
    model, read = randomised("rwkv", classes=4), tokens()
    assert model(read).shape == (3, 4)
    lengths = torch.tensor([5, 23, 1])
    alone = torch.cat(
        [model(read[i : i + 1, :length]) for i, length in enumerate(lengths.tolist())]
    )
    assert close(model(read, lengths=lengths), alone)


def test_dropout_leaves_out_its_share_of_what_layers_add_and_nothing_when_scored() -> None:
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
    assert torch.equal(model.eval().through(model.blocks, x), model.blocks[0](x))


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


def test_rrwkv_whose_new_parts_are_zero_is_rwkv() -> None:
    """Shares of mediums start at zero; with the retrospection's answer gated off nothing else is
    new.
    """
    rrwkv, rwkv = randomised("rrwkv", interval=4, retrospection="none"), randomised("rwkv")
    with torch.no_grad():
        for name, parameter in rrwkv.named_parameters():
            if "shares" in name:
                parameter.zero_()
    rwkv.load_state_dict({k: v for k, v in rrwkv.state_dict().items() if "mediums" not in k})
    assert close(rrwkv(tokens()), rwkv(tokens()))


def rrwkv_by_hand(block: RRWKVBlock, x: Tensor, interval: int) -> Tensor:
    """One layer written from the formulas of the reconstruction, position by position. x: (length,
    width) float64.
    """
    time, channel = block.time_mix, block.channel_mix
    h = block.time_norm(x)
    length, width = h.shape
    zero = torch.zeros(width, dtype=x.dtype)

    def mediums_of(inputs: Tensor, squeeze: nn.Module) -> list[Tensor]:
        means = [
            inputs[j * interval : (j + 1) * interval].mean(0) for j in range(length // interval)
        ]
        return [
            s * torch.sigmoid(squeeze.up.weight @ torch.relu(squeeze.down.weight @ s))
            for s in means
        ]

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
        answer = weighted(keys, values, t, time.decay.exp(), time.bonus)
        if finished:
            medium_keys = [time.key.weight @ m for m in mediums[:finished]]
            medium_values = [time.value.weight @ m for m in mediums[:finished]]
            found = weighted(
                medium_keys, medium_values, finished - 1, time.medium_decay.exp(), time.medium_bonus
            )
            answer = answer + torch.sigmoid(time.gate.weight @ h[t]) * found
        rows.append(time.output.weight @ (torch.sigmoid(time.receptance.weight @ x_r) * answer))
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


@pytest.mark.parametrize("interval", [1, 3, 8, 30])
@torch.no_grad()
def test_rrwkv_is_its_formulas(interval: int) -> None:
    block = randomised("rrwkv", interval=interval).blocks[1]
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
    gate, up = block.gate_and_value(block.mlp_norm(after)).chunk(2, -1)
    by_hand = after + block.mlp_output(gate * torch.sigmoid(gate) * up)
    assert torch.allclose(block(x[None])[0], by_hand, atol=1e-5)  # angles are float32


@torch.no_grad()
def test_rwkv_is_that_of_transformers() -> None:
    """The same weights in another library's RWKV-4 give the same outputs."""
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
    read = tokens()
    assert torch.allclose(
        ours(read), theirs(read).logits, atol=1e-4
    )  # its loop computes in float32


def test_sizes_are_alike() -> None:
    """Blocks of equal width have weights of 13 width^2, RRWKV a gate and two squeezes more."""
    for name, matrices in (("transformer", 13), ("rwkv", 13), ("lstm", 13), ("rrwkv", 15)):
        model = build_model(name, VOCABULARY, width=64, depth=1)
        weights = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
        assert weights == matrices * 64**2, name


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
        ("rrwkv", {"intervall": 3}, "no option 'intervall': its options are channel_mix, interval"),
        ("lstm", {"interval": 3}, "its options are none"),
        ("rrwkv", {"interval": 0}, "interval 0: expected an integer of at least 1"),
        ("rrwkv", {"interval": True}, "interval True"),
        ("rrwkv", {"retrospection": "some"}, "expected one of recurrent, attention, none"),
        ("transformer", {"heads": 5}, "expected an even width a head"),
    ],
)
def test_wrong_use_is_told(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model(name, VOCABULARY, width=WIDTH, depth=DEPTH, **options)


def test_an_unknown_length_is_told() -> None:
    model = build_model("rrwkv", VOCABULARY, width=WIDTH, depth=1, interval="sqrt")
    with pytest.raises(ValueError, match="start from prefill"):
        model.initial_state(1)


def test_a_taken_name_is_told() -> None:
    with pytest.raises(ValueError, match=r"'rwkv' is already registered by lookback.models\.rwkv"):
        register_model("rwkv")(nn.Identity)
    assert model_options("lstm") == {}
