"""Gradient reach against explicit Jacobians, and of blocks whose reach is known."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookback.benchmarks.measure.gradient_reach import (
    EXAMPLES,
    bin_shares,
    output_positions,
    reach,
    squared_gradients,
)
from lookback.benchmarks.record import Cell, LearnCell, ReachBin
from lookback.benchmarks.storage import read_record, record_files
from lookback.models.classifier import SequenceClassifier
from lookback.models.model import ArchitectureSpec, SequenceModel, build_model, model_names
from lookback.tasks.task import IGNORE, Batch, Task, get_task

ROOT = Path(__file__).parents[3]
WIDTH = 8


class Decay(nn.Module):
    """y_t = 0.9 y_{t-1} + x_t."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        return torch.einsum(
            "ts,bsd->btd", torch.where(distance >= 0, 0.9 ** distance.clamp_min(0), 0.0), x
        )


class Window(nn.Module):
    """y_t = the sum of the last five x, x_t among them."""

    def __init__(self, width: int, layer: int, depth: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        sums = x.cumsum(1)
        return sums - nn.functional.pad(sums, (0, 0, 5, -5))


def toy(block: type[nn.Module], classes: int | None = 3, **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    spec = ArchitectureSpec()
    if classes is None:
        return SequenceModel(block, spec, 16, WIDTH, 1, {}, **options)
    return SequenceClassifier(block, spec, 16, classes, WIDTH, 1, {}, **options)


def noisy(name: str, vocabulary: int = 16, **options: Any) -> SequenceModel:
    """A model whose every weight matters; RWKV's blocks add nothing at initialisation."""
    torch.manual_seed(0)
    model = build_model(name, vocabulary, width=WIDTH, depth=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def labelled(lengths: Tensor | None = None) -> Task:
    """A task with one label per sequence."""

    def sample(batch_size: int, length: int, generator: torch.Generator) -> Batch:
        tokens = torch.randint(16, (batch_size, length), generator=generator)
        return Batch(
            tokens,
            tokens[:, 0] % 3,
            lengths=None if lengths is None else lengths.expand(batch_size),
        )

    copy = get_task("copy")
    return replace(copy, name="labelled", sampler=sample, options={}, classes=3, shortest=1)


def cell(length: int = 32, **fields: Any) -> Cell:
    defaults = {
        "kind": "learn",
        "task": "copy",
        "model": "rwkv",
        "width": WIDTH,
        "depth": 1,
        "batch_size": 2,
    }
    return LearnCell(**{**defaults, "length": length, "reach": True, **fields})


def of_bin(part: ReachBin) -> range:
    return range(part.low, part.high + 1)


def test_a_decay_reaches_as_its_powers() -> None:
    found = reach(toy(Decay), cell(100), labelled())
    for part in found:
        powers = torch.tensor([0.9 ** (2 * n) for n in of_bin(part)], dtype=torch.float64)
        assert part.share == pytest.approx(powers.mean().sqrt().item(), rel=1e-5)
    assert found[-1].high == 99


def test_a_window_reaches_to_its_end_and_no_farther() -> None:
    found = {part.low: part for part in reach(toy(Window), cell(64), labelled())}
    assert [found[low].share for low in (0, 1, 2, 3)] == pytest.approx([1] * 4, rel=1e-6)
    assert found[4].share == pytest.approx(0.5**0.5, rel=1e-6)  # of 4 and 5, 4 is seen
    assert all(part.share == 0 for low, part in found.items() if low > 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {}),
        ("rwkv", {}),
        ("lstm", {}),
        ("rrwkv", {"interval": 2}),
        ("rrwkv", {"interval": 2, "retrospection": "attention"}),
    ],
)
def test_the_estimate_is_the_norm_of_the_jacobian(name: str, options: dict[str, Any]) -> None:
    model = noisy(name, **options).double()
    tokens, position, draws = torch.randint(16, (1, 7)), 5, 8000

    def answer(x: Tensor) -> Tensor:
        logits = model.logits(model.run_blocks(model.blocks, x))[0, position]
        return logits - logits.mean()

    jacobian = torch.autograd.functional.jacobian(answer, model.embed(tokens))
    expected = jacobian[:, 0].square().sum((0, 2))  # (length,)
    generator = torch.Generator().manual_seed(1)
    squares = squared_gradients(
        model, tokens.expand(draws, -1), torch.full((draws,), position), generator
    )
    torch.testing.assert_close(squares.mean(0), expected, rtol=0.08, atol=0)
    assert expected[:6].min() > 0 and expected[6] == 0


def test_bins_are_root_mean_squares_of_distances() -> None:
    squares = torch.tensor([[9.0, 25, 0, 4, 1], [1.0, 1, 3, 0, 0]], dtype=torch.float64)
    positions = torch.tensor([4, 2])  # at 0: 1, 3; at 1: 4, 1; at 2: 0, 1; at 3: 25; at 4: 9
    found = bin_shares(squares, positions)
    assert [(part.low, part.high) for part in found] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    expected = [(x / 2) ** 0.5 for x in (2, 2.5, 0.5, 25, 9)]
    assert [part.share for part in found] == pytest.approx(expected)


@pytest.mark.parametrize("farthest", [0, 1, 5, 64, 1000])
def test_bins_hold_every_distance_once(farthest: int) -> None:
    found = bin_shares(
        torch.ones(2, farthest + 1, dtype=torch.float64), torch.tensor([farthest // 2, farthest])
    )
    assert list(itertools.chain(*map(of_bin, found))) == list(range(farthest + 1))
    lows = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [part.low for part in found][:11] == [low for low in lows if low <= farthest]


@pytest.mark.parametrize("name", model_names())
def test_nothing_arrives_from_later_positions(name: str) -> None:
    model, positions = noisy(name), torch.arange(12)
    squares = squared_gradients(
        model, torch.randint(16, (12, 12)), positions, torch.Generator().manual_seed(0)
    )
    later = torch.arange(12) > positions[:, None]
    assert (squares[later] == 0).all() and (squares[~later] > 0).all()


@pytest.mark.parametrize("name", model_names())
def test_single_precision_is_enough(name: str) -> None:
    task = get_task("copy")
    model = noisy(name, task.vocabulary)
    single, double = reach(model, cell(256), task), reach(model.double(), cell(256), task)
    assert [part.share for part in single] == pytest.approx(
        [part.share for part in double], rel=1e-4, abs=1e-30
    )


def test_untrained_rwkv_uses_the_present_token_alone() -> None:
    task = get_task("copy")
    found = reach(build_model("rwkv", task.vocabulary, width=WIDTH, depth=2), cell(), task)
    assert [part.share for part in found] == [1] + [0] * (len(found) - 1)


@pytest.mark.parametrize("name", ["copy", "recall", "python"])
def test_positions_are_late_targets_and_include_the_last(name: str) -> None:
    batch = get_task(name).batch("validation", 0, 0, EXAMPLES, 64)
    positions = output_positions(batch)
    is_target = batch.targets != IGNORE
    rows = torch.arange(len(positions))
    assert is_target[rows, positions].all()
    before = (is_target & (torch.arange(64) < positions[:, None])).sum(1)
    assert (2 * (before + 1) >= is_target.sum(1)).all()
    assert (before + 1 == is_target.sum(1)).sum() >= len(positions) // 8
    assert len(positions.unique()) > 1


def test_a_label_is_measured_at_the_last_valid_position() -> None:
    lengths = torch.tensor(20)
    found = reach(toy(Decay), cell(32), labelled(lengths))
    assert found[-1].high == 19
    batch = labelled(lengths).batch("validation", 0, 0, 4, 32)
    assert output_positions(batch).tolist() == [19] * 4


def test_the_longest_length_is_measured() -> None:
    task = get_task("copy")
    model = noisy("lstm", task.vocabulary)
    assert reach(model, cell(32, test_lengths=(32, 48)), task)[-1].high == 47
    assert reach(model, cell(64, test_lengths=(32,)), task)[-1].high == 63


def test_model_and_random_state_are_left_as_they_were() -> None:
    task = get_task("copy")
    plain = noisy("transformer", task.vocabulary)
    dropping = noisy("transformer", task.vocabulary, dropout=0.5).train()
    random, cudnn = torch.get_rng_state(), torch.backends.cudnn.enabled
    assert reach(dropping, cell(), task) == reach(plain.eval(), cell(), task)
    assert dropping.training and not plain.training
    assert torch.equal(torch.get_rng_state(), random) and torch.backends.cudnn.enabled == cudnn
    assert all(parameter.grad is None for parameter in dropping.parameters())


def test_shares_that_are_not_finite_are_left_out() -> None:
    model = toy(Decay)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert reach(model, cell(), labelled()) == ()


@pytest.mark.parametrize("fields", [{"pooling": "mean"}, {"direction": "bidirectional"}, {}])
def test_outputs_without_one_position_are_refused(fields: dict[str, Any]) -> None:
    task = labelled()
    if not fields:
        task = replace(task, sequences_per_example=2)
    with pytest.raises(ValueError, match="expected pooling 'last', direction 'causal' and one seq"):
        reach(toy(Decay), cell(**fields), task)


SUITE = """
[defaults]
kind = "learn"
reach = true
task = "copy"
model = "lstm"
width = 8
depth = 1
batch_size = 2
steps = 2
validation_examples = 4
test_examples = 4
length = 24
[[grid]]
"""


def test_a_suite_measures_and_reports_it(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE)
    lookback = [sys.executable, "-m", "lookback"]
    results = ["--results", str(tmp_path / "results")]
    run = [*lookback, "run", str(suite), "--device", "cpu", *results]
    subprocess.run(run, cwd=ROOT, check=True)

    report = [*lookback, "report", "tiny", *results, "--reports", str(tmp_path / "reports")]
    result = subprocess.run(report, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    page = tmp_path / "reports" / "tiny" / "README.md"
    assert "Reach of gradients" in page.read_text()
    (file,) = record_files(tmp_path / "results")
    numbers = read_record(file).outcome.learn
    assert numbers and numbers.reach_before[-1].high == numbers.reach_after[-1].high == 23
    assert numbers.reach_before != numbers.reach_after
