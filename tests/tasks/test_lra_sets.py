"""Finite sets in the trainer, and one label per sequence in every model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lookback.benchmarks.describe.data_sets import duplicates
from lookback.benchmarks.describe.pictures import PATHFINDER, pathfinder_grid
from lookback.benchmarks.measure.evaluate import evaluate
from lookback.benchmarks.measure.step import logits_and_targets, make_model
from lookback.benchmarks.record import CostCell, LearnCell
from lookback.models.classifier import pair_features, pool, reverse_valid
from lookback.models.model import build_model, model_names
from lookback.tasks.lra.lookalikes import source_files
from lookback.tasks.task import Batch, get_task

READINGS = [
    ("last", "causal"),
    ("mean", "causal"),
    ("last", "bidirectional"),
    ("mean", "bidirectional"),
]


def numbered_set(sizes):
    """Return a task whose example r consists of the token r, which shows the order of examples."""
    return replace(
        get_task("source-text"),
        sizes=sizes,
        sampler=lambda rows, length, split: Batch(rows[:, None].expand(-1, length) % 256, rows % 2),
    )


def numbers(task, split, seed, index, batch_size):
    return task.batch(split, seed, index, batch_size, 256).tokens[:, 0].tolist()


def test_training_sees_every_example_once_an_epoch_in_an_order_of_its_own():
    task = numbered_set({"train": 103, "validation": 9, "test": 9})
    stream = [n for index in range(52) for n in numbers(task, "train", 0, index, 8)]
    epochs = [stream[start : start + 103] for start in range(0, 412, 103)]
    assert all(sorted(epoch) == list(range(103)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers(task, "train", 1, 0, 8) != stream[:8]
    assert numbers(task, "train", 0, 7, 8) == stream[56:64]  # any batch can be made alone


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_are_gone_through_once_in_one_order(split):
    task = numbered_set({"train": 103, "validation": 20, "test": 20})
    found = [numbers(task, split, seed, index, 8) for seed in (0, 5) for index in range(3)]
    assert found[:3] == found[3:] and [len(batch) for batch in found[:3]] == [8, 8, 4]
    assert sorted(number for batch in found[:3] for number in batch) == list(range(20))
    with pytest.raises(IndexError, match="20 examples, none at position 24"):
        numbers(task, split, 0, 3, 8)


@pytest.mark.parametrize(("limit", "scored"), [(5, 5), (32, 32), (70, 70), (10**6, 75)])
def test_the_whole_test_set_can_be_scored(limit, scored):
    task = numbered_set({"train": 103, "validation": 9, "test": 75})
    cell = LearnCell(
        kind="learn", task="source-text", model="lstm", width=8, depth=1, length=256, batch_size=4
    )
    score = evaluate(make_model(cell, task), cell, task, "test", 256, limit)
    assert (score.examples, score.count) == (scored, scored)


@pytest.mark.parametrize("length", [256, 1024])
def test_shuffled_lines_are_in_another_order(length: int) -> None:
    """Each passage labelled as shuffled is no run of lines of a file; each other one is.

    A few short lines may be in the order of some other file, so that only longer passages count.
    """
    task = get_task("source-text")
    files = [b"".join(lines) for lines in source_files("test").lines]
    labels = []
    for index in range(4):
        batch = task.batch("test", 0, index, 32, length)
        for tokens, label, size in zip(batch.tokens, batch.targets, batch.lengths, strict=True):
            content = bytes(tokens[:size].tolist())
            in_a_file = any(content in file for file in files)
            assert in_a_file == bool(label) or (in_a_file and size < 100)
            labels.append(int(label))
    assert 40 < sum(labels) < 88


@pytest.mark.parametrize(
    "name", ["listops", "pathfinder", "pathx", "source-text", "source-retrieval", "digit-image"]
)
def test_cards_agree_with_batches(name):
    task = get_task(name)
    length = min(task.lengths)
    batch = task.batch("validation", 0, 0, 4, length)
    shape = (
        (4, length) if task.sequences_per_example == 1 else (4, task.sequences_per_example, length)
    )
    assert (
        batch.tokens.shape == shape
        and batch.targets.shape == (4,)
        and len(task.answers) == task.classes
    )
    assert int(batch.tokens.min()) >= 0 and int(batch.tokens.max()) < task.vocabulary == len(
        task.symbols
    )
    assert int(batch.targets.min()) >= 0 and int(batch.targets.max()) < task.classes
    again = task.batch("validation", 9, 0, 4, length)
    assert (again.tokens == batch.tokens).all()
    if batch.lengths is not None:
        assert batch.lengths.shape == shape[:-1] and int(batch.lengths.min()) >= 1


def test_source_passages_come_from_the_files_of_their_split():
    task = get_task("source-text")
    files = [b"".join(lines) for lines in source_files("test").lines]
    batch = task.batch("test", 0, 0, 60, 1024)
    written = [
        bytes(tokens[:length].tolist())
        for tokens, length in zip(batch.tokens, batch.lengths, strict=True)
    ]
    whole = torch.tensor([any(text in file for file in files) for text in written])
    assert whole[batch.targets == 1].all() and whole[batch.targets == 0].float().mean() < 0.2


def tiny(name, pooling, direction, sequences_per_example=1):
    torch.manual_seed(0)
    model = build_model(
        name,
        20,
        3,
        width=32,
        depth=2,
        pooling=pooling,
        direction=direction,
        sequences_per_example=sequences_per_example,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # blocks begin as nothing, and nothing would leak
    return model.double().eval()


@pytest.mark.parametrize("sequences_per_example", [1, 2])
@pytest.mark.parametrize(("pooling", "direction"), READINGS)
@pytest.mark.parametrize("name", model_names())
def test_padding_never_leaks(name, pooling, direction, sequences_per_example):
    """Other padding, and more of it, changes no answer."""
    model = tiny(name, pooling, direction, sequences_per_example)
    shape = (5, 30) if sequences_per_example == 1 else (5, sequences_per_example, 30)
    tokens, lengths = torch.randint(20, shape), torch.randint(1, 31, shape[:-1])
    longer = torch.randint(20, (*shape[:-1], 37))
    longer[..., :30] = torch.where(torch.arange(30) < lengths[..., None], tokens, longer[..., :30])
    assert torch.allclose(
        model(tokens, lengths=lengths), model(longer, lengths=lengths), atol=1e-12
    )


@pytest.mark.parametrize("name", model_names())
def test_without_padding_lengths_change_nothing(name):
    model = tiny(name, "mean", "bidirectional")
    tokens = torch.randint(20, (4, 24))
    assert torch.allclose(model(tokens), model(tokens, lengths=torch.full((4,), 24)), atol=1e-12)


@pytest.mark.parametrize("name", model_names())
def test_a_bidirectional_reading_depends_on_the_beginning_read_last(name):
    """With one token kept of a causal reading, a model that forgets sees the end; read both ways,
    it sees both ends.
    """
    model = tiny(name, "last", "bidirectional")
    tokens = torch.randint(20, (1, 12))
    with torch.no_grad():
        backward = model.encode(
            model.backward_blocks, reverse_valid(model.embed(tokens), None), None
        )
        by_hand = model.embed(tokens).flip(1)
        side = None
        for block in model.backward_blocks:
            if model.spec.has_side_input:
                by_hand, side = block(by_hand, side)
            else:
                by_hand = block(by_hand)
        assert torch.allclose(backward, model.norm(by_hand[:, -1]), atol=1e-12)
    assert len(model.backward_blocks) == len(model.blocks) == 2


def test_turned_leaves_padding_where_it_is():
    x = torch.arange(10.0).reshape(2, 5, 1)
    assert reverse_valid(x, torch.tensor([3, 5]))[..., 0].tolist() == [
        [2, 1, 0, 3, 4],
        [9, 8, 7, 6, 5],
    ]
    assert reverse_valid(reverse_valid(x, torch.tensor([2, 4])), torch.tensor([2, 4])).equal(x)


def test_pooled_counts_valid_positions_alone():
    x = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, 8.0]])[..., None]
    assert pool(x, torch.tensor([2, 3]), "mean")[:, 0].tolist() == [1.5, 5.0]
    assert pool(x, torch.tensor([2, 1]), "last")[:, 0].tolist() == [2.0, 3.0]


def test_two_documents_are_joined_as_published():
    features = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    assert pair_features(features).tolist() == [[1, 2, 3, 5, 3, 10, -2, -3]]


def test_both_documents_go_through_one_encoder():
    model = tiny("rwkv", "mean", "causal", sequences_per_example=2)
    pair, lengths = torch.randint(20, (3, 2, 16)), torch.randint(1, 17, (3, 2))
    one = [model.encode(model.blocks, model.embed(pair[:, i]), lengths[:, i]) for i in range(2)]
    assert torch.allclose(
        model.head(pair_features(torch.stack(one, 1))), model(pair, lengths=lengths), atol=1e-12
    )


def test_readings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one label per example"):
        build_model("rwkv", 20, width=16, depth=1, direction="bidirectional")
    with pytest.raises(ValueError, match="pooling 'max'"):
        build_model("rwkv", 20, 2, width=16, depth=1, pooling="max")
    for pooling, direction in READINGS[1:]:
        with pytest.raises(ValueError, match="whole sequences"):
            tiny("rwkv", pooling, direction).prefill(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"CostCell\n *pooling\n *Extra inputs are not permitted"):
        CostCell(
            kind="cost",
            task="listops",
            model="rwkv",
            width=8,
            depth=1,
            length=64,
            batch_size=1,
            pooling="mean",
        )


def test_cells_of_old_keep_their_ids():
    old = {
        "kind": "learn",
        "task": "listops",
        "model": "rwkv",
        "width": 8,
        "depth": 1,
        "length": 64,
        "batch_size": 1,
    }
    assert LearnCell(**old).id == LearnCell(**old, pooling="last", direction="causal").id
    assert (
        LearnCell(**old).id
        != LearnCell(**old, pooling="mean").id
        != LearnCell(**old, direction="bidirectional").id
    )


def test_one_label_a_sequence_is_learnt():
    """Each reading learns to say whether a token was among those read, from a batch of padded
    sequences.
    """
    task = get_task("source-text")
    for pooling, direction in READINGS:
        cell = LearnCell(
            kind="learn",
            task="source-text",
            model="rwkv",
            width=16,
            depth=1,
            length=256,
            batch_size=16,
            pooling=pooling,
            direction=direction,
        )
        torch.manual_seed(1)
        tokens, lengths = torch.randint(1, 20, (64, 24)), torch.randint(6, 25, (64,))
        labels = torch.arange(64) % 2
        place = (torch.rand(64) * lengths).long()
        tokens[torch.arange(64), place] = torch.where(
            labels == 1, 0, tokens[torch.arange(64), place]
        )
        batch = Batch(tokens, labels, lengths=lengths)
        model = make_model(cell, task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            loss = nn.functional.cross_entropy(*logits_and_targets(model, batch, cell))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.3, (pooling, direction, float(loss))


def test_duplicates_are_counted():
    hashes = {"train": [b"a", b"b", b"b"], "validation": [b"c"], "test": [b"b", b"c"]}
    assert duplicates(hashes) == {
        "within train": 1,
        "within validation": 0,
        "within test": 0,
        "validation also in train": 0,
        "test also in train": 1,
        "test also in validation": 1,
    }


def test_digits_are_distinguishable():
    """The nearest of ten mean pictures, a poor reader, names far more digits than chance would."""
    task = get_task("digit-image")
    train, test = (task.batch(split, 0, 0, 1500, 1024) for split in ("train", "test"))
    looks = [
        batch.tokens.double() - batch.tokens.double().mean(1, keepdim=True)
        for batch in (train, test)
    ]
    signs = [
        x * x[:, :32].sum(1, keepdim=True).sign().neg() for x in looks
    ]  # the ground is dark in all
    means = torch.stack([signs[0][train.targets == digit].mean(0) for digit in range(10)])
    right = ((signs[1] @ means.T).argmax(1) == test.targets).double().mean()
    assert right > 0.2 and torch.bincount(test.targets, minlength=10).min() > 100


def test_a_small_picture_is_the_mean_of_blocks():
    task = get_task("digit-image")
    large, small = (task.batch("test", 0, 0, 20, length) for length in (1024, 256))
    assert small.targets.equal(large.targets)
    images = large.tokens.double().reshape(20, 1, 32, 32)
    means = torch.nn.functional.avg_pool2d(images, 2).flatten(1)
    assert (small.tokens - means).abs().max() <= 0.5


def test_the_picture_in_the_docs_is_of_the_data():
    with Image.open(PATHFINDER) as image:
        assert (np.asarray(image) == pathfinder_grid()).all()
