"""What is known of these models, and a trainer worth its name finds again: minutes of training,
wide margins.
"""

from pathlib import Path
from typing import Any

import pytest

from lookback.benchmarks.measure.train import learn
from lookback.benchmarks.record import LearnCell, LearnNumbers
from lookback.models.model import model_names
from lookback.tasks.task import get_task
from tests.tasks.bigram import bigram_bits

pytestmark = pytest.mark.slow
FRAME: dict[str, Any] = {
    "kind": "learn",
    "width": 64,
    "depth": 2,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "steps": 700,
    "validations": 20,
}
MQAR = {
    "task": "mqar",
    "task_options": {"pairs": 4, "vocabulary": 64},
    "length": 64,
    "start_length": 16,
}
PARITY = {"task": "parity", "length": 40, "start_length": 4, "test_lengths": (20, 40, 160)}


def trained(folder: Path, **fields: Any) -> LearnNumbers:
    cell = LearnCell(**{**FRAME, **fields})
    return learn(
        cell, get_task(cell.task, cell.task_options), folder, lambda *_: None, lambda: False
    )


def scores(numbers: LearnNumbers) -> dict[int, float]:
    return {test.length: test.score for test in numbers.tests if test.score is not None}


def test_a_transformer_solves_mqar_and_rwkv_of_the_same_width_does_not(tmp_path: Path) -> None:
    """Arora et al. 2023 (arXiv 2312.04927): recall needs attention, or a state as wide as what is
    to be recalled.
    """
    assert scores(trained(tmp_path / "transformer", model="transformer", **MQAR))[64] >= 0.99
    assert scores(trained(tmp_path / "rwkv", model="rwkv", **MQAR))[64] < 0.6


def test_an_lstm_solves_parity_and_a_transformer_does_not_carry_it_on(tmp_path: Path) -> None:
    """Deletang et al. 2022 (arXiv 2207.02098): parity is regular, which LSTMs extrapolate and
    Transformers do not.
    """
    lstm = scores(trained(tmp_path / "lstm", model="lstm", **PARITY))
    assert lstm[20] > 0.99 and lstm[160] > 0.9
    assert scores(trained(tmp_path / "transformer", model="transformer", **PARITY))[160] < 0.65


@pytest.mark.parametrize("model", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_every_model_knows_more_of_python_than_pairs_of_bytes_tell(
    model: str, tmp_path: Path
) -> None:
    """Against counts of pairs of bytes in the same training data, scored on the same windows of the
    test split.
    """
    assert model in model_names()
    numbers = trained(
        tmp_path,
        model=model,
        task="python",
        length=256,
        batch_size=8,
        steps=400,
        validations=2,
        test_examples=64,
    )
    assert scores(numbers)[256] < bigram_bits(get_task("python"), 256, 64) - 0.3
