"""How fast the parts are, beside what others have: the WKV operator, whole training steps, and the
making of data.

    python -m lookback.benchmarks.speed.report        measures all of this and prints the ratios

Every measurement names itself in `extra_info`, so that the report reads nothing out of a test's
name. A peer that is not installed is skipped; `pip install -e '.[peers]'` brings them.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lookback.benchmarks.measure.cost import LEARNING_RATE, WEIGHT_DECAY
from lookback.benchmarks.measure.step import make_optimizer, training_step
from lookback.benchmarks.record import (
    CurvePoint,
    LearnNumbers,
    Outcome,
    Record,
    TaskFacts,
    make_cell,
)
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_records
from lookback.benchmarks.suite import Suite
from lookback.models.model import build_model
from lookback.models.wkv import resolve_backend, wkv
from lookback.tasks.task import AbsentCorpusError, Batch, get_task, task_names

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CALLS = 20 if ON_GPU else 1  # a timed round; a GPU is waited for once a round, not once a call
SLOW = 0.5  # seconds: of a call that takes longer, one is a round
SECONDS = 6.0  # what one measurement may take after its warm-up
COPIED_BYTES = 1 << (30 if ON_GPU else 27)


class Shape(NamedTuple):
    """What an operator is given."""

    batch_size: int
    length: int
    channels: int
    dtype: str


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as every machine has, so that numbers compare."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Operators


def lookback(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """This project's, by whatever form `auto` chooses."""
    return wkv(w, u, k, v)[0]


def list_and_stack(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The loop that anybody would write first, differentiated by autograd."""
    numerator = denominator = torch.zeros_like(k[:, 0])
    exponent = torch.full_like(numerator, -1e38)
    outputs = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        largest = torch.maximum(exponent, u + key)
        past, present = (exponent - largest).exp(), (u + key - largest).exp()
        outputs.append((past * numerator + present * value) / (past * denominator + present))
        largest = torch.maximum(exponent - w, key)
        past, present = (exponent - w - largest).exp(), (key - largest).exp()
        numerator, denominator = past * numerator + present * value, past * denominator + present
        exponent = largest
    return torch.stack(outputs, dim=1)


def transformers_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What transformers' RwkvModel runs on a CPU; it takes the decay's logarithm."""
    loop = importlib.import_module(
        "transformers.models.rwkv.modeling_rwkv"
    ).rwkv_linear_attention_cpu
    return loop(w.log(), u, k, v)[0]


def fla_kernel(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """flash-linear-attention's kernel, sequential in time; its state must be given."""
    state = k.new_zeros(k.shape[0], 3, 1, k.shape[2])
    state[:, 2] = -1e38
    return importlib.import_module("fla.ops.rwkv4").fused_recurrent_rwkv4(w.log(), u, k, v, state)[
        0
    ]


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "lookback": lookback,
    "list and stack": list_and_stack,
    "transformers": transformers_loop,
    "flash-linear-attention": fla_kernel,
}
PACKAGES = {"transformers": "transformers", "flash-linear-attention": "fla"}


def operator_cases() -> list[tuple[str, str, Shape]]:
    """(operator, direction, shape), peers beside each other. What would take minutes is left out."""
    if ON_GPU:
        shapes = [
            Shape(8, 4096, 768, "bfloat16"),
            Shape(8, 4096, 768, "float32"),
            Shape(1, 65536, 768, "bfloat16"),
        ]
        names, directions = ["lookback", "flash-linear-attention"], ["forward", "backward"]
    else:
        shapes = [Shape(8, length, 256, "float32") for length in (256, 1024, 4096)]
        names, directions = (
            ["lookback", "list and stack", "transformers"],
            ["forward", "forward+backward"],
        )
    cases = [
        (name, direction, shape) for shape in shapes for direction in directions for name in names
    ]
    # transformers writes slices in place: its backward pass costs the square of the length, minutes
    # at 4096
    return [
        case
        for case in cases
        if not (case[0] == "transformers" and "back" in case[1] and case[2].length > 1024)
    ]


def operator_inputs(shape: Shape) -> list[Tensor]:
    """w, u, k, v and the gradient of y; decays as RWKV-4 initialises them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    size, dtype = shape[:3], getattr(torch, shape.dtype)
    w = torch.linspace(-5, 3, shape.channels, device=DEVICE).exp().requires_grad_()
    u = torch.randn(shape.channels, device=DEVICE, generator=generator).requires_grad_()
    k, v, grad = (torch.randn(size, device=DEVICE, generator=generator).to(dtype) for _ in range(3))
    return [w, u, k.requires_grad_(), v.requires_grad_(), grad]


def operator_call(name: str, direction: str, shape: Shape) -> tuple[Callable[[], Any], str]:
    """What is timed, and which of our forms it runs, if any."""
    operator, (*inputs, grad) = OPERATORS[name], operator_inputs(shape)
    form = resolve_backend("auto", grad) if name == "lookback" else ""
    if direction == "forward":
        return torch.no_grad()(functools.partial(operator, *inputs)), form
    if direction == "backward":
        y = operator(*inputs)
        return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True), form
    return lambda: torch.autograd.grad(operator(*inputs), inputs, grad), form


def touched_bytes(direction: str, shape: Shape) -> int:
    """k, v, y once, and for the way back k, v, y and their gradients once."""
    arrays = {"forward": 3, "backward": 6, "forward+backward": 9}[direction]
    return (
        arrays
        * shape.batch_size
        * shape.length
        * shape.channels
        * getattr(torch, shape.dtype).itemsize
    )


def peak_bytes(name: str, direction: str, shape: Shape) -> int | None:
    """The most memory that a call took beyond what there was before, in a call of its own that
    nobody times.

    On a GPU its allocator's; on a CPU a new process's, because the garbage of other measurements
    would hide it. None where the system does not say.
    """
    if not ON_GPU:
        command = [
            sys.executable,
            "-m",
            "lookback.benchmarks.speed.test_speed",
            name,
            direction,
            *map(str, shape),
        ]
        root = Path(__file__).parents[2]
        said = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True
        ).stdout.split()
        return int(said[-1]) if said else None
    call, _ = operator_call(name, direction, shape)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def print_process_peak(name: str, direction: str, shape: Shape) -> None:
    """How far a call raises this process's high-water mark, in bytes, which Linux lets one set
    back.
    """
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return
    torch.set_num_threads(1)
    operator_call(name, direction, shape._replace(length=2))[
        0
    ]()  # what is only loaded at the first call
    call, _ = operator_call(name, direction, shape)
    forget.write_text("5")
    before = _status_bytes("VmRSS")
    call()
    print(_status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(benchmark: BenchmarkFixture, call: Callable[[], Any], rounds: int = 20) -> None:
    """At least three rounds, `rounds` where they fit into SECONDS; on a GPU a round is CALLS calls
    and one wait.
    """

    def timed(calls: int) -> None:
        for _ in range(calls):
            call()
        if ON_GPU:
            torch.cuda.synchronize()

    timed(1)  # compiles, allocates
    calls = 1 if _seconds(benchmark, lambda: timed(1)) > SLOW else CALLS
    benchmark.extra_info |= {"calls": calls, "device": DEVICE, "threads": torch.get_num_threads()}
    rounds = max(3, min(rounds, int(SECONDS / _seconds(benchmark, lambda: timed(calls)))))
    benchmark.pedantic(timed, args=(calls,), rounds=rounds, iterations=1, warmup_rounds=0)


def _seconds(benchmark: BenchmarkFixture, run: Callable[[], None]) -> float:
    started = benchmark._timer()
    run()
    return float(benchmark._timer() - started)


@pytest.mark.parametrize(
    ("name", "direction", "shape"), operator_cases(), ids=lambda part: str(part).replace(" ", "-")
)
def test_operator(benchmark: BenchmarkFixture, name: str, direction: str, shape: Shape) -> None:
    """The WKV operator alone, forward and backward, beside those of other packages."""
    if name in PACKAGES:
        pytest.importorskip(
            PACKAGES[name], reason=f"{name} is not installed: pip install -e '.[peers]'"
        )
    call, form = operator_call(name, direction, shape)
    benchmark.group = (
        f"wkv {direction} {shape.batch_size}x{shape.length}x{shape.channels} {shape.dtype}"
    )
    benchmark.extra_info |= {
        "section": "operator",
        "name": name,
        "direction": direction,
        "form": form,
    }
    benchmark.extra_info |= {
        "shape": shape._asdict(),
        "touched_bytes": touched_bytes(direction, shape),
    }
    measure(benchmark, call)
    benchmark.extra_info["peak_bytes"] = peak_bytes(name, direction, shape)


def test_copy(benchmark: BenchmarkFixture) -> None:
    """The speed of memory: what a copy from device to device reads and writes a second."""
    source = torch.ones(COPIED_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    benchmark.group = "memory"
    benchmark.extra_info |= {"section": "copy", "bytes": 2 * COPIED_BYTES}
    measure(benchmark, lambda: target.copy_(source))


# Training steps of whole models


class StepShape(NamedTuple):
    """What a model is trained on, and its size."""

    batch_size: int
    length: int
    width: int
    depth: int
    precision: str


VOCABULARY = 256
LIBRARY = "transformers RwkvForCausalLM"
STEP_SHAPES = {
    "smoke": [StepShape(2, 16, 16, 2, "float32")],
    "cpu": [
        StepShape(32, 64, 64, 2, "float32"),
        StepShape(8, 256, 64, 2, "float32"),
        StepShape(2, 1024, 128, 2, "float32"),
    ],
    "cuda": [StepShape(8, 1024, 768, 12, "bfloat16"), StepShape(1, 16384, 768, 12, "bfloat16")],
}[os.environ.get("SPEED_SCALE", DEVICE)]
PROFILED = 12  # operators that a profile names


def step_cases() -> list[tuple[str, StepShape]]:
    """(model, shape). The library's loop (its kernel is on a hub) is left out where its backward
    would take minutes.
    """
    names = ["rwkv", "rrwkv", "transformer", "lstm", LIBRARY]
    cases = [(name, shape) for shape in STEP_SHAPES for name in names]
    return [
        case for case in cases if case[0] != LIBRARY or case[1].length <= (1024 if ON_GPU else 256)
    ]


class LibraryModel(torch.nn.Module):
    """transformers' RWKV-4 of the same size, as far as a training step must know it."""

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
        """All parameters alike."""
        return [{"params": list(self.parameters()), "learning_rate_scale": 1.0, "decay": True}]


@pytest.mark.parametrize(
    ("name", "shape"), step_cases(), ids=lambda part: str(part).replace(" ", "-")
)
def test_training_step(benchmark: BenchmarkFixture, name: str, shape: StepShape) -> None:
    """The trainer's own step: loss, gradients, clipping, AdamW, on random bytes."""
    if name == LIBRARY:
        pytest.importorskip(
            "transformers", reason="transformers is not installed: pip install -e '.[peers]'"
        )
    cell = make_cell(
        {"kind": "cost", "task": "python", "model": "rwkv", "device": DEVICE, **shape._asdict()}
    )
    model: Any = (
        LibraryModel(shape)
        if name == LIBRARY
        else build_model(name, VOCABULARY, width=shape.width, depth=shape.depth)
    )
    optimizer = make_optimizer(model.to(DEVICE), LEARNING_RATE, WEIGHT_DECAY)
    tokens = torch.randint(VOCABULARY, (shape.batch_size, shape.length))
    benchmark.group = f"step {'x'.join(map(str, shape[:4]))} {shape.precision}"
    benchmark.extra_info |= {
        "section": "step",
        "name": name,
        "tokens": tokens.numel(),
        "shape": shape._asdict(),
    }
    step = lambda: training_step(model, optimizer, Batch(tokens, tokens), cell, LEARNING_RATE)  # noqa: E731
    measure(benchmark, step)
    benchmark.extra_info["profile"] = profiled(step)


def profiled(call: Callable[[], Any]) -> str:
    """A table of the operators (on a GPU: kernels too) in which a call spends its time, by what is
    their own.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=activities) as seen:
        call()
        if ON_GPU:
            torch.cuda.synchronize()
    table: str = seen.key_averages().table(
        sort_by=f"self_{DEVICE}_time_total", row_limit=PROFILED, max_name_column_width=60
    )
    return table


# Decoding, beside its own matrix products

DECODED = (
    16  # tokens a round: the interval of rrwkv, so that its mediums are made as often as they are
)
CONTEXT = 256
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "scaled_dot_product")


class Recorded(TorchDispatchMode):
    """The matrix products and attentions that run within it, to be run again by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.lstrip("_").startswith(PRODUCTS):
            self.calls.append(functools.partial(func, *args, **(kwargs or {})))
        return result


def decoder(name: str) -> Callable[[], Any]:
    """Decodes so many tokens with a model of width 256 and depth 4, one sequence, behind a context
    of 256 bytes.
    """
    model = build_model(name, VOCABULARY, width=256, depth=4).to(DEVICE).eval()
    tokens = torch.randint(VOCABULARY, (1, CONTEXT), device=DEVICE)

    def decode() -> None:
        _, state = start
        for position in range(DECODED):
            _, state = model.step(tokens[:, position], state)

    with torch.no_grad():
        start = model.prefill(tokens)
    return decode


@pytest.mark.parametrize("what", ["step", "its products"])
@pytest.mark.parametrize("name", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_decode(benchmark: BenchmarkFixture, name: str, what: str) -> None:
    """A token's step, and nothing but the matrix products and attention that it ran."""
    run = decoder(name)
    if what != "step":
        with (
            torch.no_grad(),
            Recorded() as recorded,
        ):  # inference mode would show whole layers, not products
            run()
        run = lambda: [call() for call in recorded.calls]  # noqa: E731
    benchmark.group = f"decode {name}"
    benchmark.extra_info |= {"section": "decode", "name": name, "what": what, "tokens": DECODED}
    measure(benchmark, torch.inference_mode()(run))


# Making of data

SAMPLED_TOKENS = 65536


@pytest.mark.parametrize("name", task_names())
def test_sampler(benchmark: BenchmarkFixture, name: str) -> None:
    """One batch after another of a task at its first length, on one core."""
    task = get_task(name)
    length = task.lengths[0]
    batch_size = max(1, SAMPLED_TOKENS // (length * task.sequences_per_example))
    number = iter(range(10**9))
    try:
        task.batch("train", 0, 0, 1, length)
    except AbsentCorpusError as error:
        pytest.skip(str(error))
    benchmark.group = "samplers"
    tokens = batch_size * length * task.sequences_per_example
    benchmark.extra_info |= {
        "section": "sampler",
        "name": name,
        "tokens": tokens,
        "examples": batch_size,
    }
    measure(benchmark, lambda: task.batch("train", 1, next(number), batch_size, length))


# Reading of records

RECORDED = (2500, 10_000)
REPORTED = 100  # cells of the suite that is reported


def recorded(results: Path, suite: str, cells: int) -> Suite:
    """A suite with a record of each of its cells, each as long as those of real runs."""
    fields = {
        "kind": "learn",
        "task": "copy",
        "model": "rwkv",
        "width": 64,
        "depth": 2,
        "length": 64,
        "batch_size": 8,
    }
    cell = make_cell(fields)
    chosen = Suite(
        suite, "", tuple(cell.model_copy(update={"seed": seed}) for seed in range(cells))
    )
    facts = TaskFacts(
        vocabulary=10, classes=None, score="accuracy", baseline_score=0.1, source="made up"
    )
    curve = tuple(
        CurvePoint(step=step, loss=1.5, validation=0.25, seconds=0.125) for step in range(40)
    )
    numbers = LearnNumbers(
        parameters=1, steps=40, seconds=5.0, curve=curve, validation=None, tests=()
    )
    outcome = Outcome(status="ok", task=facts, learn=numbers)
    runner = Runner(results, chosen)
    runner.folder(cell).mkdir(parents=True)
    for one in chosen.cells:
        record = Record(
            suite=suite,
            cell=one,
            cell_id=one.id,
            outcome=outcome,
            started="",
            ended="",
            machine=runner.machine(one),
            versions={},
        )
        runner.path(one).write_text(
            json.dumps(record.model_dump(mode="json"), indent=1), encoding="utf-8"
        )
    return chosen


@pytest.mark.parametrize("count", RECORDED)
@pytest.mark.parametrize("what", ["missing", "reading a suite"])
def test_records(benchmark: BenchmarkFixture, tmp_path: Path, what: str, count: int) -> None:
    """What a run of many recorded cells misses, and the records of one suite for its report among
    as many others.
    """
    chosen = recorded(tmp_path, "many", count)
    one = recorded(tmp_path, "one", REPORTED)
    benchmark.group = f"records {what}"
    benchmark.extra_info |= {"section": "records", "name": what, "records": count}
    if what == "missing":
        measure(benchmark, lambda: Runner(tmp_path, chosen).missing())
    else:
        measure(benchmark, lambda: list(read_records(tmp_path, [one.name])))


if __name__ == "__main__":
    batch_size, length, channels = map(int, sys.argv[3:6])
    print_process_peak(sys.argv[1], sys.argv[2], Shape(batch_size, length, channels, sys.argv[6]))
