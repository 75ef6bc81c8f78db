"""Blocks that read ahead, or whose `step` is another function, are rejected by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookback.models import contract
from lookback.models.contract import check_contract
from lookback.models.model import Architecture, ArchitectureSpec, register_model
from lookback.models.rwkv import RWKVBlock


class Plain(nn.Module):
    """A block that sees the present token only.

    Nothing here is registered, because other tests run over everything that is registered.
    """

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        return ()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.forward(x), state


class Sums(Plain):
    """Causal attention without softmax, with its recurrent form."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ x.transpose(1, 2)).tril() @ self.linear(x)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(
            batch_size, self.linear.in_features, self.linear.in_features, device=device, dtype=dtype
        )

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = state + x[:, :, None] * self.linear(x)[:, None]
        return x + (x[:, None] @ state)[:, 0], state


class NotANumber(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float("nan")


class ReadsAhead(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x.flip(1))


class ReadsAheadByZeros(ReadsAhead):
    """Reads ahead, but adds nothing at initialisation."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__(width, layer, depth)
        for weight in self.parameters():
            nn.init.zeros_(weight)


class OtherStep(Plain):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x - self.linear(x), state


class OtherPrefill(Sums):
    """Forgets the prompt."""

    def prefill(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.forward(x), self.initial_state(len(x), x.device, x.dtype)


class Shorter(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


class Double(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Pair(Plain):
    def forward(self, x: Tensor) -> Any:
        return x, x


class StepLess(nn.Module):
    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def check(monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], autocast: bool = False) -> None:
    architecture = Architecture(block, ArchitectureSpec(), {})
    monkeypatch.setattr(contract, "find_architecture", lambda name: architecture)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        check_contract("mine", 16, 2, {}, "cpu")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (ReadsAhead, "'mine' is not causal"),
        (ReadsAheadByZeros, "'mine' is not causal"),
        (
            OtherStep,
            "'mine': the outputs of its `step`, position by position, differ from those of",
        ),
        (OtherPrefill, "'mine': the outputs of its `prefill`, continued by `step`, differ from"),
        (Shorter, r"reads \(2, 8, 16\) and returns \(2, 7, 16\): expected the same shape"),
        (Double, "reads torch.float32 and returns torch.float64"),
        (Pair, "returns tuple: expected the same shape"),
    ],
)
def test_blocks_that_break_the_contract_are_rejected(
    monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        check(monkeypatch, block)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("block", [Plain, Sums, StepLess, NotANumber])
@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_that_keep_the_contract_pass(
    monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], autocast: bool
) -> None:
    """Training reports outputs that are nan, and a model can be trained without a `step`."""
    check(monkeypatch, block, autocast)


def test_blocks_of_this_package_are_left_to_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RWKVBlock, "forward", lambda self, x: x[:, 1:])
    check_contract("rwkv", 16, 2, {}, "cpu")


def test_only_blocks_are_registered() -> None:
    with pytest.raises(
        ValueError, match=r"'mine': expected a block, a subclass of torch.nn.Module, not <function"
    ):
        register_model("mine")(lambda width, layer, depth: nn.Identity())  # type: ignore[arg-type]

    class Wide(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    class Asks(Plain):
        def __init__(self, width: int, layer: int, depth: int, *, heads: int) -> None:
            super().__init__(width, layer, depth)

    for block in (Wide, Asks):
        with pytest.raises(
            ValueError,
            match=r"'mine': expected a block made as block\(width, layer, depth\), options",
        ):
            register_model("mine")(block)
