"""Language modelling on bytes. `python` needs no download: it is the source of Python's own
standard library.

`enwik8`, `wikitext103` and `pg19` are fetched once by `lookback prefetch`, or read from what a user
has.
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
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookback.tasks.corpus import (
    Bytes,
    Corpus,
    Texts,
    byte_counts,
    constant_bits,
    hub_texts,
    identity,
    windows,
)
from lookback.tasks.task import SPLITS, Batch, register_task

LENGTHS = (256, 512, 1024, 2048, 4096)
# Not in every installation, or different on every machine: with them the corpus would not be the
# same everywhere.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
}


def _split_of(name: str) -> str:
    """A file belongs to the split that the hash of its name draws: 5 % validation, 5 % test."""
    draw = hashlib.sha256(name.encode()).digest()[0] * 100 // 256
    return "validation" if draw < 5 else "test" if draw < 10 else "train"


def standard_library_files(root: Path) -> dict[str, list[Path]]:
    """The Python files below `root` that every installation has, by split, in the order of their
    names.
    """
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        inside = path.relative_to(root)
        if not LEFT_OUT.intersection(inside.parts) and not inside.name.startswith("_sysconfigdata"):
            files[_split_of(inside.as_posix())].append(path)
    return files


@cache
def _corpus() -> dict[str, Bytes]:
    """The bytes of each split; files end with a zero byte."""
    files = standard_library_files(Path(sysconfig.get_paths()["stdlib"]))
    return {
        split: np.frombuffer(
            b"".join(path.read_bytes() + b"\0" for path in files[split]), dtype=np.uint8
        )
        for split in SPLITS
    }


@cache
def _identity() -> dict[str, Any]:
    found = {
        split: (hashlib.sha256(text.tobytes()).hexdigest(), len(text))
        for split, text in _corpus().items()
    }
    return identity("Python standard library", platform.python_version(), found)


@cache
def _constant_bits() -> float:
    corpus = _corpus()
    return constant_bits(byte_counts(corpus["train"]), byte_counts(corpus["test"]))


def byte_symbols() -> list[str]:
    """Readable form of the 256 bytes: printable ASCII as it is, line ends and others as escapes."""
    return [
        chr(b) if 33 <= b < 127 else {10: "\\n", 32: "\u2423"}.get(b, f"\\x{b:02x}")
        for b in range(256)
    ]


@register_task(
    "python",
    vocabulary=256,
    score="bits per byte",
    baseline_score=_constant_bits,
    lengths=LENGTHS,
    symbols=byte_symbols,
    data=_identity,
    source="Lookback's own: byte-level language modelling on Python's standard library, split by file",
)
def sample_python(batch_size: int, length: int, generator: torch.Generator, split: str) -> Batch:
    """Windows of source text from anywhere in a split; every position asks for the next byte.

    tokens     d  e  f  \u2423  f  (  x
    targets    e  f  \u2423  f  (  x  )

    Tests how well a model of this size predicts real text, and by loss against position whether
    more context helps. Has no distances: most bytes follow from the few before them, so a good
    score is no proof of reach. The text is that of the Python that runs: compare scores of one
    version alone.
    """
    return windows("python", _corpus()[split], batch_size, length, generator, split)


ENWIK8_URL = "http://mattmahoney.net/dc/enwik8.zip"
ENWIK8_SHA1 = (
    "57b8363b814821dc9d47aa4d41f58733519076b2"  # as http://mattmahoney.net/dc/textdata.html states
)
ENWIK8_BYTES = {
    "train": 90_000_000,
    "validation": 5_000_000,
    "test": 5_000_000,
}  # in the file's order


def read_enwik8(named: Path | None) -> tuple[str, dict[str, list[bytes]]]:
    """The splits of enwik8, from the file itself or the zip that holds it, a user's or the
    published one.

    Raises ValueError unless it is the published file to the byte, ConnectionError when it cannot be
    fetched.
    """
    where, content = (
        str(named or ENWIK8_URL),
        named.read_bytes() if named else _download(ENWIK8_URL),
    )
    if zipfile.is_zipfile(io.BytesIO(content)):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read("enwik8")
        except (KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{where}: expected a whole zip that holds the file enwik8: {error}"
            ) from None
    if len(content) != sum(ENWIK8_BYTES.values()):
        raise ValueError(
            f"{where}: expected {sum(ENWIK8_BYTES.values())} bytes of enwik8, found {len(content)}"
        )
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if digest != ENWIK8_SHA1:
        raise ValueError(f"{where}: expected the SHA-1 of enwik8, {ENWIK8_SHA1}, found {digest}")
    starts = dict(zip(SPLITS, accumulate(ENWIK8_BYTES.values(), initial=0), strict=False))
    return f"SHA-1 {digest}", {
        s: [content[starts[s] : starts[s] + ENWIK8_BYTES[s]]] for s in SPLITS
    }


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content: bytes = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"cannot fetch {address}: {error}") from error
    return content


ENWIK8 = Corpus(
    "enwik8", ENWIK8_URL, "LOOKBACK_ENWIK8", "the file enwik8 or enwik8.zip", read_enwik8
)


@register_task(
    "enwik8",
    vocabulary=256,
    score="bits per byte",
    baseline_score=ENWIK8.constant_bits,
    lengths=LENGTHS,
    symbols=byte_symbols,
    data=ENWIK8.identity,
    fetch=lambda length: ENWIK8.fetch(),
    source="enwik8 (Mahoney 2006): the first 100,000,000 bytes of the English Wikipedia of 3 March 2006",
)
def sample_enwik8(batch_size: int, length: int, generator: torch.Generator, split: str) -> Batch:
    """Windows of Wikipedia's XML; every position asks for the next byte.

    tokens     [  [  a  n  a  r  c  h
    targets    [  a  n  a  r  c  h  i

    In the file's order 90 million bytes train, 5 million validate and 5 million test. Papers call
    the score bits per character, though it is of bytes.

    Tests predicting real text beside published numbers. Has no distances: most bytes follow from
    the few before them.
    """
    return windows("enwik8", ENWIK8.opened.texts[split], batch_size, length, generator, split)


WIKITEXT_HUB, WIKITEXT_NAME = "Salesforce/wikitext", "wikitext-103-raw-v1"
WIKITEXT_ROWS = {"train": 1_801_350, "validation": 3_760, "test": 4_358}  # lines


def read_wikitext103(named: Path | None) -> tuple[str, Texts]:
    """The lines of wikitext-103-raw-v1 as its original files have them: there a blank line is a
    space and a line end.

    The hub has those as empty rows. With them put back, test is the original's 1,290,590 bytes.
    """
    return hub_texts(
        WIKITEXT_HUB,
        WIKITEXT_NAME,
        named,
        WIKITEXT_ROWS,
        written=lambda line: line.encode() if line else b" \n",
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
    vocabulary=256,
    score="bits per byte",
    baseline_score=WIKITEXT103.constant_bits,
    lengths=LENGTHS,
    symbols=byte_symbols,
    data=WIKITEXT103.identity,
    fetch=lambda length: WIKITEXT103.fetch(),
    source="WikiText-103 raw (Merity et al. 2017): good and featured articles of the English Wikipedia, as bytes",
)
def sample_wikitext103(
    batch_size: int, length: int, generator: torch.Generator, split: str
) -> Batch:
    """Windows of whole Wikipedia articles, split by article; every position asks for the next byte.

    tokens     =  \u2423  R  o  b  e  r  t
    targets    \u2423  R  o  b  e  r  t  \u2423

    Perplexity by word is 2 to the bits per byte times the bytes of a word, 5.26 in test (1,290,590
    bytes, 245,569 words with line ends). Published ones are mostly of the version whose rare words
    are <unk>, and do not compare.

    Tests predicting articles of some thousand bytes. Has no distances: most bytes follow from the
    few before them.
    """
    return windows(
        "wikitext103", WIKITEXT103.opened.texts[split], batch_size, length, generator, split
    )


PG19_HUB = "emozilla/pg19"
PG19_ROWS = {"train": 28_602, "validation": 50, "test": 100}  # books


def read_pg19(named: Path | None) -> tuple[str, Texts]:
    """Whole books, each ended by a zero byte."""
    return hub_texts(PG19_HUB, None, named, PG19_ROWS, written=lambda book: book.encode() + b"\0")


PG19 = Corpus("pg19", PG19_HUB, "LOOKBACK_PG19", "a folder of its parquet files", read_pg19)


@register_task(
    "pg19",
    vocabulary=256,
    score="bits per byte",
    baseline_score=PG19.constant_bits,
    lengths=(*LENGTHS, 8192, 16384),
    symbols=byte_symbols,
    data=PG19.identity,
    fetch=lambda length: PG19.fetch(),
    source="PG-19 (Rae et al. 2020): books of Project Gutenberg from before 1919, as bytes",
)
def sample_pg19(batch_size: int, length: int, generator: torch.Generator, split: str) -> Batch:
    """Windows of books of some 400,000 bytes, split by book; every position asks for the next byte.

    tokens     C  a  l  l  \u2423  m  e
    targets    a  l  l  \u2423  m  e  \u2423

    Tests whether context of many thousand bytes helps: of these corpora the only one whose
    documents are that long. Has no distances; loss against position tells what the context gave.
    """
    return windows("pg19", PG19.opened.texts[split], batch_size, length, generator, split)
