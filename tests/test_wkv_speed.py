"""What `make speed` compares computes the same thing, and its report reads what pytest-benchmark
writes.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks import speed_report, test_speed

SMALL = test_speed.Shape(2, 12, 8, "float32")


@pytest.mark.parametrize("name", ["list and stack", "transformers"])
def test_peers_compute_the_same(name: str) -> None:
    if name in test_speed.PACKAGES and importlib.util.find_spec(test_speed.PACKAGES[name]) is None:
        pytest.skip(f"{name} is not installed")
    results = [
        test_speed.operator_call(x, "forward+backward", SMALL)[0]() for x in ("lookback", name)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_report_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {
        "section": "operator",
        "direction": "forward",
        "calls": 1,
        "device": "cpu",
        "threads": 1,
    }
    shape |= {"touched_bytes": 1000, "peak_bytes": 2**21}
    stats = {"median": 2e-6, "iqr": 1e-6, "rounds": 20}
    slow = stats | {"median": 8e-6, "iqr": 0}
    copy = {"section": "copy", "bytes": 10**9, "calls": 1, "device": "cpu", "threads": 1}
    benchmarks = [
        {"group": "memory", "extra_info": copy, "stats": stats | {"median": 1.0}},
        {
            "group": "wkv",
            "extra_info": shape | {"name": "lookback", "form": "tiled"},
            "stats": stats,
        },
        {"group": "wkv", "extra_info": shape | {"name": "loop", "form": ""}, "stats": slow},
    ]
    token = {"section": "decode", "name": "rwkv", "tokens": 16, "calls": 1}
    for what, seconds in (("step", 32e-6), ("its products", 16e-6)):
        row = {
            "group": "decode rwkv",
            "extra_info": token | {"what": what},
            "stats": stats | {"median": seconds},
        }
        benchmarks.append(row)
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    assert speed_report.main([str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    ours, loop = (
        next(line for line in printed if line.split()[:1] == [name])
        for name in ("lookback", "loop")
    )
    assert ours.split() == [
        "lookback",
        "(tiled)",
        "0.002",
        "50.0%",
        "2",
        "20",
        "noisy:",
        "quartiles",
        "50%",
        "apart",
    ]
    assert loop.split() == ["loop", "0.008", "4.0x", "faster", "12.5%", "2", "20"]
    assert next(line for line in printed if line.split()[:1] == ["rwkv"]).split()[1:] == [
        "2",
        "1",
        "2.00x",
    ]


@pytest.mark.parametrize("name", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_every_product_of_a_decoded_token_is_recorded(name: str) -> None:
    """By the weights: each matrix of the model but the embedding is multiplied once a token, or
    once a medium.
    """
    decode = test_speed.decoder(name)
    with torch.no_grad(), test_speed.Recorded() as recorded:
        decode()
    weights = [call.args[1] for call in recorded.calls if call.func.overloadpacket.__name__ == "mm"]
    expected = {"transformer": 4 * 4 + 1, "rwkv": 7 * 4 + 1, "rrwkv": 8 * 4 + 1}
    if name in expected:
        mediums = 4 * 2 if name == "rrwkv" else 0  # the key and the value of a medium in each layer
        assert len(weights) == expected[name] * test_speed.DECODED + mediums
    assert recorded.calls
