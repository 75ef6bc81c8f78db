"""A task that breaks the contract is refused before anything is trained on it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lookback.tasks import task as tasks
from lookback.tasks.contract import check_task
from lookback.tasks.task import IGNORE, AbsentCorpusError, Batch, get_task, register_task

LENGTH = 12
FACTS: dict[str, Any] = {
    "vocabulary": 4,
    "baseline_score": 0.25,
    "lengths": (LENGTH,),
    "source": "a test",
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Tasks that a test registers end with it."""
    tasks.task_names()  # registers those of the package
    known = dict(tasks._TASKS)
    yield
    tasks._TASKS.clear()
    tasks._TASKS.update(known)


def repeated(size: int, length: int, generator: torch.Generator) -> Batch:
    """A sound sampler: repeat the token before."""
    tokens = torch.randint(4, (size, length), generator=generator)
    targets = torch.full_like(tokens, IGNORE)
    targets[:, 1:] = tokens[:, :-1]
    return Batch(tokens, targets, distances=torch.ones_like(tokens))


def changed(change: Callable[[Batch], dict[str, Any]]) -> Callable[..., Batch]:
    """The sound sampler with fields of its batch changed."""

    def sample(size: int, length: int, generator: torch.Generator) -> Batch:
        batch = repeated(size, length, generator)
        fields = {"tokens": batch.tokens, "targets": batch.targets, "distances": batch.distances}
        return Batch(**{**fields, **change(batch)})

    return sample


def blind(size: int, length: int, generator: torch.Generator) -> Batch:
    return repeated(size, length, torch.Generator().manual_seed(0))


def restless(size: int, length: int, generator: torch.Generator) -> Batch:
    return repeated(size, length, torch.default_generator)


def broken(size: int, length: int, generator: torch.Generator) -> Batch:
    raise KeyError("column")


FAULTS = {
    "expected other examples in each split": blind,
    "drawn twice and differs": restless,
    "the sampler failed: KeyError: 'column'": broken,
    "returned Tensor: expected a Batch": lambda *_: torch.zeros(8, LENGTH),
    r"tokens hold 4: expected 0 to 3": changed(lambda b: {"tokens": b.tokens + 1}),
    r"tokens are int32 \(8, 12\): expected int64": changed(lambda b: {"tokens": b.tokens.int()}),
    r"targets are int64 \(8, 13\): expected int64 \(8, 12\)": changed(
        lambda b: {"targets": torch.cat([b.targets, b.targets[:, -1:]], 1)}
    ),
    r"targets hold (4|5|6): expected 0 to 3": changed(
        lambda b: {"targets": b.targets.where(b.targets < 0, b.targets + 3)}
    ),
    "targets hold -1: expected": changed(
        lambda b: {"targets": b.targets.where(b.targets >= 0, -1)}
    ),
    "nothing is asked": changed(lambda b: {"targets": torch.full_like(b.targets, IGNORE)}),
    "lies before the sequence": changed(lambda b: {"distances": b.distances * LENGTH}),
    "a distance is negative": changed(lambda b: {"distances": -b.distances}),
    r"distances are int64 \(8,\)": changed(lambda b: {"distances": b.distances[:, 0]}),
    r"lengths hold 0: expected 1 to 12": changed(lambda b: {"lengths": b.tokens[:, 0] * 0}),
}


@pytest.mark.parametrize("words", FAULTS)
def test_samplers_that_break_the_contract_are_refused(words: str) -> None:
    register_task("faulty", **FACTS)(FAULTS[words])
    with pytest.raises(ValueError, match=f"task 'faulty', \\w+, length 12: .*{words}") as error:
        check_task(get_task("faulty"), LENGTH)
    assert "\n" not in str(error.value)


def test_a_sound_sampler_passes() -> None:
    register_task("sound", **FACTS)(repeated)
    check_task(get_task("sound"), LENGTH)


def finite(rows: Tensor, length: int, split: str) -> Batch:
    tokens = (rows[:, None] + torch.arange(length)) % 4
    return Batch(tokens, (rows + (split == "test")) % 2)


@pytest.mark.parametrize(
    "sizes", [{"train": 9, "test": 9}, {"train": 9, "validation": 0, "test": 9}]
)
def test_a_finite_set_has_examples_in_every_split(sizes: dict[str, int]) -> None:
    register_task("finite", **FACTS, classes=2, sizes=sizes)(finite)
    with pytest.raises(ValueError, match="expected examples of train, validation, test"):
        check_task(get_task("finite"), LENGTH)


def test_a_small_split_of_a_finite_set_passes() -> None:
    sizes = {"train": 30, "validation": 5, "test": 3}
    register_task("finite", **FACTS, classes=2, sizes=sizes)(finite)
    check_task(get_task("finite"), LENGTH)


def test_absent_data_are_no_fault_of_the_sampler() -> None:
    def absent(size: int, length: int, generator: torch.Generator) -> Batch:
        raise AbsentCorpusError("fetch them first")

    register_task("absent", **FACTS)(absent)
    with pytest.raises(AbsentCorpusError, match="fetch them first"):
        check_task(get_task("absent"), LENGTH)


def test_tasks_of_this_package_are_left_to_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.Task, "batch", lambda *_: pytest.fail("drawn"))
    check_task(get_task("copy"), 24)
