"""What a task is: one sampler that is valid at any length, and the batches drawn from it.

A task is registered where it is defined, once, by its own name::

    @register_task("parity", vocabulary=2, constant_score=0.5, lengths=(40, 80), source="...")
    def sample_parity(batch_size: int, length: int, generator: torch.Generator) -> Batch: ...

Keyword-only parameters of the sampler are the task's options. A sampler that reads a corpus takes `split` too.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""The target of a position where nothing is asked (the default `ignore_index` of torch's cross entropy)."""

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Batch:
    """What a model reads and what it must answer.

    Position t of `targets` holds what the model must output having read tokens[..t]; `IGNORE` where nothing is asked.
    """

    tokens: Tensor  # (batch, length) int64; (batch, 2, length) for a pair of documents
    targets: Tensor  # (batch, length), or (batch,) for one label a sequence
    distances: Tensor | None = None  # like targets: how many positions back the needed information lies
    lengths: Tensor | None = None  # (batch,) or (batch, 2): valid tokens, where sequences are padded

    def asked(self) -> Tensor:
        """Flat indices, int64, of the targets that are asked for."""
        return (self.targets.flatten() != IGNORE).nonzero().squeeze(1)


Sampler = Callable[..., Batch]


@dataclass(frozen=True)
class Task:
    """A registered task with its options filled in: its card, and its batches.

    `score` names the unit of results: "accuracy" (a fraction, higher is better) or "bits per byte" (lower is better);
    `constant_score` is what the best answer that never looks at the input reaches, in that unit. `symbols` is the
    readable form of each token id, `answers` that of each target (the same, unless the answers are of another kind).
    """

    name: str
    sampler: Sampler
    options: dict[str, Any]
    vocabulary: int
    classes: int | None
    score: str
    constant_score: float
    lengths: tuple[int, ...]
    shortest: int
    multiple: int
    source: str
    symbols: Sequence[str]
    answers: Sequence[str]
    data: dict[str, Any]
    reads_split: bool = field(repr=False)

    def check_length(self, length: int) -> None:
        """Raise ValueError, saying which lengths are possible, when the task has no sequence of this length."""
        if length < self.shortest or length % self.multiple:
            rule = f"at least {self.shortest}" + (f" and a multiple of {self.multiple}" if self.multiple > 1 else "")
            raise ValueError(f"task {self.name!r} has no sequences of length {length}: expected {rule}")

    def sample(self, batch_size: int, length: int, generator: torch.Generator, split: str = "train") -> Batch:
        """Draw `batch_size` sequences of `length` tokens; everything random comes from `generator`."""
        self.check_length(length)
        where = {"split": split} if self.reads_split else {}
        return self.sampler(batch_size, length, generator, **where, **self.options)

    def batch(self, split: str, seed: int, index: int, batch_size: int, length: int) -> Batch:
        """Batch `index` of a split: a function of the arguments alone, so that nothing need be saved to resume."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        key = json.dumps([self.name, self.options, split, seed, length, batch_size, index], sort_keys=True)
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return self.sample(batch_size, length, generator, split)


@dataclass(frozen=True)
class _Registration:
    sampler: Sampler
    card: dict[str, Any]
    defaults: dict[str, Any]


_TASKS: dict[str, _Registration] = {}


def register_task(
    name: str,
    *,
    vocabulary: int | Callable[..., int],
    constant_score: float | Callable[..., float],
    lengths: tuple[int, ...],
    source: str,
    symbols: Callable[..., Sequence[str]],
    answers: Callable[..., Sequence[str]] | None = None,
    classes: int | None = None,
    score: str = "accuracy",
    shortest: int | Callable[..., int] = 1,
    multiple: int = 1,
    data: Callable[[], dict[str, Any]] | None = None,
) -> Callable[[Sampler], Sampler]:
    """Register a sampler under a name; raises ValueError when the name is malformed or taken.

    Args:
        vocabulary: number of token ids. This and `constant_score`, `shortest`, `symbols` and `answers` may be
            functions of the task's options, given by keyword.
        constant_score: what the best constant answer scores.
        lengths: lengths at which the task is commonly asked.
        source: the paper or code that states the rule.
        symbols: readable form of each token id; `answers` likewise of each target, when they differ.
        classes: number of labels when one label a sequence is asked; None when positions are asked.
        score: "accuracy" or "bits per byte".
        shortest, multiple: the lengths that exist are multiples of `multiple` from `shortest` on.
        data: for a corpus, what identifies it (source, revision, hash), for the record.
    """
    card = dict(locals())
    del card["name"]

    def decorate(sampler: Sampler) -> Sampler:
        if not NAME.fullmatch(name):
            raise ValueError(f"task name {name!r}: expected lower-case letters, digits, '_', '.', '-', 64 at most")
        if name in _TASKS:
            raise ValueError(f"task {name!r} is already registered by {_TASKS[name].sampler.__module__}")
        options = inspect.signature(sampler).parameters.values()
        defaults = {p.name: p.default for p in options if p.kind is p.KEYWORD_ONLY}
        _TASKS[name] = _Registration(sampler, card, defaults)
        return sampler

    return decorate


def _import_all() -> None:
    package = importlib.import_module(__package__ or "tasks")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def task_names() -> list[str]:
    """Names of all registered tasks, sorted."""
    _import_all()
    return sorted(_TASKS)


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task of this name; raises ValueError that suggests near names, or names the options there are."""
    if name not in task_names():
        near = difflib.get_close_matches(name, _TASKS) or sorted(_TASKS)
        raise ValueError(f"unknown task {name!r}: expected {' or '.join(near)}")
    found = _TASKS[name]
    unknown = set(options or {}) - set(found.defaults)
    if unknown:
        known = ", ".join(sorted(found.defaults)) or "none"
        raise ValueError(f"task {name!r} has no option {sorted(unknown)[0]!r}: its options are {known}")
    return _fill_in(name, found, {**found.defaults, **(options or {})})


def _fill_in(name: str, found: _Registration, options: dict[str, Any]) -> Task:
    """The task with every part of its card that depends on the options worked out."""
    card = {key: value for key, value in found.card.items() if key not in ("answers", "data")}
    card = {key: value(**options) if callable(value) else value for key, value in card.items()}
    answers = found.card["answers"]
    return Task(
        name=name,
        sampler=found.sampler,
        options=options,
        answers=answers(**options) if answers else card["symbols"],
        data=found.card["data"]() if found.card["data"] else {},
        reads_split="split" in inspect.signature(found.sampler).parameters,
        **card,
    )
