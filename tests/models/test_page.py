"""docs/models.md agrees with the code: parameters, shapes, options, and formulas."""

import re
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from lookback.benchmarks.measure.operations import counter
from lookback.models.model import build_model, model_options, parameter_count, state_bytes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TITLES = {
    "transformer": "Transformer",
    "rwkv": "RWKV-4",
    "rrwkv": "RRWKV: our reconstruction",
    "lstm": "LSTM",
    "rwkv7": "RWKV-7",
    "gated_deltanet": "Gated DeltaNet",
    "mamba2": "Mamba-2",
}
RWKV_SCALES = {"decay": 2.0, "bonus": 3.0}
SIZES = [(16, 1, 11, 40), (24, 2, 7, 300), (40, 3, 5, 513)]  # width, depth, vocabulary, length


def sizes_of(model: str, width: int) -> dict[str, int]:
    """Return the page's symbols for sizes that follow from the width, below width 128."""
    heads = 2
    key_size = 3 * width // (4 * heads)
    hidden = 8 * ceil(width / 3)
    return {"D": width, "H": heads, "R": width // 4, "K": key_size, "M": hidden, "N": width}


def section(model: str) -> str:
    return PAGE.split(f"\n## {TITLES[model]}\n")[1].split("\n## ")[0]


def parameters_of(model: str) -> dict[str, str]:
    """Return the shapes in the tables of a model's section, by the parameters' names."""
    rows = re.findall(r"^\|[^|]*\| `([\w.]+)` \| `(\([^`]*\))` \|", section(model), re.M)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def formula(model: str, name: str, **values: int) -> int:
    (text,) = re.findall(rf"^\| {re.escape(name)} \| `([^`]+)` \|$", section(model), re.M)
    return eval(text, {"ceil": ceil, **values})


@pytest.mark.parametrize("name", TITLES)
def test_every_parameter_is_listed_with_its_shape(name: str) -> None:
    width = 24
    options: dict[str, Any] = {}
    listed = parameters_of(name)
    if name == "rrwkv":  # its table has what it adds to RWKV-4, with all extensions
        options = {"squeeze": True}
        listed = {**parameters_of("rwkv"), **listed}
    block = build_model(name, 5, width=width, depth=2, **options).blocks[-1]
    shapes = {parameter: tuple(weight.shape) for parameter, weight in block.named_parameters()}
    sizes = sizes_of(name, width)
    assert {key: eval(shape, sizes) for key, shape in listed.items()} == shapes


@pytest.mark.parametrize("name", TITLES)
def test_constant_initial_values(name: str) -> None:
    options: dict[str, Any] = {"squeeze": True} if name == "rrwkv" else {}
    block = build_model(name, 5, width=24, depth=2, **options).blocks[-1]
    row = r"^\|[^|]*\| `([\w.]+)` \| `\([^`]*\)` \| (-?[\d.]+) \|$"
    initial_values = dict(re.findall(row, section(name), re.M))
    assert len(initial_values) >= 3
    for key, value in initial_values.items():
        assert (block.get_parameter(key) == float(value)).all(), key


@pytest.mark.parametrize("name", TITLES)
@pytest.mark.parametrize(("width", "depth", "vocabulary", "length"), SIZES)
def test_formulas(name: str, width: int, depth: int, vocabulary: int, length: int) -> None:
    model = build_model(name, vocabulary, width=width, depth=depth).eval()
    values = {**sizes_of(name, width), "L": depth, "V": vocabulary, "T": length, "S": 16}
    assert parameter_count(model) == formula(name, "parameters", **values)
    with torch.no_grad(), counter() as counted:
        _, state = model.prefill(torch.zeros(1, length, dtype=torch.int64))
    assert counted.get_total_flops() == formula(name, "operations to read T tokens", **values)
    for _ in range(2):  # after the prompt, and after one more token
        assert state_bytes(state) == formula(name, "state, bytes a sequence", **values)
        if name == "transformer":
            break  # one more token may open a page
        _, state = model.step(torch.zeros(1, dtype=torch.int64), state)


def test_state_with_attention_to_mediums() -> None:
    width, depth, length = 16, 2, 100
    model = build_model("rrwkv", 5, width=width, depth=depth, retrospection="attention").eval()
    _, state = model.prefill(torch.zeros(1, length, dtype=torch.int64))
    assert state_bytes(state) == 4 * depth * width * (13 - 4 + 2 * (length // 16))


@pytest.mark.parametrize("name", ["rrwkv", "gated_deltanet"])
def test_options_and_their_defaults(name: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section(name), re.M))
    assert {
        key: eval(value) for key, value in rows.items() if not value.startswith("(")
    } == model_options(name)


def test_what_else_differs_than_the_mixer() -> None:
    """State and operations in the table, and that every model has the option short_conv."""
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.M)
    assert sorted(row[0] for row in rows) == sorted(TITLES)
    for name, stated, operations in rows:
        assert "short_conv" in model_options(name)
        model = build_model(name, 16, width=64, depth=2).eval()
        with torch.no_grad(), counter() as counted:
            _, state = model.prefill(torch.zeros(1, 1024, dtype=torch.int64))
        assert state_bytes(state) == int(stated.replace(",", ""))
        assert counted.get_total_flops() // 1024 == int(operations.replace(",", ""))


@pytest.mark.parametrize("name", TITLES)
def test_weight_decay_and_learning_rate_scales(name: str) -> None:
    model = build_model(name, 5, width=16, depth=2)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in model.parameter_groups():
        for parameter in group["params"]:
            last: Any = names[id(parameter)].rpartition(".")[2]
            scales = {"rwkv7": {"w0": 2.0}, "rwkv": RWKV_SCALES, "rrwkv": RWKV_SCALES}
            assert group["learning_rate_scale"] == scales.get(name, {}).get(last, 1.0)
            is_exempt = name == "rwkv7" and re.fullmatch("[wavg][12]|r_k", last)
            assert group["decay"] == (parameter.ndim >= 2 and not is_exempt)


def test_names_of_the_code_exist() -> None:
    """Every word in code form on the page is a name in models/ or benchmarks/."""
    files = [*(ROOT / "models").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for name in re.findall(r"`([A-Za-z_]\w+)`", PAGE):
        assert re.search(rf"\b{name}\b", code), name
