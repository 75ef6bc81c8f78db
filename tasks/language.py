"""Language modelling on bytes.

`python` needs no download: its corpus is the source of Python's own standard library. `enwik8`,
`wikitext103` and `pg19` are fetched once by `lookback prefetch`, or read from a copy of the user's.
"""

import hashlib
import http.client
import io
import platform
import sysconfig
import urllib.request
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lookback.tasks.corpus import (
    Bytes,
    Corpus,
    Texts,
    byte_counts,
    byte_symbols,
    constant_bits,
    count_windows,
    hub_texts,
    identity,
    shortest_window,
    windows,
)
from lookback.tasks.references import ngram_references
from lookback.tasks.task import SPLITS, Batch, register_task

LENGTHS = (256, 512, 1024, 2048, 4096)

# Folders that are not in every installation, or differ between machines: with them, the corpus
# would not be the same everywhere.
EXCLUDED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
}


def split_of_file(name: str) -> str:
    """Return the split of a file, drawn by the hash of its name: 5 % validation, 5 % test."""
    percentile = hashlib.sha256(name.encode()).digest()[0] * 100 // 256
    if percentile < 5:
        return "validation"
    return "test" if percentile < 10 else "train"


def standard_library_files(root: Path) -> dict[str, list[Path]]:
    """Return the Python files below `root` that every installation has, by split, in order."""
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        excluded = EXCLUDED_FOLDERS.intersection(name.parts)
        if not excluded and not name.name.startswith("_sysconfigdata"):
            files[split_of_file(name.as_posix())].append(path)
    return files


@cache
def standard_library() -> dict[str, Bytes]:
    """Return the bytes of each split; every file ends with a zero byte."""
    files = standard_library_files(Path(sysconfig.get_paths()["stdlib"]))
    texts = {}
    for split in SPLITS:
        content = b"".join(path.read_bytes() + b"\0" for path in files[split])
        texts[split] = np.frombuffer(content, dtype=np.uint8)
    return texts


@cache
def standard_library_identity() -> dict[str, Any]:
    """Return what identifies the corpus: the version of Python, and the hash of the text."""
    texts = standard_library()
    hashes = {split: hashlib.sha256(text.tobytes()).hexdigest() for split, text in texts.items()}
    sizes = {split: len(text) for split, text in texts.items()}
    return identity("Python standard library", platform.python_version(), hashes, sizes)


@cache
def standard_library_constant_bits() -> float:
    """Return the bits per byte of the constant baseline."""
    texts = standard_library()
    return constant_bits(byte_counts(texts["train"]), byte_counts(texts["test"]))


@register_task(
    "python",
    vocabulary=256,
    score="bits per byte",
    baseline_score=lambda options: standard_library_constant_bits(),
    lengths=LENGTHS,
    symbols=byte_symbols(),
    shortest=shortest_window,
    windows=lambda split, length: count_windows(standard_library()[split], length),
    references=ngram_references(lambda: standard_library()["train"]),
    data=lambda options: standard_library_identity(),
    source="Lookback's own: byte-level language modelling on Python's standard library, split by "
    "file",
)
def sample_python(
    rows: Tensor, length: int, split: str, *, scored: int = 0, repeat: int = 0
) -> Batch:
    """Windows of source code from anywhere in a split; every position asks for the next byte.

        tokens     d  e  f  \u2423  f  (  x
        targets    e  f  \u2423  f  (  x  )

    With `scored`, only that many of the last positions are asked; held-out windows of all lengths
    end at the same positions, so that scores at several lengths are of the same bytes with less or
    more context. With `repeat`, the last 64 bytes also stand earlier, with `repeat` bytes of other
    text between: what a model gains by them is verbatim memory.

    Tests how well a model of this size predicts real text, and whether more context helps. Most
    bytes follow from the few before them, so it has no distances. The text is that of the Python
    that runs: compare scores of one version only.
    """
    text = standard_library()[split]
    return windows("python", text, rows, length, split, scored=scored, repeat=repeat)


ENWIK8_URL = "http://mattmahoney.net/dc/enwik8.zip"
# As http://mattmahoney.net/dc/textdata.html states it.
ENWIK8_SHA1 = "57b8363b814821dc9d47aa4d41f58733519076b2"
# In the order of the file.
ENWIK8_BYTES = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}


def read_enwik8(path: Path | None) -> tuple[str, dict[str, list[bytes]]]:
    """Return revision and splits of enwik8, from the file or its zip; None downloads the zip.

    Raises ValueError unless the content is the published file to the byte, and ConnectionError if
    it cannot be fetched.
    """
    content = download(ENWIK8_URL) if path is None else path.read_bytes()
    origin = ENWIK8_URL if path is None else path

    if zipfile.is_zipfile(io.BytesIO(content)):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read("enwik8")
        except (KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{origin}: expected a whole zip that holds the file enwik8: {error}"
            ) from None

    size = sum(ENWIK8_BYTES.values())
    if len(content) != size:
        raise ValueError(f"{origin}: expected {size} bytes of enwik8, found {len(content)}")
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if digest != ENWIK8_SHA1:
        raise ValueError(f"{origin}: expected the SHA-1 of enwik8, {ENWIK8_SHA1}, found {digest}")

    splits = {}
    start = 0
    for split, count in ENWIK8_BYTES.items():
        splits[split] = [content[start : start + count]]
        start += count
    return f"SHA-1 {digest}", splits


def download(address: str) -> bytes:
    """Return the content of an address; raises ConnectionError if it cannot be fetched."""
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            content: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"cannot fetch {address}: {error}") from error
    return content


ENWIK8 = Corpus(
    "enwik8", ENWIK8_URL, "LOOKBACK_ENWIK8", "the file enwik8 or enwik8.zip", read_enwik8
)


@register_task(
    "enwik8",
    lengths=LENGTHS,
    **ENWIK8.task_facts(),
    source="enwik8 (Mahoney 2006): the first 100,000,000 bytes of the English Wikipedia of "
    "3 March 2006",
)
def sample_enwik8(
    rows: Tensor, length: int, split: str, *, scored: int = 0, repeat: int = 0
) -> Batch:
    """Windows of Wikipedia's XML; every position asks for the next byte.

        tokens     [  [  a  n  a  r  c  h
        targets    [  a  n  a  r  c  h  i

    In the order of the file, 90 million bytes train, 5 million validate and 5 million test. Papers
    call the score bits per character, though it is per byte.

    Tests predicting real text, beside published numbers. Does not test reach: most bytes follow
    from the few before them, so it has no distances.
    """
    return ENWIK8.sample(rows, length, split, scored=scored, repeat=repeat)


WIKITEXT_HUB = "Salesforce/wikitext"
WIKITEXT_NAME = "wikitext-103-raw-v1"
WIKITEXT_ROWS = {"train": 1_801_350, "validation": 3_760, "test": 4_358}  # lines


def read_wikitext103(folder: Path | None) -> tuple[str, Texts]:
    """Return revision and lines of wikitext-103-raw-v1, as its original files have them.

    A blank line of the original is a space and a line end. The hub has it as an empty row.
    Restored, the test split has the original's 1,290,590 bytes.
    """
    return hub_texts(
        WIKITEXT_HUB,
        WIKITEXT_NAME,
        folder,
        WIKITEXT_ROWS,
        encode=lambda line: line.encode() or b" \n",
    )


WIKITEXT103 = Corpus(
    "wikitext103",
    f"{WIKITEXT_HUB} {WIKITEXT_NAME}",
    "LOOKBACK_WIKITEXT103",
    "a folder of its parquet files",
    read_wikitext103,
)


@register_task(
    "wikitext103",
    lengths=LENGTHS,
    **WIKITEXT103.task_facts(),
    source="WikiText-103 raw (Merity et al. 2017): good and featured articles of the English "
    "Wikipedia, as bytes",
)
def sample_wikitext103(
    rows: Tensor, length: int, split: str, *, scored: int = 0, repeat: int = 0
) -> Batch:
    """Windows of whole Wikipedia articles, split by article; every position asks for the next byte.

        tokens     =  \u2423  R  o  b  e  r  t
        targets    \u2423  R  o  b  e  r  t  \u2423

    Perplexity per word is 2 to the power of bits per byte times bytes per word. The test split has
    5.26 bytes per word (1,290,590 bytes, 245,569 words with line ends). Most published perplexities
    are of the version that replaces rare words by <unk>, and do not compare.

    Tests predicting articles of some thousand bytes. Does not test reach: most bytes follow from
    the few before them, so it has no distances.
    """
    return WIKITEXT103.sample(rows, length, split, scored=scored, repeat=repeat)


PG19_HUB = "emozilla/pg19"
PG19_ROWS = {"train": 28_602, "validation": 50, "test": 100}  # books


def read_pg19(folder: Path | None) -> tuple[str, Texts]:
    """Return revision and whole books, each followed by a zero byte."""
    return hub_texts(PG19_HUB, None, folder, PG19_ROWS, encode=lambda book: book.encode() + b"\0")


PG19 = Corpus("pg19", PG19_HUB, "LOOKBACK_PG19", "a folder of its parquet files", read_pg19)


@register_task(
    "pg19",
    lengths=(*LENGTHS, 8192, 16384),
    **PG19.task_facts(),
    source="PG-19 (Rae et al. 2020): books of Project Gutenberg from before 1919, as bytes",
)
def sample_pg19(
    rows: Tensor, length: int, split: str, *, scored: int = 0, repeat: int = 0
) -> Batch:
    """Windows of books of some 400,000 bytes, split by book; every position asks for the next byte.

        tokens     C  a  l  l  \u2423  m  e
        targets    a  l  l  \u2423  m  e  \u2423

    Tests whether a context of many thousand bytes helps: its documents are the only ones of these
    corpora that are so long. Has no distances; the loss at each position shows the gain from
    context. Does not show where in the context the gain comes from.
    """
    return PG19.sample(rows, length, split, scored=scored, repeat=repeat)
