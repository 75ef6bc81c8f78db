"""Checks a task before anything is trained on it: a wrong sampler would spoil every score.

Tests check the tasks of this package. Tasks of plug-ins are checked here, on a few batches.
"""

import torch
from torch import Tensor

from lookback.tasks.task import IGNORE, SPLITS, AbsentCorpusError, Batch, Task

BATCH_SIZE = 8


def check_task(task: Task, length: int) -> None:
    """Raise ValueError that names the first batch of length `length` that breaks the contract.

    A batch is the same whenever it is drawn, other splits hold other examples, and shapes, types
    and values are those that `Batch` and the task declare. Tasks of this package are left to its
    tests. Raises AbsentCorpusError if the data are not on this machine.
    """
    if task.sampler.__module__.startswith("lookback.tasks."):
        return
    if task.sizes and (set(task.sizes) != set(SPLITS) or min(task.sizes.values()) < 1):
        raise ValueError(
            f"task {task.name!r}: sizes {task.sizes}: expected examples of {', '.join(SPLITS)}"
        )

    drawn: dict[str, Batch] = {}
    for split in SPLITS:
        place = f"task {task.name!r}, {split}, length {length}"
        batch = draw(task, split, length, place)
        check_batch(task, batch, length, place)
        if not same(batch, draw(task, split, length, place)):
            raise ValueError(
                f"{place}: the same batch was drawn twice and differs: expected a sampler that "
                "draws from its generator alone"
            )
        for other, earlier in drawn.items():
            if same(batch, earlier):
                raise ValueError(
                    f"{place}: the batch is that of {other}: expected other examples in each split"
                )
        drawn[split] = batch


def draw(task: Task, split: str, length: int, place: str) -> Batch:
    """Return the first batch of a split; whatever the sampler raises becomes a ValueError."""
    try:
        batch = task.batch(split, 0, 0, BATCH_SIZE, length)
    except AbsentCorpusError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"{place}: the sampler failed: {type(error).__name__}: {message}"
        ) from error
    if not isinstance(batch, Batch):
        raise ValueError(f"{place}: the sampler returned {type(batch).__name__}: expected a Batch")
    return batch


def same(batch: Batch, other: Batch) -> bool:
    """Return whether two batches hold the same tokens and targets."""
    return torch.equal(batch.tokens, other.tokens) and torch.equal(batch.targets, other.targets)


def check_batch(task: Task, batch: Batch, length: int, place: str) -> None:
    """Raise ValueError if shapes, types or values of a batch are not those of its task."""
    rows = BATCH_SIZE
    if task.sizes:  # a small split is one smaller batch
        rows = min(len(batch.tokens), BATCH_SIZE)
    sequences = (task.sequences_per_example,) if task.sequences_per_example > 1 else ()
    answer_shape = (rows,) if task.classes else (rows, length)
    check_tensor(place, "tokens", batch.tokens, (rows, *sequences, length))
    check_tensor(place, "targets", batch.targets, answer_shape)

    check_values(place, "tokens", batch.tokens, 0, task.vocabulary - 1)
    asked = batch.targets[batch.targets != IGNORE]
    if not len(asked):
        raise ValueError(f"{place}: nothing is asked: expected a target other than {IGNORE}")
    check_values(place, "targets", asked, 0, (task.classes or task.vocabulary) - 1)

    if batch.lengths is not None:
        check_tensor(place, "lengths", batch.lengths, (rows, *sequences))
        check_values(place, "lengths", batch.lengths, 1, length)
    if batch.distances is not None:
        check_tensor(place, "distances", batch.distances, answer_shape)
        past = torch.full((rows,), length - 1) if task.classes else torch.arange(length)
        beyond = (batch.distances < 0) | (batch.distances > past)
        if (beyond & (batch.targets != IGNORE)).any():
            raise ValueError(
                f"{place}: a distance is negative or lies before the sequence: expected at most "
                "the position of its target"
            )


def check_tensor(place: str, name: str, tensor: object, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless this is a tensor of int64 with this shape."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{place}: {name} is a {type(tensor).__name__}: expected a tensor")
    if tensor.dtype != torch.int64 or tensor.shape != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
        raise ValueError(f"{place}: {name} are {found}: expected int64 {shape}")


def check_values(place: str, name: str, values: Tensor, low: int, high: int) -> None:
    """Raise ValueError unless all values lie between low and high, inclusive."""
    outside = values[(values < low) | (values > high)]
    if len(outside):
        raise ValueError(f"{place}: {name} hold {int(outside[0])}: expected {low} to {high}")
