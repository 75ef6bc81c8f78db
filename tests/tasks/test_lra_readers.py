"""The readers of published files, on small files of exactly the published form, and on files that
are not quite.
"""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lookback.tasks.lra import corpora, labelled, listops, released
from lookback.tasks.lra.cache import Generated
from lookback.tasks.lra.pathfinder import image_set
from lookback.tasks.task import AbsentCorpusError, get_task

LISTOPS = (
    "Source\tTarget\n"
    "( ( ( [MAX 2 ) 9 ) ] )\t9\n"
    "( ( ( ( [SM 1 ) ( ( ( [MIN 4 ) 7 ) ] ) ) 8 ) ] )\t3\n"
)


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Readers remember what they have read for as long as a process lives."""
    remembered = (
        labelled.open_corpus,
        labelled.identity,
        released.read_pairs,
        released.list_images,
        released.digest_of,
        listops.read_split,
    )
    for reader in remembered:
        reader.cache_clear()


@pytest.fixture
def release(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKBACK_LRA", str(tmp_path / "lra"))
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path / "data"))
    return tmp_path / "lra"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_listops_files_are_read(release):
    for name in released.LISTOPS_NAMES.values():
        write(release / "listops-1000" / name, LISTOPS)
    task = get_task("listops", {"released": True})
    assert task.sizes == {"train": 2, "validation": 2, "test": 2}
    batch = task.batch("test", 0, 0, 5, 2000)
    written = {
        " ".join(task.symbols[token] for token in tokens[:length].tolist()): target
        for tokens, length, target in zip(
            batch.tokens, batch.lengths, batch.targets.tolist(), strict=True
        )
    }
    assert written == {"[MAX 2 9 ]": 9, "[SM 1 [MIN 4 7 ] 8 ]": 3}
    assert task.data["source"] == "released" and len(task.data["sha256"]) == 64


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"basic_test\.tsv: row 1: expected the header"),
        ("Source\tTarget\n", r"row 1: expected .* rows below it, found .* 0 rows"),
        ("Target\tSource\n9\t( [MAX 2 ] )\n", r"row 1: expected the header Source<tab>Target"),
        ("Source\tTarget\n( ( [MAX 2 ) ] )\n", r"row 2: expected a Source and a Target"),
        (
            "Source\tTarget\n( ( [MAX 2 ) ] )\t2\n( ( [MAX 2 ) ] )\t10\n",
            r"row 3: expected .* a Target of 0 to 9, found .*10'",
        ),
        (
            "Source\tTarget\n( ( [MAX 2 ) ] )\t-1\n",
            r"row 2: expected .* a Target of 0 to 9, found .*-1",
        ),
        (
            "Source\tTarget\n( ( [AVG 2 ) ] )\t2\n",
            r"row 2: expected .* digits, operators and \], found '\[AVG'",
        ),
        ("Source\tTarget\n( ( [MAX 2\t2\n", r"row 2: expected a whole expression"),
        ("Source\tTarget\n" + "1 " * 65 + "\t1\n", r"row 2: expected at most 64 tokens, found 65"),
    ],
)
def test_other_listops_files_are_refused(tmp_path, content, complaint):
    path = write(tmp_path / "basic_test.tsv", content)
    with pytest.raises(ValueError, match=complaint):
        released.read_listops(path, 64)


PAIRS = (
    "1.0\tP00-1\tP00-2\tA study of parsing .\tWe parse \\n things\n"
    "0.0\tP00-1\tP00-3\tA study of parsing .\tSpeech\n"
)


def test_pairs_are_read_each_split_from_its_own_file(release, monkeypatch):
    monkeypatch.setattr(corpora, "PAIRS", {"train": 2, "validation": 1, "test": 1})
    folder = release / "tsv_data"
    write(folder / "new_aan_pairs.train.tsv", PAIRS)
    write(folder / "new_aan_pairs.eval.tsv", "0\ta\tb\teval one\teval two\n")
    write(folder / "new_aan_pairs.test.tsv", "1\ta\tb\ttest one\ttest two\n")
    task = replace(get_task("retrieval"), sizes=corpora.PAIRS)
    batch = task.batch("train", 0, 0, 2, 16)
    assert batch.tokens.shape == (2, 2, 16) and batch.lengths.shape == (2, 2)
    found = {
        task.picture(pair[0]) + "|" + task.picture(pair[1]): int(t)
        for pair, t in zip(batch.tokens, batch.targets, strict=True)
    }
    assert found == {"A study of parsi|We parse \\n thin": 1, "A study of parsi|Speech": 0}
    for split, word in (("validation", "eval"), ("test", "test")):
        assert task.picture(task.batch(split, 0, 0, 1, 16).tokens[0, 0]) == f"{word} one"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"row 1: expected a pair of documents, found an empty file"),
        (PAIRS + "1.0\ta\tb\tonly one\n", r"row 3: expected .* found 4 columns"),
        (
            PAIRS + "2.0\ta\tb\tc\td\n",
            r"row 3: expected a label of 0\.0 or 1\.0, .* found 5 columns, b'2\.0",
        ),
        ("label\tid1\tid2\ttext1\ttext2\n" + PAIRS, r"row 1: expected a label"),
        (PAIRS[:-4], r"row 2: expected .* a line end, found"),
    ],
)
def test_other_pairs_are_refused(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=r"pairs\.tsv: " + complaint):
        released.read_pairs(write(tmp_path / "pairs.tsv", content))


def test_too_few_pairs_are_refused(release):
    write(release / "tsv_data" / "new_aan_pairs.test.tsv", PAIRS)
    with pytest.raises(ValueError, match=r"new_aan_pairs\.test\.tsv: expected 17437 rows, found 2"):
        corpora.pairs_of("test")


def png(values, mode="L"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=np.uint8), mode).save(file, "PNG")
    return file.getvalue()


def image_folder(release, count=20, name="curv_contour_length_14"):
    """A released folder with two batches of pictures; picture i is grey i all over."""
    folder = release / "pathfinder32" / name
    for batch in range(2):
        rows = []
        for number in range(count // 2):
            grey = batch * (count // 2) + number
            write(folder / f"imgs/{batch}/sample_{number}.png", png(np.full((32, 32), grey)))
            rows.append(f"imgs/{batch} sample_{number}.png {number} {grey % 2} 1.0 14 4 2 0.5 1 1")
        write(folder / f"metadata/{batch}.npy", "\n".join(rows) + "\n")
    return folder


def test_released_pictures_are_read(release):
    image_folder(release)
    task = get_task("pathfinder", {"released": True})
    assert task.sizes == {"train": 16, "validation": 2, "test": 2}
    batch = task.batch("train", 0, 0, 16, 1024)
    assert sorted(batch.tokens[:, 0].tolist()) == list(range(16))
    assert (batch.targets == batch.tokens[:, 0] % 2).all()
    assert sorted(task.batch("test", 0, 0, 2, 1024).tokens[:, 5].tolist()) == [18, 19]
    assert task.data["empty_images_left_out"] == 0


def test_the_known_empty_picture_is_left_out_and_any_other_is_an_error(release):
    folder = image_folder(release, name="curv_baseline")
    rows = "\n".join(f"imgs/0 sample_{number}.png {number} 1" for number in (0, 172, 1)) + "\n"
    write(folder / "metadata/0.npy", rows)
    write(folder / "imgs/0/sample_172.png", b"")
    options = {"released": True, "contour_length": 6, "data_seed": 0}
    images = released.list_images(folder)
    assert (
        images.left_out == 1
        and len(images.files) == 12
        and "imgs/0/sample_172.png" not in images.files
    )
    write(folder / "imgs/0/sample_1.png", b"")
    with pytest.raises(
        ValueError, match=r"sample_1\.png: image 1: expected a PNG of 32 x 32, found nothing"
    ):
        image_set(1024, **options).read("train", np.arange(3))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (png(np.zeros((32, 32)))[:-30], "found"),
        (b"not a picture", "found"),
        (png(np.zeros((16, 16))), "found 16 x 16"),
        (None, "found nothing"),
    ],
)
def test_broken_pictures_leave_no_part_behind(release, content, complaint):
    folder = image_folder(release)
    broken = folder / "imgs/0/sample_3.png"
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    images: Generated = image_set(1024, released=True, contour_length=14, data_seed=0)
    with pytest.raises(
        ValueError, match=rf"sample_3\.png: image 3: expected a PNG of 32 x 32, {complaint}"
    ):
        images.make_part("train", 0)
    assert not images.folder.exists() or not list(images.folder.iterdir())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("imgs/0 sample_0.png 0", "expected a folder, a file, a number and a label"),
        ("imgs/0 sample_0.png 0 2", "a label of 0 or 1, found '.* 2'"),
    ],
)
def test_other_metadata_are_refused(release, line, complaint):
    folder = image_folder(release)
    write(folder / "metadata/1.npy", "imgs/1 sample_0.png 0 1\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"1\.npy: row 2: .*{complaint}"):
        released.list_images(folder)


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """Twenty reviews in the form of the hub's parquet files; two of the test also stand in the
    training file.
    """
    monkeypatch.setenv("LOOKBACK_IMDB", str(tmp_path / "imdb"))
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path / "data"))
    small = replace(corpora.TEXT, train_rows=20, test_rows=10, validation=4)
    monkeypatch.setattr(corpora, "TEXT", small)
    texts = [f"Review {number}, not bad: \u00e9" for number in range(20)]
    parquet(
        tmp_path / "imdb/train-00000-of-00001.parquet", text=texts, label=[n % 2 for n in range(20)]
    )
    others = [*texts[:2], *(f"Test {number}" for number in range(8))]
    parquet(tmp_path / "imdb/test-00000-of-00001.parquet", text=others, label=[1] * 10)
    return small


def test_text_is_read_from_parquet_files(reviews):
    task = replace(get_task("text"), sizes=reviews.sizes)
    batch = task.batch("train", 0, 0, 16, 64)
    found = dict(zip(map(task.picture, batch.tokens), batch.targets.tolist(), strict=True))
    assert len(found) == 16 and all(
        int(text.split()[1][:-1]) % 2 == label for text, label in found.items()
    )
    held_out = {task.picture(tokens) for tokens in task.batch("validation", 0, 0, 4, 64).tokens}
    assert len(held_out) == 4 and not held_out & set(found)
    assert labelled.identity(reviews)["test_also_in_train"] == 2
    assert (batch.lengths == (batch.tokens < 256).sum(1)).all()
    assert batch.tokens[0, batch.lengths[0] - 2 :].tolist()[:3] == [
        0xC3,
        0xA9,
        256,
    ]  # é, then padding


def test_text_is_saved_and_read_without_the_files(reviews, monkeypatch):
    before = labelled.open_corpus(reviews)
    labelled.fetch(reviews)
    monkeypatch.delenv("LOOKBACK_IMDB")
    labelled.open_corpus.cache_clear()
    after = labelled.open_corpus(reviews)
    assert after == before
    left = [path.name for path in reviews.folder.parent.iterdir()]
    assert sorted(left) == [".text.lock", "text"]


def test_text_is_fetched_from_the_hub(reviews, tmp_path, monkeypatch):
    """`datasets` reads a folder as it reads a repository of the hub."""
    before = labelled.open_corpus(reviews)
    monkeypatch.delenv("LOOKBACK_IMDB")
    on_hub = replace(reviews, hub=str(tmp_path / "imdb"))
    labelled.fetch(on_hub)
    assert labelled.open_corpus(on_hub) == before


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (
            {"review": ["a"] * 20, "label": [0] * 20},
            r"expected columns text, label, found review, label",
        ),
        ({"text": ["a"] * 19, "label": [0] * 19}, r"expected 20 rows, found 19"),
        (
            {"text": ["a"] * 20, "label": [0] * 7 + [2] + [0] * 12},
            r"row 7: expected .* a label of 0 to 1, found 'a' and label 2",
        ),
        (
            {"text": ["a"] * 5 + [None] * 15, "label": [0] * 20},
            r"row 5: expected a value in column 'text'",
        ),
        (
            {"text": ["a"] * 20, "label": ["pos"] * 20},
            r"whole numbers in column 'label', found string and string",
        ),
        ({"text": [1] * 20, "label": [0] * 20}, r"expected text or images in column 'text'"),
    ],
)
def test_other_parquet_files_are_refused_and_nothing_is_saved(
    reviews, tmp_path, columns, complaint
):
    parquet(tmp_path / "imdb/train-00000-of-00001.parquet", **columns)
    with pytest.raises(ValueError, match=complaint):
        labelled.fetch(reviews)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".text.lock"]


def test_a_truncated_parquet_file_is_refused(reviews, tmp_path):
    path = tmp_path / "imdb/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=r"test-00000-of-00001\.parquet: expected a whole parquet file"
    ):
        labelled.open_corpus(reviews)


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Ten photographs in the form of the hub's parquet files: the bytes of a PNG in colour."""
    monkeypatch.setenv("LOOKBACK_CIFAR10", str(tmp_path / "cifar"))
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path / "data"))
    small = replace(corpora.IMAGE, train_rows=10, test_rows=2, validation=2)
    monkeypatch.setattr(corpora, "IMAGE", small)
    write_photographs(tmp_path, 10)
    return small


def write_photographs(folder, count, broken=None):
    for file, number in (("train", count), ("test", 2)):
        pixels = np.random.default_rng(number).integers(0, 256, (number, 32, 32, 3))
        images = [{"bytes": png(p, "RGB"), "path": f"{i}.png"} for i, p in enumerate(pixels)]
        if broken is not None and file == "train":
            images[broken]["bytes"] = images[broken]["bytes"][:200]
        parquet(
            folder / f"cifar/{file}-00000-of-00001.parquet",
            img=images,
            label=[i % 10 for i in range(number)],
        )


def test_photographs_become_grey(photographs):
    task = replace(get_task("image"), sizes=photographs.sizes)
    batch = task.batch("train", 0, 0, 8, 1024)
    assert (
        batch.tokens.shape == (8, 1024) and batch.lengths is None and int(batch.tokens.max()) <= 255
    )
    colour = np.random.default_rng(10).integers(0, 256, (10, 32, 32, 3))
    grey = torch.from_numpy(colour @ [0.299, 0.587, 0.114]).reshape(10, 1024)
    for tokens, label in zip(batch.tokens, batch.targets.tolist(), strict=True):
        assert (tokens - grey[label]).abs().max() <= 1


def test_photographs_are_saved_and_read_without_the_files(photographs, monkeypatch):
    before = labelled.open_corpus(photographs)
    labelled.fetch(photographs)
    monkeypatch.delenv("LOOKBACK_CIFAR10")
    labelled.open_corpus.cache_clear()
    assert labelled.open_corpus(photographs) == before


def test_a_broken_photograph_is_named(photographs, tmp_path):
    write_photographs(tmp_path, 10, broken=6)
    with pytest.raises(
        ValueError, match=r"cifar10: train: row 6: expected a PNG of 32 x 32, found"
    ):
        replace(get_task("image"), sizes=photographs.sizes).batch("train", 0, 0, 10, 1024)
        replace(get_task("image"), sizes=photographs.sizes).batch("validation", 0, 0, 10, 1024)


@pytest.mark.parametrize(
    ("name", "options", "help_"),
    [
        ("text", {}, "`lookback prefetch text`.*LOOKBACK_IMDB"),
        ("image", {}, "`lookback prefetch image`.*LOOKBACK_CIFAR10"),
        ("retrieval", {}, "tsv_data.*LOOKBACK_LRA"),
        ("listops", {"released": True}, "listops-1000.*LOOKBACK_LRA"),
        ("pathfinder", {"released": True}, "pathfinder32.*LOOKBACK_LRA"),
    ],
)
def test_an_absent_corpus_is_one_line_that_says_how_to_get_it(
    tmp_path, monkeypatch, name, options, help_
):
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path))
    for variable in ("LOOKBACK_LRA", "LOOKBACK_IMDB", "LOOKBACK_CIFAR10"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(AbsentCorpusError, match=help_) as caught:
        _ = get_task(name, options).data
    assert "\n" not in str(caught.value)
