"""ListOps expressions by the published rule, thousands a second.

The rule (google-research/long-range-arena, lra_benchmarks/data/listops.py). A node at depth 1 to 9
is an operator with probability 1/4, otherwise a digit; at depth 10 it is a digit. Digits are
uniform in 0..9. Operators are uniform in MIN, MAX, MED, SM, with 2 to 10 children, uniformly. The
length counts operators, digits and closing brackets. A tree is accepted if its length lies strictly
between 500 and 2000 (8.2 % of trees do). Here the bounds are n/4 and n, so that the task exists at
any length n.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]  =  5

Every node has a random word of its own, a hash of the key of its tree and its number in
breadth-first order. A tree can therefore be measured first and built only if it is accepted, and
any tree can be built without those before it. Arrays hold the nodes of many trees, level by level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookback.tasks.lra.cache import Examples, Integers, empty_examples

Words = NDArray[np.uint64]

SYMBOLS = [*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]", "_"]
MIN, MAX, MED, SM, CLOSE, PAD = range(10, 16)  # tokens; 0 to 9 are the digits
MAX_DEPTH = 10
MAX_CHILDREN = 10
TRIES_AT_ONCE = 8
TREES_AT_ONCE = 128  # their nodes fit into the cache of a core


class Level(NamedTuple):
    """The nodes of one depth: grouped by tree, within a tree by parent."""

    tree: Integers  # number of the tree that a node belongs to
    token: Integers  # a digit or an operator
    children: Integers  # number of children; 0 for a digit


def make(seed: int, longest: int, split: str, rows: Integers) -> Examples:
    """Return the expressions with the numbers `rows` of a split, padded to `longest` tokens.

    Their lengths lie strictly between longest // 4 and `longest`; their labels are their values.
    Every combination of seed, `longest` and split has a random stream of its own.
    """
    examples = empty_examples(len(rows), longest)
    examples["tokens"] = PAD
    keys = stream_keys(f"listops {seed} {longest} {split}", rows)
    for first in range(0, len(rows), TREES_AT_ONCE):
        group = examples[first : first + TREES_AT_ONCE]
        accepted = accepted_keys(keys[first : first + TREES_AT_ONCE], longest // 4, longest)
        levels = build(accepted)
        group["label"], spans = evaluate(levels)
        group["length"] = spans[0]
        write(levels, spans, group["tokens"])
    return examples


def splitmix(word: Words) -> Words:
    """Return a bijection of 64-bit words whose output looks random.

    This is the finaliser of SplitMix64 (Steele et al. 2014).
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def random_words(keys: Words, numbers: Integers) -> Words:
    """Return word `numbers` of the random sequence of each key."""
    steps = numbers.astype(np.uint64) + np.uint64(1)
    return splitmix(keys + steps * np.uint64(0x9E3779B97F4A7C15))


def stream_keys(stream: str, rows: Integers) -> Words:
    """Return the key of each example of a stream: (rows,)."""
    digest = hashlib.sha256(stream.encode()).digest()
    base = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)
    return random_words(base, np.asarray(rows))


def accepted_keys(keys: Words, shortest: int, longest: int) -> Words:
    """Return, for each example, the key of its first tree whose length lies between the bounds."""
    accepted = np.zeros_like(keys)
    missing = np.arange(len(keys))
    tried = 0
    while len(missing):
        numbers = np.arange(tried, tried + TRIES_AT_ONCE)
        tries = random_words(keys[missing, None], numbers)  # (missing, tries)
        lengths = measure(tries.ravel(), longest).reshape(tries.shape)
        fits = (lengths > shortest) & (lengths < longest)

        done = fits.any(axis=1)
        accepted[missing[done]] = tries[done, fits[done].argmax(axis=1)]
        missing = missing[~done]
        tried += TRIES_AT_ONCE
    return accepted


def grow(keys: Words) -> Iterator[tuple[Integers, Words, Integers]]:
    """Yield the nodes of each level of the trees with these keys, from the root down.

    The arrays are the number of each node's tree, its random word, and its number of children. A
    caller may set entries of the last one to 0 before it takes the next level, to prune trees.
    """
    earlier = np.zeros(len(keys), dtype=np.int64)  # nodes of each tree on earlier levels
    tree = np.arange(len(keys))
    for depth in range(1, MAX_DEPTH + 1):
        nodes = np.bincount(tree, minlength=len(keys))
        first = np.cumsum(nodes) - nodes - earlier
        word = random_words(keys[tree], np.arange(len(tree)) - first[tree])
        children = children_of(word, depth)
        yield tree, word, children

        earlier += nodes
        tree = np.repeat(tree, children)


def measure(keys: Words, longest: int) -> Integers:
    """Return the length of each tree; of one that is too long, some number from `longest` on."""
    lengths = np.zeros(len(keys), dtype=np.int64)
    for tree, _, children in grow(keys):
        lengths += np.bincount(tree, minlength=len(keys))
        lengths += np.bincount(tree[children > 0], minlength=len(keys))  # closing brackets
        children[lengths[tree] >= longest] = 0
    return lengths


def build(keys: Words) -> list[Level]:
    """Return all nodes of the tree of each key, level by level."""
    levels: list[Level] = []
    for tree, word, children in grow(keys):
        # Bits 0 to 23 of the word draw a digit, bits 60 and 61 an operator.
        digit = (word & np.uint64(0xFFFFFF)) * np.uint64(10) >> np.uint64(24)
        operator = MIN + (word >> np.uint64(60) & np.uint64(3))
        token = np.where(children > 0, operator, digit).astype(np.int64)
        levels.append(Level(tree, token, children))
    return levels


def children_of(word: Words, depth: int) -> Integers:
    """Return the number of children of each node: 2 to 10 for an operator, 0 for a digit."""
    if depth == MAX_DEPTH:
        return np.zeros(len(word), dtype=np.int64)
    # A node is an operator if the two highest bits of its word are zero, a quarter of the words.
    # Bits 24 to 47 draw the number of children.
    operator = word >> np.uint64(62) == 0
    fraction = word >> np.uint64(24) & np.uint64(0xFFFFFF)
    count = 2 + (fraction * np.uint64(MAX_CHILDREN - 1) >> np.uint64(24))
    return np.where(operator, count, 0).astype(np.int64)


def evaluate(levels: list[Level]) -> tuple[Integers, list[Integers]]:
    """Return the value of each tree, and the number of tokens in the subtree at each node.

    The numbers of tokens are listed level by level, the root first.
    """
    values = np.zeros(0, dtype=np.int64)
    spans: list[Integers] = []
    for level in reversed(levels):  # from the leaves up
        below = values
        values = level.token.copy()
        span = np.ones(len(values), dtype=np.int64)
        parents = np.flatnonzero(level.children)
        if len(parents):
            count = level.children[parents]
            first = np.cumsum(count) - count  # of the children, among the nodes below
            values[parents] = apply(level.token[parents], first, count, below)
            span[parents] = 2 + np.add.reduceat(spans[0], first)  # operator and bracket
        spans.insert(0, span)
    return values, spans


def apply(operator: Integers, first: Integers, count: Integers, below: Integers) -> Integers:
    """Return the value of each operator on `count` of the values `below`, from `first` on."""
    results = np.minimum.reduceat(below, first)
    results = np.where(operator == MAX, np.maximum.reduceat(below, first), results)
    results = np.where(operator == SM, np.add.reduceat(below, first) % 10, results)
    is_median = operator == MED
    results[is_median] = medians(first[is_median], count[is_median], below)
    return results


def medians(first: Integers, count: Integers, below: Integers) -> Integers:
    """Return the integer part of the median of each group of values.

    The median of an even number of values is the mean of the two in the middle.
    """
    column = np.arange(MAX_CHILDREN)
    index = np.minimum(first[:, None] + column, len(below) - 1)
    # Columns beyond a group hold 10, more than any value, and are sorted behind it.
    ordered = np.sort(np.where(column < count[:, None], below[index], 10), axis=1)
    row = np.arange(len(first))
    return (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) // 2


def write(levels: list[Level], spans: list[Integers], tokens: NDArray[np.uint8]) -> None:
    """Write each tree into its row of `tokens` in reading order."""
    position = np.zeros(len(tokens), dtype=np.int64)  # of each node of the level
    for depth, level in enumerate(levels):
        tokens[level.tree, position] = level.token
        parents = np.flatnonzero(level.children)
        if not len(parents):
            break
        tokens[level.tree[parents], position[parents] + spans[depth][parents] - 1] = CLOSE

        # A child comes after its parent's operator and the subtrees of its elder siblings.
        count = level.children[parents]
        below = spans[depth + 1]
        before = np.cumsum(below) - below
        siblings = before - np.repeat(before[np.cumsum(count) - count], count)
        position = np.repeat(position[parents] + 1, count) + siblings
