"""A plug-in for tests of faults: blocks that take their time, leak, or leave a process, and a clock
that jumps.
"""

import os
import random
import signal
import subprocess
import time

import torch
from torch import Tensor, nn

from lookback.models.model import register_model

if os.environ.get("LOOKBACK_TEST_JUMPING_CLOCK"):
    time.time = lambda: random.uniform(
        -1e9, 4e9
    )  # what a wrong clock, set right and wrong again, may say


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


@register_model("unhurried")
class Unhurried(Plain):
    """Says what it does and how long the sequences are, and takes a while over it."""

    def forward(self, x: Tensor) -> Tensor:
        print("training" if self.training else "scoring", x.shape[1], flush=True)
        time.sleep(0.15)
        return super().forward(x)


@register_model("leaks")
class Leaks(Plain):
    """Keeps all it ever had, and ever more of it."""

    kept: list[Tensor] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        while self.training:
            self.kept.append(torch.ones(1 << 24))
        return super().forward(x)


@register_model("leaks-lists")
class LeaksLists(Plain):
    """The same without torch: Python's own MemoryError says nothing."""

    def forward(self, x: Tensor) -> Tensor:
        kept: list[bytes] = []
        while self.training:
            kept.append(b"x" * (1 << 26))
        return super().forward(x)


@register_model("has-a-process")
class HasAProcess(Unhurried):
    """Starts a process that outlives it, and takes a while."""

    started: list[subprocess.Popen[bytes]] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.started:
            self.started.append(subprocess.Popen(["sleep", "876543"]))
        return super().forward(x)


@register_model("leaves-a-process")
class LeavesAProcess(Plain):
    """Starts a process and forgets it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            subprocess.Popen(["sleep", "987654"])
        return super().forward(x)


@register_model("stumbles")
class Stumbles(Plain):
    """Of several processes that train it, the second does not come far."""

    def __init__(self, width: int, layer: int, depth: int, *, how: str = "raise") -> None:
        super().__init__(width, layer, depth)
        self.how, self.steps = how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps == 3 and os.environ.get("RANK") == "1":
            self.stumble()
        return super().forward(x)

    def stumble(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang":
            time.sleep(987654)
        if self.how == "memory":
            raise MemoryError("out of memory, for a test")
        raise RuntimeError("stumbled in process 1")
