"""Models of other libraries: published sizes, the contract, and the equality of two RWKV-4s."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lookback.benchmarks.measure.cell import check
from lookback.benchmarks.measure.cost import cost
from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.plan.estimate import count_parameters, estimate
from lookback.benchmarks.plan.match_widths import nearest
from lookback.benchmarks.record import CostCell, LearnCell
from lookback.models.contract import check_contract
from lookback.models.model import (
    SequenceModel,
    build_model,
    model_names,
    model_options,
    parameter_count,
    state_bytes,
)
from lookback.tasks.task import get_task

pytest.importorskip("transformers", reason="extra `hf` is not installed")

VOCABULARY, WIDTH, DEPTH = 11, 32, 2
CACHES = {
    "gpt2": "keys and values",
    "llama": "keys and values",
    "gpt_neox": "keys and values",
    "qwen2": "keys and values",
    "bert": "keys and values",
    "mamba": "constant",
    "mamba2": "constant",
}


def randomised(name: str, **options: object) -> SequenceModel:
    """Build a model and move it off its initialisation, where many outputs are nearly zero."""
    torch.manual_seed(0)
    model = build_model(name, VOCABULARY, width=WIDTH, depth=DEPTH, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(batch_size: int = 2, length: int = 19) -> Tensor:
    return torch.randint(
        VOCABULARY, (batch_size, length), generator=torch.Generator().manual_seed(1)
    )


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)  # states are float32 where a library keeps them so


@pytest.mark.parametrize("kind", [*CACHES, "rwkv"])
@torch.no_grad()
def test_the_contract(kind: str) -> None:
    """Steps, with and without a prompt, equal forward; tokens change later outputs only."""
    model = randomised(f"hf:{kind}")
    sequences = tokens(1 if kind == "rwkv" else 2)
    expected = model(sequences)
    assert expected.shape == (*sequences.shape, VOCABULARY)

    for first in (0, 7):
        if first:
            logits, state = model.prefill(sequences[:, :first])
            assert close(logits, expected[:, first - 1])
        else:
            state = model.initial_state(len(sequences))
        for position in range(first, sequences.shape[1]):
            logits, state = model.step(sequences[:, position], state)
            assert close(logits, expected[:, position])

    for position in (0, 9):
        changed = sequences.clone()
        changed[:, position:] = (changed[:, position:] + 1) % VOCABULARY
        after = model(changed)
        assert close(after[:, :position], expected[:, :position])
        assert (after[:, -1] - expected[:, -1]).abs().min() > 1e-6


@torch.no_grad()
def test_rwkv_of_transformers_is_ours() -> None:
    """With our weights, the RWKV-4 of transformers has our outputs."""
    ours, theirs = randomised("rwkv"), randomised("hf:rwkv")
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
    outside = {
        "norm.": "blocks.0.stack.ln_out.",
        "embedding_norm.": "blocks.0.stack.blocks.0.pre_ln.",
    }
    weights = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if name.startswith("blocks."):
            name = "blocks.0.stack." + ".".join(inside.get(part, part) for part in name.split("."))
        else:
            name = next(
                (b + name.removeprefix(a) for a, b in outside.items() if name.startswith(a)), name
            )
        weights[name] = tensor.view_as(weights.pop(name))
    theirs.load_state_dict(weights)
    # the loop of transformers computes in float32
    assert torch.allclose(ours(tokens()), theirs(tokens()), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "width", "depth", "published", "tied"),
    [
        ("gpt2", 50257, 768, 12, 124_439_808, True),  # Radford et al. 2019, as released
        ("gpt2", 50257, 1600, 48, 1_557_611_200, True),
        ("llama", 32000, 4096, 32, 6_738_415_616, False),  # Touvron et al. 2023: 6.7 B
        ("mamba", 50280, 768, 24, 129_135_360, True),  # state-spaces/mamba-130m
        (
            "rwkv",
            50277,
            768,
            12,
            169_342_464,
            False,
        ),  # Peng et al. 2023: 2VD + 13 D^2 L + D (11 L + 4)
    ],
)
def test_published_sizes(
    kind: str, vocabulary: int, width: int, depth: int, published: int, tied: bool
) -> None:
    """Width and depth alone give the released models; a tied head there counts once."""
    with torch.device("meta"):
        model = build_model(f"hf:{kind}", vocabulary, width=width, depth=depth)
    assert parameter_count(model) - tied * vocabulary * width == published


@pytest.mark.parametrize("kind", ["llama", "mamba"])
@torch.no_grad()
def test_state_is_counted(kind: str) -> None:
    model = randomised(f"hf:{kind}")
    short, long = (state_bytes(model.prefill(tokens(length=length))[1]) for length in (64, 128))
    if CACHES[kind] == "constant":
        # layers, batch, channels: a state of 16 and a convolution of 4
        floats = DEPTH * 2 * 2 * WIDTH * (16 + 4)
        assert short == long
        assert 4 * floats <= long <= 8 * floats
    else:
        assert (short, long) == (2 * DEPTH * 2 * 64 * WIDTH * 8, 2 * DEPTH * 2 * 128 * WIDTH * 8)


def test_dropout_is_an_option_alone() -> None:
    """GPT-2's own default of 0.1 is off, and the frame's dropout is refused."""
    sizes = {"width": WIDTH, "depth": DEPTH}
    without = build_model("hf:gpt2", VOCABULARY, **sizes).train()
    assert torch.equal(without(tokens()), without(tokens()))

    with_option = build_model("hf:gpt2", VOCABULARY, **sizes, resid_pdrop=0.5).train()
    assert not torch.equal(with_option(tokens()), with_option(tokens()))

    with pytest.raises(ValueError, match=r"dropout 0.5: expected 0, because this model"):
        build_model("hf:gpt2", VOCABULARY, **sizes, dropout=0.5)


def test_every_parameter_learns() -> None:
    for kind in ("gpt2", "qwen2", "mamba2"):
        model = randomised(f"hf:{kind}")
        (model(tokens()) ** 2).sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().max() > 0
            for p in model.parameters()
            if p.shape[0] != 1024
        )


@pytest.mark.parametrize(
    ("name", "width", "options", "words"),
    [
        ("hf:lama", 32, {}, "unknown model 'hf:lama': expected hf:llama"),
        ("hf:", 32, {}, "unknown model 'hf:'"),
        ("hf:../gpt2", 32, {}, "unknown model 'hf:../gpt2'"),
        ("hx:gpt2", 32, {}, "hf:NAME"),
        ("hf:gpt2", 33, {}, "2 heads: expected an even width a head"),
        ("hf:gpt2", 32, {"n_heads": 4}, "no option 'n_heads': expected n_head"),
        ("hf:gpt2", 32, {"hidden_size": 64}, "no option 'hidden_size'"),
        ("hf:bart", 32, {}, "made of several models"),
        ("hf:llama4", 32, {}, "its configuration has no hidden_size"),
        ("hf:openai-gpt", 32, {}, "it keeps no state"),
    ],
)
def test_wrong_arguments_are_rejected(
    name: str, width: int, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        build_model(name, VOCABULARY, width=width, depth=DEPTH, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_options_are_fields_by_either_name() -> None:
    for options in ({"n_head": 4}, {"num_attention_heads": 4}):
        model = build_model("hf:gpt2", VOCABULARY, width=WIDTH, depth=DEPTH, **options)
        assert model.blocks[0].stack.config.n_head == 4
    assert model_options("hf:gpt2")["resid_pdrop"] == 0.0


def test_learned_positions_end() -> None:
    model = build_model("hf:gpt2", VOCABULARY, width=WIDTH, depth=1, n_positions=8)
    with pytest.raises(ValueError, match="knows 8 positions, not 9: its option 'n_positions'"):
        model(tokens(length=9))
    _, state = model.prefill(tokens(length=8))
    with pytest.raises(ValueError, match="knows 8 positions, not 9"):
        model.step(tokens()[:, 0], state)
    build_model("hf:llama", VOCABULARY, width=WIDTH, depth=1, max_position_embeddings=8)(
        tokens(length=9)
    )


def test_a_test_beyond_the_last_position_is_refused_before_training() -> None:
    cell = small_learn(model="hf:gpt2", model_options={"n_positions": 64}, test_lengths=(64,))
    check(cell)
    with pytest.raises(ValueError, match="knows 64 positions, not 65: its option 'n_positions'"):
        check(cell.model_copy(update={"test_lengths": (64, 65)}))


@torch.no_grad()
def test_a_library_may_write_into_what_it_reads() -> None:
    """CTRL of transformers 5.23 multiplies its input in place."""
    block: Any = build_model("hf:ctrl", VOCABULARY, width=WIDTH, depth=1).blocks[0].eval()
    x = torch.randn(1, 4, WIDTH)
    before = x.clone()
    block(x)
    block.prefill(x)
    assert x.equal(before)


def test_an_unknown_type_has_a_few_names_in_its_error() -> None:
    with pytest.raises(ValueError, match=r"expected hf:.* or one of [0-9]+ others") as error:
        build_model("hf:0000", VOCABULARY, width=WIDTH, depth=1)
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match="expected hf:llama"):
        build_model("hf:lama", VOCABULARY, width=WIDTH, depth=1)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "mamba2", "rwkv", "ctrl"])
def test_the_check_accepts_sound_models(kind: str) -> None:
    check_contract(f"hf:{kind}", WIDTH, DEPTH, {}, "cpu")


@pytest.mark.parametrize("kind", ["roberta", "camembert"])
def test_a_wrong_cache_is_rejected(kind: str) -> None:
    """transformers 5.23 restarts the positions of these types when they continue from a cache."""
    with pytest.raises(ValueError, match=f"'hf:{kind}': the outputs of its `step`.* differ"):
        check_contract(f"hf:{kind}", WIDTH, DEPTH, {}, "cpu")


def test_an_absent_cache_is_rejected() -> None:
    """RecurrentGemma of transformers 5.23 takes a cache and returns none."""
    with pytest.raises(ValueError, match="'hf:recurrent_gemma' keeps no state: its library"):
        check_contract("hf:recurrent_gemma", WIDTH, 3, {}, "cpu")  # two recurrent layers, one other


def test_a_model_that_is_not_causal_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = importlib.import_module("transformers.models.llama.modeling_llama").LlamaDecoderLayer
    forward = layer.forward

    def mix_positions(*arguments: object, **keywords: object) -> Tensor:
        output = forward(*arguments, **keywords)
        return output + output.mean(1, keepdim=True)

    monkeypatch.setattr(layer, "forward", mix_positions)
    with pytest.raises(ValueError, match="'hf:llama' is not causal"):
        check_contract("hf:llama", WIDTH, DEPTH, {}, "cpu")


@torch.no_grad()
def test_a_wrong_shape_from_a_library_is_reported() -> None:
    """RWKV of transformers 5.23 mixes up the sequences of a batch when it reads token by token."""
    model = randomised("hf:rwkv")
    _, state = model.prefill(tokens(2))
    with pytest.raises(ValueError, match="a batch of one sequence may do"):
        model.step(tokens(2)[:, 0], state)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs the package transformers: pip install -e '.\[hf\]'"
    ):
        model_options("hf:gpt2")
    with pytest.raises(
        ValueError, match=r"needs the package flash-linear-attention: pip install -e '.\[fla\]'"
    ):
        model_options("fla:gla")


FIELDS = {
    "task": "copy",
    "model": "hf:llama",
    "width": WIDTH,
    "depth": DEPTH,
    "length": 24,
    "batch_size": 2,
}
LEARN_FIELDS = {
    "steps": 3,
    "warmup": 1,
    "validations": 1,
    "validation_examples": 2,
    "test_examples": 2,
}


def small_learn(**fields: object) -> LearnCell:
    return LearnCell.model_validate({"kind": "learn", **FIELDS, **LEARN_FIELDS, **fields})


def small_cost(**fields: object) -> CostCell:
    return CostCell.model_validate({"kind": "cost", **FIELDS, "repeats": 2, **fields})


def test_cells_have_names_for_files() -> None:
    assert small_learn().id.startswith("copy-hf-llama-L24-s0-")
    assert small_learn().id != small_learn(model="hf-llama").id
    for name in ("hf:", ":gpt2", "hf:a:b", "hf:../x", "HF:gpt2", "hf:a/b"):
        with pytest.raises(ValueError, match=r"model\n"):
            small_learn(model=name)
    assert not any(":" in name for name in model_names())


def test_it_is_measured(tmp_path: Path) -> None:
    cell = small_cost(generate=True)
    task = get_task("copy")
    numbers = cost(cell, task, lambda *_: None)
    assert not numbers.failed and set(numbers.phases) == {"training", "prefill", "decode"}
    last = numbers.generation[-1]
    assert (last.tokens, last.state_bytes) == (24, 2 * DEPTH * 2 * 24 * WIDTH * 4)

    learned = learn(small_learn(), task, tmp_path, lambda *_: None, lambda: False)
    assert learned.steps == 3
    assert learned.parameters == numbers.parameters


def test_it_is_estimated_and_sized() -> None:
    """Its needs are estimated without running it, and a width matches our Transformer's size.

    On tensors without numbers transformers cannot see that no padding has to be masked and gives
    attention a mask; the estimate counts the pairs that a causal kernel skips.
    """
    cell = small_cost()
    prediction = estimate(cell)
    measured = cost(cell, get_task("copy"), lambda *_: None).phases["training"]
    assert prediction.parameters == count_parameters(cell)
    assert measured.flops is not None
    skipped = cell.batch_size * cell.length * (cell.length - 1) // 2 * cell.depth
    products = 2 + 5  # with a vector of the width for each pair, forward and backward
    assert prediction.step_flops == measured.flops + products * 2 * cell.width * skipped

    aim = count_parameters(small_learn(model="transformer", width=96))
    width, value = nearest(lambda width: count_parameters(small_learn(width=width)), aim, 96)
    assert abs(value - aim) < 0.05 * aim and build_model(
        "hf:llama", VOCABULARY, width=width, depth=1
    )


FLA = ("rwkv7", "gated_deltanet", "mamba2", "gla", "retnet")


@pytest.mark.parametrize("kind", FLA)
def test_flash_linear_attention_is_made(kind: str) -> None:
    pytest.importorskip("fla", reason="extra `fla` is not installed")
    with torch.device("meta"):
        model = build_model(f"fla:{kind}", VOCABULARY, width=128, depth=DEPTH)
    assert (
        model.blocks[0].cache_name == "past_key_values"
        and len(model.blocks[0].stack.layers) == DEPTH
    )
    assert parameter_count(model) > 2 * VOCABULARY * 128 + DEPTH * 8 * 128**2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FLA)
@torch.no_grad()
def test_flash_linear_attention_keeps_the_contract(kind: str) -> None:
    pytest.importorskip("fla", reason="extra `fla` is not installed")
    torch.manual_seed(0)
    model = build_model(f"fla:{kind}", VOCABULARY, width=128, depth=DEPTH).cuda().eval()
    sequences = tokens(length=80).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = model(sequences)
        logits, state = model.prefill(sequences[:, :70])
        differences = [(logits - expected[:, 69]).abs().max()]
        for position in range(70, 80):
            logits, state = model.step(sequences[:, position], state)
            differences.append((logits - expected[:, position]).abs().max())

        changed = sequences.clone()
        changed[:, 40:] = (changed[:, 40:] + 1) % VOCABULARY
        earlier = (model(changed)[:, :40] - expected[:, :40]).abs().max()
    assert earlier < 0.02 * expected.abs().max()
    assert max(differences) < 0.05 * expected.abs().max()
    assert state_bytes(state) > 0
