"""Counts the bytes of tensors alive at once, and recognises the errors of running out of memory.

Bytes are counted tensor by tensor, so that every run counts the same.
"""

from __future__ import annotations

import re
import traceback
import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Parts of the names of operators for attention, LSTM (oneDNN's and cuDNN's too) and WKV.
KERNELS = ("scaled_dot_product", "lstm", "dnn_rnn", "lookback")

TRACEBACK_CHARACTERS = 2000  # of an error's traceback in a record

# Parts of the messages of libraries that have no memory left.
OUT_OF_MEMORY = (
    "can't allocate memory",  # malloc
    "bad_alloc",  # C++
    "Cannot allocate memory",  # the operating system
    "ALLOC_FAILED",  # cuBLAS, cuDNN
)


class LiveBytes(TorchDispatchMode):
    """Count the bytes of every storage made or touched inside, for as long as it lives.

    `now` is the current number and `peak` the largest so far. `kernels` collects the names of the
    operators for attention, WKV and LSTM that were called.

    Custom operators written in Python are entered, so that their scratch memory counts. Scratch
    inside torch's own kernels cannot be seen.

    Args:
        alive: tensors that count from the start, touched or not: weights, optimizer state.
    """

    def __init__(self, alive: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.kernels: set[str] = set()
        self._storages = WeakIdKeyDictionary()
        self._count(alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]  # without the overload
        if any(kernel in name for kernel in KERNELS):
            self.kernels.add(name.removeprefix("aten::"))

        if name in OPDEFS and self._looks_inside(args):
            with self:
                return OPDEFS[name]._init_fn(*args, **kwargs)

        result = func(*args, **kwargs)
        self._count((args, kwargs, result))
        return result

    def _looks_inside(self, args: Any) -> bool:
        """Whether to enter a custom operator: on a CPU only; on a GPU the allocator is read."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        return all(tensor.device.type == "cpu" for tensor in tensors)

    def _count(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in self._storages and tensor.device.type != "meta":
                size = storage.nbytes()
                self._storages[storage] = size
                weakref.finalize(storage, self._free, size)
                self.now += size
                self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def alive_in(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
    """Return the tensors that a model and its optimizer keep between steps."""
    gradients = [parameter.grad for parameter in model.parameters()]
    alive: list[Any] = [*model.parameters(), *model.buffers(), *gradients]
    if optimizer is not None:
        for state in optimizer.state.values():
            alive += state.values()
    return alive


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError | OSError):
        return False
    message = str(error)
    # CUDA and Triton end a sentence with these words; in others they may mean anything.
    ends_sentence = re.search(r"out of memory\s*($|[.:;,!])", message, re.MULTILINE)
    return bool(ends_sentence) or any(words in message for words in OUT_OF_MEMORY)


def describe_error(error: Exception) -> tuple[Literal["oom", "error"], str]:
    """Return the status of a cell that raised an error, and a message: one line, or a traceback."""
    if out_of_memory(error):
        lines = str(error).strip().splitlines()
        return "oom", lines[0] if lines else "no memory left"  # Python's own error has no message
    return "error", "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
