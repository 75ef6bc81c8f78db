"""Decoding, beside nothing but the matrix products and attention that it runs.

The ratio of the two is the overhead of a model's code: a step that takes twice its products spends
half its time on everything else.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils._python_dispatch import TorchDispatchMode

from lookback.benchmarks.speed.timing import DEVICE, measure
from lookback.models.model import build_model

VOCABULARY, WIDTH, DEPTH = 256, 256, 4
CONTEXT = 256  # tokens before the first decoded one
DECODED = 16  # tokens per call: rrwkv's interval, so that each call makes one medium per layer
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "scaled_dot_product")


class ProductRecorder(TorchDispatchMode):
    """Records the matrix products and attentions that run within it, as calls to repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = functools.partial(func, *args, **(kwargs or {}))
        if func.overloadpacket.__name__.lstrip("_").startswith(PRODUCTS):
            self.calls.append(call)
        return call()

    def run(self) -> None:
        """Repeat the recorded calls."""
        for call in self.calls:
            call()


def make_decoder(name: str) -> Callable[[], None]:
    """Return a call that decodes DECODED tokens of one sequence behind its context."""
    model = build_model(name, VOCABULARY, width=WIDTH, depth=DEPTH).to(DEVICE).eval()
    tokens = torch.randint(VOCABULARY, (1, CONTEXT), device=DEVICE)
    with torch.no_grad():
        _, context = model.prefill(tokens)

    def decode() -> None:
        state = context
        for position in range(DECODED):
            _, state = model.step(tokens[:, position], state)

    return decode


@pytest.mark.parametrize("variant", ["step", "matrix products"])
@pytest.mark.parametrize("name", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_decode(benchmark: BenchmarkFixture, name: str, variant: str) -> None:
    """DECODED tokens, by the model or by its matrix products alone."""
    run = make_decoder(name)
    if variant == "matrix products":
        # not inference_mode, which shows whole layers instead of products
        with torch.no_grad(), ProductRecorder() as recorder:
            run()
        run = recorder.run
    benchmark.group = f"decode {name}"
    benchmark.extra_info |= {
        "section": "decode",
        "name": name,
        "variant": variant,
        "tokens": DECODED,
    }
    measure(benchmark, torch.inference_mode()(run))
