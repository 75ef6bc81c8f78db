"""A plug-in whose models do what a measuring process must live with."""

import os
import signal
import time

import torch
from torch import Tensor, nn

from lookback.models.model import register_model
from lookback.tasks.task import Batch, register_task


class Plain(nn.Module):
    """Looks at the present token alone."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[()]:
        return ()

    def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self.forward(x), state


@register_model("plain")
class PlainBlock(Plain):
    pass


@register_model("raises")
class Raises(Plain):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this model is broken")


@register_model("out-of-memory")
class OutOfMemory(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.empty(1 << 58)


@register_model("all-to-all")
class AllToAll(Plain):
    """Weighs every position by every other at once, length x length of them; `step` needs width x
    width.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ x.transpose(1, 2)).tril() @ self.linear(x)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        width = self.linear.in_features
        return torch.zeros(batch_size, width, width, device=device, dtype=dtype)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + x[:, :, None] * self.linear(x)[:, None]
        return x + (x[:, None] @ state)[:, 0], state


@register_model("not-a-number")
class NotANumber(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float("nan")


@register_model("hangs")
class Hangs(Plain):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3600)
        return x


@register_model("slow")
class Slow(Plain):
    def forward(self, x: Tensor) -> Tensor:
        print("reading", flush=True)
        time.sleep(0.1)
        return x + self.linear(x)


@register_model("killed")
class Killed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return x


@register_task(
    "last-token", vocabulary=4, baseline_score=0.25, lengths=(16,), source="a test", symbols="abcd"
)
def sample_last_token(batch_size: int, length: int, generator: torch.Generator) -> Batch:
    """Say the token just read.

    tokens   a c b
    targets  a c b
    """
    tokens = torch.randint(4, (batch_size, length), generator=generator)
    return Batch(tokens, tokens.clone())
