"""The WKV operators that are compared: Lookback's, the loop to beat, and those of other packages.

    python -m lookback.benchmarks.speed.operators NAME DIRECTION BATCH LENGTH CHANNELS DTYPE

prints the peak memory of one call in bytes. `test_operators.py` runs it in a new process, because
memory that earlier measurements freed would hide the peak.
"""

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookback.benchmarks.speed.timing import DEVICE, ON_GPU
from lookback.models.wkv import resolve_backend, wkv

ARRAYS_TOUCHED = {
    "forward": 3,  # k, v, y
    "backward": 6,  # k, v, y and their gradients
    "forward+backward": 9,
}


class Shape(NamedTuple):
    """The size and precision of an operator's k and v."""

    batch_size: int
    length: int
    channels: int
    dtype: str


def lookback(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Lookback's `wkv`, in the implementation that `auto` chooses."""
    return wkv(w, u, k, v)[0]


def list_and_stack(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The obvious loop over positions, differentiated by autograd."""
    numerator = denominator = torch.zeros_like(k[:, 0])
    exponent = torch.full_like(numerator, -1e38)
    outputs = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        largest = torch.maximum(exponent, u + key)
        past = (exponent - largest).exp()
        present = (u + key - largest).exp()
        outputs.append((past * numerator + present * value) / (past * denominator + present))

        largest = torch.maximum(exponent - w, key)
        past = (exponent - w - largest).exp()
        present = (key - largest).exp()
        numerator = past * numerator + present * value
        denominator = past * denominator + present
        exponent = largest
    return torch.stack(outputs, dim=1)


def transformers_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What transformers' RwkvModel runs on a CPU; it takes the logarithm of the decay rate."""
    module = importlib.import_module("transformers.models.rwkv.modeling_rwkv")
    outputs: Tensor = module.rwkv_linear_attention_cpu(w.log(), u, k, v)[0]
    return outputs


def fla_kernel(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """flash-linear-attention's kernel, sequential in time; it requires a state."""
    state = k.new_zeros(k.shape[0], 3, 1, k.shape[2])
    state[:, 2] = -1e38
    module = importlib.import_module("fla.ops.rwkv4")
    outputs: Tensor = module.fused_recurrent_rwkv4(w.log(), u, k, v, state)[0]
    return outputs


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "lookback": lookback,
    "list and stack": list_and_stack,
    "transformers": transformers_loop,
    "flash-linear-attention": fla_kernel,
}
PACKAGES = {"transformers": "transformers", "flash-linear-attention": "fla"}


def operator_inputs(shape: Shape) -> list[Tensor]:
    """Return w, u, k, v and a gradient of y; decay rates as RWKV-4 initialises them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    dtype = getattr(torch, shape.dtype)
    w = torch.linspace(-5, 3, shape.channels, device=DEVICE).exp()
    u = torch.randn(shape.channels, device=DEVICE, generator=generator)
    k, v, grad = (
        torch.randn(shape[:3], device=DEVICE, generator=generator).to(dtype) for _ in range(3)
    )
    return [*(x.requires_grad_() for x in (w, u, k, v)), grad]


def operator_call(name: str, direction: str, shape: Shape) -> tuple[Callable[[], Any], str]:
    """Return the call to time, and which of Lookback's implementations it runs, if any."""
    operator = OPERATORS[name]
    *inputs, grad = operator_inputs(shape)
    implementation = resolve_backend("auto", grad) if name == "lookback" else ""
    if direction == "forward":
        return torch.no_grad()(functools.partial(operator, *inputs)), implementation
    if direction == "backward":
        y = operator(*inputs)
        backward = functools.partial(torch.autograd.grad, y, inputs, grad, retain_graph=True)
        return backward, implementation
    return lambda: torch.autograd.grad(operator(*inputs), inputs, grad), implementation


def touched_bytes(direction: str, shape: Shape) -> int:
    """The bytes that any operator has to read or write once."""
    elements = shape.batch_size * shape.length * shape.channels
    return ARRAYS_TOUCHED[direction] * elements * getattr(torch, shape.dtype).itemsize


def peak_bytes(name: str, direction: str, shape: Shape) -> int | None:
    """Return the peak memory of one call beyond its inputs, or None if the system cannot tell.

    On a GPU, that of its allocator; on a CPU, that of a new process.
    """
    if not ON_GPU:
        module = "lookback.benchmarks.speed.operators"
        command = [sys.executable, "-m", module, name, direction, *map(str, shape)]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = process.stdout.split()
        return int(lines[-1]) if lines else None
    call, _ = operator_call(name, direction, shape)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def process_peak(name: str, direction: str, shape: Shape) -> int | None:
    """Return by how many bytes a call raises the peak memory of this process (Linux only)."""
    clear_refs = Path("/proc/self/clear_refs")
    if not clear_refs.exists():
        return None
    torch.set_num_threads(1)
    warm_up, _ = operator_call(name, direction, shape._replace(length=2))
    warm_up()  # loads what torch loads at the first call
    call, _ = operator_call(name, direction, shape)
    clear_refs.write_text("5")  # resets the peak to the present
    before = _process_bytes("VmRSS")
    call()
    return _process_bytes("VmHWM") - before


def _process_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"expected a line {field} in /proc/self/status")


if __name__ == "__main__":
    name, direction, batch_size, length, channels, dtype = sys.argv[1:]
    shape = Shape(int(batch_size), int(length), int(channels), dtype)
    peak = process_peak(name, direction, shape)
    if peak is not None:
        print(peak)
