"""The contract of every registered task, and each rule against something independent."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lookback.tasks.language import standard_library_files
from lookback.tasks.task import (
    IGNORE,
    SPLITS,
    AbsentCorpusError,
    Batch,
    Task,
    get_task,
    register_task,
    task_names,
)

BUDGET = 2**18  # tokens a batch
# An image of Pathfinder takes some milliseconds, one of Path-X fifteen times as long.
SLOW = ("pathfinder", "pathx")
# The answer stands `distance` back.
POINTING = ("copy", "selective_copy", "mqar", "recall", "needle", "induction")


def some_length(task: Task) -> int:
    return task.lengths[0]


def present(name: str) -> Task:
    """The task, where its data are at hand; the test is skipped with a word where they must be
    fetched first.
    """
    task = get_task(name)
    try:
        task.batch("test", 0, 0, 1, some_length(task))
    except AbsentCorpusError as error:
        pytest.skip(str(error))
    return task


def rows(batch: Batch) -> set[tuple[int, ...]]:
    return {tuple(row) for row in batch.tokens.flatten(1).tolist()}


@pytest.mark.parametrize("name", task_names())
def test_shapes_and_ranges(name: str) -> None:
    task = present(name)
    for length in (some_length(task), *([] if task.exact else [some_length(task) + task.multiple])):
        batch = task.batch("train", 0, 0, 5, length)
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.tokens.shape[0] == 5 and batch.tokens.shape[-1] == length
        assert batch.tokens.min() >= 0 and batch.tokens.max() < task.vocabulary
        answers = batch.targets[batch.targets != IGNORE]
        assert (
            len(answers)
            and answers.min() >= 0
            and answers.max() < (task.classes or task.vocabulary)
        )
        assert batch.targets.shape == ((5,) if task.classes else (5, length))
        assert len(task.symbols) == task.vocabulary and len(task.answers) >= (task.classes or 0)
        if batch.distances is not None:
            assert batch.distances.shape == batch.targets.shape
            position = torch.arange(length)
            assert ((batch.distances <= position) & (batch.distances >= 0))[
                batch.targets != IGNORE
            ].all()


@pytest.mark.parametrize("name", task_names())
def test_a_batch_is_a_function_of_its_arguments(name: str) -> None:
    task, length = present(name), some_length(get_task(name))
    first = task.batch("train", 3, 7, 4, length)
    torch.manual_seed(99)
    again = get_task(name).batch("train", 3, 7, 4, length)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.targets, again.targets)
    for other in (task.batch("train", 4, 7, 4, length), task.batch("train", 3, 8, 4, length)):
        assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("name", task_names())
def test_splits_share_no_example(name: str) -> None:
    """In finite sets, examples with the same numbers differ too: few of them show it."""
    task, length = present(name), some_length(get_task(name))
    count = 4 if name in SLOW else min(128, BUDGET // length)
    drawn = []
    for split in SPLITS:
        if task.sizes:
            batch = task.sampler(torch.arange(count), length, split, **task.options)
        else:
            batch = task.batch(split, 0, 0, count, length)
        drawn.append(rows(batch))
    assert not (drawn[0] & drawn[1] or drawn[0] & drawn[2] or drawn[1] & drawn[2])


# Path-X is left out: its labels are drawn by the same line of code as those of Pathfinder.
@pytest.mark.parametrize(
    "name",
    [name for name in task_names() if get_task(name).score == "accuracy" and name != "pathx"],
)
def test_no_constant_answer_beats_the_baseline(name: str) -> None:
    """Within five standard errors of a share, and 20 examples for the choice of the best answer.

    The 512 labels of Pathfinder are held to 0.5 + 0.11 + 0.04.
    """
    task, length = present(name), some_length(get_task(name))
    count = 128 if name in SLOW else min(512, BUDGET // length)
    batches = [task.batch("train", 0, i, count, length) for i in range(4)]
    targets = torch.cat([b.targets.flatten() for b in batches])
    counts = torch.bincount(targets[targets != IGNORE])
    spread = 5 * (task.baseline_score * (1 - task.baseline_score) / counts.sum().item()) ** 0.5
    best = counts.max().item() / counts.sum().item()
    assert best < task.baseline_score + spread + 20 / counts.sum().item()
    assert best > task.baseline_score - spread


@pytest.mark.parametrize("name", POINTING)
def test_the_answer_is_at_its_distance(name: str) -> None:
    task = get_task(name)
    batch = task.batch("test", 0, 0, 64, 96)
    assert batch.distances is not None
    row, position = (batch.targets != IGNORE).nonzero(as_tuple=True)
    there = batch.tokens[row, position - batch.distances[row, position]]
    assert torch.equal(there, batch.targets[row, position])


@pytest.mark.parametrize("name", ["recall", "mqar"])
def test_the_key_is_before_its_value(name: str) -> None:
    batch = get_task(name).batch("test", 0, 0, 64, 96)
    assert batch.distances is not None
    row, position = (batch.targets != IGNORE).nonzero(as_tuple=True)
    key_at = position - batch.distances[row, position] - 1
    assert torch.equal(batch.tokens[row, key_at], batch.tokens[row, position])
    keys_asked = batch.tokens[0, batch.targets[0] != IGNORE]
    assert len(keys_asked.unique()) == len(keys_asked)


@pytest.mark.parametrize(
    ("name", "options"), [("recall", {}), ("needle", {}), ("recall", {"pairs": 2})]
)
def test_distances_are_drawn_evenly(name: str, options: dict[str, int]) -> None:
    length = 512
    batch = get_task(name, options).batch("train", 0, 0, 4000, length)
    assert batch.distances is not None
    drawn = batch.distances[batch.targets != IGNORE][
        ::7
    ].numpy()  # few of a row, to be nearly independent
    edge = options.get("pairs", 8)  # the block of questions blurs both ends by its own size
    inside = drawn[(drawn > edge) & (drawn < length - edge)]
    assert stats.kstest(inside, stats.uniform(edge, length - 2 * edge).cdf).pvalue > 1e-3
    assert len(inside) / len(drawn) > 0.9


def published_mqar_slots(
    pairs: int, length: int, power: float, generator: np.random.Generator
) -> np.ndarray:
    """The slots of the published rule, drawn as it draws them: without replacement, in proportion
    to k^(power-1).
    """
    space = (length - 2 * pairs) // 2
    weights = power * np.arange(1, space + 1) ** (power - 1)
    return generator.choice(space, size=pairs, replace=False, p=weights / weights.sum())


def test_mqar_draws_its_slots_by_the_published_rule() -> None:
    pairs, length = 4, 64
    batch = get_task("mqar").batch("train", 0, 0, 4000, length)
    asked_at = (batch.targets != IGNORE).nonzero()[:, 1].numpy()
    ours = np.bincount((asked_at - 2 * pairs) // 2, minlength=28)
    generator = np.random.default_rng(0)
    theirs = np.bincount(
        np.concatenate([published_mqar_slots(pairs, length, 0.01, generator) for _ in range(4000)]),
        minlength=28,
    )
    assert stats.chi2_contingency(np.stack([ours, theirs])).pvalue > 1e-3
    assert (asked_at % 2 == 0).all()


@pytest.mark.parametrize(("length", "pairs", "median"), [(64, 4, 14), (256, 16, 50)])
def test_mqar_asks_mostly_near(length: int, pairs: int, median: int) -> None:
    """FACTS: median distances 14 and 50, counted from the key; few reach beyond three quarters of
    the length.
    """
    batch = get_task("mqar", {"pairs": pairs}).batch("train", 0, 0, 2000, length)
    assert batch.distances is not None
    distance = batch.distances[batch.targets != IGNORE].double()
    assert abs(distance.median().item() + 1 - median) <= 2
    assert 0.01 < (distance > 0.75 * length).double().mean().item() < 0.1


def test_mqar_values_and_keys_come_without_replacement() -> None:
    tokens = (
        get_task("mqar", {"pairs": 16, "vocabulary": 40})
        .batch("train", 0, 0, 300, 64)
        .tokens[:, :32]
    )
    keys, values = tokens[:, 0::2], tokens[:, 1::2]
    assert keys.min() == 1 and keys.max() == 19 and values.min() == 20 and values.max() == 39
    for drawn in (keys, values):
        assert all(len(set(row)) == 16 for row in drawn.tolist())
        counts = torch.bincount(drawn.flatten() - drawn.min())
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_noise_changes_nothing_that_is_asked() -> None:
    plain, filled = (
        get_task("mqar", {"filler": filler}).batch("train", 0, 0, 8, 64)
        for filler in ("blank", "noise")
    )
    assert (plain.tokens == 0).any() and not (filled.tokens == 0).all(1).any()
    is_target = filled.targets != IGNORE
    assert (filled.tokens[is_target] < 4096).all() and (filled.targets[is_target] >= 4096).all()


def test_selective_copy_keeps_the_order_of_the_symbols() -> None:
    batch = get_task("selective_copy").batch("train", 0, 0, 50, 64)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        read = [token for token in tokens[: 64 - 10] if token < 8]
        assert read == [target for target in targets if target != IGNORE]


@pytest.mark.parametrize("length", [2, 9, 40])
def test_copy_can_fill_the_sequence_with_symbols(length: int) -> None:
    batch = get_task("copy", {"fill": True}).batch("train", 0, 0, 5, length)
    answers = batch.targets[batch.targets != IGNORE].view(5, -1)
    assert answers.shape[1] == length // 2
    assert (answers == batch.tokens[:, : length // 2]).all()


def test_parity_counts_ones() -> None:
    batch = get_task("parity").batch("train", 0, 0, 20, 37)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [sum(tokens[: i + 1]) % 2 for i in range(37)]


def test_permutations_are_applied_one_after_the_other() -> None:
    elements = list(permutations(range(5)))
    batch = get_task("permutations").batch("train", 0, 0, 10, 33)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        things = list(range(5))
        for token, target in zip(tokens, targets, strict=True):
            things = [things[place] for place in elements[token]]
            assert tuple(things) == elements[target]


def test_python_reads_files_of_its_split_alone() -> None:
    import sysconfig

    files = standard_library_files(Path(sysconfig.get_paths()["stdlib"]))
    assert all(files[split] for split in SPLITS)
    names = [path for split in SPLITS for path in files[split]]
    assert len(set(names)) == len(names)
    texts = {split: b"\0".join(path.read_bytes() for path in files[split]) for split in SPLITS}
    for split in SPLITS:
        batch = get_task("python").batch(split, 0, 0, 6, 100)
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            assert tokens[1:] == targets[:-1]
            assert bytes(tokens) + bytes(targets[-1:]) in texts[split] + b"\0"
    assert len(get_task("python").data["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("coppy", {}, "unknown task 'coppy': expected .*copy"),
        ("copy", {"symbol": 3}, "no option 'symbol': its options are alphabet, fill, symbols"),
        ("recall", {"pairs": 99}, "1 <= pairs <= alphabet"),
        ("mqar", {"vocabulary": 7}, "even vocabulary"),
        ("copy", {"symbols": 0}, "symbols = 0: expected an integer from 1 to 1048576"),
    ],
)
def test_wrong_options_are_reported(name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_task(name, options)


def test_impossible_lengths_are_reported() -> None:
    for name, length in (("copy", 19), ("mqar", 65), ("mqar", 14), ("recall", 23), ("needle", 2)):
        with pytest.raises(ValueError, match=f"no sequences of length {length}: expected at least"):
            get_task(name).batch("train", 0, 0, 1, length)
        shortest = get_task(name).shortest
        get_task(name).batch("train", 0, 0, 3, shortest)
    with pytest.raises(ValueError, match="unknown split"):
        get_task("copy").batch("dev", 0, 0, 1, 64)


def test_a_taken_name_is_reported() -> None:
    card = {"vocabulary": 2, "baseline_score": 0.5, "lengths": (4,), "source": ""}
    with pytest.raises(
        ValueError, match=r"'copy' is already registered by lookback\.tasks\.copying"
    ):
        register_task("copy", **card)(lambda *_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="lower-case"):
        register_task("../copy", **card)(lambda *_: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"vocabulary": lambda alphabet: alphabet}, r"vocabulary must .* takes \(alphabet\)"),
        ({"shortest": lambda delay, alphabet: 1}, r"shortest must .* takes \(delay, alphabet\)"),
        ({"symbols": lambda: ["0", "1"]}, r"symbols must .* \(options\), and takes \(\)"),
        (
            {"fetch": lambda length: None},
            r"fetch must .* \(length, options\), and takes \(length\)",
        ),
    ],
)
def test_functions_that_spell_options_are_refused(facts: dict[str, Any], words: str) -> None:
    def sample(batch_size: int, length: int, generator: torch.Generator, *, alphabet: int = 2):  # type: ignore[no-untyped-def]
        raise AssertionError("never drawn from")

    card = {"vocabulary": 2, "baseline_score": 0.5, "lengths": (4,), "source": "", **facts}
    with pytest.raises(ValueError, match=f"task 'refused': {words}"):
        register_task("refused", **card)(sample)
    assert "refused" not in task_names()


def test_symbols_are_the_numbers_of_the_tokens_by_default() -> None:
    assert get_task("parity").symbols == get_task("parity").answers == ["0", "1"]


@pytest.mark.parametrize(("pairs", "alphabet", "far"), [(8, 16, 47), (4, 8, 95)])
def test_the_value_seen_last_is_right_near_by_as_the_card_says(
    pairs: int, alphabet: int, far: int
) -> None:
    """A rule without lookup passes the half-way score up to the distance that the card states."""
    task = get_task("recall", {"pairs": pairs, "alphabet": alphabet})
    batch = task.batch("test", 0, 0, 4000, 512)
    assert batch.distances is not None
    is_value = (batch.tokens >= alphabet) & (batch.tokens < 2 * alphabet)
    seen_last = torch.where(is_value, torch.arange(512), -1).max(1, keepdim=True).values
    is_target = batch.targets != IGNORE
    right = (batch.targets == batch.tokens.gather(1, seen_last))[is_target]
    distance = batch.distances[is_target]
    passes = {
        low: right[(distance >= low) & (distance < low + width)].double().mean()
        > (1 + task.baseline_score) / 2
        for octave in (8, 16, 32, 64, 128)
        for low, width in ((octave, octave // 2), (octave * 3 // 2, octave // 2))
    }
    assert passes == {low: low <= far for low in passes} and far + 1 in passes
