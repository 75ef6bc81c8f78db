"""ListOps expressions, drawn by the published rule, thousands a second.

The rule (google-research/long-range-arena, lra_benchmarks/data/listops.py). A node at depth 1 to 9
is an operator with probability 1/4, else a digit; at depth 10 it is a digit. Digits are even in
0..9; operators even in MIN, MAX, MED, SM, with 2 to 10 children, evenly. The length counts
operators, digits and closing brackets. A tree is kept when its length lies strictly between 500 and
2000 (8.2 % are); we write n/4 and n, so that the task exists at any length n.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]  =  5

Every node has a random word of its own, a hash of (tree, number of the node in breadth-first
order). So a tree can be measured first, and be drawn in full only when it is kept, and any tree can
be drawn without those before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

OPERATORS = ("MIN", "MAX", "MED", "SM")
MIN, MAX, MED, SM, CLOSE, PAD = range(10, 16)
MAX_DEPTH, MAX_CHILDREN = 10, 10
TRIES_AT_ONCE = 8
TREES_AT_ONCE = 128  # so many trees' nodes fit a core's cache


@dataclass(frozen=True)
class Level:
    """The nodes of one depth, those of a tree together, children of one parent together."""

    tree: Integers  # which tree a node belongs to
    sign: Integers  # its token: a digit or an operator
    children: Integers  # how many; 0 for a digit


def make(
    seed: int, longest: int, split: str, rows: Integers
) -> tuple[NDArray[np.uint8], Integers, Integers]:
    """Expressions number `rows` of a split, each longer than a quarter of `longest` and shorter
    than that.

    Returns tokens (rows, longest), padded with PAD; values (rows,), 0 to 9; lengths (rows,). Each
    split and seed has a stream of its own, and so has each `longest`.
    """
    tokens = np.full((len(rows), longest), PAD, dtype=np.uint8)
    values, lengths = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    keys = stream_keys(f"listops {seed} {longest} {split}", rows)
    for first in range(0, len(rows), TREES_AT_ONCE):
        part = slice(first, first + TREES_AT_ONCE)
        levels = grow(kept(keys[part], longest // 4, longest))
        values[part] = evaluate(levels)
        lengths[part] = write(levels, tokens[part])
    return tokens, values, lengths


def mixed(word: Words) -> Words:
    """A bijection of 64-bit words whose output looks random (the finaliser of SplitMix64, Steele et
    al. 2014).
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def numbered(key: Words, number: Integers | Words) -> Words:
    """Word `number` of the sequence that belongs to each key."""
    return mixed(key + (number.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def stream_keys(stream: str, rows: Integers) -> Words:
    """A 64-bit key for each example of a stream: (rows,)."""
    base = np.frombuffer(hashlib.sha256(stream.encode()).digest()[:8], dtype="<u8").astype(
        np.uint64
    )
    return numbered(base, np.asarray(rows))


def kept(keys: Words, shortest: int, longest: int) -> Words:
    """For each example's key, that of the first of its tries whose tree has a length within the
    bounds.
    """
    found = np.zeros_like(keys)
    missing, tried = np.arange(len(keys)), 0
    while len(missing):
        tries = numbered(keys[missing, None], np.arange(tried, tried + TRIES_AT_ONCE))
        lengths = measure(tries.ravel(), longest).reshape(tries.shape)
        fits = (lengths > shortest) & (lengths < longest)
        done = fits.any(axis=1)
        found[missing[done]] = tries[done, fits[done].argmax(axis=1)]
        missing, tried = missing[~done], tried + TRIES_AT_ONCE
    return found


def measure(keys: Words, longest: int) -> Integers:
    """Length of the tree of each key; where it is `longest` or more, some number of at least that."""
    lengths = np.zeros(len(keys), dtype=np.int64)
    drawn = np.zeros(len(keys), dtype=np.int64)
    tree = np.arange(len(keys))
    for depth in range(1, MAX_DEPTH + 1):
        counts = np.bincount(tree, minlength=len(keys))
        children = children_of(node_words(keys, tree, counts, drawn), depth)
        drawn += counts
        lengths += counts + np.bincount(
            tree[children > 0], minlength=len(keys)
        )  # an operator has a bracket too
        children[lengths[tree] >= longest] = 0
        tree = np.repeat(tree, children)
    return lengths


def grow(keys: Words) -> list[Level]:
    """All nodes of the tree of each key, level by level."""
    levels: list[Level] = []
    drawn = np.zeros(len(keys), dtype=np.int64)
    tree = np.arange(len(keys))
    for depth in range(1, MAX_DEPTH + 1):
        counts = np.bincount(tree, minlength=len(keys))
        word = node_words(keys, tree, counts, drawn)
        children = children_of(word, depth)
        digit = (word & np.uint64(0xFFFFFF)) * np.uint64(10) >> np.uint64(24)
        operator = MIN + (word >> np.uint64(60) & np.uint64(3))
        levels.append(
            Level(tree, np.where(children > 0, operator, digit).astype(np.int64), children)
        )
        drawn += counts
        tree = np.repeat(tree, children)
    return levels


def node_words(keys: Words, tree: Integers, counts: Integers, drawn: Integers) -> Words:
    """The random word of each node of a level: `counts` nodes of each tree, behind `drawn` of
    earlier levels.
    """
    first = np.cumsum(counts) - counts - drawn
    return numbered(keys[tree], np.arange(len(tree)) - first[tree])


def children_of(word: Words, depth: int) -> Integers:
    """How many children each node has: none, or 2 to 10 where the top two bits of its word are zero
    (a quarter).
    """
    if depth == MAX_DEPTH:
        return np.zeros(len(word), dtype=np.int64)
    count = 2 + (
        (word >> np.uint64(24) & np.uint64(0xFFFFFF)) * np.uint64(MAX_CHILDREN - 1) >> np.uint64(24)
    )
    return np.where(word >> np.uint64(62) == 0, count, 0).astype(np.int64)


def evaluate(levels: list[Level]) -> Integers:
    """The value of each tree, from its leaves up."""
    below = np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        values = level.sign.copy()
        parents = np.flatnonzero(level.children)
        if len(parents):
            values[parents] = apply(level.sign[parents], level.children[parents], below)
        below = values
    return below


def apply(operator: Integers, count: Integers, below: Integers) -> Integers:
    """The value of each operator on its children: the next `count` of the values `below`."""
    first = np.cumsum(count) - count
    results = np.minimum.reduceat(below, first)
    for sign, found in (
        (MAX, np.maximum.reduceat(below, first)),
        (SM, np.add.reduceat(below, first) % 10),
    ):
        results = np.where(operator == sign, found, results)
    chosen = operator == MED
    results[chosen] = medians(first[chosen], count[chosen], below)
    return results


def medians(first: Integers, count: Integers, below: Integers) -> Integers:
    """Integer part of the median of each group of values (of an even number, the mean of the two in
    the middle).
    """
    place = np.arange(MAX_CHILDREN)
    index = np.minimum(first[:, None] + place, len(below) - 1)
    ordered = np.sort(np.where(place < count[:, None], below[index], 10), axis=1)
    row = np.arange(len(first))
    return (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) // 2


def write(levels: list[Level], tokens: NDArray[np.uint8]) -> Integers:
    """Write each tree into its row of `tokens` in the order in which it is read; the length of
    each.
    """
    spans = subtree_lengths(levels)
    position = np.zeros(len(tokens), dtype=np.int64)
    for level, span, below in zip(levels, spans, [*spans[1:], None], strict=True):
        tokens[level.tree, position] = level.sign
        parents = np.flatnonzero(level.children)
        if below is None or not len(parents):
            break
        tokens[level.tree[parents], position[parents] + span[parents] - 1] = CLOSE
        # A child stands behind its parent's operator and its elder siblings.
        count = level.children[parents]
        before = np.cumsum(below) - below
        elder = before - np.repeat(before[np.cumsum(count) - count], count)
        position = np.repeat(position[parents] + 1, count) + elder
    return spans[0]


def subtree_lengths(levels: list[Level]) -> list[Integers]:
    """Tokens below and at each node, level by level."""
    spans: list[Integers] = []
    for level in reversed(levels):
        span = np.ones(len(level.tree), dtype=np.int64)
        parents = np.flatnonzero(level.children)
        if len(parents):
            count = level.children[parents]
            span[parents] = 2 + np.add.reduceat(spans[-1], np.cumsum(count) - count)
        spans.append(span)
    return spans[::-1]
