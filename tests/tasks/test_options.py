"""Options that make no sense are one line; ranges are drawn as they say."""

from typing import Any

import pytest
import torch
from scipy import stats

from lookback.tasks.task import IGNORE, get_task, task_names
from lookback.tasks.tracking import ELEMENTS, GENERATORS

NONSENSE = [2.5, True, "x", 0, -1, 1e30, 10**12, float("nan"), None, [1], {"low": 1}, {}]


@pytest.mark.parametrize("name", task_names())
def test_nonsense_is_one_line(name: str) -> None:
    """Every option of every task, with every value that is not of its type or its bounds."""
    task = get_task(name)
    for option, default in task.options.items():
        for value in NONSENSE:
            fits = default is None or type(value) is type(default)
            if isinstance(default, float):
                fits = type(value) in (int, float) and 0 <= value <= 2**20
            if isinstance(default, int) and not isinstance(default, bool):
                fits = value == 0 and type(value) is int and default == 0
            if fits:
                continue
            with pytest.raises(ValueError) as error:
                get_task(name, {option: value})
            assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": {"low": 5, "high": 2}}, "low <= high"),
        ({"pairs": {"low": 1, "high": 2.5}}, "expected an integer"),
        ({"alphabet": {"low": 8, "high": 9}}, "a range would change the vocabulary"),
        ({"filler": {"low": 1, "high": 2}}, "not a range"),
        ({"filler": "x"}, "blank or noise"),
    ],
)
def test_impossible_ranges_are_reported(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_task("recall", {"pairs": 2, **options})


def test_a_range_is_drawn_evenly_on_a_logarithmic_scale() -> None:
    """By batch, the same whenever it is drawn; every value occurs."""
    task = get_task("recall", {"alphabet": 16, "pairs": {"low": 1, "high": 15}})
    drawn = []
    for index in range(2000):
        generator = torch.Generator().manual_seed(index)
        drawn.append(task.draw_options(1024, generator)["pairs"])
    assert set(drawn) == set(range(1, 16))
    octaves = torch.tensor(drawn).double().log2().floor().long()
    assert stats.chisquare(torch.bincount(octaves).numpy()).pvalue > 1e-3
    first, again = (task.batch("train", 3, 7, 4, 256) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)


def test_what_is_drawn_fits_the_length() -> None:
    task = get_task("mqar", {"vocabulary": 128, "pairs": {"low": 2, "high": 32}})
    assert task.shortest == 8
    for length, most in ((8, 2), (32, 8), (64, 16), (256, 32)):
        counts = {
            int((task.batch("train", 0, index, 1, length).targets != IGNORE).sum())
            for index in range(60)
        }
        assert min(counts) == 2 and max(counts) <= most and (most == 2 or len(counts) > 3)


def test_a_fixed_value_draws_nothing() -> None:
    """A task without ranges has the batches that it had before there were any."""
    fixed = get_task("recall", {"pairs": 4})
    generator = torch.Generator().manual_seed(0)
    fixed.draw_options(64, generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("length", [12, 40, 276])
def test_questions_ask_every_key_equally_often(length: int) -> None:
    task = get_task("recall", {"pairs": 4, "alphabet": 8, "questions": 8, "filler": "noise"})
    batch = task.batch("train", 0, 0, 32, length)
    assert task.vocabulary == 8 + 8 + 8 and (length == 12 or batch.tokens.max() > 16)
    is_target = batch.targets != IGNORE
    times = {12: 1, 40: 4, 276: 8}[length]
    for tokens, mask in zip(batch.tokens, is_target, strict=True):
        counts = torch.bincount(tokens[mask], minlength=8)
        assert sorted(counts.tolist()) == [0] * 4 + [times] * 4


def test_the_generators_generate_all_permutations() -> None:
    reached = {ELEMENTS[0]}
    while True:
        more = {tuple(g[k] for k in p) for p in reached for g in GENERATORS} | reached
        if len(more) == len(reached):
            break
        reached = more
    assert len(reached) == 120
    batch = get_task("permutations", {"words": "generators"}).batch("train", 0, 0, 64, 32)
    assert len(batch.tokens.unique()) == 6 and len(batch.targets.unique()) > 100


def test_majority_is_the_commonest_symbol_so_far() -> None:
    batch = get_task("majority", {"symbols": 3}).batch("train", 0, 0, 8, 64)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert set(targets[:48]) == {IGNORE}
        for position in range(48, 64):
            seen = tokens[: position + 1]
            counts = sorted((seen.count(symbol), symbol) for symbol in range(3))
            expected = counts[2][1] if counts[2][0] > counts[1][0] else IGNORE
            assert targets[position] == expected


def test_the_trigger_of_induction_occurs_twice() -> None:
    batch = get_task("induction").batch("train", 0, 0, 200, 32)
    assert ((batch.tokens == 15).sum(1) == 2).all() and (batch.tokens[:, -1] == 15).all()
    where = (batch.tokens[:, :-1] == 15).long().argmax(1)
    answers = batch.tokens[torch.arange(200), where + 1]
    assert torch.equal(batch.targets[:, -1], answers)
