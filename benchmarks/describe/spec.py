"""The spec card of a finite data set: sizes, lengths, labels, doubles, and an example that a person
can read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lookback.benchmarks.plugins import load_plugins
from lookback.tasks.task import Batch, Task, get_task

MOST_EXAMPLES, MOST_TOKENS = 512, 2**20  # of each split, that a card looks at
BINS, BAR = 8, 40
SHOWN = 1200  # characters of a document


def spec(task: Task) -> str:
    """What can be said of a task of one label a sequence from the first examples of each split."""
    length = task.lengths[0]
    count = max(8, min(MOST_EXAMPLES, MOST_TOKENS // (length * task.sequences_per_example)))
    looked = {
        split: _first(task, split, length, min(count, size)) for split, size in task.sizes.items()
    }
    labels = torch.cat([batch.targets for batch in looked.values()])
    valid = [_lengths(batch) for batch in looked.values()]
    parts = [
        "examples     " + ", ".join(f"{split} {size}" for split, size in task.sizes.items()),
        f"looked at    the first {', '.join(str(len(batch.tokens)) for batch in looked.values())} of them, at {length}",
        f"valid tokens\n{histogram(torch.cat(valid))}",
        f"labels\n{shares(labels, task)}",
        f"doubles      {_said(doubles({split: _hashes(batch) for split, batch in looked.items()}))}",
    ]
    return (
        "\n".join(parts)
        + "\n\n"
        + "\n\n".join(example(task, looked["train"], row) for row in range(2))
    )


def _first(task: Task, split: str, length: int, count: int) -> Batch:
    return task.batch(split, 0, 0, count, length)


def _lengths(batch: Batch) -> Tensor:
    if batch.lengths is not None:
        return batch.lengths.flatten()
    return torch.full((batch.tokens[..., 0].numel(),), batch.tokens.shape[-1])


def histogram(lengths: Tensor) -> str:
    """Bars of how many sequences have a length within each of BINS equal ranges."""
    low, high = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(high - low + 1) // BINS))
    counts = torch.bincount((lengths - low) // step).tolist()
    lines = [
        f"  {low + i * step:6} to {low + (i + 1) * step - 1:6}  {count:5}  {'#' * round(BAR * count / max(counts))}"
        for i, count in enumerate(counts)
    ]
    return "\n".join(
        [*lines, f"  mean {lengths.double().mean():.0f}, median {int(lengths.median())}"]
    )


def shares(labels: Tensor, task: Task) -> str:
    """The share of each label, a line a label."""
    counts = torch.bincount(labels, minlength=len(task.answers)).tolist()
    width = max(map(len, task.answers))
    return "\n".join(
        f"  {name:{width}}  {count / len(labels):6.1%}"
        for name, count in zip(task.answers, counts, strict=True)
    )


def example(task: Task, batch: Batch, row: int) -> str:
    """The documents of one example, each as its task pictures it, and the label."""
    documents = batch.tokens[row].reshape(-1, batch.tokens.shape[-1])
    valid = _lengths(batch).reshape(len(batch.tokens), -1)[row].tolist()
    shown = [_written(task, tokens[:count]) for tokens, count in zip(documents, valid, strict=True)]
    return "\n---\n".join(shown) + f"\n=> {task.answers[int(batch.targets[row])]}"


def _written(task: Task, tokens: Tensor) -> str:
    text = (
        task.picture(tokens)
        if task.picture
        else " ".join(task.symbols[token] for token in tokens.tolist())
    )
    return text if task.vocabulary == 256 or len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _hashes(batch: Batch) -> list[bytes]:
    return [hashlib.sha256(tokens.numpy().tobytes()).digest() for tokens in batch.tokens]


def doubles(hashes: dict[str, list[bytes]]) -> dict[str, int]:
    """How many examples of the later split also stand in the earlier, for every two; and within
    each.
    """
    found = {f"within {split}": len(those) - len(set(those)) for split, those in hashes.items()}
    for a, b in combinations(hashes, 2):
        found[f"{b} also in {a}"] = len(set(hashes[a]).intersection(hashes[b]))
    return found


def _said(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {where}" for where, count in found.items())


def all_doubles(task: Task, length: int) -> str:
    """`doubles` of the whole set, in words."""
    return _said(doubles({split: list(_every_hash(task, split, length)) for split in task.sizes}))


def _every_hash(task: Task, split: str, length: int) -> Iterator[bytes]:
    at_once = max(1, 2**22 // length)
    for index in range(-(-task.sizes[split] // at_once)):
        first, last = index * at_once, min((index + 1) * at_once, task.sizes[split])
        yield from _hashes(task.sampler(torch.arange(first, last), length, split, **task.options))


def prefetched(name: str, length: int | None, options: list[str], plugins: list[str]) -> str:
    """Fetch a task's data, and what there is to say of them; raises ValueError where there is
    nothing to fetch.
    """
    load_plugins(plugins)
    task = get_task(name, dict(_option(text) for text in options))
    length = length or task.lengths[0]
    task.check_length(length)
    if task.fetch is None:
        task.batch("train", 0, 0, 1, length)  # says what is missing
        return f"{name}: nothing to fetch"
    task.fetch(length)
    facts = [f"{key} {value}" for key, value in task.data.items()]
    if not task.sizes:
        return "\n".join([f"{name}: windows of any length", *facts])
    sizes = ", ".join(f"{split} {size}" for split, size in task.sizes.items())
    return "\n".join(
        [f"{name} at {length}: {sizes}", *facts, f"doubles: {all_doubles(task, length)}"]
    )


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise ValueError(f"option {text!r}: expected NAME=JSON, such as released=true") from None
