"""What a task is: one sampler that is valid at any length, and the batches drawn from it.

A task is registered where it is defined, once, by its own name::

    @register_task("parity", vocabulary=2, baseline_score=0.5, lengths=(40, 80), source="...")
    def sample_parity(batch_size: int, length: int, generator: torch.Generator) -> Batch: ...

Keyword-only parameters of the sampler are the task's options. A sampler that reads a corpus takes
`split` too. Where the examples are numbered and finitely many, the task states `sizes`, and its
sampler is told which ones to bring::

    @register_task("listops", sizes={"train": 96000, "validation": 2000, "test": 2000}, ...)
    def sample_listops(rows: Tensor, length: int, split: str) -> Batch: ...
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
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""The target of a position where nothing is asked (the default `ignore_index` of torch's cross
entropy).
"""

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Batch:
    """What a model reads and what it must answer.

    Position t of `targets` holds what the model must output having read tokens[..t]; `IGNORE` where
    nothing is asked.
    """

    tokens: Tensor  # (batch, length) int64; (batch, 2, length) for a pair of documents
    targets: Tensor  # (batch, length), or (batch,) for one label a sequence
    distances: Tensor | None = (
        None  # like targets: how many positions back the needed information lies
    )
    lengths: Tensor | None = (
        None  # (batch,) or (batch, 2): valid tokens, where sequences are padded
    )

    def target_indices(self) -> Tensor:
        """Flat indices, int64, of the targets that are asked for."""
        return (self.targets.flatten() != IGNORE).nonzero().squeeze(1)


Sampler = Callable[..., Batch]
Fetch = Callable[..., None]


class AbsentCorpusError(ValueError):
    """A task's data are not on this machine; the message names the command or path that gives them."""


@dataclass(frozen=True)
class Task:
    """A registered task with its options filled in: its card, and its batches.

    `score` names the unit of results: "accuracy" (a fraction, higher is better) or "bits per byte"
    (lower is better); `baseline_score` is what the best answer that never looks at the input
    reaches, in that unit. `symbols` is the readable form of each token id, `answers` that of each
    target (the same, unless the answers are of another kind). `sizes` counts the examples of each
    split, where they are finite, and is empty where they are drawn without end.
    """

    name: str
    sampler: Sampler
    options: dict[str, Any]
    vocabulary: int
    classes: int | None
    score: str
    baseline_score: float
    lengths: tuple[int, ...]
    shortest: int
    multiple: int
    source: str
    symbols: Sequence[str]
    answers: Sequence[str]
    sizes: dict[str, int]
    sequences_per_example: int
    exact: bool
    picture: Callable[[Tensor], str] | None
    reads_split: bool = field(repr=False)
    identify: Callable[..., dict[str, Any]] | None = field(repr=False)
    fetch: Fetch | None = field(repr=False)

    @property
    def data(self) -> dict[str, Any]:
        """What identifies the task's data (source, revision, hash); raises AbsentCorpusError when
        they are not here.
        """
        return self.identify(**self.options) if self.identify else {}

    def check_length(self, length: int) -> None:
        """Raise ValueError, saying which lengths are possible, when the task has no sequence of
        this length.
        """
        if self.exact:
            if length not in self.lengths:
                possible = " or ".join(map(str, self.lengths))
                raise ValueError(
                    f"task {self.name!r} has no sequences of length {length}: expected {possible}"
                )
        elif length < self.shortest or length % self.multiple:
            rule = f"at least {self.shortest}" + (
                f" and a multiple of {self.multiple}" if self.multiple > 1 else ""
            )
            raise ValueError(
                f"task {self.name!r} has no sequences of length {length}: expected {rule}"
            )

    def sample(
        self, batch_size: int, length: int, generator: torch.Generator, split: str = "train"
    ) -> Batch:
        """Draw `batch_size` sequences of `length` tokens; everything random comes from `generator`."""
        self.check_length(length)
        if self.sizes:
            rows = torch.randint(self.sizes[split], (batch_size,), generator=generator)
            return self.sampler(rows, length, split, **self.options)
        where = {"split": split} if self.reads_split else {}
        return self.sampler(batch_size, length, generator, **where, **self.options)

    def batch(self, split: str, seed: int, index: int, batch_size: int, length: int) -> Batch:
        """Batch `index` of a split: a function of the arguments alone, so that nothing need be
        saved to resume.

        Of a finite set, training batches walk through one random order of all examples after
        another. The other splits are gone through once, in an order that is the same for every
        seed; their last batch may be smaller. Raises IndexError behind it.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        if self.sizes:
            self.check_length(length)
            rows = _rows(self.name, split, seed, index * batch_size, batch_size, self.sizes[split])
            return self.sampler(rows, length, split, **self.options)
        # Of a corpus, what is held out is read at the same places whatever the length, so that
        # lengths compare.
        drawn_for = None if self.reads_split and split != "train" else length
        key = json.dumps(
            [self.name, self.options, split, seed, drawn_for, batch_size, index], sort_keys=True
        )
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return self.sample(batch_size, length, generator, split)


def _rows(name: str, split: str, seed: int, first: int, count: int, size: int) -> Tensor:
    """Numbers of the examples at places `first` to `first + count` of the walk through a split of
    `size`.
    """
    if split != "train":
        if first >= size:
            raise IndexError(f"task {name!r}: {split} has {size} examples, none at place {first}")
        return _order(name, split, 0, 0, size)[first : first + count]
    places = torch.arange(first, first + count)
    epochs = places // size
    rows = [
        _order(name, split, seed, epoch, size)[places[epochs == epoch] % size]
        for epoch in epochs.unique().tolist()
    ]
    return torch.cat(rows)


@lru_cache(maxsize=8)
def _order(name: str, split: str, seed: int, epoch: int, size: int) -> Tensor:
    """All numbers below `size` in the random order of an epoch."""
    digest = hashlib.sha256(json.dumps([name, split, seed, epoch]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randperm(size, generator=generator)


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
    baseline_score: float | Callable[..., float],
    lengths: tuple[int, ...],
    source: str,
    symbols: Callable[..., Sequence[str]],
    answers: Callable[..., Sequence[str]] | None = None,
    classes: int | None = None,
    score: str = "accuracy",
    shortest: int | Callable[..., int] = 1,
    multiple: int = 1,
    exact: bool = False,
    data: Callable[..., dict[str, Any]] | None = None,
    sizes: Mapping[str, int] | Callable[..., Mapping[str, int]] | None = None,
    sequences_per_example: int = 1,
    picture: Callable[[Tensor], str] | None = None,
    fetch: Fetch | None = None,
) -> Callable[[Sampler], Sampler]:
    """Register a sampler under a name; raises ValueError when the name is malformed or taken.

    Args:
        vocabulary: number of token ids. This and `baseline_score`, `shortest`, `symbols`,
        `answers`, `data` and
            `sizes` may be functions of the task's options, given by keyword.
        baseline_score: what the best constant answer scores. lengths: lengths at which the task is
        commonly asked. source: the paper or code that states the rule. symbols: readable form of
        each token id; `answers` likewise of each target, when they differ. classes: number of
        labels when one label a sequence is asked; None when positions are asked. score: "accuracy"
        or "bits per byte". shortest, multiple: the lengths that exist are multiples of `multiple`
        from `shortest` on. exact: no other lengths exist than `lengths`. data: for a corpus, what
        identifies it (source, revision, hash), for the record. sizes: examples in each split, where
        they are finite; the sampler then takes (rows, length, split). documents: how many token
        sequences one example has; 2 makes tokens (batch, 2, length). picture: shows one example's
        tokens, (length,), to people, where signs in a row would not. fetch: brings the data here,
        or makes them once and for all: takes a length and the options.
    """
    card = dict(locals())
    del card["name"]

    def decorate(sampler: Sampler) -> Sampler:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"task name {name!r}: expected lower-case letters, digits, '_', '.', '-', 64 at most"
            )
        if name in _TASKS:
            raise ValueError(
                f"task {name!r} is already registered by {_TASKS[name].sampler.__module__}"
            )
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
    """The task of this name; raises ValueError that suggests near names, or names the options there
    are.
    """
    if name not in task_names():
        near = difflib.get_close_matches(name, _TASKS) or sorted(_TASKS)
        raise ValueError(f"unknown task {name!r}: expected {' or '.join(near)}")
    found = _TASKS[name]
    unknown = set(options or {}) - set(found.defaults)
    if unknown:
        known = ", ".join(sorted(found.defaults)) or "none"
        raise ValueError(
            f"task {name!r} has no option {sorted(unknown)[0]!r}: its options are {known}"
        )
    return _fill_in(name, found, {**found.defaults, **(options or {})})


def _fill_in(name: str, found: _Registration, options: dict[str, Any]) -> Task:
    """The task with every part of its card that depends on the options worked out."""
    card = {key: value for key, value in found.card.items() if key not in ("answers", "data")}
    kept = {key: card.pop(key) for key in ("picture", "fetch")}
    card = {key: value(**options) if callable(value) else value for key, value in card.items()}
    answers = found.card["answers"]
    return Task(
        name=name,
        sampler=found.sampler,
        options=options,
        answers=answers(**options) if answers else card["symbols"],
        identify=found.card["data"],
        reads_split="split" in inspect.signature(found.sampler).parameters,
        **{**card, **kept, "sizes": dict(card["sizes"] or {})},
    )
