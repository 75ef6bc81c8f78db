"""The WKV operator alone, beside those of other packages and the speed of memory."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lookback.benchmarks.speed.operators import (
    PACKAGES,
    Shape,
    operator_call,
    peak_bytes,
    touched_bytes,
)
from lookback.benchmarks.speed.timing import DEVICE, ON_GPU, measure, parameter_id, skip_without

COPIED_BYTES = 1 << (30 if ON_GPU else 27)
# transformers writes slices in place, so its backward pass costs the square of the length
LONGEST_TRANSFORMERS_BACKWARD = 1024

if ON_GPU:
    NAMES: tuple[str, ...] = ("lookback", "flash-linear-attention")
    DIRECTIONS = ("forward", "backward")
    SHAPES = (
        Shape(8, 4096, 768, "bfloat16"),
        Shape(8, 4096, 768, "float32"),
        Shape(1, 65536, 768, "bfloat16"),
    )
else:
    NAMES = ("lookback", "list and stack", "transformers")
    DIRECTIONS = ("forward", "forward+backward")
    SHAPES = (
        Shape(8, 256, 256, "float32"),
        Shape(8, 1024, 256, "float32"),
        Shape(8, 4096, 256, "float32"),
    )


@pytest.mark.parametrize("name", NAMES, ids=parameter_id)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=parameter_id)
def test_operator(benchmark: BenchmarkFixture, name: str, direction: str, shape: Shape) -> None:
    """One call of an operator, with its peak memory."""
    if name in PACKAGES:
        skip_without(PACKAGES[name])
    takes_minutes = shape.length > LONGEST_TRANSFORMERS_BACKWARD and direction != "forward"
    if name == "transformers" and takes_minutes:
        pytest.skip("transformers' backward pass takes minutes at this length")
    call, implementation = operator_call(name, direction, shape)
    size = "x".join(map(str, shape[:3]))
    benchmark.group = f"wkv {direction} {size} {shape.dtype}"
    benchmark.extra_info |= {
        "section": "operator",
        "name": name,
        "direction": direction,
        "form": implementation,
        "shape": shape._asdict(),
        "touched_bytes": touched_bytes(direction, shape),
    }
    measure(benchmark, call)
    benchmark.extra_info["peak_bytes"] = peak_bytes(name, direction, shape)


def test_copy_beside_operators(benchmark: BenchmarkFixture) -> None:
    """A copy within the device's memory: the speed that no operator can exceed."""
    source = torch.ones(COPIED_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    benchmark.group = "memory"
    benchmark.extra_info |= {"section": "copy", "bytes": 2 * COPIED_BYTES}  # read and written
    measure(benchmark, lambda: target.copy_(source))
