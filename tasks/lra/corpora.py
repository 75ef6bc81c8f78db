"""Text, Image and Retrieval: the tasks of Long Range Arena on published data.

Text and Image are corpora of the hub (see `labelled`); Retrieval is read from the released archive
(see `released`). None of them is ever replaced by similar data.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookback.tasks.lra import labelled
from lookback.tasks.lra.examples import (
    GREY_SYMBOLS,
    TEXT_SYMBOLS,
    grey_values,
    pair_batch,
    picture,
    shrunk,
    text_batch,
    text_picture,
)
from lookback.tasks.lra.labelled import LabelledCorpus, open_corpus
from lookback.tasks.lra.released import PAIRS_NAMES, Pairs, read_pairs, release
from lookback.tasks.task import Batch, register_task

TEXT = LabelledCorpus(
    task="text",
    hub="stanfordnlp/imdb",
    variable="LOOKBACK_IMDB",
    column="text",
    classes=2,
    train_rows=25000,
    test_rows=25000,
    validation=2500,
)
IMAGE = LabelledCorpus(
    task="image",
    hub="uoft-cs/cifar10",
    variable="LOOKBACK_CIFAR10",
    column="img",
    classes=10,
    train_rows=50000,
    test_rows=10000,
    validation=5000,
)
OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PAIRS = {"train": 147086, "validation": 18090, "test": 17437}


@register_task(
    "text",
    vocabulary=len(TEXT_SYMBOLS),
    classes=2,
    baseline_score=0.5,
    lengths=(4096, 2048, 1024),
    shortest=16,
    sizes=TEXT.sizes,
    symbols=TEXT_SYMBOLS,
    answers=["negative", "positive"],
    data=lambda options: labelled.identity(TEXT),
    picture=text_picture,
    fetch=lambda length, options: labelled.fetch(TEXT),
    source="LRA Text: IMDB reviews (Maas et al. 2011) as bytes; a tenth of the training reviews "
    "set aside to validate",
)
def sample_text(rows: Tensor, length: int, split: str) -> Batch:
    """A film review as bytes, cut at the length: does its author like the film?

        tokens    I t ' s \u2423 f i n e . _ _ _
        target    1

    The published setting validates on the test reviews; here a tenth of the training reviews is set
    aside for that.

    Tests combining bytes into words and a verdict. Hardly tests reach: a few words anywhere decide
    most reviews, and a bag of words does well.
    """
    reviews = [open_corpus(TEXT)[split][number] for number in rows.tolist()]
    labels = [review.label for review in reviews]
    return text_batch([review.content for review in reviews], labels, length)


@register_task(
    "image",
    vocabulary=256,
    classes=10,
    baseline_score=0.1,
    lengths=(1024, 256),
    exact=True,
    sizes=IMAGE.sizes,
    symbols=GREY_SYMBOLS,
    answers=OBJECTS,
    data=lambda options: labelled.identity(IMAGE),
    picture=picture,
    fetch=lambda length, options: labelled.fetch(IMAGE),
    source="LRA Image: CIFAR-10 (Krizhevsky 2009) in 8-bit grey; a tenth of the training images "
    "set aside to validate",
)
def sample_image(rows: Tensor, length: int, split: str) -> Batch:
    """A photograph of 32 x 32 pixels in grey, read pixel by pixel: what does it show?

        tokens    grey values 0 to 255 from the upper left (0.299 red + 0.587 green + 0.114 blue)
        target    0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship,
                  9 truck

    The photographs are grey, as published; in colour it would be another task. At a length of 256
    they have 16 x 16 pixels, each the mean of four.

    Tests relating pixels whose neighbours below lie 32 tokens away, without knowing that there are
    rows. Does not test reach alone: models soon overfit, so that regularisation decides as much.
    """
    file = "test" if split == "test" else "train"
    images = []
    labels = []
    for number in rows.tolist():
        row = open_corpus(IMAGE)[split][number]
        images.append(grey_values(row.content, 32, f"{IMAGE.hub}: {file}: row {row.number}"))
        labels.append(row.label)
    tokens = shrunk(np.stack(images), length).astype(np.int64)
    return Batch(torch.from_numpy(tokens), torch.tensor(labels))


def pairs_of(split: str) -> Pairs:
    """Return the pairs of a split; raises ValueError if its file has another number of rows."""
    path = release(f"tsv_data/new_aan_pairs.{PAIRS_NAMES[split]}.tsv")
    pairs = read_pairs(path)
    if len(pairs.labels) != PAIRS[split]:
        raise ValueError(f"{path}: expected {PAIRS[split]} rows, found {len(pairs.labels)}")
    return pairs


def pairs_identity() -> dict[str, Any]:
    """Return what identifies the pairs: a hash of the sizes of all rows."""
    starts = np.concatenate([pairs_of(split).starts for split in PAIRS])
    digest = hashlib.sha256(starts.tobytes()).hexdigest()
    return {"source": "lra_release tsv_data", "row_sizes_sha256": digest}


@register_task(
    "retrieval",
    vocabulary=len(TEXT_SYMBOLS),
    classes=2,
    baseline_score=0.5,
    lengths=(4000, 2000, 1000),
    shortest=16,
    sequences_per_example=2,
    sizes=PAIRS,
    symbols=TEXT_SYMBOLS,
    answers=["unrelated", "related"],
    data=lambda options: pairs_identity(),
    picture=text_picture,
    source="LRA Retrieval: the ACL Anthology Network (Radev et al. 2013) as bytes, the released "
    "pairs",
)
def sample_retrieval(rows: Tensor, length: int, split: str) -> Batch:
    """Two papers as bytes, each cut at the length and read separately: does one cite the other?

        tokens    W e \u2423 p a r s e ... _ _
                  P a r s i n g \u2423 i s ...
        target    1

    Tests keeping the subject of a paper in one vector: the same encoder reads each paper without
    seeing the other. Does not test reading whole papers: title and first words often suffice, and
    no distances are known.
    """
    pairs = pairs_of(split)
    numbers = rows.numpy()
    documents = pairs.read(numbers.tolist())
    return pair_batch(documents, pairs.labels[numbers].tolist(), length)
