"""Language modelling on bytes. `python` needs no download: it is the source of Python's own standard library."""

import hashlib
import platform
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.task import SPLITS, Batch, register_task

# Not in every installation, or different on every machine: with them the corpus would not be the same everywhere.
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip"}


def _split_of(name: str) -> str:
    """A file belongs to the split that the hash of its name draws: 5 % validation, 5 % test."""
    draw = hashlib.sha256(name.encode()).digest()[0] * 100 // 256
    return "validation" if draw < 5 else "test" if draw < 10 else "train"


def standard_library_files(root: Path) -> dict[str, list[Path]]:
    """The Python files below `root` that every installation has, by split, in the order of their names."""
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        inside = path.relative_to(root)
        if not LEFT_OUT.intersection(inside.parts) and not inside.name.startswith("_sysconfigdata"):
            files[_split_of(inside.as_posix())].append(path)
    return files


@cache
def _corpus() -> dict[str, Tensor]:
    """The bytes of each split, uint8; files end with a zero byte."""
    files = standard_library_files(Path(sysconfig.get_paths()["stdlib"]))
    joined = {split: b"".join(path.read_bytes() + b"\0" for path in files[split]) for split in SPLITS}
    return {split: torch.frombuffer(bytearray(content), dtype=torch.uint8) for split, content in joined.items()}


@cache
def _identity() -> dict[str, Any]:
    corpus = _corpus()
    hashes = [hashlib.sha256(corpus[split].numpy().tobytes()).hexdigest() for split in SPLITS]
    return {
        "source": "Python standard library",
        "revision": platform.python_version(),
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "bytes": {split: len(corpus[split]) for split in SPLITS},
    }


@cache
def _constant_bits() -> float:
    """Bits per byte on the test files when every byte is predicted by its share in the training files."""
    corpus = _corpus()
    seen = torch.bincount(corpus["train"].int(), minlength=256) + 1.0
    share = seen.double() / seen.sum()
    asked = torch.bincount(corpus["test"].int(), minlength=256).double()
    return float(-(asked * share.log2()).sum() / asked.sum())


def byte_symbols() -> list[str]:
    """Readable form of the 256 bytes: printable ASCII as it is, line ends and others as escapes."""
    return [chr(b) if 33 <= b < 127 else {10: "\\n", 32: "\u2423"}.get(b, f"\\x{b:02x}") for b in range(256)]


@register_task(
    "python",
    vocabulary=256,
    score="bits per byte",
    constant_score=_constant_bits,
    lengths=(256, 512, 1024, 2048, 4096),
    symbols=byte_symbols,
    data=_identity,
    source="Lookback's own: byte-level language modelling on Python's standard library, split by file",
)
def sample_python(batch_size: int, length: int, generator: torch.Generator, split: str) -> Batch:
    """Windows of source text from anywhere in a split; every position asks for the next byte.

    tokens     d  e  f  \u2423  f  (  x
    targets    e  f  \u2423  f  (  x  )
    """
    text = _corpus()[split]
    if len(text) < 2 * length:
        raise ValueError(f"task 'python': {split} has {len(text)} bytes, too few for windows of {length}")
    starts = torch.randint(len(text) - length, (batch_size, 1), generator=generator)
    window = text[starts + torch.arange(length + 1)].long()
    return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous())
