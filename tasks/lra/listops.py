"""ListOps: the value of a long expression of nested operators on digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from lookback.tasks.lra import trees
from lookback.tasks.lra.cache import Examples, Generated
from lookback.tasks.lra.examples import as_batch
from lookback.tasks.lra.released import LISTOPS_NAMES, digest_of, read_listops, release
from lookback.tasks.task import SPLITS, Batch, Options, register_task

SIZES = {"train": 96000, "validation": 2000, "test": 2000}
PUBLISHED_LENGTH = 2000


def generated(data_seed: int, length: int) -> Generated:
    """Return the set of expressions that this seed draws for a length, in tokens."""
    return Generated("listops", trees.make, (data_seed, length), length, SIZES)


@lru_cache(maxsize=3)
def read_split(split: str, length: int) -> Examples:
    """Return the released expressions of a split."""
    return read_listops(release(f"listops-1000/{LISTOPS_NAMES[split]}"), length)


def data_identity(options: Options) -> dict[str, Any]:
    """Return what identifies the expressions: a hash of the first of them, or of the files."""
    if not options.released:
        return generated(options.data_seed, PUBLISHED_LENGTH).identity(count=16)
    files = [release(f"listops-1000/{LISTOPS_NAMES[split]}") for split in SPLITS]
    return {"source": "released", "sha256": digest_of(*files)}


def split_sizes(options: Options) -> dict[str, int]:
    """Return the number of expressions in each split."""
    if not options.released:
        return SIZES
    return {split: len(read_split(split, PUBLISHED_LENGTH)) for split in SPLITS}


def fetch(length: int, options: Options) -> None:
    """Generate the set once, unless it is read from the released files."""
    if not options.released:
        generated(options.data_seed, length).fill()


@register_task(
    "listops",
    vocabulary=len(trees.SYMBOLS),
    classes=10,
    baseline_score=0.17,
    lengths=(PUBLISHED_LENGTH,),
    shortest=64,
    sizes=split_sizes,
    symbols=trees.SYMBOLS,
    answers=[*"0123456789"],
    data=data_identity,
    fetch=fetch,
    source="ListOps: Nangia and Bowman 2018 (arXiv 1804.06028), the rule of "
    "google-research/long-range-arena",
)
def sample_listops(
    rows: Tensor, length: int, split: str, *, released: bool = False, data_seed: int = 0
) -> Batch:
    """The value of an expression in prefix form, longer than a quarter of the length.

        tokens    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ] _ _ _
        target    5

    The operators are MIN, MAX, MED (integer part of the median) and SM (sum modulo 10), nested up
    to ten deep. At a length of 2000 this is the published rule. Its generator has no seed, so that
    nobody can generate the published files again; `released` reads them from the folder that
    LOOKBACK_LRA names. Another `data_seed` draws another set by the same rule.

    Tests evaluating a hierarchy of operators over a thousand tokens and more. Does not test reading
    all of an expression: an outer MIN or MAX makes much of it irrelevant. Labels 0 and 9 are twice
    as common as the others, and no distances are known. In the RWKV paper's table a Transformer has
    0.36 and S4 0.60 (Peng et al. 2023, arXiv 2305.13048).
    """
    numbers = rows.numpy()
    if not released:
        return as_batch(generated(data_seed, length).read(split, numbers))
    return as_batch(read_split(split, length)[numbers])
