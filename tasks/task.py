"""The contract of a task: one sampler that is valid at any length, and the batches drawn from it.

A task is registered once, where it is defined::

    @register_task(
        "echo",
        vocabulary=lambda options: options.alphabet,
        baseline_score=lambda options: 1 / options.alphabet,
        lengths=(64, 256),
        source="...",
    )
    def sample_echo(batch_size, length, generator, *, alphabet: int = 10) -> Batch: ...

The keyword-only parameters of the sampler are the task's options. A fact that depends on them is a
function of one namespace that holds the value of every option.

The sampler of a text corpus takes `split` too. A task with a finite set of numbered examples states
`sizes`, and its sampler receives the numbers of the examples to return::

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
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import lookback.tasks

IGNORE = -100
"""Target of a position where nothing is asked: torch's default `ignore_index`."""

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Batch:
    """The tokens that a model reads and the targets that it must output.

    Position t of `targets` holds the output expected after reading tokens[..t], or `IGNORE` where
    nothing is asked.
    """

    tokens: Tensor
    """(batch, length) int64; (batch, 2, length) where an example is a pair of sequences."""

    targets: Tensor
    """(batch, length) int64; (batch,) where each example has one label."""

    distances: Tensor | None = None
    """Shaped like targets: how many positions back the information lies that a target needs."""

    lengths: Tensor | None = None
    """(batch,) or (batch, 2): number of valid tokens, where sequences are padded."""

    def target_indices(self) -> Tensor:
        """Return the flat indices, int64, of the targets that are asked."""
        return (self.targets.flatten() != IGNORE).nonzero().squeeze(1)


def ask(tokens: Tensor, question_at: Tensor, targets: Tensor, answer_at: Tensor) -> Batch:
    """Return a batch that asks for `targets` at the positions `question_at`, and nowhere else.

    All but `tokens`, (batch, length), are (batch, questions) or broadcast to it. `answer_at` holds
    the positions where the answers were read, from which distances follow.
    """
    question_at = question_at.expand_as(targets)
    nothing = torch.full_like(tokens, IGNORE)
    return Batch(
        tokens,
        nothing.scatter(1, question_at, targets),
        torch.zeros_like(tokens).scatter(1, question_at, question_at - answer_at),
    )


Sampler = Callable[..., Batch]
Options = SimpleNamespace
"""A value for every option of a task, as attributes."""


class AbsentCorpusError(ValueError):
    """The data of a task are not on this machine; the message says how to get them."""


@dataclass(frozen=True)
class Task:
    """A registered task with its options filled in: its facts and its batches.

    The fields have the meaning of the arguments of `register_task`; facts that depend on options
    hold their values. `sizes` is empty where examples are drawn without end.
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
    identify: Callable[[Options], dict[str, Any]] | None = field(repr=False)
    fetch: Callable[[int], None] | None = field(repr=False)

    @property
    def data(self) -> dict[str, Any]:
        """Source, revision and hash that identify the data; empty where examples are drawn.

        Raises AbsentCorpusError if the data are not on this machine.
        """
        return self.identify(Options(**self.options)) if self.identify else {}

    def check_length(self, length: int) -> None:
        """Raise ValueError that states the possible lengths, if `length` is not one of them."""
        if self.exact:
            possible = length in self.lengths
            rule = " or ".join(map(str, self.lengths))
        else:
            possible = length >= self.shortest and length % self.multiple == 0
            rule = f"at least {self.shortest}"
            if self.multiple > 1:
                rule += f" and a multiple of {self.multiple}"

        if not possible:
            raise ValueError(
                f"task {self.name!r} has no sequences of length {length}: expected {rule}"
            )

    def batch(self, split: str, seed: int, index: int, batch_size: int, length: int) -> Batch:
        """Return batch `index` of a split: a function of the arguments alone.

        Training can therefore be resumed without saving the state of a generator. In a finite set,
        training batches pass through all examples in a random order, then in another one. The other
        splits are read once, in one order for all seeds; their last batch may be smaller.

        Raises ValueError for an unknown split or impossible length, and IndexError beyond the last
        batch of validation or test.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        self.check_length(length)

        if self.sizes:
            first = index * batch_size
            rows = example_numbers(self.name, split, seed, first, batch_size, self.sizes[split])
            return self.sampler(rows, length, split, **self.options)

        # Held-out windows of a corpus start at the same positions at every length, so that scores
        # at several lengths can be compared.
        length_key = None if self.reads_split and split != "train" else length
        generator = seeded_generator(
            [self.name, self.options, split, seed, length_key, batch_size, index]
        )
        if self.reads_split:
            return self.sampler(batch_size, length, generator, split=split, **self.options)
        return self.sampler(batch_size, length, generator, **self.options)


def seeded_generator(key: Sequence[Any]) -> torch.Generator:
    """Return a generator whose seed is a hash of `key`, a list of values that JSON can write."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def example_numbers(task: str, split: str, seed: int, first: int, count: int, size: int) -> Tensor:
    """Return the numbers of `count` examples from position `first` on of the pass through a split.

    `size` is the number of examples in the split. Returns (count,) int64; fewer at the end of
    validation or test, beyond which it raises IndexError.
    """
    if split != "train":
        if first >= size:
            raise IndexError(
                f"task {task!r}: {split} has {size} examples, none at position {first}"
            )
        return _shuffled_numbers(task, split, 0, 0, size)[first : first + count]

    # A batch may begin at the end of one epoch and finish in the next.
    positions = torch.arange(first, first + count)
    epochs = positions // size
    numbers = []
    for epoch in epochs.unique().tolist():
        order = _shuffled_numbers(task, split, seed, epoch, size)
        numbers.append(order[positions[epochs == epoch] % size])
    return torch.cat(numbers)


@lru_cache(maxsize=8)
def _shuffled_numbers(task: str, split: str, seed: int, epoch: int, size: int) -> Tensor:
    """Return the numbers 0..size-1 in the random order of an epoch."""
    return torch.randperm(size, generator=seeded_generator([task, split, seed, epoch]))


@dataclass(frozen=True)
class _Registration:
    sampler: Sampler
    facts: dict[str, Any]
    defaults: dict[str, Any]


_TASKS: dict[str, _Registration] = {}

# `shortest` comes first: it is where a task rejects impossible options.
_FACTS_OF_OPTIONS = ("shortest", "vocabulary", "baseline_score", "symbols", "answers", "sizes")


def register_task(
    name: str,
    *,
    vocabulary: int | Callable[[Options], int],
    baseline_score: float | Callable[[Options], float],
    lengths: tuple[int, ...],
    source: str,
    symbols: Sequence[str] | Callable[[Options], Sequence[str]] | None = None,
    answers: Sequence[str] | Callable[[Options], Sequence[str]] | None = None,
    classes: int | None = None,
    score: str = "accuracy",
    shortest: int | Callable[[Options], int] = 1,
    multiple: int = 1,
    exact: bool = False,
    sizes: Mapping[str, int] | Callable[[Options], Mapping[str, int]] | None = None,
    sequences_per_example: int = 1,
    picture: Callable[[Tensor], str] | None = None,
    data: Callable[[Options], dict[str, Any]] | None = None,
    fetch: Callable[[int, Options], None] | None = None,
) -> Callable[[Sampler], Sampler]:
    """Register a sampler as a task.

    Where a function is accepted, it takes the options of the task as one namespace:
    `vocabulary=lambda options: options.alphabet + 2`.

    Args:
        name: lower-case letters, digits, '_', '.', '-'; at most 64 characters.
        vocabulary: number of token ids.
        baseline_score: score of the constant baseline, the best answer that ignores the input.
        lengths: lengths that are commonly used, in tokens.
        source: the paper or code that states the rule.
        symbols: readable form of each token id; by default its number.
        answers: readable form of each target; by default `symbols`.
        classes: number of labels, if an example has one label; None if positions are asked.
        score: unit of the score, "accuracy" or "bits per byte".
        shortest: smallest possible length. The function may raise ValueError for options that
            contradict each other.
        multiple: every length is a multiple of this.
        exact: no lengths are possible but those in `lengths`.
        sizes: number of examples in each split, if the set is finite. The sampler then takes
            (rows, length, split), where `rows`, (batch,) int64, are numbers of examples.
        sequences_per_example: number of token sequences in one example. 2 means a pair of
            documents, with tokens of shape (batch, 2, length) and one label for the pair.
        picture: returns one sequence of tokens, (length,), as text for people, where the symbols in
            a row would not be readable.
        data: returns what identifies the data (source, revision, hash), for records.
        fetch: downloads or generates the data for a length, once; takes (length, options).

    Raises ValueError if the name is malformed or taken, or a function does not take the options as
    one namespace.
    """
    facts = {key: value for key, value in locals().items() if key != "name"}

    def decorate(sampler: Sampler) -> Sampler:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"task name {name!r}: expected lower-case letters, digits, '_', '.', '-', "
                "64 characters at most"
            )
        if name in _TASKS:
            module = _TASKS[name].sampler.__module__
            raise ValueError(f"task {name!r} is already registered by {module}")

        parameters = inspect.signature(sampler).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        for key in (*_FACTS_OF_OPTIONS, "data", "fetch"):
            if callable(facts[key]):
                _check_parameters(name, key, facts[key], defaults)

        _TASKS[name] = _Registration(sampler, facts, defaults)
        return sampler

    return decorate


def _check_parameters(
    task: str, fact: str, function: Callable[..., Any], defaults: Mapping[str, Any]
) -> None:
    """Raise ValueError unless a fact's function takes the options as one namespace."""
    names = list(inspect.signature(function).parameters)
    expected = ["length", "options"] if fact == "fetch" else ["options"]
    if len(names) != len(expected) or defaults.keys() & set(names):
        raise ValueError(
            f"task {task!r}: {fact} must be a function of one namespace that holds all options, "
            f"({', '.join(expected)}), and takes ({', '.join(names)})"
        )


def task_names() -> list[str]:
    """Return the names of all registered tasks, sorted."""
    # Importing a module of this package registers its tasks.
    for module in pkgutil.walk_packages(lookback.tasks.__path__, "lookback.tasks."):
        importlib.import_module(module.name)
    return sorted(_TASKS)


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task of this name with its options filled in.

    Raises ValueError that suggests similar names for an unknown task, lists the options for an
    unknown option, or explains why the options are impossible.
    """
    if name not in task_names():
        near = difflib.get_close_matches(name, _TASKS) or sorted(_TASKS)
        raise ValueError(f"unknown task {name!r}: expected {' or '.join(near)}")
    registration = _TASKS[name]

    unknown = sorted(set(options or {}) - set(registration.defaults))
    if unknown:
        known = ", ".join(sorted(registration.defaults)) or "none"
        raise ValueError(f"task {name!r} has no option {unknown[0]!r}: its options are {known}")
    return _fill_in(name, registration, {**registration.defaults, **(options or {})})


def _fill_in(name: str, registration: _Registration, options: dict[str, Any]) -> Task:
    """Return the task with the value of every fact that depends on its options."""
    namespace = Options(**options)
    facts = dict(registration.facts)
    for key in _FACTS_OF_OPTIONS:
        if callable(facts[key]):
            facts[key] = facts[key](namespace)

    if facts["symbols"] is None:
        facts["symbols"] = [str(token) for token in range(facts["vocabulary"])]
    if facts["answers"] is None:
        facts["answers"] = facts["symbols"]
    facts["sizes"] = dict(facts["sizes"] or {})

    fetch = facts.pop("fetch")
    return Task(
        name=name,
        sampler=registration.sampler,
        options=options,
        reads_split="split" in inspect.signature(registration.sampler).parameters,
        identify=facts.pop("data"),
        fetch=fetch and (lambda length: fetch(length, namespace)),
        **facts,
    )
