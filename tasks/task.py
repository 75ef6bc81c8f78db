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

In training, a numeric option may be a range, `{"low": 2, "high": 32}`: every batch then has one
value, drawn from it.

A task with a finite set of numbered examples states `sizes`, and its sampler receives the numbers
of the examples to return::

    @register_task("listops", sizes={"train": 96000, "validation": 2000, "test": 2000}, ...)
    def sample_listops(rows: Tensor, length: int, split: str) -> Batch: ...

A text corpus states `windows` in place of `sizes`: training draws from anywhere in the text.
"""

from __future__ import annotations

import difflib
import functools
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
LARGEST = 1 << 20  # of an option, and of a vocabulary
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

Reference = Callable[[Batch, Options], Tensor]
"""Answers without a model: (targets,) bool, which are right, or the loss of each in nats."""


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
    references: Mapping[str, Reference]
    picture: Callable[[Tensor], str] | None
    shortest_with: Callable[[Options], int] = field(repr=False)
    windows: Callable[[str, int], int] | None = field(repr=False)
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

        generator = seeded_generator(
            [self.name, self.options, split, seed, length, batch_size, index]
        )
        options = self.draw_options(length, generator)
        count = self.examples_in(split, length)
        if count is not None:
            rows = example_numbers(self.name, split, seed, index * batch_size, batch_size, count)
            return self.sampler(rows, length, split, **options)
        if self.windows is not None:
            rows = torch.randint(1 << 62, (batch_size,), generator=generator)
            return self.sampler(rows, length, split, **options)
        return self.sampler(batch_size, length, generator, **options)

    def examples_in(self, split: str, length: int) -> int | None:
        """Return how many examples a split has, or None if they are drawn without end."""
        if self.windows is not None:
            return None if split == "train" else self.windows(split, length)
        return self.sizes.get(split)

    def draw_options(self, length: int, generator: torch.Generator) -> dict[str, Any]:
        """Return the options with a value for each range, such that the length can hold them.

        Values are drawn evenly on a logarithmic scale, or on a linear one if the range starts at 0.
        """
        options = {name: range_end(value, "low") for name, value in self.options.items()}
        for name, value in self.options.items():
            if not is_range(value):
                continue
            high = value["high"]
            while high > value["low"]:
                if self.shortest_with(Options(**{**options, name: high})) <= length:
                    break
                high = max(value["low"], type(high)(0.95 * high))
            options[name] = draw_from(value["low"], high, generator)
        return options


def is_range(value: object) -> bool:
    """Return whether the value of an option is a range, such as {"low": 2, "high": 32}."""
    return isinstance(value, Mapping) and set(value) == {"low", "high"}


def range_end(value: Any, end: str) -> Any:
    """Return one end of a range, "low" or "high"; a single value is both of its ends."""
    return value[end] if is_range(value) else value


def draw_from(low: float, high: float, generator: torch.Generator) -> float:
    """Return a number from low to high, an integer if they are; see `draw_options`."""
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    is_integer = isinstance(low, int)
    top = high + 1 if is_integer else high
    drawn = low * (top / low) ** share if low > 0 else top * share
    return min(high, int(drawn)) if is_integer else drawn


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
    references: Mapping[str, Reference] | None = None,
    windows: Callable[[str, int], int] | None = None,
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
        references: answers that look at the input but learn nothing, by name: functions of a batch
            and the options. The best of them is the floor that a model must leave.
        windows: returns the number of windows of a text in validation or test, which do not
            overlap; takes (split, length). The sampler then takes (rows, length, split) as for a
            finite set; in training, `rows` are drawn from 0 to 2**62.
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
    _register_ours()
    return sorted(_TASKS)


@functools.cache
def _register_ours() -> None:
    """Import the modules of this package, which register their tasks."""
    for module in pkgutil.walk_packages(lookback.tasks.__path__, "lookback.tasks."):
        importlib.import_module(module.name)


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task of this name with its options filled in.

    Raises ValueError that suggests similar names for an unknown task, lists the options for an
    unknown option, or explains why the options are impossible.
    """
    if name not in task_names():
        near = difflib.get_close_matches(name, _TASKS) or sorted(_TASKS)
        raise ValueError(
            f"unknown task {name!r}: expected {' or '.join(near)}, "
            "or one that a --plugin file registers"
        )
    registration = _TASKS[name]

    for option, value in (options or {}).items():
        if option not in registration.defaults:
            known = ", ".join(sorted(registration.defaults)) or "none"
            raise ValueError(f"task {name!r} has no option {option!r}: its options are {known}")
        _check_option(name, option, value, registration.defaults[option])
    return _fill_in(name, registration, {**registration.defaults, **(options or {})})


def _check_option(task: str, name: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a value is of the default's type, and a number is in its bounds.

    Integers reach from 1 to LARGEST, from 0 if the default is 0; other numbers are not negative.
    """
    place = f"task {task!r}: {name} = {value!r:.60}"
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_range(value):
        low, high = value["low"], value["high"]
        if not is_number:
            raise ValueError(f"{place}: expected a {type(default).__name__}, not a range")
        _check_option(task, name, low, default)
        _check_option(task, name, high, default)
        if low > high or isinstance(low, int) != isinstance(high, int):
            raise ValueError(f"{place}: expected two numbers of one type, low <= high")
        return

    if not is_number:
        if default is not None and type(value) is not type(default):
            raise ValueError(f"{place}: expected a {type(default).__name__}")
    elif isinstance(default, int):
        least = min(default, 1)
        if type(value) is not int or not least <= value <= LARGEST:
            raise ValueError(f"{place}: expected an integer from {least} to {LARGEST}")
    elif type(value) not in (int, float) or not 0 <= value <= LARGEST:
        raise ValueError(f"{place}: expected a number from 0 to {LARGEST}")


def _fill_in(name: str, registration: _Registration, options: dict[str, Any]) -> Task:
    """Return the task with the value of every fact that depends on its options.

    Raises ValueError for options that contradict each other, and for a range of an option that
    changes the vocabulary.
    """
    ends = []
    for end in ("low", "high"):
        namespace = Options(**{option: range_end(value, end) for option, value in options.items()})
        at_end = dict(registration.facts)
        for key in _FACTS_OF_OPTIONS:
            if callable(at_end[key]):
                at_end[key] = at_end[key](namespace)
        ends.append(at_end)
    facts, at_high = ends
    if facts["vocabulary"] != at_high["vocabulary"] or facts["sizes"] != at_high["sizes"]:
        ranges = ", ".join(option for option, value in options.items() if is_range(value))
        raise ValueError(
            f"task {name!r}: {ranges}: a range would change the vocabulary or the data"
        )
    if not 1 <= facts["vocabulary"] <= LARGEST:
        raise ValueError(f"task {name!r}: expected a vocabulary of 1 to {LARGEST} tokens")
    facts["baseline_score"] = (max if facts["score"] == "accuracy" else min)(
        facts["baseline_score"], at_high["baseline_score"]
    )
    shortest = registration.facts["shortest"]

    if facts["symbols"] is None:
        facts["symbols"] = [str(token) for token in range(facts["vocabulary"])]
    if facts["answers"] is None:
        facts["answers"] = facts["symbols"]
    facts["sizes"] = dict(facts["sizes"] or {})

    facts["references"] = dict(facts["references"] or {})

    fetch = facts.pop("fetch")
    return Task(
        name=name,
        sampler=registration.sampler,
        options=options,
        shortest_with=shortest if callable(shortest) else lambda options: shortest,
        identify=facts.pop("data"),
        fetch=fetch and (lambda length: fetch(length, namespace)),
        **facts,
    )
