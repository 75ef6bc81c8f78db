"""Memory, throughput, state size and operations of one cell: a training step, prefill, decode and
generation.
"""

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
from torch import Tensor

from lookback.benchmarks.machine import joules
from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.measure.operations import counter
from lookback.benchmarks.measure.step import (
    Progress,
    make_model,
    make_optimizer,
    precision,
    to_device,
    training_step,
)
from lookback.benchmarks.record import CostCell, CostNumbers, Generated, Phase, Status, Timing
from lookback.models.model import SequenceModel, parameter_count, state_bytes
from lookback.tasks.task import Batch, Task

PHASES = ("training", "prefill", "decode")
LEARNING_RATE = 1e-5  # of the training steps, which repeat one batch; no result depends on it
WEIGHT_DECAY = 0.01
NOISY = 0.1  # of the median, between the quartiles
CPU_WARMUP = 2  # runs
GPU_WARMUP = 10  # runs, and a second at least: clocks rise, workspaces are made
TIMING_SECONDS = 5.0  # that the repeats of a phase may take together, once there are FEWEST of them
FEWEST = 5  # repeats, however long they take
GENERATION_SECONDS = (
    15.0  # that passes of generation may take together, GENERATIONS of them at most
)
GENERATIONS = 3
WARM_TOKENS = 16  # generated before the clock starts, and read before decode is warmed up
ENERGY_SECONDS = 2.0  # the driver's counter moves ten times a second or so
REFERENCE_RUNS = 50  # runs of the yardstick, of which the median counts

Run = Callable[[], Any]


def cost(cell: CostCell, task: Task, progress: Progress) -> CostNumbers:
    """Measure every phase. One that fails for memory or time is noted as such, others are measured
    all the same.

    A phase is timed `cell.repeats` times, or fewer where these would take more than TIMING_SECONDS,
    but at least FEWEST times; its record says how many there were. What has not ended after its
    share of `cell.time_limit` (an equal one for each phase, and one for starting up) has the status
    "timeout".
    """
    batch = task.batch("train", cell.seed, 0, cell.batch_size, cell.length)
    model = make_model(cell, task)
    if cell.compile:
        _compile_streams(model)
    names = (*PHASES, "generation") if cell.generate else PHASES
    phases: dict[str, Phase] = {}
    failed: dict[str, Status] = {}
    state_size = None
    generation: tuple[Generated, ...] = ()
    for done, name in enumerate(names):
        progress(done, len(names), name)
        torch.backends.cuda.enable_cudnn_sdp(
            name in ("training", "prefill")
        )  # it makes a graph for every length
        try:
            with at_most(cell.time_limit / (len(names) + 1)):
                if name == "generation":
                    generation = _generation(model, batch, cell)
                else:
                    phases[name], found = _phase(name, model, batch, cell)
                    state_size = found if name == "decode" else state_size
        except Exception as error:
            failed[name] = _status(error)
        _forget(model, cell)
    return CostNumbers(
        parameters=parameter_count(model),
        phases=phases,
        failed=failed,
        state_bytes=state_size,
        generation=generation,
    )


def _compile_streams(model: SequenceModel) -> None:
    """What `make_model` compiles is `forward` alone; here prefill and decode are measured too."""
    for block in model.blocks:
        for name in ("prefill", "step"):
            if hasattr(block, name):
                setattr(block, name, torch.compile(getattr(block, name)))


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """Within it every operation is seen: compiled code would hide its own, and on a CPU its memory."""
    return torch.compiler.set_stance("force_eager")


class OutOfTimeError(Exception):
    """A phase has used its share of the time."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside once it has taken so long: when torch comes back to Python, in
    the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _status(error: Exception) -> Status:
    """What became of a phase that raised this; raises it again where it is no result."""
    if isinstance(error, OutOfTimeError):
        return "timeout"
    if out_of_memory(error):
        return "oom"
    raise error


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's allocator, or the machine's, saying that there is no more."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        word in said for word in NO_MEMORY
    )


# of malloc, of C++, of the system; of CUDA, Triton and cuDNN; of cuBLAS and cuDNN
NO_MEMORY = (
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    "out of memory",
    "ALLOC_FAILED",
)


@dataclass(frozen=True)
class Work:
    """What is run for a phase, what is alive before it, and how many tokens each run handles;
    `warm` warms it up.
    """

    run: Run
    warm: Run
    alive: list[Any]
    tokens: int
    state_bytes: int = 0  # of what decoding goes on from


def _phase(name: str, model: SequenceModel, batch: Batch, cell: CostCell) -> tuple[Phase, int]:
    """The measurements of a phase, and the bytes of the state it goes on from (of decode)."""
    work = _prepare(name, model, batch, cell)
    return _measure(work, cell), work.state_bytes


def _prepare(name: str, model: SequenceModel, batch: Batch, cell: CostCell) -> Work:
    if name == "training":
        optimizer = make_optimizer(model.train(), LEARNING_RATE, WEIGHT_DECAY)
        run = lambda: training_step(model, optimizer, batch, cell, LEARNING_RATE)  # noqa: E731
        run()  # the optimizer makes its state
        return Work(run, run, alive_in(model, optimizer), batch.tokens.numel())
    model.eval()
    tokens = to_device(batch, cell.device).tokens
    if name == "prefill":
        run = _quietly(lambda: model.prefill(tokens), cell)
        return Work(run, run, alive_in(model), tokens.numel())
    _, states = _quietly(lambda: model.prefill(tokens), cell)()
    _, others = _quietly(lambda: model.prefill(tokens[:, :WARM_TOKENS]), cell)()
    size = state_bytes(states)  # before anything goes on from it: some write into it
    token = tokens[:, -1].clone()  # of its own, so that the prompt does not count
    run, warm = (_quietly(_stream(model, token, state), cell) for state in (states, others))
    run()  # a cache that is full grows: memory of decoding is that of the steps between
    return Work(run, warm, [alive_in(model), states], len(tokens), size)


def _stream(model: SequenceModel, token: Tensor, state: Any) -> Run:
    """Reads the same token again and again, going on from a state."""
    stream = [state]

    def one_token() -> None:
        _, stream[0] = model.step(token, stream[0])

    return one_token


def _quietly(run: Callable[..., Any], cell: CostCell) -> Callable[..., Any]:
    def quiet(*arguments: Any) -> Any:
        with torch.inference_mode(), precision(cell):
            return run(*arguments)

    return quiet


def _measure(work: Work, cell: CostCell) -> Phase:
    """Bytes, operations, time and energy, each in a pass of its own: counting slows what it counts.

    Time comes after the counts, so that these see the same steps in every run, however many repeats
    fit.
    """
    peak, reserved = _peak_bytes(work, cell)
    with _uncompiled(), counter() as counted:
        work.run()
    gc.collect()
    before = reference_workload_seconds(cell.device)
    times = (
        _time_gpu(work, cell.repeats) if cell.device == "cuda" else _time_cpu(work, cell.repeats)
    )
    after = reference_workload_seconds(cell.device)
    timing = summary(times, drift=abs(after - before) / min(after, before))
    return Phase(
        tokens=work.tokens,
        seconds=timing,
        peak_bytes=peak,
        reserved_bytes=reserved,
        flops=counted.get_total_flops(),
        joules=_joules(work.run, cell, timing.median),
        reference_seconds=(before + after) / 2,
    )


def reference_workload_seconds(device: str) -> float:
    """Seconds that the same work always takes on this machine, if it is as fast as ever: the median
    of a few runs.

    Some of what models do: products of matrices, a sweep over more than caches hold, many small
    operations. A machine that is shared, hot or throttled is slower for hours, and no spread within
    a phase shows it.
    """
    side, sweep, small = (2048, 1 << 26, 200) if device == "cuda" else (256, 1 << 22, 200)
    matrix, long, short = (
        torch.ones(*size, device=device) for size in ((side, side), (sweep,), (16, 16))
    )

    def run() -> None:
        for _ in range(4):
            torch.mm(matrix, matrix)
        long.mul_(1.0)
        for _ in range(small):
            short.mul_(1.0)

    work = Work(run, run, [], 0)
    times = (
        _time_gpu(work, REFERENCE_RUNS, 0.1)
        if device == "cuda"
        else _time_cpu(work, REFERENCE_RUNS)
    )
    return statistics.median(times)


def _peak_bytes(work: Work, cell: CostCell) -> tuple[int, int | None]:
    """Most bytes alive in one run, and on a GPU what its allocator had reserved."""
    if cell.device == "cuda":
        work.run()  # makes its workspaces
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    with _uncompiled(), LiveBytes(work.alive) as live:
        work.run()
    return live.peak, None


def _time_cpu(work: Work, repeats: int) -> list[float]:
    times: list[float] = []
    started = time.perf_counter()
    for _ in range(CPU_WARMUP):
        work.warm()
        if time.perf_counter() - started > TIMING_SECONDS / FEWEST:
            break
    while len(times) < repeats and (len(times) < FEWEST or sum(times) < TIMING_SECONDS):
        started = time.perf_counter()
        work.run()
        times.append(time.perf_counter() - started)
    return times


def _time_gpu(work: Work, repeats: int, warmup: float = 1.0) -> list[float]:
    """Seconds of each repeat, after `warmup` seconds of the same."""
    started, warm = time.perf_counter(), 0
    while warm < GPU_WARMUP or time.perf_counter() - started < warmup:
        work.warm()
        torch.cuda.synchronize()
        warm += 1
        if warm >= CPU_WARMUP and time.perf_counter() - started > TIMING_SECONDS:
            break
    each = (time.perf_counter() - started) / warm
    repeats = min(repeats, max(FEWEST, round(TIMING_SECONDS / each)))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in marks:
        before.record()
        work.run()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in marks]


def _joules(run: Run, cell: CostCell, seconds: float) -> float | None:
    """What one run of about so many seconds takes of the GPU's energy, idle power included; None
    where nobody tells.
    """
    before = joules(cell.device)
    if before is None:
        return None
    runs = max(1, math.ceil(ENERGY_SECONDS / seconds))
    for _ in range(runs):
        run()
    torch.cuda.synchronize()
    after = joules(cell.device)
    return None if after is None else (after - before) / runs


def summary(times: list[float], drift: float = 0.0) -> Timing:
    """Median and quartiles of times in seconds; `drift` is how far apart the yardstick was before
    and after.
    """
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    noisy = high - low > NOISY * median or drift > NOISY
    return Timing(median=median, low=low, high=high, n=len(times), noisy=noisy)


# Generation

Look = Callable[[int, Any], None]


def _generation(model: SequenceModel, batch: Batch, cell: CostCell) -> tuple[Generated, ...]:
    """From an empty state, as many tokens as the cell's length, each the likeliest after those
    before.

    Seconds are medians of a few passes; bytes are looked at in a pass of their own.
    """
    first = to_device(batch, cell.device).tokens[:, 0].clone()
    generate = _quietly(lambda tokens, look: _generate(model.eval(), first, tokens, look), cell)
    generate(min(WARM_TOKENS, cell.length), lambda *_: None)
    passes: list[dict[int, float]] = []
    while (
        len(passes) < GENERATIONS
        and sum(times[cell.length] for times in passes) < GENERATION_SECONDS
    ):
        passes.append(_clocked(generate, cell))
    sizes = _sized(generate, [alive_in(model), first], cell)
    return tuple(
        Generated(
            tokens=n,
            seconds=statistics.median(t[n] for t in passes),
            state_bytes=state,
            alive_bytes=alive,
        )
        for n, (state, alive) in sizes.items()
    )


def _generate(model: SequenceModel, token: Tensor, tokens: int, look: Look) -> None:
    """`look` is called with what was generated and the state at 1, 2, 4, 8, ... tokens and at the
    last.
    """
    state, mark = model.initial_state(len(token)), 1
    for count in range(1, tokens + 1):
        logits, state = model.step(token, state)
        token = logits.argmax(-1)
        if count in (mark, tokens):
            look(count, state)
            mark = 2 * count


def _clocked(generate: Callable[..., None], cell: CostCell) -> dict[int, float]:
    times = {}
    started = time.perf_counter()

    def look(count: int, state: Any) -> None:
        if cell.device == "cuda":
            torch.cuda.synchronize()
        times[count] = time.perf_counter() - started

    generate(cell.length, look)
    return times


def _sized(
    generate: Callable[..., None], alive: list[Any], cell: CostCell
) -> dict[int, tuple[int, int]]:
    """Bytes of the state, and of all tensors alive."""
    sizes = {}
    live = LiveBytes(alive)

    def look(count: int, state: Any) -> None:
        now = torch.cuda.memory_allocated() if cell.device == "cuda" else live.now
        sizes[count] = state_bytes(state), now

    if cell.device == "cuda":
        generate(cell.length, look)
    else:
        with _uncompiled(), live:
            generate(cell.length, look)
    return sizes


def _forget(model: SequenceModel, cell: CostCell) -> None:
    """Nothing of a phase, ended or broken off, is alive in the next."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if cell.device == "cuda":
        torch.cuda.empty_cache()
