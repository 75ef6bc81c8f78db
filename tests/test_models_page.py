"""docs/models.md is true of the code: parameters and their shapes, and what it says of sizes, state
and operations.
"""

import re
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from lookback.benchmarks.measure.operations import counter
from lookback.models.model import build_model, model_options, parameter_count, state_bytes

PAGE = (Path(__file__).parent.parent / "docs" / "lookback.models.md").read_text(encoding="utf-8")
TITLES = {
    "transformer": "Transformer",
    "rwkv": "RWKV-4",
    "rrwkv": "RRWKV: our reconstruction",
    "lstm": "LSTM",
}
SIZES = [(16, 1, 11, 40), (24, 2, 7, 300), (40, 3, 5, 513)]  # width, depth, vocabulary, length


def section(model: str) -> str:
    return PAGE.split(f"\n## {TITLES[model]}\n")[1].split("\n## ")[0]


def parameters_of(model: str) -> dict[str, str]:
    """Name and shape of every parameter that the table of a model's section lists."""
    found = re.findall(r"^\|[^|]*\| `([\w.]+)` \| `(\([^`]*\))` \|", section(model), re.M)
    assert len(found) == len(dict(found))
    return dict(found)


def formula(model: str, name: str, **values: int) -> int:
    (text,) = re.findall(rf"^\| {re.escape(name)} \| `([^`]+)` \|$", section(model), re.M)
    return eval(text, {"ceil": ceil, **values})


@pytest.mark.parametrize("name", TITLES)
def test_every_parameter_stands_there_with_its_shape(name: str) -> None:
    width = 24
    listed = {**(parameters_of("rwkv") if name == "rrwkv" else {}), **parameters_of(name)}
    block = build_model(name, 5, width=width, depth=2).blocks[0]
    there = {parameter: tuple(weight.shape) for parameter, weight in block.named_parameters()}
    assert {key: eval(shape, {"D": width}) for key, shape in listed.items()} == there


@pytest.mark.parametrize("name", TITLES)
def test_what_begins_as_a_number_does(name: str) -> None:
    block = build_model(name, 5, width=24, depth=2).blocks[0]
    begin = dict(
        re.findall(r"^\|[^|]*\| `([\w.]+)` \| `\([^`]*\)` \| (-?[\d.]+) \|$", section(name), re.M)
    )
    assert len(begin) >= 4
    for key, value in begin.items():
        assert (block.get_parameter(key) == float(value)).all(), key


@pytest.mark.parametrize("name", TITLES)
@pytest.mark.parametrize(("width", "depth", "vocabulary", "length"), SIZES)
def test_formulas(name: str, width: int, depth: int, vocabulary: int, length: int) -> None:
    model = build_model(name, vocabulary, width=width, depth=depth).eval()
    values = {"D": width, "L": depth, "V": vocabulary, "T": length, "S": 16}
    assert parameter_count(model) == formula(name, "parameters", **values)
    with torch.no_grad(), counter() as counted:
        _, state = model.prefill(torch.zeros(1, length, dtype=torch.int64))
    assert counted.get_total_flops() == formula(name, "operations to read T tokens", **values)
    for _ in range(2):  # as read, and after one more token
        assert state_bytes(state) == formula(name, "state, bytes a sequence", **values)
        if name == "transformer":
            break  # one more token may open a page
        _, state = model.step(torch.zeros(1, dtype=torch.int64), state)


def test_state_with_attention_to_mediums() -> None:
    width, depth, length = 16, 2, 100
    model = build_model("rrwkv", 5, width=width, depth=depth, retrospection="attention").eval()
    _, state = model.prefill(torch.zeros(1, length, dtype=torch.int64))
    assert state_bytes(state) == 4 * depth * width * (13 - 4 + 2 * (length // 16))


def test_options_and_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section("rrwkv"), re.M))
    assert {
        key: eval(value) for key, value in rows.items() if not value.startswith("(")
    } == model_options("rrwkv")


@pytest.mark.parametrize("name", TITLES)
def test_what_has_weight_decay_and_a_learning_rate_of_its_own(name: str) -> None:
    model = build_model(name, 5, width=16, depth=2)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in model.parameter_groups():
        for parameter in group["params"]:
            last: Any = names[id(parameter)].rpartition(".")[2]
            expected = {"decay": 2.0, "bonus": 3.0}.get(last, 1.0) if "rwkv" in name else 1.0
            assert group["learning_rate_scale"] == expected
            assert group["decay"] == (parameter.ndim >= 2)


def test_names_of_the_code_exist() -> None:
    """Words in code form are names in the files that the page speaks of."""
    root = Path(__file__).parent.parent
    code = "\n".join(
        p.read_text() for folder in ("models", "benchmarks") for p in (root / folder).rglob("*.py")
    )
    for name in re.findall(r"`([A-Za-z_]\w+)`", PAGE):
        assert re.search(rf"\b{name}\b", code), name
