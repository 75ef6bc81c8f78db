"""Decodes token by token, in the same way for every model, be it Lookback's or a plug-in's."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lookback.benchmarks.measure.memory import LiveBytes, alive_in
from lookback.benchmarks.measure.step import precision, to_device
from lookback.benchmarks.record import CostCell, Generated
from lookback.models.model import SequenceModel, state_bytes
from lookback.tasks.task import Batch

PASSES = 3  # timed; fewer if these take longer than PASSES_SECONDS together
PASSES_SECONDS = 15.0
WARMUP_TOKENS = 16  # generated before the clock starts
GRAPH = "cuda_graph"  # in a record's `kernels`: decoding steps were replayed
NO_GRAPH = "no_cuda_graph"  # in a record's `kernels`: a step could not be captured

Watch = Callable[[int, Any], None]
"""Called with the number of tokens generated so far and the state."""


@contextlib.contextmanager
def inference(cell: CostCell) -> Iterator[None]:
    """Compute without gradients, in the cell's precision."""
    with torch.inference_mode(), precision(cell):
        yield


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Run compiled code eagerly, because it would hide its operators and memory from counters."""
    return torch.compiler.set_stance("force_eager")


class Decoder:
    """Reads tokens one by one and keeps the state.

    On a GPU, small models wait for Python to launch their kernels. `capture` records one step as a
    CUDA graph, whose kernels are launched together.
    """

    def __init__(self, model: SequenceModel, state: Any) -> None:
        self.model = model
        self.state = state
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, token: Tensor) -> Tensor:
        """Read a token for every sequence, (batch,), and return logits (batch, vocabulary).

        With a graph, the next step overwrites the logits.
        """
        if self.graph is None:
            logits, self.state = self.model.step(token, self.state)
            return logits

        self.token.copy_(token)
        self.graph.replay()
        return self.logits

    @torch.inference_mode()
    def capture(self, token: Tensor, cell: CostCell) -> bool:
        """Capture a step, and return whether it is replayed from now on.

        A replay repeats the same kernels on the same memory. It is therefore used only if the state
        consists of tensors that keep their shapes, without Python numbers that a step could depend
        on, and if a replayed step agrees with an eager one. Otherwise decoding stays eager.

        Call it outside autocast, whose cached weights must not become part of the graph.
        """
        is_tensor = [isinstance(leaf, Tensor) for leaf in tree_leaves(self.state)]
        if cell.device != "cuda" or not all(is_tensor):
            return False

        # The graph keeps reading and writing these.
        token = token.clone()
        state = _clone(self.state)
        graph = torch.cuda.CUDAGraph()
        try:
            with precision(cell):  # an eager step, which also makes the libraries' workspaces
                expected = self.model.step(token, _clone(state))
            with torch.cuda.graph(graph), precision(cell):
                logits, next_state = self.model.step(token, state)
                _copy(next_state, state)
        except (RuntimeError, ValueError):  # the step waits for the GPU, or the state grows
            return False

        graph.replay()
        if not _agree((logits, state), expected):
            return False
        _copy(self.state, state)  # back to where decoding continues
        self.graph = graph
        self.token = token
        self.logits = logits
        self.state = state
        return True


def _clone(state: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)


def _agree(outputs: Any, expected: Any) -> bool:
    """Whether all tensors have the same shapes and, to rounding, the same values."""
    for x, y in zip(tree_leaves(outputs), tree_leaves(expected), strict=True):
        if x.shape != y.shape or not torch.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True):
            return False
    return True


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors of one state into another state, which may share memory with it."""
    targets = tree_leaves(target)
    occupied = {leaf.untyped_storage().data_ptr() for leaf in targets}
    values = []
    for leaf, destination in zip(tree_leaves(source), targets, strict=True):
        is_shared = leaf.untyped_storage().data_ptr() in occupied
        values.append(leaf.clone() if is_shared and leaf is not destination else leaf)
    for leaf, value in zip(targets, values, strict=True):
        if leaf is not value:
            leaf.copy_(value)


def measure_generation(
    model: SequenceModel, batch: Batch, cell: CostCell, kernels: set[str]
) -> tuple[Generated, ...]:
    """Generate as many tokens as the cell's length from an empty state, for every sequence.

    Seconds are medians over a few passes; bytes are read in a pass of their own. On a GPU, adds
    GRAPH or NO_GRAPH to `kernels`.
    """
    model.eval()
    first = to_device(batch, cell.device).tokens[:, 0].clone()  # (batch,)
    with inference(cell):
        warmup = Decoder(model, model.initial_state(len(first)))
        generate(warmup, first, min(WARMUP_TOKENS, cell.length), lambda tokens, state: None)

    passes: list[dict[int, float]] = []
    while len(passes) < PASSES and sum(times[cell.length] for times in passes) < PASSES_SECONDS:
        passes.append(_time_pass(model, first, cell, kernels))

    points = []
    for tokens, (state_size, alive) in _bytes_of_pass(model, first, cell).items():
        points.append(
            Generated(
                tokens=tokens,
                seconds=statistics.median(times[tokens] for times in passes),
                state_bytes=state_size,
                alive_bytes=alive,
            )
        )
    return tuple(points)


def generate(decoder: Decoder, token: Tensor, length: int, watch: Watch) -> None:
    """Read a token, (batch,), then `length - 1` times the most likely next token.

    `watch` is called after 1, 2, 4, 8, ... tokens and after the last.
    """
    next_watched = 1
    for tokens in range(1, length + 1):
        logits = decoder.step(token)
        token = logits.argmax(-1)
        if tokens in (next_watched, length):
            watch(tokens, decoder.state)
            next_watched = 2 * tokens


def _time_pass(
    model: SequenceModel, first: Tensor, cell: CostCell, kernels: set[str]
) -> dict[int, float]:
    """Return the seconds since the first token, by number of tokens."""
    times: dict[int, float] = {}

    def watch(tokens: int, state: Any) -> None:
        if cell.device == "cuda":
            torch.cuda.synchronize()
        times[tokens] = time.perf_counter() - started

    with inference(cell):
        decoder = Decoder(model, model.initial_state(len(first)))
    if cell.device == "cuda":
        kernels.add(GRAPH if decoder.capture(first, cell) else NO_GRAPH)

    with inference(cell):
        started = time.perf_counter()
        generate(decoder, first, cell.length, watch)
    return times


def _bytes_of_pass(
    model: SequenceModel, first: Tensor, cell: CostCell
) -> dict[int, tuple[int, int]]:
    """Return the bytes of the state, and of all tensors alive, by number of tokens; eagerly."""
    sizes = {}
    live = LiveBytes([alive_in(model), first])

    def watch(tokens: int, state: Any) -> None:
        alive = torch.cuda.memory_allocated() if cell.device == "cuda" else live.now
        sizes[tokens] = (state_bytes(state), alive)

    with contextlib.ExitStack() as contexts:
        contexts.enter_context(inference(cell))
        if cell.device == "cpu":
            contexts.enter_context(uncompiled())
            contexts.enter_context(live)
        decoder = Decoder(model, model.initial_state(len(first)))
        generate(decoder, first, cell.length, watch)
    return sizes
