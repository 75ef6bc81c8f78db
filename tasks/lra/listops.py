"""ListOps: what is the value of a long expression of nested operators on digits?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from lookback.tasks.lra import trees
from lookback.tasks.lra.cache import Examples, Generated
from lookback.tasks.lra.examples import as_batch, generated_identity
from lookback.tasks.lra.released import LISTOPS_NAMES, digest_of, read_listops, release
from lookback.tasks.task import SPLITS, Batch, register_task

SIZES = {"train": 96000, "validation": 2000, "test": 2000}
SYMBOLS = [*"0123456789", *(f"[{name}" for name in trees.OPERATORS), "]", "_"]
PUBLISHED_LENGTH = 2000


def generated(data_seed: int, length: int) -> Generated:
    """The set of expressions that this seed draws for a length, in tokens."""
    return Generated("listops", trees.make, (data_seed, length), length, SIZES)


@lru_cache(maxsize=3)
def _released(split: str, length: int) -> Examples:
    return read_listops(release(f"listops-1000/{LISTOPS_NAMES[split]}"), length)


def _identity(released: bool, data_seed: int) -> dict[str, Any]:
    if not released:
        return generated_identity(generated(data_seed, PUBLISHED_LENGTH), count=16)
    files = [release(f"listops-1000/{LISTOPS_NAMES[split]}") for split in SPLITS]
    return {"source": "released", "sha256": digest_of(*files)}


def _sizes(released: bool, data_seed: int) -> dict[str, int]:
    return (
        {split: len(_released(split, PUBLISHED_LENGTH)[1]) for split in SPLITS}
        if released
        else SIZES
    )


def _fetch(length: int, released: bool, data_seed: int) -> None:
    if not released:
        generated(data_seed, length).fill()


@register_task(
    "listops",
    vocabulary=len(SYMBOLS),
    classes=10,
    baseline_score=0.17,
    lengths=(PUBLISHED_LENGTH,),
    shortest=64,
    sizes=_sizes,
    symbols=lambda released, data_seed: SYMBOLS,
    answers=lambda released, data_seed: [*"0123456789"],
    data=_identity,
    fetch=_fetch,
    source="ListOps: Nangia and Bowman 2018 (arXiv 1804.06028), the rule of google-research/long-range-arena",
)
def sample_listops(
    rows: Tensor, length: int, split: str, *, released: bool = False, data_seed: int = 0
) -> Batch:
    """An expression in prefix form, longer than a quarter of the length and shorter than that; the
    answer is its value.

        tokens    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ] _ _ _
        target    5

    Operators MIN, MAX, MED (integer part of the median) and SM (sum modulo 10), nested up to ten
    deep. At length 2000 that is the published rule; its generator has no seed, so its files cannot
    be made again, but with `released` they are read where LOOKBACK_LRA names them. `data_seed`
    draws another set by the same rule.

    Tests reading a hierarchy of operators over a thousand tokens and more. Does not test all of an
    expression: an outer MIN or MAX makes much of it irrelevant, labels 0 and 9 are twice as common
    as others, and no distance can be told. In the RWKV paper's table a Transformer has 0.36 and S4
    0.60 (Peng et al. 2023, arXiv 2305.13048).
    """
    if not released:
        return as_batch(generated(data_seed, length).read(split, rows.numpy()))
    tokens, labels, lengths = _released(split, length)
    chosen = rows.numpy()
    return as_batch((tokens[chosen], labels[chosen], lengths[chosen]))
