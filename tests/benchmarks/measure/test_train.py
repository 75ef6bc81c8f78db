"""The trainer scores correctly, learns, and can be stopped and resumed at any step."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from lookback.benchmarks.measure import evaluate as evaluating
from lookback.benchmarks.measure import train as training
from lookback.benchmarks.measure.cell import check, measure
from lookback.benchmarks.measure.evaluate import (
    by_distance,
    by_position,
    evaluate,
    fingerprints,
    kept_bytes,
    parallel_recurrent_difference,
    planned_tests,
)
from lookback.benchmarks.measure.step import (
    learning_rate,
    logits_and_targets,
    make_model,
    make_optimizer,
    training_step,
)
from lookback.benchmarks.measure.train import (
    InterruptedRunError,
    NotFiniteError,
    batch_at,
    batches,
    learn,
)
from lookback.benchmarks.plan import estimate
from lookback.benchmarks.record import LearnCell, LearnNumbers, Score, make_cell
from lookback.tasks.task import IGNORE, Batch, get_task


def ignore_progress(done: int, total: int, description: str) -> None:
    pass


def never() -> bool:
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    calls = itertools.count(1)
    return lambda: next(calls) >= steps


def learned(cell: LearnCell, folder: Path, stop: Callable[[], bool] = never) -> LearnNumbers:
    return learn(cell, get_task(cell.task, cell.task_options), folder, ignore_progress, stop)


TIMES = {"seconds", "waiting", "evaluating", "saving"}


def untimed(value: object) -> object:
    """Return the numbers of a run without times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: untimed(part) for key, part in value.items() if key not in TIMES}
    return [untimed(part) for part in value] if isinstance(value, list | tuple) else value


def same(a: LearnNumbers, b: LearnNumbers) -> bool:
    return untimed(a.model_dump()) == untimed(b.model_dump())


def test_equal_cells_give_equal_numbers(cell: LearnCell, tmp_path: Path) -> None:
    first, again = learned(cell, tmp_path / "a"), learned(cell, tmp_path / "b")
    assert same(first, again)
    other = learned(cell.model_copy(update={"seed": 1}), tmp_path / "c")
    assert not same(first, other)
    assert [point.step for point in first.curve] == [2, 4, 6] and [
        t.length for t in first.tests
    ] == [24, 40]


@pytest.mark.parametrize(("model", "dropout"), [("rwkv", 0.0), ("transformer", 0.2)])
@pytest.mark.parametrize("stops", [[1], [2], [3, 1, 1], [5]])
def test_a_resumed_run_is_as_if_never_stopped(
    cell: LearnCell, tmp_path: Path, model: str, dropout: float, stops: list[int]
) -> None:
    """Loss curve and scores agree to the last bit, with dropout too."""
    cell = cell.model_copy(update={"model": model, "dropout": dropout})
    whole = learned(cell, tmp_path / "whole")
    for steps in stops:
        with pytest.raises(InterruptedRunError):
            learned(cell, tmp_path / "parts", stop_after(steps))
    assert same(learned(cell, tmp_path / "parts"), whole)


def test_a_damaged_checkpoint_falls_back_on_the_one_before(cell: LearnCell, tmp_path: Path) -> None:
    whole = learned(cell, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            learned(cell, tmp_path / "torn", stop_after(2))
    newest = tmp_path / "torn" / "rate-0" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert same(learned(cell, tmp_path / "torn"), whole)
    newest.write_bytes(b"")
    newest.with_name("checkpoint.before.pt").write_bytes(b"nonsense")
    assert same(learned(cell, tmp_path / "torn"), whole)


def test_a_checkpoint_of_another_shape_is_not_resumed(cell: LearnCell, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        learned(cell.model_copy(update={"width": 8}), tmp_path, stop_after(2))
    assert same(learned(cell, tmp_path), learned(cell, tmp_path / "fresh"))


def test_a_loss_that_is_not_finite_ends_the_run(cell: LearnCell, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="at step"):
        learned(cell.model_copy(update={"learning_rate": 1e30, "warmup": 0}), tmp_path)


RATES = (1e-3, 3e-2, 1e30)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[LearnCell, LearnNumbers]:
    cell = LearnCell(
        kind="learn",
        task="copy",
        task_options={"symbols": 3, "alphabet": 2},
        model="transformer",
        width=32,
        depth=2,
        length=10,
        batch_size=32,
        steps=80,
        warmup=0,
        validations=8,
        test_examples=64,
        learning_rates=RATES,
    )
    return cell, learned(cell, tmp_path_factory.mktemp("swept"))


def test_the_rate_with_the_best_validation_is_tested(
    swept: tuple[LearnCell, LearnNumbers], tmp_path: Path
) -> None:
    """Against cells trained at one rate each; a rate whose loss is not finite loses."""
    cell, numbers = swept
    assert [trial.learning_rate for trial in numbers.trials] == list(RATES)
    assert numbers.trials[-1].validation is None
    alone = {}
    for rate in RATES[:-1]:
        one = cell.model_copy(update={"learning_rates": (), "learning_rate": rate})
        alone[rate] = learned(one, tmp_path / f"{rate}")
    best = max(alone, key=lambda rate: alone[rate].curve[-1].validation)
    assert numbers.learning_rate == best
    assert [trial.validation for trial in numbers.trials[:-1]] == [
        a.curve[-1].validation for a in alone.values()
    ]
    assert same(numbers.model_copy(update={"trials": ()}), alone[best])


def test_a_resumed_sweep_is_as_if_never_stopped(
    swept: tuple[LearnCell, LearnNumbers], tmp_path: Path
) -> None:
    cell, whole = swept
    for steps in (30, 70):  # within the first rate, and within the second
        with pytest.raises(InterruptedRunError):
            learned(cell, tmp_path, stop_after(steps))
    assert same(learned(cell, tmp_path), whole)


def test_a_sweep_without_a_finite_rate_is_not_finite(cell: LearnCell, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="at step"):
        learned(cell.model_copy(update={"learning_rates": (1e29, 1e30), "warmup": 0}), tmp_path)


def test_training_goes_on_to_the_end_and_says_when_it_reached_a_goal(
    swept: tuple[LearnCell, LearnNumbers], tmp_path: Path
) -> None:
    cell, _ = swept
    cell = cell.model_copy(
        update={"learning_rates": (), "learning_rate": 3e-3, "steps": 400, "validations": 40}
    )
    whole = learned(cell, tmp_path)
    met = next(point for point in whole.curve if point.validation >= 0.9)
    assert met.step < whole.steps == 400
    assert whole.reached[0].step == met.step and whole.reached[0].tokens == met.step * 32 * 10
    assert [goal.score for goal in whole.reached] == [0.9, 0.99]
    assert whole.reached[0].seconds == met.seconds
    assert met.seconds is not None and 0 < met.seconds < whole.seconds
    assert whole.reached[1].step == next(
        point.step for point in whole.curve if point.validation >= 0.99
    )
    assert whole.tokens_trained == whole.tokens_at_full_length == 400 * 32 * 10
    assert whole.longest_trained == 10


def test_batches_made_in_advance_are_those_of_the_task(cell: LearnCell) -> None:
    task = get_task(cell.task)
    made = list(batches(cell, task, 2))
    assert len(made) == cell.steps - 2
    for index, (batch, prints) in enumerate(made, start=2):
        expected = task.batch("train", cell.seed, index, cell.batch_size, cell.length)
        assert torch.equal(batch.tokens, expected.tokens) and torch.equal(
            prints, fingerprints(expected.tokens)
        )


def test_lengths_grow_at_a_constant_number_of_tokens(cell: LearnCell, tmp_path: Path) -> None:
    """Geometrically over 60 % of training: after half of the growth, the geometric mean."""
    task = get_task("mqar", {"pairs": 2, "vocabulary": 32})
    cell = cell.model_copy(
        update={"start_length": 8, "length": 128, "batch_size": 4, "steps": 100, "task": "mqar"}
    )
    shapes = [batch.tokens.shape for batch, _ in batches(cell, task, 0)]
    lengths = [length for _, length in shapes]
    assert lengths[0] == 8 and lengths[30] == 32 and set(lengths[60:]) == {128}
    assert lengths == sorted(lengths) and all(length % 2 == 0 for length in lengths)  # of mqar
    assert all(4 * 128 - length < size * length <= 4 * 128 for size, length in shapes)
    with pytest.raises(ValueError, match="start_length 33: expected at most the length, 32"):
        make_cell({**cell.model_dump(), "length": 32, "start_length": 33})


def test_lengths_drawn_are_even_on_a_logarithmic_scale(cell: LearnCell) -> None:
    task = get_task("copy")
    cell = cell.model_copy(
        update={
            "start_length": 32,
            "length": 512,
            "lengths": "draw",
            "batch_size": 4,
            "steps": 2000,
        }
    )
    lengths = torch.tensor([batch_at(cell, task, step)[1] for step in range(cell.steps)])
    assert lengths.min() < 34 and lengths.max() > 500
    octaves = (lengths.double() / 32).log2().floor().long().clamp(max=3)
    assert stats.chisquare(torch.bincount(octaves).numpy()).pvalue > 1e-3
    with pytest.raises(ValueError, match="expected start_length"):
        make_cell({**cell.model_dump(), "start_length": None})


def test_the_record_says_what_was_trained_at_full_length(cell: LearnCell, tmp_path: Path) -> None:
    cell = cell.model_copy(update={"start_length": 20, "length": 40, "steps": 10, "validations": 1})
    task = get_task(cell.task)
    numbers = learned(cell, tmp_path)
    shapes = [batch.tokens.shape for batch, _ in batches(cell, task, 0)]
    assert numbers.tokens_trained == sum(shape.numel() for shape in shapes)
    full = [shape for shape in shapes if shape[1] == 40]
    assert numbers.tokens_at_full_length == sum(shape.numel() for shape in full)
    assert len(full) == 4 and numbers.longest_trained == 40


def test_tests_have_options_of_their_own(cell: LearnCell, tmp_path: Path) -> None:
    """Each as if the cell had been tested with these alone; training has drawn from a range."""
    fields = {
        **cell.model_dump(),
        "task": "recall",
        "task_options": {"alphabet": 8, "pairs": {"low": 1, "high": 6}},
        "test_options": [{"pairs": 2}, {"pairs": 6}],
        "test_lengths": [24, 40],
    }
    numbers = learned(make_cell(fields), tmp_path / "both")
    assert [(t.options, t.length) for t in numbers.tests] == [
        ({"pairs": pairs}, length) for pairs in (2, 6) for length in (24, 40)
    ]
    assert [test.count for test in numbers.tests] == [80, 80, 240, 240]
    alone = learned(make_cell({**fields, "test_options": [{"pairs": 6}]}), tmp_path / "one")
    assert numbers.tests[2:] == alone.tests


def test_a_length_that_is_too_short_for_some_options_is_tested_with_the_others(
    cell: LearnCell,
) -> None:
    options = {"alphabet": 8, "pairs": 1}
    short, long = (get_task("recall", {**options, "pairs": pairs}).shortest for pairs in (2, 6))
    fields = {
        **cell.model_dump(),
        "task": "recall",
        "task_options": options,
        "test_options": [{"pairs": 2}, {"pairs": 6}],
        "test_lengths": [short, long],
    }
    both = make_cell(fields)
    check(both)
    tests = planned_tests(both, get_task("recall", options))
    expected = [({"pairs": 2}, short), ({"pairs": 2}, long), ({"pairs": 6}, long)]
    assert [(test.options, test.length) for test in tests] == expected

    for impossible in ({"test_lengths": [short - 1, long]}, {"test_lengths": [short]}):
        with pytest.raises(ValueError, match="expected at least"):
            check(make_cell({**fields, **impossible}))


def test_a_test_that_fails_leaves_the_others(
    cell: LearnCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learned(cell, tmp_path / "a")
    real = training.evaluate

    def fail_at_40(*arguments: Any) -> Score:
        if arguments[3:5] == ("test", 40):
            raise IndexError("position 40 of a table of 39")
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", fail_at_40)
    outcome = measure(cell, tmp_path / "b", ignore_progress, [False])
    assert outcome.status == "error" and "position 40 of a table" in outcome.message
    assert outcome.message.startswith("test at 40 tokens")
    assert outcome.learn is not None
    assert outcome.learn.curve and outcome.learn.validation == whole.validation
    assert outcome.learn.tests == whole.tests[:1]
    assert [failed.length for failed in outcome.learn.failed_tests] == [40]

    # The trained model is kept, so that trying again costs the tests alone.
    monkeypatch.setattr(training, "evaluate", real)
    monkeypatch.setattr(training, "training_step", None)
    assert same(learned(cell, tmp_path / "b"), whole)


def test_sums_of_sequences_add_up(cell: LearnCell, tmp_path: Path) -> None:
    for task, score in (("recall", "accuracy"), ("python", "bits per byte")):
        numbers = learned(
            cell.model_copy(update={"task": task, "test_lengths": (64,)}), tmp_path / task
        )
        (test,) = numbers.tests
        totals = [float(total) for total in test.by_sequence.totals.split()]
        assert len(totals) == test.examples == 40
        assert int(test.by_sequence.counts) * 40 == test.count
        total = test.correct if score == "accuracy" else test.loss * test.count
        assert sum(totals) == pytest.approx(total, abs=0.001 * 40)


def test_waiting_is_part_of_the_seconds(cell: LearnCell, tmp_path: Path) -> None:
    numbers = learned(cell, tmp_path)
    assert numbers.waiting is not None and 0 < numbers.waiting < numbers.seconds
    seconds = [point.seconds for point in numbers.curve]
    assert seconds == sorted(seconds) and seconds[-1] == numbers.seconds  # type: ignore[type-var]


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(cell: LearnCell, tmp_path: Path) -> None:
    plain = learned(cell, tmp_path / "plain")
    compiled = learned(cell.model_copy(update={"compile": True}), tmp_path / "compiled")
    assert [p.loss for p in compiled.curve] == pytest.approx(
        [p.loss for p in plain.curve], rel=1e-4
    )


def test_models_learn_what_a_few_steps_can_teach(tmp_path: Path) -> None:
    """Copying three symbols over a short gap takes seconds; the constant baseline has 0.5."""
    cell = LearnCell(
        kind="learn",
        task="copy",
        task_options={"symbols": 3, "alphabet": 2},
        model="transformer",
        width=32,
        depth=2,
        length=10,
        batch_size=32,
        steps=150,
        learning_rate=3e-3,
        warmup=20,
        validations=3,
        test_examples=64,
    )
    numbers = learned(cell, tmp_path)
    assert numbers.tests[0].score is not None and numbers.tests[0].score > 0.95
    assert numbers.tests[0].correct == round(numbers.tests[0].score * numbers.tests[0].count)
    assert numbers.curve[0].loss > numbers.curve[-1].loss


def test_the_loss_is_the_mean_over_targets(cell: LearnCell) -> None:
    """Against cross entropy written out as a loop over positions."""
    task = get_task(cell.task)
    cell = cell.model_copy(update={"task_options": {}})
    model, batch = make_model(cell, task), task.batch("train", 0, 0, 3, 24)
    logits = model(batch.tokens).double()
    by_hand = []
    for row in range(3):
        for position in range(24):
            target = int(batch.targets[row, position])
            if target != IGNORE:
                scores = [math.exp(x) for x in logits[row, position].tolist()]
                by_hand.append(-math.log(scores[target] / sum(scores)))
    loss = training_step(
        model,
        make_optimizer(model, cell.learning_rate, cell.weight_decay),
        batch,
        cell,
        learning_rate(cell, 0),
    )
    assert float(loss) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_bits_per_byte_is_the_loss_in_bits(cell: LearnCell) -> None:
    cell = cell.model_copy(update={"task": "python", "length": 64})
    task = get_task("python")
    score = evaluate(make_model(cell, task), cell, task, "test", 64, 33)
    assert score.loss is not None and score.count == 33 * 64
    assert score.score == pytest.approx(score.loss / math.log(2))
    assert score.score == pytest.approx(8, abs=0.2)  # an untrained model knows nothing


def test_the_score_does_not_depend_on_how_rows_are_split(
    cell: LearnCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("recall")
    cell = cell.model_copy(update={"task": "recall"})
    model = make_model(cell, task)
    whole = evaluate(model, cell, task, "test", 64, 40)
    monkeypatch.setattr(evaluating, "EVALUATION_TOKENS", 64 * 5)
    parts = evaluate(model, cell, task, "test", 64, 40)
    assert whole.correct == parts.correct and whole.loss == pytest.approx(parts.loss)
    assert whole.by_distance == parts.by_distance
    assert sum(part.count for part in whole.by_distance) == whole.count == 40 * 8


def test_examples_seen_in_training_are_counted(cell: LearnCell) -> None:
    task = get_task("parity")
    cell = cell.model_copy(update={"task": "parity", "length": 4})
    model = make_model(cell, task)
    everything = torch.cartesian_prod(*[torch.arange(2)] * 4)
    assert (
        evaluate(model, cell, task, "test", 4, 50, [fingerprints(everything)]).seen_in_training
        == 50
    )
    half = everything[everything[:, 0] == 0]
    counted = evaluate(model, cell, task, "test", 4, 50, [fingerprints(half)]).seen_in_training
    batches = torch.cat([task.batch("test", 0, i, 32, 4).tokens for i in range(2)])[:50]
    assert counted == int((batches[:, 0] == 0).sum())


def test_fingerprints_of_different_sequences_differ() -> None:
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 8)
    assert len(fingerprints(tokens).unique()) == 3**8
    assert torch.equal(fingerprints(tokens), fingerprints(tokens.clone()))


def test_every_distance_is_in_one_bin() -> None:
    distances = torch.arange(0, 5000)
    correct = distances % 3 == 0
    bins = by_distance(correct, distances)
    assert [(b.low, b.high) for b in bins[:7]] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 5),
        (6, 7),
        (8, 11),
    ]
    assert sum(b.count for b in bins) == 5000 and sum(b.correct for b in bins) == int(correct.sum())
    for b in bins[:-1]:
        inside = range(b.low, b.high + 1)
        assert b.count == len(inside) and b.correct == sum(d % 3 == 0 for d in inside)


def test_loss_by_position_is_a_mean(cell: LearnCell) -> None:
    """Against a loop; the weighted mean over all bins is the overall loss."""
    losses, positions = torch.rand(60, dtype=torch.float64), torch.arange(20).repeat(3)
    bins = by_position(losses, positions)
    assert [(b.low, b.high) for b in bins] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 5),
        (6, 7),
        (8, 11),
        (12, 15),
        (16, 19),
    ]
    for b in bins:
        inside = [float(x) for x, p in zip(losses, positions, strict=True) if b.low <= p <= b.high]
        assert b.count == len(inside) and b.loss == pytest.approx(sum(inside) / len(inside))
    task = get_task("python")
    score = evaluate(make_model(cell, task), cell, task, "test", 50, 33)
    assert sum(b.loss * b.count for b in score.by_position) / score.count == pytest.approx(
        score.loss
    )
    assert score.by_position[-1].high == 49 and score.by_position[0].count == 33
    assert not evaluate(
        make_model(cell, get_task("copy")), cell, get_task("copy"), "test", 24, 3
    ).by_position


def test_learning_rate_rises_then_falls_as_a_cosine(cell: LearnCell) -> None:
    cell = cell.model_copy(update={"steps": 110, "warmup": 10, "learning_rate": 2.0})
    rates = [learning_rate(cell, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0) and rates[109] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_optimizer_groups_follow_the_architecture(cell: LearnCell) -> None:
    model = make_model(cell, get_task("copy"))
    optimizer = make_optimizer(model, cell.learning_rate, weight_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            last = names[id(parameter)].rpartition(".")[2]
            assert group["scale"] == {"decay": 2.0, "bonus": 3.0}.get(last, 1.0)
            assert group["weight_decay"] == (0.5 if parameter.ndim >= 2 else 0.0)


def test_a_label_is_one_target_per_sequence(cell: LearnCell) -> None:
    task = get_task("copy")
    object.__setattr__(task, "classes", 3)
    model = make_model(cell, task)
    batch = Batch(torch.randint(10, (5, 24)), torch.tensor([0, 1, 2, 0, 1]))
    logits, targets = logits_and_targets(model, batch, cell)
    assert logits.shape == (5, 3) and targets.shape == (5,)


@pytest.mark.parametrize("name", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_both_forms_of_a_model_are_compared(
    cell: LearnCell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Float32 rounds at 6e-8; a recurrent form that forgets its state differs by far more."""
    cell = cell.model_copy(update={"model": name, "length": 40})
    task = get_task(cell.task)
    torch.manual_seed(0)
    model = make_model(cell, task)
    for parameter in model.parameters():
        torch.nn.init.normal_(
            parameter, std=0.3
        )  # no part of it is idle, as some are before training
    apart = parallel_recurrent_difference(model, cell, task)
    assert apart is not None and apart < 1e-5
    step = type(model).step
    monkeypatch.setattr(
        type(model),
        "step",
        lambda self, token, _: step(self, token, self.initial_state(len(token))),
    )
    forgetful = parallel_recurrent_difference(model, cell, task)
    assert forgetful is not None and forgetful > 1e-2
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    assert parallel_recurrent_difference(model, cell, task) is None


@pytest.mark.parametrize(
    "name", ["transformer", "rwkv", "rrwkv", "lstm", "rwkv7", "gated_deltanet", "mamba2"]
)
def test_the_bytes_of_state_are_those_that_an_estimate_counts(cell: LearnCell, name: str) -> None:
    cell = cell.model_copy(update={"model": name, "length": 40})
    assert kept_bytes(make_model(cell, get_task(cell.task)), cell) == estimate.state_bytes(cell)


def test_a_model_that_does_not_read_token_by_token_keeps_no_state(cell: LearnCell) -> None:
    pooled = cell.model_copy(update={"pooling": "mean", "direction": "bidirectional"})
    assert kept_bytes(make_model(pooled, get_task("listops")), pooled) is None


def test_a_model_without_a_recurrent_form_has_none_to_compare(cell: LearnCell) -> None:
    for update, task in (
        ({"model": "rrwkv", "model_options": {"interval": "sqrt"}}, get_task("copy")),
        ({"pooling": "mean", "direction": "bidirectional"}, get_task("listops")),
    ):
        other = cell.model_copy(update=update)
        assert parallel_recurrent_difference(make_model(other, task), other, task) is None
