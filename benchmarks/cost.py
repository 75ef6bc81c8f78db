"""Memory, throughput and state size of one cell: a training step, prefill and decode at one length."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import LiveBytes, alive_in
from benchmarks.record import Cell, CostNumbers, Phase, Status, Timing
from benchmarks.step import make_model, make_optimizer, precision, to_device, training_step
from models.model import SequenceModel, parameter_count, state_bytes
from tasks.task import Batch, Task

NOISY = 0.1  # of the median, between the quartiles
CPU_WARMUP = 2  # runs
GPU_WARMUP = 10  # runs, and a second at least: clocks rise, workspaces are made

Progress = Callable[[int, int, str], None]
Run = Callable[[], Any]


def cost(cell: Cell, task: Task, progress: Progress) -> CostNumbers:
    """Measure every phase; one that runs out of memory is noted as such, and the others are measured all the same."""
    batch = task.batch("train", cell.seed, 0, cell.batch_size, cell.length)
    model = make_model(cell, task)
    phases: dict[str, Phase] = {}
    failed: dict[str, Status] = {}
    state_size = None
    for done, name in enumerate(("training", "prefill", "decode")):
        progress(done, 3, name)
        try:
            phases[name], found = _phase(name, model, batch, cell)
            state_size = found if name == "decode" else state_size
        except Exception as error:
            if not out_of_memory(error):
                raise
            failed[name] = "oom"
        _forget(cell)
    return CostNumbers(parameters=parameter_count(model), phases=phases, failed=failed, state_bytes=state_size)


def _phase(name: str, model: SequenceModel, batch: Batch, cell: Cell) -> tuple[Phase, int]:
    """The measurements of a phase, and the bytes of the state it goes on from (of decode)."""
    run, alive, tokens = _prepare(name, model, batch, cell)
    size = state_bytes(alive[-1])
    return _measure(run, alive, tokens, cell), size


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's allocator, or the machine's, saying that there is no more."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _prepare(name: str, model: SequenceModel, batch: Batch, cell: Cell) -> tuple[Run, list[Any], int]:
    """What to run for a phase, what is alive before it, and how many tokens each run handles."""
    if name == "training":
        optimizer = make_optimizer(model.train(), cell)
        run = lambda: training_step(model, optimizer, batch, cell, 0)  # noqa: E731
        run()  # the optimizer makes its state
        return run, alive_in(model, optimizer), batch.tokens.numel()
    model.eval()
    tokens = to_device(batch, cell.device).tokens
    if name == "prefill":
        return _quietly(lambda: model.prefill(tokens), cell), alive_in(model), tokens.numel()
    _, states = _quietly(lambda: model.prefill(tokens), cell)()
    stream, token = [states], tokens[:, -1].clone()  # of its own, so that the prompt does not count

    def one_token() -> None:
        _, stream[0] = model.step(token, stream[0])

    return _quietly(one_token, cell), [alive_in(model), states], len(tokens)


def _quietly(run: Run, cell: Cell) -> Run:
    def quiet() -> Any:
        with torch.inference_mode(), precision(cell):
            return run()

    return quiet


def _measure(run: Run, alive: list[Any], tokens: int, cell: Cell) -> Phase:
    """Time first and count after, in passes of their own: counting slows what it counts."""
    timing = summary(_time_gpu(run, cell.repeats) if cell.device == "cuda" else _time_cpu(run, cell.repeats))
    if cell.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return Phase(tokens=tokens, seconds=timing, peak_bytes=peak, reserved_bytes=reserved)
    with LiveBytes(alive) as counter:
        run()
    return Phase(tokens=tokens, seconds=timing, peak_bytes=counter.peak)


def _time_cpu(run: Run, repeats: int) -> list[float]:
    for _ in range(CPU_WARMUP):
        run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def _time_gpu(run: Run, repeats: int) -> list[float]:
    started, warm = time.perf_counter(), 0
    while warm < GPU_WARMUP or time.perf_counter() - started < 1:
        run()
        torch.cuda.synchronize()
        warm += 1
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in marks:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in marks]


def summary(times: list[float]) -> Timing:
    """Median and quartiles of times in seconds."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Timing(median=median, low=low, high=high, n=len(times), noisy=high - low > NOISY * median)


def _forget(cell: Cell) -> None:
    gc.collect()
    if cell.device == "cuda":
        torch.cuda.empty_cache()
