"""Corpora of bytes: small files of exactly the published forms come out as they went in, and others
are refused.
"""

import hashlib
import http.server
import itertools
import json
import threading
import tracemalloc
import zipfile
from collections import Counter
from math import log2
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lookback.benchmarks.describe.cards import card
from lookback.benchmarks.describe.data_sets import prefetch
from lookback.tasks import corpus, hub, language
from lookback.tasks.corpus import Corpus, constant_bits, count_windows, windows
from lookback.tasks.files import whole_folder
from lookback.tasks.task import IGNORE, SPLITS, AbsentCorpusError, get_task
from tests.tasks.bigram import bigram_bits, bits_per_byte, fit

SIZES = {"train": 9000, "validation": 500, "test": 500}
FETCHED = {"enwik8": language.ENWIK8, "wikitext103": language.WIKITEXT103, "pg19": language.PG19}


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    """Give every test an empty data folder, and no copies named in the environment."""
    monkeypatch.setenv("LOOKBACK_DATA", str(tmp_path / "data"))
    for name in FETCHED.values():
        monkeypatch.delenv(name.variable, raising=False)
    corpus._open.cache_clear()


@pytest.fixture
def enwik8(tmp_path, monkeypatch):
    """A text with the form of enwik8, declared to be the published one."""
    text = (
        np.random.default_rng(0)
        .choice(np.frombuffer(b"<page>[[a]] of \n", dtype=np.uint8), 10000)
        .tobytes()
    )
    monkeypatch.setattr(language, "ENWIK8_BYTES", SIZES)
    monkeypatch.setattr(language, "ENWIK8_SHA1", hashlib.sha1(text).hexdigest())
    return text


def zipped(path: Path, text: bytes, name: str = "enwik8") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return path


def named(
    monkeypatch, path: Path, content: bytes | None = None, variable: str = "LOOKBACK_ENWIK8"
) -> None:
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(variable, str(path))


def fetch(name: str) -> dict[str, bytes]:
    """Fetch a corpus as `lookback prefetch` does, and return the splits as tasks read them."""
    task = get_task(name)
    assert task.fetch is not None
    task.fetch(256)
    return {split: text.tobytes() for split, text in FETCHED[name].opened.texts.items()}


@pytest.mark.parametrize("as_zip", [True, False])
def test_enwik8_is_split_in_its_order(enwik8, tmp_path, monkeypatch, as_zip):
    named(monkeypatch, zipped(tmp_path / "enwik8.zip", enwik8)) if as_zip else named(
        monkeypatch, tmp_path / "enwik8", enwik8
    )
    found = fetch("enwik8")
    assert found == {"train": enwik8[:9000], "validation": enwik8[9000:9500], "test": enwik8[9500:]}
    task = get_task("enwik8")
    assert (
        task.data["bytes"] == SIZES
        and task.data["source"] == "http://mattmahoney.net/dc/enwik8.zip"
    )
    assert task.data["revision"] == f"SHA-1 {hashlib.sha1(enwik8).hexdigest()}"
    batch = task.batch("test", 0, 0, 6, 100)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert tokens[1:] == targets[:-1] and bytes(tokens) + bytes(targets[-1:]) in found["test"]


def test_enwik8_is_fetched_once(enwik8, tmp_path, monkeypatch):
    archive, requested = zipped(tmp_path / "enwik8.zip", enwik8).read_bytes(), []

    class Served(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            language, "ENWIK8_URL", f"http://127.0.0.1:{server.server_port}/dc/enwik8.zip"
        )
        assert fetch("enwik8")["train"] == fetch("enwik8")["train"] == enwik8[:9000]
        server.shutdown()
    assert requested == ["/dc/enwik8.zip"]


def test_a_failed_download_suggests_a_copy(monkeypatch):
    monkeypatch.setattr(language, "ENWIK8_URL", "http://127.0.0.1:9/enwik8.zip")
    with pytest.raises(
        OSError, match=r"cannot fetch .*; or name the file enwik8 or enwik8\.zip in LOOKBACK_ENWIK8"
    ):
        fetch("enwik8")
    assert not language.ENWIK8.folder.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-1], "expected 10000 bytes of enwik8, found 9999"),
        (lambda text: text[:-1] + b"?", "expected the SHA-1 of enwik8"),
        (lambda text: b"", "expected 10000 bytes of enwik8, found 0"),
    ],
)
def test_another_enwik8_is_refused(enwik8, tmp_path, monkeypatch, change, words):
    named(monkeypatch, tmp_path / "enwik8", change(enwik8))
    with pytest.raises(ValueError, match=words):
        fetch("enwik8")
    assert not language.ENWIK8.folder.exists()


def test_another_zip_is_refused(enwik8, tmp_path, monkeypatch):
    named(monkeypatch, zipped(tmp_path / "a.zip", enwik8, "enwik9"))
    with pytest.raises(ValueError, match="expected a whole zip that holds the file enwik8"):
        fetch("enwik8")
    whole = zipped(tmp_path / "b.zip", enwik8).read_bytes()
    named(monkeypatch, tmp_path / "b.zip", whole[:200] + bytes(50) + whole[250:])
    with pytest.raises(ValueError, match="expected a whole zip that holds the file enwik8"):
        fetch("enwik8")


LINES = {
    "train": ["", " = Valkyria = \n", "", " Senjō no Valkyria 3 : \n", "", " It was . \n"],
    "validation": ["", " = Homarus = \n"],
    "test": ["", " = Robert Boulter = \n", ""],
}
BOOKS = {
    "train": ["Call me\nIshmael", "Zwölf Jäger", "A"],
    "validation": ["Moby"],
    "test": ["Emma ", "Persuasion"],
}


def write_parquet(
    folder: Path, rows: dict[str, list[str | None]], more: dict[str, str] | None = None
) -> None:
    """Files as the hub has them, train in two: train-00000-of-00002.parquet, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in rows.items():
        parts = [texts[:1], texts[1:]] if split == "train" else [texts]
        for number, part in enumerate(parts):
            others = {column: [value] * len(part) for column, value in (more or {}).items()}
            table = pa.table({**others, "text": pa.array(part, pa.string())})
            pq.write_table(
                table,
                folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet",
                row_group_size=2,
            )


@pytest.fixture
def wikitext(tmp_path, monkeypatch):
    """The hub's repository: several configurations, a folder each, and the card that names their
    files.
    """
    monkeypatch.setattr(
        language, "WIKITEXT_ROWS", {split: len(lines) for split, lines in LINES.items()}
    )
    write_parquet(
        tmp_path / "hub" / "wikitext-2-raw-v1", {split: [" another \n"] for split in SPLITS}
    )
    write_parquet(tmp_path / "hub" / "wikitext-103-raw-v1", LINES)
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    configs = [
        {
            "config_name": name,
            "data_files": [
                {"split": split, "path": f"{name}/{split}-*"}
                for split in ("test", "train", "validation")
            ],
        }
        for name in names
    ]
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return tmp_path / "hub"


WIKITEXT = {
    split: "".join(line or " \n" for line in lines).encode() for split, lines in LINES.items()
}


@pytest.mark.parametrize("inside", ["", "wikitext-103-raw-v1"])
def test_wikitext_is_read_from_a_users_folder(wikitext, monkeypatch, inside):
    """The whole repository, or the folder of the configuration; blank lines are a space and a line
    end again.
    """
    named(monkeypatch, wikitext / inside, variable="LOOKBACK_WIKITEXT103")
    assert fetch("wikitext103") == WIKITEXT
    assert WIKITEXT["train"].startswith(b" \n = Valkyria = \n \n Senj\xc5\x8d no")
    assert get_task("wikitext103").data["revision"] == "not known"


def test_wikitext_is_fetched_as_the_hubs_card_says(wikitext, monkeypatch):
    """`datasets` reads a folder as it reads a repository of the hub."""
    monkeypatch.setattr(language, "WIKITEXT_HUB", str(wikitext))
    assert fetch("wikitext103") == WIKITEXT
    place = "hf://datasets/Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3/wikitext-103-raw-v1/a.parquet"
    assert hub.revision_of(place) == "b08601e04326c79dfdd32d625aee71d232d685c3"


def test_pg19_is_books_that_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        language, "PG19_ROWS", {split: len(books) for split, books in BOOKS.items()}
    )
    monkeypatch.setattr(hub, "ROWS", 2)
    write_parquet(
        tmp_path / "pg19" / "data", BOOKS, {"short_book_title": "A book", "url": "http://a"}
    )
    named(monkeypatch, tmp_path / "pg19", variable="LOOKBACK_PG19")
    assert fetch("pg19") == {
        split: "".join(f"{book}\0" for book in books).encode() for split, books in BOOKS.items()
    }


@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n"])
def test_pg19_is_fetched_without_a_card_that_names_files(tmp_path, monkeypatch, card):
    """Then `datasets` tells the splits by the names of the files."""
    monkeypatch.setattr(
        language, "PG19_ROWS", {split: len(books) for split, books in BOOKS.items()}
    )
    monkeypatch.setattr(language, "PG19_HUB", str(tmp_path / "hub"))
    write_parquet(tmp_path / "hub" / "data", BOOKS)
    if card:
        (tmp_path / "hub" / "README.md").write_text(card)
    assert fetch("pg19")["test"] == b"Emma \0Persuasion\0"


def broken_parquet(folder: Path) -> None:
    path = folder / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: write_parquet(f, {"test": ["one"]}),
            r"test-.*: expected 3 rows in the split, found 1",
        ),
        (
            lambda f: write_parquet(f, {"test": ["one", None, "two"]}),
            r"test-.*row 1 of the split: expected text",
        ),
        (
            lambda f: pq.write_table(pa.table({"txt": ["a"]}), f / "test-00000-of-00001.parquet"),
            "expected columns text, found txt",
        ),
        (broken_parquet, r"train-00001-of-00002\.parquet: expected a whole parquet file"),
        (
            lambda f: (f / "test-00000-of-00001.parquet").unlink(),
            r"expected files test\*\.parquet, found none",
        ),
    ],
)
def test_other_parquet_files_are_refused(wikitext, monkeypatch, spoil, words):
    spoil(wikitext / "wikitext-103-raw-v1")
    named(monkeypatch, wikitext, variable="LOOKBACK_WIKITEXT103")
    with pytest.raises(ValueError, match=words):
        fetch("wikitext103")
    assert not language.WIKITEXT103.folder.exists() and not list(
        language.WIKITEXT103.folder.parent.glob("*unfinished")
    )


@pytest.mark.parametrize("name", FETCHED)
def test_an_absent_corpus_names_the_command(name, tmp_path):
    task = get_task(name)
    for ask in (lambda: task.data, lambda: task.batch("test", 0, 0, 1, 16)):
        with pytest.raises(
            AbsentCorpusError, match=f"`lookback prefetch {name}` fetches it once, or reads it from"
        ):
            ask()
    message = card(name)
    assert (
        f"lookback prefetch {name}" in message and "nan" not in message and "known once" in message
    )
    assert not (tmp_path / "data").exists()


def test_prefetch_reports_the_corpus(enwik8, tmp_path, monkeypatch):
    named(monkeypatch, tmp_path / "enwik8", enwik8)
    message = prefetch("enwik8", None, [], [])
    assert (
        "bytes {'train': 9000, 'validation': 500, 'test': 500}" in message and "sha256" in message
    )
    assert "constant baseline: " in card("enwik8") and "tokens  " in card("enwik8")


def test_a_damaged_corpus_is_reported(enwik8, tmp_path, monkeypatch):
    named(monkeypatch, tmp_path / "enwik8", enwik8)
    fetch("enwik8")
    folder = language.ENWIK8.folder
    (folder / "test.bytes").write_bytes(b"short")
    corpus._open.cache_clear()
    with pytest.raises(
        ValueError,
        match=r"test\.bytes: expected 500 bytes, found 5.*: delete it, and prefetch it again",
    ):
        get_task("enwik8").batch("test", 0, 0, 1, 16)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(ValueError, match="not a whole corpus"):
        get_task("enwik8").batch("test", 0, 0, 1, 16)


def test_a_folder_is_whole_or_not_there(tmp_path):
    place = tmp_path / "data" / "corpus"
    with pytest.raises(KeyboardInterrupt), whole_folder(place) as folder:
        (folder / "train.bytes").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not place.exists() and not list(place.parent.glob("*unfinished*"))
    (place.parent / ".corpus-unfinished").mkdir()  # the remains of a killed process
    (place.parent / ".corpus-unfinished" / "old").touch()
    with whole_folder(place) as folder:
        (folder / "train.bytes").write_bytes(b"whole")
        assert not place.exists()
    assert [path.name for path in place.iterdir()] == ["train.bytes"]
    with whole_folder(place) as folder:
        assert folder is None


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def test_corpora_are_mapped_and_not_copied(tmp_path):
    """Drawing from a corpus of 256 MiB (a sparse file) allocates far less than the corpus."""
    size = 2**28
    folder = tmp_path / "data" / "enwik8"
    folder.mkdir(parents=True)
    for split in SPLITS:
        with (folder / f"{split}.bytes").open("wb") as file:
            file.truncate(size)
    facts = {
        "source": "",
        "revision": "",
        "sha256": "",
        "bytes": dict.fromkeys(SPLITS, size),
        "constant_bits": 0.0,
    }
    (folder / "corpus.json").write_text(json.dumps(facts))
    before = anonymous_memory()
    tracemalloc.start()
    task = get_task("enwik8")
    for i in range(100):
        task.batch("train", 0, i, 8, 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26  # numpy's arrays and bytes, also for a moment
    assert anonymous_memory() - before < 2**26  # what is kept, torch's tensors too


def test_the_constant_baseline_predicts_the_shares_of_the_training_bytes():
    train, test = b"aaab" * 50, b"abbb"
    share = {byte: (train.count(byte) + 1) / (len(train) + 256) for byte in b"ab"}
    expected = -sum(log2(share[byte]) for byte in test) / len(test)
    counts = [np.array([Counter(text)[byte] for byte in range(256)]) for text in (train, test)]
    assert constant_bits(*counts) == pytest.approx(expected)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_windows_end_at_the_same_bytes_at_every_length(split):
    """And those of a length do not overlap."""
    task = get_task("python", {"scored": 64})
    short, long = (task.batch(split, 0, 0, 32, length) for length in (80, 4160))
    assert torch.equal(short.targets[:, -64:], long.targets[:, -64:])
    assert (long.targets[:, :-64] == IGNORE).all()
    text = np.arange(100_000, dtype=np.int64)
    for length in (80, 4160):
        rows = torch.arange(count_windows(text, length))
        ends = windows("any", text, rows, length, split).targets[:, -1]
        assert (ends.diff() >= length).all() and ends[-1] < len(text)


def test_a_text_of_few_blocks_is_cut_into_windows_of_the_length():
    text = np.arange(200, dtype=np.uint8)
    assert count_windows(text, 60) == 3
    batch = windows("any", text, torch.arange(3), 60, "test")
    assert batch.tokens[:, 0].tolist() == [0, 60, 120]


def test_windows_of_training_are_from_anywhere():
    text = np.arange(200, dtype=np.uint8)
    numbers = torch.randint(1 << 62, (500,), generator=torch.Generator().manual_seed(0))
    batch = windows("any", text, numbers, 60, "train")
    starts = batch.tokens[:, 0]
    assert (batch.tokens == starts[:, None] + torch.arange(60)).all()
    assert (batch.targets == batch.tokens + 1).all() and batch.targets.max() < 200
    assert set(starts.tolist()) >= set(range(0, 140, 20))
    with pytest.raises(ValueError, match="test has 200 bytes, too few for windows of 101"):
        windows("any", text, torch.tensor([0]), 101, "test")


def test_a_passage_stands_twice_before_the_same_bytes():
    plain, repeated = (
        get_task("python", {"scored": 64, "repeat": repeat}).batch("test", 0, 0, 8, 1024)
        for repeat in (0, 256)
    )
    assert torch.equal(plain.targets, repeated.targets)
    passage = repeated.targets[:, -64:]
    first = 1025 - 64 - 256 - 64
    assert torch.equal(repeated.tokens[:, first : first + 64], passage)
    assert torch.equal(repeated.tokens[:, :first], plain.tokens[:, :first])
    assert torch.equal(repeated.tokens[:, first + 64 :], plain.tokens[:, first + 64 :])


def test_the_bigram_model_is_counted():
    """Against a count by hand, of a text of four letters."""
    text, scored_text = b"abracadabra" * 3, b"abba"
    pairs, firsts = Counter(itertools.pairwise(text)), Counter(text[:-1])
    steps = list(itertools.pairwise(scored_text))
    expected = -sum(log2((pairs[a, b] + 1) / (firsts[a] + 256)) for a, b in steps) / len(steps)
    found = bits_per_byte(
        fit(np.frombuffer(text, dtype=np.uint8)), torch.tensor([list(scored_text)])
    )
    assert found == pytest.approx(expected)


def test_the_bigram_model_lies_between_the_constant_baseline_and_none():
    task = get_task("python")
    bits = bigram_bits(task, 256, 64)
    assert 2.5 < bits < task.baseline_score - 0.5
    assert bits == pytest.approx(bigram_bits(task, 256, 100), abs=0.15)


def test_a_corpus_of_ones_own_needs_a_reader_only(tmp_path, monkeypatch):
    own = Corpus(
        "mine",
        "here",
        "MINE",
        "a file",
        lambda named: ("1", {split: [b"ab", b"cd" * 9] for split in SPLITS}),
    )
    own.fetch()
    assert (
        own.opened.texts["test"].tobytes() == b"ab" + b"cd" * 9
        and own.identity()["revision"] == "1"
    )
