"""A block that reads ahead, or whose `step` is another function, is refused by name, whatever its
weights begin as.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookback.models import contract
from lookback.models.contract import check_contract
from lookback.models.model import register_model


class Plain(nn.Module):
    """Looks at the present token alone. Of this file: plug-ins register what other tests should not
    meet.
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
    """Attention without softmax, and its state."""

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
    """As blocks begin that add nothing at first."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__(width, layer, depth)
        for weight in self.parameters():
            nn.init.zeros_(weight)


class OtherStep(Plain):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x - self.linear(x), state


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


def tried(monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], autocast: bool = False) -> None:
    monkeypatch.setattr(contract, "registered_block", lambda name: block)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        check_contract("mine", 16, 2, {}, "cpu")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (ReadsAhead, "'mine' is not causal"),
        (ReadsAheadByZeros, "'mine' is not causal"),
        (
            OtherStep,
            "'mine': its `step`, position by position, says something else than its `forward`",
        ),
        (Shorter, r"reads \(2, 8, 16\) and gives \(2, 7, 16\): expected the same shape"),
        (Double, "reads torch.float32 and gives torch.float64"),
        (Pair, "gives tuple: expected the same shape"),
    ],
)
def test_what_breaks_the_contract_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as told:
        tried(monkeypatch, block)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("block", [Plain, Sums, StepLess, NotANumber])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_keeps_it_is_not(
    monkeypatch: pytest.MonkeyPatch, block: type[nn.Module], autocast: bool
) -> None:
    """A loss that is no number is for training to tell, and a `step` need not be there to learn."""
    tried(monkeypatch, block, autocast)


def test_what_is_no_block_is_not_registered() -> None:
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
