"""The least that a language model must beat: each byte predicted from the one before it, by
counting pairs.
"""

import numpy as np
import torch
from torch import Tensor

from lookback.benchmarks.measure.evaluate import EVALUATION_BATCH, EVALUATION_SEED
from lookback.tasks.corpus import Bytes
from lookback.tasks.language import standard_library
from lookback.tasks.task import Task


def fit(text: Bytes) -> Tensor:
    """Bits of each byte after each other one, (256, 256) float64, every pair counted once more than
    it stands there.
    """
    pairs = np.bincount(text[:-1].astype(np.int64) * 256 + text[1:], minlength=256 * 256)
    counts = torch.from_numpy(pairs).double().reshape(256, 256) + 1
    return -(counts / counts.sum(1, keepdim=True)).log2()


def bits_per_byte(bits: Tensor, windows: Tensor) -> float:
    """Mean bits of all bytes but the first of each window, (windows, length + 1)."""
    return float(bits[windows[:, :-1], windows[:, 1:]].mean())


def bigram_bits(task: Task, length: int, examples: int) -> float:
    """Bits per byte of the model fitted on `python`'s training text, on the windows that models are
    tested on.
    """
    bits, found = fit(standard_library()["train"]), []
    for index in range(-(-examples // EVALUATION_BATCH)):
        batch = task.batch("test", EVALUATION_SEED, index, EVALUATION_BATCH, length)
        found.append(torch.cat([batch.tokens, batch.targets[:, -1:]], 1))
    return bits_per_byte(bits, torch.cat(found)[:examples])
