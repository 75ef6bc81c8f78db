"""Measures time, memory, operations and energy of training, prefill, decode and generation."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from lookback.benchmarks.machine import joules
from lookback.benchmarks.measure.generation import (
    GRAPH,
    NO_GRAPH,
    WARMUP_TOKENS,
    Decoder,
    inference,
    measure_generation,
    uncompiled,
)
from lookback.benchmarks.measure.memory import LiveBytes, alive_in, out_of_memory
from lookback.benchmarks.measure.operations import counter
from lookback.benchmarks.measure.step import (
    Progress,
    make_model,
    make_optimizer,
    to_device,
    training_step,
)
from lookback.benchmarks.record import CostCell, CostNumbers, Generated, Phase, Status, Timing
from lookback.models.model import SequenceModel, parameter_count, state_bytes
from lookback.tasks.task import Batch, Task

PHASES = ("training", "prefill", "decode")
LEARNING_RATE = 1e-5  # of the training steps, which repeat one batch; no result depends on it
WEIGHT_DECAY = 0.01

CPU_WARMUP = 2  # runs
GPU_WARMUP = 10  # runs, for at least a second: clocks rise, and libraries make their workspaces
TIMING_SECONDS = 5.0  # that the repeats of a phase may take together
MIN_REPEATS = 5  # however long they take
NOISY = 0.1  # of the median
ENERGY_SECONDS = 2.0  # the driver updates its counter about ten times a second
REFERENCE_RUNS = 50  # of the reference workload
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices of a product that fills the device


def cost(
    cell: CostCell, task: Task, progress: Progress, kernels: set[str] | None = None
) -> CostNumbers:
    """Measure every phase of a cell.

    A phase that runs out of memory or time is listed as failed, and the others are measured all the
    same. The time of a phase is its equal share of `cell.time_limit`, where starting up counts as
    one phase. A phase is timed `cell.repeats` times, or fewer if these would take more than
    TIMING_SECONDS, but at least MIN_REPEATS times.

    Args:
        kernels: on a GPU, receives whether decoding steps were replayed as a CUDA graph.
    """
    kernels = set() if kernels is None else kernels
    batch = task.batch("train", cell.seed, 0, cell.batch_size, cell.length)
    model = make_model(cell, task)
    if cell.compile:
        compile_decoding(model)

    matmul = matmul_flops_per_second(cell)
    names = (*PHASES, "generation") if cell.generate else PHASES
    phases: dict[str, Phase] = {}
    failed: dict[str, Status] = {}
    state_size = None
    generation: tuple[Generated, ...] = ()
    for number, name in enumerate(names):
        progress(number, len(names), name)
        # cuDNN's attention compiles a graph for every length, and decoding changes the length.
        torch.backends.cuda.enable_cudnn_sdp(name in ("training", "prefill"))
        try:
            with time_limit(cell.time_limit / (len(names) + 1)):
                if name == "generation":
                    generation = measure_generation(model, batch, cell, kernels)
                elif name == "decode":
                    phases[name], state_size = measure_decode(model, batch, cell, kernels)
                elif name == "prefill":
                    phases[name] = measure_prefill(model, batch, cell)
                else:
                    phases[name] = measure_training(model, batch, cell)
        except OutOfTimeError:
            failed[name] = "timeout"
        except Exception as error:
            if not out_of_memory(error):
                raise
            failed[name] = "oom"

        # Leave no memory of this phase to the next one.
        model.zero_grad(set_to_none=True)
        gc.collect()
        if cell.device == "cuda":
            torch.cuda.empty_cache()

    return CostNumbers(
        parameters=parameter_count(model),
        phases=phases,
        failed=failed,
        state_bytes=state_size,
        generation=generation,
        matmul_flops_per_second=matmul,
    )


def compile_decoding(model: SequenceModel) -> None:
    """Compile `prefill` and `step` of every block; `make_model` compiles `forward` only."""
    for block in model.blocks:
        for name in ("prefill", "step"):
            if hasattr(block, name):
                setattr(block, name, torch.compile(getattr(block, name)))


class OutOfTimeError(Exception):
    """A phase has used its share of the time."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside after this time, as soon as torch returns to Python.

    Works in the main thread only; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_error(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"not done after {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, raise_error)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class Workload:
    """The work of a phase, ready to be repeated."""

    run: Callable[[], Any]
    warm_up: Callable[[], Any]
    alive: list[Any]  # tensors that are alive before a run
    tokens: int  # that each run handles


def measure_training(model: SequenceModel, batch: Batch, cell: CostCell) -> Phase:
    """Measure whole training steps: forward, loss, backward, clipping, update."""
    model.train()
    optimizer = make_optimizer(model, LEARNING_RATE, WEIGHT_DECAY)

    def run() -> None:
        training_step(model, optimizer, batch, cell, LEARNING_RATE)

    run()  # the optimizer makes its state
    work = Workload(run, run, alive_in(model, optimizer), batch.tokens.numel())
    return measure_phase(work, cell)


def measure_prefill(model: SequenceModel, batch: Batch, cell: CostCell) -> Phase:
    """Measure reading all tokens at once, up to the logits after the last."""
    model.eval()
    tokens = to_device(batch, cell.device).tokens

    @inference(cell)
    def run() -> None:
        model.prefill(tokens)

    return measure_phase(Workload(run, run, alive_in(model), tokens.numel()), cell)


def measure_decode(
    model: SequenceModel, batch: Batch, cell: CostCell, kernels: set[str]
) -> tuple[Phase, int]:
    """Measure one more token for every sequence, again and again, after all tokens of the batch.

    On a GPU, adds GRAPH or NO_GRAPH to `kernels`.

    Returns:
        the phase, and the bytes of the state after prefill.
    """
    model.eval()
    tokens = to_device(batch, cell.device).tokens
    token = tokens[:, -1].clone()
    with inference(cell):
        decoder = Decoder(model, model.prefill(tokens)[1])
        # Warming up continues from another state, so that the measured context stays as it is.
        warmup_decoder = Decoder(model, model.prefill(tokens[:, :WARMUP_TOKENS])[1])
    del tokens  # a prompt is no part of the memory of decoding
    state_size = state_bytes(decoder.state)  # now, because steps may write into the state

    @inference(cell)
    def run() -> None:
        decoder.step(token)

    @inference(cell)
    def warm_up() -> None:
        warmup_decoder.step(token)

    alive = [alive_in(model), decoder.state]
    run()  # a full cache grows here, and not in the steps that are measured
    work = Workload(run, warm_up, alive, len(token))

    def capture() -> None:
        """Replay steps from now on, the decoder's and the ones that warm up."""
        if cell.device == "cuda":
            is_captured = decoder.capture(token, cell)
            kernels.add(GRAPH if is_captured else NO_GRAPH)
            if is_captured:
                work.warm_up = run

    return measure_phase(work, cell, capture), state_size


def measure_phase(
    work: Workload, cell: CostCell, before_timing: Callable[[], None] = lambda: None
) -> Phase:
    """Measure bytes, operations, time and energy, each in its own pass: counting takes time.

    Time comes last, because the number of repeats varies, and bytes and operations must be those of
    the same step in every run.
    """
    peak, reserved = peak_bytes(work, cell)
    with uncompiled(), counter() as operations:
        work.run()

    before_timing()
    gc.collect()
    reference_before = reference_workload_seconds(cell.device, REFERENCE_RUNS)
    if cell.device == "cuda":
        times = _time_gpu(work, cell.repeats)
    else:
        times = _time_cpu(work, cell.repeats)
    reference_after = reference_workload_seconds(cell.device, REFERENCE_RUNS)

    drift = abs(reference_after - reference_before) / min(reference_after, reference_before)
    timing = summary(times, drift)
    return Phase(
        tokens=work.tokens,
        seconds=timing,
        peak_bytes=peak,
        reserved_bytes=reserved,
        flops=operations.get_total_flops(),
        joules=_joules_per_run(work, cell, timing.median),
        reference_seconds=(reference_before + reference_after) / 2,
    )


def peak_bytes(work: Workload, cell: CostCell) -> tuple[int, int | None]:
    """Return the most bytes alive in one run and, on a GPU, those reserved by its allocator."""
    if cell.device == "cpu":
        with uncompiled(), LiveBytes(work.alive) as live:
            work.run()
        return live.peak, None

    work.run()  # libraries make their workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def reference_workload_seconds(device: str, runs: int) -> float:
    """Return the median seconds of work that is always the same, to show changes of speed.

    A machine that is shared, hot or throttled may be slower for hours, which no spread within a
    phase shows. The work resembles that of models: matrix products, a pass over more memory than
    caches hold, and many small operations.
    """
    is_gpu = device == "cuda"
    matrix = torch.ones(2048 if is_gpu else 256, 2048 if is_gpu else 256, device=device)
    large = torch.ones(1 << 26 if is_gpu else 1 << 22, device=device)
    small = torch.ones(16, 16, device=device)

    def run() -> None:
        for _ in range(4):
            torch.mm(matrix, matrix)
        large.mul_(1.0)
        for _ in range(200):
            small.mul_(1.0)

    work = Workload(run, run, [], 0)
    if is_gpu:
        return statistics.median(_time_gpu(work, runs, warmup_seconds=0.1))
    return statistics.median(_time_cpu(work, runs))


def matmul_flops_per_second(cell: CostCell) -> float:
    """Return the operations a second of a large matrix product, in the cell's precision.

    What a model computes a second is judged by this, not by a table of peaks.
    """
    side = MATMUL_SIDE[cell.device]
    dtype = getattr(torch, cell.precision)
    matrix = torch.ones(side, side, device=cell.device, dtype=dtype)
    product = torch.empty_like(matrix)

    def run() -> None:
        torch.mm(matrix, matrix, out=product)

    work = Workload(run, run, [], 0)
    if cell.device == "cuda":
        seconds = _time_gpu(work, REFERENCE_RUNS, warmup_seconds=0.1)
    else:
        seconds = _time_cpu(work, REFERENCE_RUNS)
    return 2 * side**3 / statistics.median(seconds)


def _time_cpu(work: Workload, repeats: int) -> list[float]:
    """Return the seconds of each repeat, after warming up."""
    began = time.perf_counter()
    for _ in range(CPU_WARMUP):
        work.warm_up()
        if time.perf_counter() - began > TIMING_SECONDS / MIN_REPEATS:
            break

    times: list[float] = []
    while len(times) < repeats and (len(times) < MIN_REPEATS or sum(times) < TIMING_SECONDS):
        began = time.perf_counter()
        work.run()
        times.append(time.perf_counter() - began)
    return times


def _time_gpu(work: Workload, repeats: int, warmup_seconds: float = 1.0) -> list[float]:
    """Return the seconds of each repeat between CUDA events, after warming up."""
    began = time.perf_counter()
    elapsed = 0.0
    runs = 0
    while runs < GPU_WARMUP or elapsed < warmup_seconds:
        work.warm_up()
        torch.cuda.synchronize()
        runs += 1
        elapsed = time.perf_counter() - began
        if runs >= CPU_WARMUP and elapsed > TIMING_SECONDS:
            break

    # All repeats are queued before the first is waited for, so their number is chosen here.
    affordable = max(MIN_REPEATS, round(TIMING_SECONDS / (elapsed / runs)))
    events = []
    for _ in range(min(repeats, affordable)):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        work.run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


def _joules_per_run(work: Workload, cell: CostCell, seconds: float) -> float | None:
    """Return the GPU's energy in one run, idle power included; None if its driver reports none.

    Args:
        seconds: that one run takes.
    """
    before = joules(cell.device)
    if before is None:
        return None

    runs = max(1, math.ceil(ENERGY_SECONDS / seconds))
    for _ in range(runs):
        work.run()
    torch.cuda.synchronize()
    after = joules(cell.device)
    return None if after is None else (after - before) / runs


def summary(times: list[float], drift: float = 0.0) -> Timing:
    """Return the median and quartiles of times in seconds.

    Args:
        drift: relative change of the reference workload's time from before to after.
    """
    if len(times) > 1:
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    else:
        low = median = high = times[0]
    is_noisy = high - low > NOISY * median or drift > NOISY
    return Timing(median=median, low=low, high=high, n=len(times), noisy=is_noisy)
