"""Fetch data sets, and summarise finite ones: lengths, labels, duplicates and examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lookback.benchmarks.plugins import load_plugins
from lookback.tasks.task import Batch, Task, get_task

MAX_EXAMPLES = 512  # of each split, in a summary
MAX_TOKENS = 2**20  # of each split, in a summary
MAX_TEXT = 1200  # characters of a sequence in an example


def summarise(task: Task) -> tuple[dict[str, str], list[str]]:
    """Return facts and two examples of a task with one label per sequence and finite splits.

    The facts are of the first examples of each split.
    """
    length = task.lengths[0]
    count = max(8, min(MAX_EXAMPLES, MAX_TOKENS // (length * task.sequences_per_example)))
    batches = {}
    for split, size in task.sizes.items():
        batches[split] = task.batch(split, 0, 0, min(count, size), length)

    lengths = torch.cat([_valid_lengths(batch) for batch in batches.values()])
    labels = torch.cat([batch.targets for batch in batches.values()])
    hashes = {split: _hashes(batch) for split, batch in batches.items()}
    facts = {
        "sampled": f"the first {len(labels):,} examples at length {length:,}",
        "valid tokens": f"{lengths.min()} to {lengths.max()}, median {lengths.median()}",
        "labels": label_shares(labels, task.answers),
        "duplicates": _duplicates_text(hashes),
    }
    return facts, [example(task, batches["train"], row) for row in range(2)]


def _valid_lengths(batch: Batch) -> Tensor:
    """Return the number of valid tokens of every sequence, flat."""
    if batch.lengths is not None:
        return batch.lengths.flatten()
    sequences = batch.tokens[..., 0].numel()
    return torch.full((sequences,), batch.tokens.shape[-1])


def label_shares(labels: Tensor, names: Sequence[str]) -> str:
    """Return the share of each label: "0 51.2%, 1 48.8%"."""
    shares = torch.bincount(labels, minlength=len(names)) / len(labels)
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))


def example(task: Task, batch: Batch, row: int) -> str:
    """Return the sequences of one example as the task shows them, and its label."""
    sequences = batch.tokens[row].reshape(-1, batch.tokens.shape[-1])
    lengths = _valid_lengths(batch).reshape(len(batch.tokens), -1)[row].tolist()
    texts = []
    for tokens, length in zip(sequences, lengths, strict=True):
        texts.append(_readable(task, tokens[:length]))
    return "\n---\n".join(texts) + f"\n=> {task.answers[int(batch.targets[row])]}"


def _readable(task: Task, tokens: Tensor) -> str:
    if task.picture:
        text = task.picture(tokens)
    else:
        text = " ".join(task.symbols[token] for token in tokens.tolist())
    is_picture = task.vocabulary == 256  # a picture that is cut has no shape
    return text if is_picture or len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."


def _hashes(batch: Batch) -> list[bytes]:
    return [hashlib.sha256(tokens.numpy().tobytes()).digest() for tokens in batch.tokens]


def duplicates(hashes: dict[str, list[bytes]]) -> dict[str, int]:
    """Count the examples that occur twice within a split, or in two splits."""
    counts = {f"within {split}": len(those) - len(set(those)) for split, those in hashes.items()}
    for earlier, later in combinations(hashes, 2):
        shared = set(hashes[earlier]).intersection(hashes[later])
        counts[f"{later} also in {earlier}"] = len(shared)
    return counts


def _duplicates_text(hashes: dict[str, list[bytes]]) -> str:
    return ", ".join(f"{count} {where}" for where, count in duplicates(hashes).items())


def _all_hashes(task: Task, split: str, length: int) -> Iterator[bytes]:
    rows_at_once = max(1, 2**22 // length)
    for rows in torch.arange(task.sizes[split]).split(rows_at_once):
        yield from _hashes(task.sampler(rows, length, split, **task.options))


def prefetch(
    name: str, length: int | None, options: Sequence[str], plugins: Sequence[str] = ()
) -> str:
    """Fetch the data of a task and return what identifies them.

    Args:
        name: of the task.
        length: tokens, for data that are made for a length; the task's first if None.
        options: of the task, each as NAME=JSON.
        plugins: files that register tasks.

    Raises ValueError if the task, the length or an option does not exist.
    """
    load_plugins(list(plugins))
    task = get_task(name, read_options(options))
    length = length or task.lengths[0]
    task.check_length(length)
    if task.fetch is None:
        task.batch("train", 0, 0, 1, length)  # raises AbsentCorpusError if data are missing
        return f"{name}: nothing to fetch"

    task.fetch(length)
    facts = [f"{key} {value}" for key, value in task.data.items()]
    if not task.sizes:
        return "\n".join([f"{name}: windows of any length", *facts])

    sizes = ", ".join(f"{split} {size}" for split, size in task.sizes.items())
    hashes = {split: list(_all_hashes(task, split, length)) for split in task.sizes}
    lines = [f"{name} at {length}: {sizes}", *facts, f"duplicates: {_duplicates_text(hashes)}"]
    return "\n".join(lines)


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return options from texts of the form NAME=JSON; raises ValueError for another form."""
    return dict(map(_parse_option, texts))


def _parse_option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise ValueError(f"option {text!r}: expected NAME=JSON, such as released=true") from None
