"""How many bytes of tensors are alive at once, counted tensor by tensor, so that every run counts
the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

KERNELS = ("scaled_dot_product", "lstm", "dnn_rnn", "lookback")  # oneDNN's and cuDNN's


class LiveBytes(TorchDispatchMode):
    """Counts the storage of every tensor made or touched inside, while it lives; `peak` is the most
    there was at once.

    Args:
        alive: tensors that are alive before (weights, optimizer state) and count from the start,
        touched or not.

    Custom operators written in Python are looked into, so that their scratch counts; scratch inside
    torch's own kernels cannot be seen. `kernels` collects the operators for attention, WKV and LSTM
    that were called.
    """

    def __init__(self, alive: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.kernels: set[str] = set()
        self._storages = WeakIdKeyDictionary()
        self._count(alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if any(kernel in name for kernel in KERNELS):
            self.kernels.add(name.removeprefix("aten::"))
        if name in OPDEFS and self._looks_inside(args):
            with self:
                return OPDEFS[name]._init_fn(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._count((args, kwargs, result))
        return result

    def _looks_inside(self, args: Any) -> bool:
        """On a CPU only: a GPU's own allocator is read there."""
        return all(
            leaf.device.type == "cpu" for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        )

    def _count(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage not in self._storages:
                    size = storage.nbytes()
                    self._storages[storage] = size
                    weakref.finalize(storage, self._free, size)
                    self.now += size
                    self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def alive_in(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
    """The tensors that a model and its optimizer keep between steps."""
    kept: list[Any] = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    return kept + (
        [list(state.values()) for state in optimizer.state.values()] if optimizer else []
    )
