"""What `make speed` compares is equal, and its report reads the file of pytest-benchmark."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.speed import operators, report, test_decoding

SMALL = operators.Shape(2, 12, 8, "float32")


@pytest.mark.parametrize("name", ["list and stack", "transformers"])
def test_peers_compute_the_same(name: str) -> None:
    package = operators.PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} is not installed")
    our_call, _ = operators.operator_call("lookback", "forward+backward", SMALL)
    their_call, _ = operators.operator_call(name, "forward+backward", SMALL)
    for ours, theirs in zip(our_call(), their_call(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_report_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measurement(
        group: str, seconds: float, iqr: float, **extra_info: object
    ) -> dict[str, object]:
        stats = {"median": seconds, "iqr": iqr, "rounds": 20}
        extra_info |= {"calls": 1, "device": "cpu", "threads": 1}
        return {"group": group, "extra_info": extra_info, "stats": stats}

    wkv = {"section": "operator", "direction": "forward"}
    wkv |= {"touched_bytes": 1000, "peak_bytes": 2**21}
    token = {"section": "decode", "name": "rwkv", "tokens": 16}
    benchmarks = [
        measurement("memory", 1.0, 0.0, section="copy", bytes=10**9),
        measurement("wkv", 2e-6, 1e-6, **wkv, name="lookback", form="tiled"),
        measurement("wkv", 8e-6, 0.0, **wkv, name="loop", form=""),
        measurement("decode rwkv", 32e-6, 0.0, **token, variant="step"),
        measurement("decode rwkv", 16e-6, 0.0, **token, variant="matrix products"),
    ]
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    assert report.main([str(path)]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        name, *cells = line.split() or [""]
        rows[name] = " ".join(cells)
    assert rows["lookback"] == "(tiled) 0.002 50.0% 2 20 noisy: quartiles 50% apart"
    assert rows["loop"] == "0.008 4.0x faster 12.5% 2 20"
    assert rows["rwkv"] == "2 1 2.00x"


@pytest.mark.parametrize("name", ["transformer", "rwkv", "rrwkv", "lstm"])
def test_every_product_of_a_decoded_token_is_recorded(name: str) -> None:
    """Every matrix of a model but its embedding is multiplied once per token or per medium."""
    decode = test_decoding.make_decoder(name)
    with torch.no_grad(), test_decoding.ProductRecorder() as recorder:
        decode()
    assert recorder.calls
    products = [call for call in recorder.calls if call.func.overloadpacket.__name__ == "mm"]
    layers = 4
    per_token = {"transformer": 4 * layers + 1, "rwkv": 7 * layers + 1, "rrwkv": 8 * layers + 1}
    # each layer multiplies the key and the value of a medium
    per_medium = 2 * layers if name == "rrwkv" else 0
    if name in per_token:
        assert len(products) == per_token[name] * test_decoding.DECODED + per_medium
