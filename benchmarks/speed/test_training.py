"""Whole training steps of models, beside transformers' RWKV-4."""

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lookback.benchmarks.measure.cost import LEARNING_RATE, WEIGHT_DECAY
from lookback.benchmarks.measure.step import make_optimizer, training_step
from lookback.benchmarks.record import make_cell
from lookback.benchmarks.speed.timing import DEVICE, ON_GPU, measure, parameter_id, skip_without
from lookback.models.model import build_model
from lookback.tasks.task import Batch

VOCABULARY = 256
MODELS = ("rwkv", "rrwkv", "transformer", "lstm", "rwkv7", "gated_deltanet", "mamba2")
LIBRARY = "transformers RwkvForCausalLM"
LONGEST_LIBRARY = 1024 if ON_GPU else 256  # its loop over positions takes minutes beyond
PROFILED_OPERATORS = 12


class StepShape(NamedTuple):
    """A training step's batch and the model's size."""

    batch_size: int
    length: int
    width: int
    depth: int
    precision: str


SHAPES = {
    "smoke": [StepShape(2, 16, 16, 2, "float32")],
    "cpu": [
        StepShape(32, 64, 64, 2, "float32"),
        StepShape(8, 256, 64, 2, "float32"),
        StepShape(2, 1024, 128, 2, "float32"),
        StepShape(4, 256, 256, 2, "float32"),
    ],
    "cuda": [StepShape(8, 1024, 768, 12, "bfloat16"), StepShape(1, 16384, 768, 12, "bfloat16")],
}[os.environ.get("SPEED_SCALE", DEVICE)]


class LibraryModel(torch.nn.Module):
    """transformers' RWKV-4, with the attributes that a training step needs of a model."""

    classes = None

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        library = importlib.import_module("transformers")
        config = library.RwkvConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            use_cache=False,
            context_length=shape.length,
        )
        self.model = library.RwkvForCausalLM(config)

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group of all parameters."""
        return [{"params": list(self.parameters()), "learning_rate_scale": 1.0, "decay": True}]


@pytest.mark.parametrize("name", [*MODELS, LIBRARY], ids=parameter_id)
@pytest.mark.parametrize("shape", SHAPES, ids=parameter_id)
def test_training_step(benchmark: BenchmarkFixture, name: str, shape: StepShape) -> None:
    """The trainer's step on random bytes: loss, gradients, clipping and AdamW."""
    model: Any
    if name != LIBRARY:
        model = build_model(name, VOCABULARY, width=shape.width, depth=shape.depth)
    elif shape.length > LONGEST_LIBRARY:
        pytest.skip("transformers' loop over positions takes minutes at this length")
    else:
        skip_without("transformers")
        model = LibraryModel(shape)
    optimizer = make_optimizer(model.to(DEVICE), LEARNING_RATE, WEIGHT_DECAY)
    fields = {"kind": "cost", "task": "python", "model": "rwkv", "device": DEVICE}
    cell = make_cell(fields | shape._asdict())
    tokens = torch.randint(VOCABULARY, (shape.batch_size, shape.length))
    batch = Batch(tokens, tokens)

    def step() -> None:
        training_step(model, optimizer, batch, cell, LEARNING_RATE)

    size = "x".join(map(str, shape[:4]))
    benchmark.group = f"step {size} {shape.precision}"
    benchmark.extra_info |= {
        "section": "step",
        "name": name,
        "tokens": tokens.numel(),
        "shape": shape._asdict(),
    }
    measure(benchmark, step)
    benchmark.extra_info["profile"] = profile_table(step)


def profile_table(call: Callable[[], Any]) -> str:
    """Return a table of the operators (on a GPU: and kernels) that take most of a call's time."""
    activities = [ProfilerActivity.CPU]
    if ON_GPU:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
        if ON_GPU:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    table: str = averages.table(
        sort_by=f"self_{DEVICE}_time_total",
        row_limit=PROFILED_OPERATORS,
        max_name_column_width=60,
    )
    return table
