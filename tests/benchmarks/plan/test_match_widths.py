"""Widths that make models agree are the best there are, and models that cannot agree are refused in
one line.
"""

import tomllib
from pathlib import Path

import pytest
import torch

from lookback.benchmarks.plan.match_widths import match_widths, nearest
from lookback.benchmarks.record import Cell, make_cell
from lookback.benchmarks.suite import Match, Suite, read_suite, select, suite_names, suite_path
from lookback.models.model import build_model, parameter_count, state_bytes

OTHERS = ("rwkv", "rrwkv", "lstm")


def cell(model: str, **fields: object) -> Cell:
    given = {
        "kind": "cost",
        "task": "python",
        "width": 64,
        "depth": 2,
        "length": 128,
        "batch_size": 1,
        "repeats": 1,
    }
    return make_cell({**given, "model": model, **fields})


def width(
    model: str,
    by: str,
    to: str = "transformer",
    tolerance: float = 0.02,
    multiple: int = 1,
    **fields: object,
) -> int:
    match = Match.model_validate({"by": by, "to": to, "tolerance": tolerance, "multiple": multiple})
    return match_widths(Suite("s", "s", (cell(model, **fields),), match)).cells[0].width


def parameters(model: str, width: int) -> int:
    return parameter_count(build_model(model, 256, width=width, depth=2))


@pytest.mark.parametrize("model", OTHERS)
def test_parameters_agree_as_nearly_as_widths_allow(model: str) -> None:
    """Counted on built models; no neighbouring width is nearer."""
    aim = parameters("transformer", 64)
    found = width(model, "parameters")
    away = {w: abs(parameters(model, w) - aim) for w in range(found - 3, found + 4)}
    assert min(away, key=lambda w: away[w]) == found and away[found] <= 0.02 * aim
    assert parameters("rrwkv", 64) > 1.02 * aim  # it would not agree by itself


@pytest.mark.parametrize("multiple", [2, 5, 16])
def test_widths_are_multiples_where_asked(multiple: int) -> None:
    """The nearest of them, and where that is not near enough, the one line says why."""
    aim = parameters("transformer", 160)
    away = {w: abs(parameters("rrwkv", w) - aim) for w in range(multiple, 241, multiple)}
    best = min(away, key=lambda w: away[w])
    assert width("rrwkv", "parameters", width=160, tolerance=0.2, multiple=multiple) == best
    if away[best] > 0.001 * aim:
        with pytest.raises(
            ValueError, match=f"nearest is width {best} .* multiple = {multiple} which widths"
        ):
            width("rrwkv", "parameters", width=160, tolerance=0.001, multiple=multiple)


@pytest.mark.parametrize("model", OTHERS)
def test_operations_agree(model: str) -> None:
    """Of 6 a weight and token, attention's on top: counted by hand to a few percent, which
    recurrences add.
    """
    found, length = width(model, "flops", length=512), 512
    aim = 6 * length * (26 * 64**2 + 256 * 64) + 2 * 3.5 * 2 * length**2 * 64
    weights = {"rwkv": 26, "lstm": 26, "rrwkv": 28}[model] * found**2 + 256 * found
    assert 6 * length * weights == pytest.approx(aim, rel=0.08)


@pytest.mark.parametrize("model", OTHERS)
def test_state_agrees_with_the_cache_at_its_length(model: str) -> None:
    """Of built models that have read so much: a constant state as wide as a growing cache has
    become.
    """
    found = width(model, "state_bytes", width=4, depth=1, length=40)
    cache, state = (
        state_bytes(
            build_model(name, 256, width=w, depth=1).prefill(torch.zeros(1, 40, dtype=torch.int64))[
                1
            ]
        )
        for name, w in (("transformer", 4), (model, found))
    )
    assert state == pytest.approx(cache, rel=0.02)
    assert width(model, "state_bytes", width=4, depth=1, length=2048) > 4 * found


def test_what_cannot_agree_is_told_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"'lstm' cannot have the 15,008 param.* nearest is width 16 with 15,376"
    ) as e:
        width("lstm", "parameters", width=16)
    assert "\n" not in str(e.value) and "tolerance" in str(e.value)
    assert width("lstm", "parameters", width=16, tolerance=0.03) == 16
    with pytest.raises(
        ValueError, match="'transformer' cannot have the 2,560 bytes of state of 'rwkv'"
    ):
        width("transformer", "state_bytes", to="rwkv", length=1024)
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        width("rwkv", "parameters", to="nothing")
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        width("nothing", "parameters")


def test_widths_a_model_cannot_have_are_passed_over() -> None:
    def measure(width: int) -> int:
        if width % 12:
            raise ValueError(f"not {width}")
        return width * width

    for aim in (1, 100, 144, 5000, 10**6):
        best = min(range(12, 2000, 12), key=lambda w: abs(w * w - aim))
        assert nearest(measure, aim, 64) == (best, best * best)
    found = width("transformer", "parameters", to="rwkv", tolerance=0.1, width=250)
    heads = max(2, found // 64)
    assert found % (2 * heads) == 0

    def refuse(width: int) -> int:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        nearest(refuse, 10, 64)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_search_measures_few_widths(power: int) -> None:
    """A model of each width is built, so interpolation pays."""
    measured = []

    def measure(width: int) -> int:
        measured.append(width)
        return 1000 + 60 * width + width**power

    for aim in (10**5, 10**6, 10**7):
        measured.clear()
        best = min(range(1, 20_000), key=lambda w: abs(1000 + 60 * w + w**power - aim))
        if best < 19_999:
            assert nearest(measure, aim, 64)[0] == best
            assert len(measured) <= 16


def test_models_of_a_users_own_are_matched(tmp_path: Path) -> None:
    """Narrowed to a model that the suite does not name: the standard is the suite's, though no cell
    of it is left.
    """
    import tests.plugin_models  # noqa: F401

    path = tmp_path / "mine.toml"
    path.write_text(
        '[match]\nto = "transformer"\n[[grid]]\nkind = "cost"\ntask = "python"\n'
        'model = ["transformer", "rwkv"]\n'
        "width = 64\ndepth = 2\nlength = [128, 256]\nbatch_tokens = 512\n"
    )
    suite = read_suite(str(path))
    cells = match_widths(
        Suite("s", "s", select(suite.cells, "model", ["plain"]), suite.match)
    ).cells
    assert len(cells) == 2 and len({c.width for c in cells}) == 1
    assert parameters("plain", cells[0].width) == pytest.approx(
        parameters("transformer", 64), rel=0.02
    )
    assert [c.batch_size for c in cells] == [4, 2]  # the rest of a cell stays


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_ours_can_be_matched_at_every_scale(name: str) -> None:
    """A changed default of a model must not make a suite of hours unmeasurable."""
    content = tomllib.loads(suite_path(name).read_text(encoding="utf-8"))
    for scale in ("small", *content.get("scales", {})):
        suite = read_suite(name, scale)
        assert len(match_widths(suite).cells) == len(suite.cells)
