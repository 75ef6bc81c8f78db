"""ListOps and Pathfinder follow the published rules: checked by evaluating and tracing examples,
and by counting.
"""

import functools
import hashlib
import math
import os
import signal
import statistics
import subprocess
import sys

import numpy as np
import pytest

from lookback.tasks.lra import curves, trees
from lookback.tasks.lra.cache import PART, Generated
from lookback.tasks.lra.curves import SETTINGS
from lookback.tasks.task import get_task
from tests.processes import wait_until

picture = functools.cache(curves.picture)  # several tests look at the same ones
SMALL = {"train": 2500, "validation": 20, "test": 20}


def value_of(words):
    """An independent evaluator of the written form: a stack, and Python's own median."""
    rules = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda v: int(statistics.median(v)),
        "[SM": lambda v: sum(v) % 10,
    }
    stack = [[]]
    for word in words:
        if word == "]":
            operator, *values = stack.pop()
            stack[-1].append(rules[operator](values))
        elif word in rules:
            stack.append([word])
        else:
            stack[-1].append(int(word))
    ((value,),) = stack
    return value


def deepest(words):
    depth = most = 0
    for word in words:
        depth += word.startswith("[") - (word == "]")
        most = max(most, depth)
    return most


@pytest.fixture(scope="module")
def expressions():
    return trees.make(0, 2000, "train", np.arange(4000))


def test_listops_values_are_those_of_the_written_form():
    task = get_task("listops")
    batch = task.batch("test", 0, 0, 200, 2000)
    for tokens, target, length in zip(batch.tokens, batch.targets, batch.lengths, strict=True):
        words = [task.symbols[token] for token in tokens[:length].tolist()]
        assert str(value_of(words)) == task.answers[target]
        assert set(tokens[length:].tolist()) <= {trees.PAD}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),
        ("[MED 1 2 ]", 1),
        ("[SM 9 9 9 ]", 7),
        ("[MED 3 1 2 9 ]", 2),
    ],
)
def test_the_evaluator_is_right_on_known_expressions(written, value):
    assert value_of(written.split()) == value


def test_listops_statistics_are_those_measured_of_the_published_rule(expressions):
    values, lengths = expressions["label"], expressions["length"].astype(np.int64)
    assert lengths.min() > 500 and lengths.max() < 2000
    assert abs(lengths.mean() - 1035) < 4 * lengths.std() / math.sqrt(len(lengths))
    assert abs(np.median(lengths) - 953) < 35
    share = np.bincount(values, minlength=10) / len(values)
    assert (
        np.allclose(share[[0, 9]], 0.17, atol=0.025)
        and (share[1:9] > 0.055).all()
        and (share[1:9] < 0.105).all()
    )
    names = get_task("listops").symbols
    depths = {
        deepest([names[token] for token in row[:length]])
        for row, length in zip(expressions["tokens"][:300], lengths, strict=False)
    }
    assert depths == {9}


def test_listops_keeps_the_published_share_of_draws():
    keys = trees.random_words(
        trees.stream_keys("acceptance", np.zeros(1, dtype=np.int64)), np.arange(100_000)
    )
    lengths = trees.measure(keys, 2000)
    share = ((lengths > 500) & (lengths < 2000)).mean()
    assert abs(share - 0.082) < 0.004
    assert abs((lengths == 1).mean() - 0.75) < 0.006  # the root is a digit


def test_measuring_a_tree_agrees_with_drawing_it():
    keys = trees.random_words(
        trees.stream_keys("sizes", np.zeros(1, dtype=np.int64)), np.arange(2000)
    )
    assert (trees.measure(keys, 10**9) == trees.evaluate(trees.build(keys))[1][0]).all()


@pytest.mark.parametrize("length", [64, 300, 1024])
def test_listops_scales_with_the_length(length):
    lengths = trees.make(0, length, "train", np.arange(50))["length"]
    assert lengths.min() > length // 4 and lengths.max() < length


def test_any_expression_can_be_made_alone(expressions):
    for row in (0, 1, 777, 3999):
        assert trees.make(0, 2000, "train", np.array([row]))[0] == expressions[row]


def test_no_expression_occurs_twice(expressions):
    other = [trees.make(0, 2000, split, np.arange(1000)) for split in ("validation", "test")]
    seen = [row.tobytes() for part in (expressions, *other) for row in part["tokens"]]
    assert len(set(seen)) == len(seen)


def digest(examples):
    fields = (examples[field].astype("<i8").tobytes() for field in ("tokens", "label", "length"))
    return hashlib.sha256(b"".join(fields)).hexdigest()


def test_generated_sets_are_the_same_for_ever():
    """Golden hashes: whoever changes a generator changes the data, and must say so."""
    found = {"listops": digest(trees.make(0, 2000, "test", np.arange(20)))}
    for side, count in ((32, 8), (64, 1), (128, 2), (256, 4)):
        found[f"pathfinder{side}"] = digest(
            curves.make(0, side * side, 14, "test", np.arange(count))
        )
    assert found == GOLDEN


GOLDEN = {
    "listops": "e420b859ae56f6f158818ab0a4bba40b7574b88731f81f87d6d70ecc8ced8b62",
    "pathfinder32": "8e91df77362f531d80a0db993a263f4cf6315e635c12afb3927a34bc17105dbd",
    "pathfinder64": "4dbdd4b7b9a81796cbc489dc8f918b020494ea70567e5076ac6abc4d3c926e5d",
    "pathfinder128": "c846eef82025e59f1e86a3c8417c2587dab663dd1f69e543841e35fcf4cde9ef",
    "pathfinder256": "a14e25d1f5d592ef0da2a74eb8007a1b9b7748562475674c3479df3722d932ea",
}


def lit(drawn, point):
    """The brightest pixel within one of a point: paddles are thinner than a pixel in the smallest
    pictures.
    """
    row, column = (round(c) for c in point)
    return drawn.image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max()


def along(paddle, length):
    """Points of a paddle, half a pixel apart."""
    size = math.hypot(*paddle.direction)
    for step in range(2 * length + 1):
        yield tuple(
            c + step / 2 * d / size for c, d in zip(paddle.start, paddle.direction, strict=True)
        )


def ends(paddle, length):
    points = list(along(paddle, length))
    return points[0], points[-1]


def gap(a, b, length):
    return min(math.dist(p, q) for p in ends(a, length) for q in ends(b, length))


@pytest.mark.parametrize(("side", "count"), [(32, 40), (64, 2), (128, 4), (256, 12)])
def test_labels_are_right_traced_along_the_drawn_pixels(side, count):
    """From one dot, over lit pixels and the gaps at joints, one comes to the other dot exactly
    where the label is 1.
    """
    setting = SETTINGS[side]
    for row in range(count):
        drawn = picture(0, side, 14, "train", row)
        widest = 2 * max(setting.margins) + 2.5
        reached = None
        for curve in drawn.curves:
            assert len(curve.paddles) == 14
            for paddle in curve.paddles:
                assert all(lit(drawn, point) > 40 for point in along(paddle, setting.paddle_length))
            steps = zip(curve.paddles, curve.paddles[1:], strict=False)
            assert all(gap(a, b, setting.paddle_length) <= widest for a, b in steps)
            if drawn.dots[0] == curve.tail:
                reached = curve.head
        assert (drawn.dots[1] == reached) == drawn.label
        assert all(drawn.image[dot] >= 100 for dot in drawn.dots)


@pytest.mark.parametrize(("side", "count"), [(32, 60), (128, 3), (256, 6)])
def test_no_two_curves_touch(side, count):
    setting = SETTINGS[side]
    for row in range(count):
        drawn = picture(0, side, 14, "train", row)
        points = [
            np.array([p for paddle in curve.paddles for p in along(paddle, setting.paddle_length)])
            for curve in (*drawn.curves, *drawn.distractors)
        ]
        for number, some in enumerate(points):
            for others in points[number + 1 :]:
                apart = np.linalg.norm(some[:, None] - others[None], axis=-1).min()
                assert apart > setting.thickness  # measured between the middles of the bars


def test_pathfinder_follows_its_setting():
    drawn = [picture(0, 32, 14, "train", row) for row in range(200)]
    labels = [p.label for p in drawn]
    assert 0.4 < sum(labels) / len(labels) < 0.6
    assert all(len(curve.paddles) == 4 for p in drawn for curve in p.distractors)
    assert (
        statistics.mean(len(p.distractors) for p in drawn) > 4
        and max(len(p.distractors) for p in drawn) == 5
    )
    assert all(
        p.image.max() == 255 and p.image.min() == 0 and p.image.dtype == np.uint8 for p in drawn
    )
    assert all(abs(math.dist(*(curve.tail for curve in p.curves)) - 7) <= 1 for p in drawn)
    assert len({p.image.tobytes() for p in drawn}) == 200


@pytest.mark.parametrize(("contour", "distractors"), [(9, 6), (6, 10)])
def test_the_easier_settings_have_shorter_curves(contour, distractors):
    drawn = picture(0, 32, contour, "train", 0)
    assert [len(curve.paddles) for curve in drawn.curves] == [contour, contour]
    assert (
        len(drawn.distractors) <= distractors and len(drawn.distractors[0].paddles) == contour // 3
    )


def test_the_dots_tell_nothing_without_the_curves():
    """The distance of the dots predicts the label little better than chance."""
    drawn = [picture(0, 32, 14, "train", row) for row in range(300)]
    apart = np.array([math.dist(*p.dots) for p in drawn])
    labels = np.array([p.label for p in drawn])
    best = max(np.mean((apart > cut) == labels) for cut in range(2, 30))
    assert best < 0.68


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path))
    return Generated("listops", trees.make, (0, 64), 64, SMALL)


def test_written_parts_hold_the_generated_examples(store):
    rows = np.array([5, 2400, 1999, 5])
    made = store.read("train", rows)
    store.make_part("train", 0)
    store.make_part("train", 2)
    assert len(np.load(store.part("train", 2))) == 500  # the last part is shorter
    assert (made == store.read("train", rows)).all()


def test_filling_goes_on_where_it_stopped(store):
    store.make_part("train", 1)
    written = store.part("train", 1).stat().st_mtime_ns
    store.fill()
    assert store.part("train", 1).stat().st_mtime_ns == written
    assert len(list(store.folder.iterdir())) == 5  # 3 + 1 + 1 parts, nothing else


def test_a_failure_leaves_no_half_part(store, monkeypatch):
    def breaks(path, array):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", breaks)
    with pytest.raises(OSError, match="no space"):
        store.make_part("train", 0)
    assert list(store.folder.iterdir()) == []


def test_remains_of_a_killed_process_are_removed(store):
    store.make_part("test", 0)
    remains = store.folder / ".123-train-0000.npy"
    remains.write_bytes(b"half")
    store.fill()
    assert not remains.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_survives_an_interrupted_filling(tmp_path, sent):
    """Parts of Path-X take minutes; the one of a single image shows that the workers run."""
    (tmp_path / "fill.py").write_text(
        "from lookback.tasks.lra import cache, curves\n"
        "if __name__ == '__main__':\n"
        "    sizes = {'test': 1, 'train': 9000}\n"
        "    cache.Generated('x', curves.make, (0, 128**2, 14), 128**2, sizes).fill()\n"
    )
    filling = subprocess.Popen(
        [sys.executable, tmp_path / "fill.py"],
        env={**os.environ, "LOOKBACK_DATA": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: list(tmp_path.glob("x/*/test-0000.npy")), "a first part", seconds=60)
    filling.send_signal(sent)
    filling.communicate(timeout=30)  # returns when no worker holds the pipe any more
    assert filling.returncode == -sent
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["test-0000.npy"]


def test_a_part_that_cannot_be_made_stops_the_filling(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path))
    with pytest.raises(KeyError):
        # There is no setting for 7 x 7.
        Generated("pathfinder", curves.make, (0, 49, 14), 49, SMALL).fill()
    assert not list(tmp_path.rglob("*.npy*"))


def test_a_damaged_part_is_refused_by_name(store):
    store.make_part("test", 0)
    path = store.part("test", 0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"test-0000\.npy: not a whole part"):
        store.read("test", np.array([0]))


def test_other_arguments_have_another_folder(store):
    other = Generated("listops", trees.make, (1, 64), 64, SMALL)
    assert other.folder != store.folder and store.folder.is_relative_to(os.environ["LOOKBACK_DATA"])
    assert PART == 1000
