"""TOML files are read into cells, and every suite of ours asks for tasks and models that exist."""

import dataclasses
from pathlib import Path

import pytest

from lookback.benchmarks.measure.cell import check
from lookback.benchmarks.record import Cell, LearnCell
from lookback.benchmarks.suite import Match, multiply, read_suite, select, suite_names, suite_path
from lookback.models import model
from lookback.models.model import ArchitectureSpec, find_architecture
from tests.processes import tiny
from tests.records import as_cost

GOOD = """
title = "A suite"
[defaults]
width = 8
depth = 1
batch_size = 2
[[grid]]
kind = "learn"
task = ["copy", "recall"]
model = ["rwkv", "lstm"]
length = [64, 128]
test_lengths = [64, 256]
[[grid]]
scales = ["paper"]
kind = "learn"
task = "copy"
model = "rrwkv"
model_options = { interval = [4, 8], squeeze = [true, false] }
length = 64
[scales.smoke]
length = 32
steps = 1
"""


def suite_file(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_lists_are_multiplied_and_models_alternate(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, GOOD))
    assert suite.name == "mine" and suite.title == "A suite" and len(suite.cells) == 8
    assert [cell.model for cell in suite.cells] == ["rwkv", "lstm"] * 4
    assert [cell.length for cell in suite.cells] == [64, 64, 128, 128] * 2
    assert all(cell.test_lengths == (64, 256) for cell in suite.cells)


def test_options_are_multiplied_inside() -> None:
    values = list(
        multiply({"model_options": {"interval": [4, 8], "squeeze": [True, False]}, "seed": [0, 1]})
    )
    assert (
        len(values) == 8
        and {"model_options": {"interval": 8, "squeeze": False}, "seed": 1} in values
    )


def test_options_are_listed_one_by_one_too() -> None:
    tables = [{"interval": 8, "squeeze": False}, {"interval": [4, 8]}]
    values = [v["model_options"] for v in multiply({"model_options": tables})]
    assert values == [{"interval": 8, "squeeze": False}, {"interval": 4}, {"interval": 8}]


def test_a_list_of_lists_gives_a_list_field_several_values() -> None:
    values = [v["test_lengths"] for v in multiply({"test_lengths": [[64], [64, 128]]})]
    assert values == [[64], [64, 128]]


def test_scales_change_every_cell_and_choose_grids(tmp_path: Path) -> None:
    path = suite_file(tmp_path, GOOD)
    smoke, paper = read_suite(path, "smoke"), read_suite(path, "paper")
    assert smoke.name == "mine-smoke" and {(c.length, c.steps) for c in smoke.cells} == {(32, 1)}
    assert len(smoke.cells) == 4  # the lengths fell together, and equal cells are one
    assert sum(cell.model == "rrwkv" for cell in paper.cells) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("width = 8", "witdh = 8"), "grid 1: .*witdh: unknown field; known are .*width"),
        (("width = 8", 'width = "8"'), "grid 1: width: .*not '8'"),
        (("width = 8", ""), "grid 1: width: missing"),
        (("[[grid]]", "[[grids]]"), "unknown key 'grids'"),
        (("[defaults]", "[defaults"), "not valid TOML"),
        (('kind = "learn"', 'kind = "lern"'), "kind: .*'learn' or 'cost'"),
        (("length = [64, 128]", "length = []"), "no cells"),
        (("length = 32", "lenght = 32"), "lenght: unknown field"),
        (
            ("test_lengths = [64, 256]", "repeats = 3"),
            "grid 1: repeats: a field of kind 'cost', but this grid is of 'learn'",
        ),
    ],
)
def test_a_broken_suite_is_told_in_one_line(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        for scale in ("small", "smoke"):
            read_suite(suite_file(tmp_path, GOOD.replace(*change)), scale)
    assert "mine.toml" in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown suite 'quik': expected quick, or the path"):
        read_suite("quik")
    with pytest.raises(ValueError, match="does not exist"):
        suite_path("nowhere.toml")
    with pytest.raises(ValueError, match="no scale 'huge': expected one of paper, small, smoke"):
        read_suite(suite_file(tmp_path, GOOD), "huge")


MATCHED = GOOD.replace(
    "[scales.smoke]", '[match]\nto = "rwkv"\n[scales.smoke]\nmatch = { tolerance = 0.2 }'
)


def test_a_suite_says_what_is_matched_and_scales_change_it(tmp_path: Path) -> None:
    path = suite_file(tmp_path, MATCHED)
    assert [read_suite(path, scale).match for scale in ("small", "smoke")] == [
        Match(by="parameters", to="rwkv", tolerance=0.02),
        Match(by="parameters", to="rwkv", tolerance=0.2),
    ]
    assert read_suite(suite_file(tmp_path, GOOD)).match is None
    alone = GOOD.replace("[scales.smoke]", '[scales.smoke]\nmatch = { to = "lstm" }')
    path = suite_file(tmp_path, alone)
    assert [read_suite(path, scale).match for scale in ("small", "smoke")] == [
        None,
        Match(to="lstm"),
    ]
    assert {cell.width for cell in read_suite(suite_file(tmp_path, MATCHED)).cells} == {
        8
    }  # as the file has them
    for change, words in (
        ('to = "rwkv"\nby = "size"', "match: by: .*'parameters', 'flops' or 'state_bytes'"),
        ("", "match: to: missing"),
        ('to = "rwkv"\ntol = 1', "match: tol: unknown field; known are by"),
    ):
        with pytest.raises(ValueError, match=words):
            read_suite(suite_file(tmp_path, MATCHED.replace('to = "rwkv"', change)))


def test_the_nearest_word_on_the_batch_counts(tmp_path: Path) -> None:
    """Tokens of the defaults give way to a grid's or a scale's size, and the other way round."""
    tokens = GOOD.replace("batch_size = 2", "batch_tokens = 256")
    assert {(c.length, c.batch_size) for c in read_suite(suite_file(tmp_path, tokens)).cells} == {
        (64, 4),
        (128, 2),
    }
    scaled = suite_file(tmp_path, tokens.replace("steps = 1", "batch_size = 3"))
    assert {(c.batch_size, c.batch_tokens) for c in read_suite(scaled, "smoke").cells} == {
        (3, None)
    }
    scaled = suite_file(tmp_path, GOOD.replace("steps = 1", "batch_tokens = 160"))
    assert {c.batch_size for c in read_suite(scaled, "smoke").cells} == {5}
    with pytest.raises(ValueError, match="grid 1: batch_size and batch_tokens: expected one"):
        read_suite(
            suite_file(
                tmp_path, GOOD.replace("batch_size = 2", "batch_size = 2\nbatch_tokens = 64")
            )
        )


def test_selecting_a_length_works_the_batch_out_anew(tmp_path: Path) -> None:
    cells = read_suite(
        suite_file(tmp_path, GOOD.replace("batch_size = 2", "batch_tokens = 256"))
    ).cells
    assert {(c.length, c.batch_size) for c in select(cells, "length", [32, 512])} == {
        (32, 8),
        (512, 1),
    }
    growing = [cell.model_copy(update={"start_length": 48}) for cell in cells]
    assert {(c.length, c.start_length) for c in select(growing, "length", [32, 96])} == {
        (32, None),
        (96, 48),
    }


def test_select_selects_known_values_and_substitutes_others(tmp_path: Path) -> None:
    cells = read_suite(suite_file(tmp_path, GOOD), "paper").cells
    assert {cell.model for cell in select(cells, "model", ["lstm"])} == {"lstm"}
    mine = select(cells, "model", ["mine"])
    assert {cell.model for cell in mine} == {"mine"} and all(
        not cell.model_options for cell in mine
    )
    assert len(mine) == 4 + 1  # each task and length once, and the other grid's
    assert {cell.length for cell in select(cells, "length", [512, 64])} == {512, 64}
    rates = {"transformer": 1e-3, "rwkv": 2e-3}
    tuned = [tiny(model, learning_rate=rate) for model, rate in rates.items()]
    (once,) = select(tuned, "model", ["mine"])  # not once for each rate of the others
    assert once.learning_rate == LearnCell.model_fields["learning_rate"].default
    with pytest.raises(ValueError, match="task: "):
        select(cells, "task", ["../copy"])


def test_a_learning_rate_is_chosen_or_put_in_and_cost_cells_stay() -> None:
    rates = {"transformer": 1e-3, "rwkv": 2e-3}
    learning = [tiny(model, learning_rate=rate) for model, rate in rates.items()]
    cost = as_cost(tiny("lstm"))
    assert select([*learning, cost], "learning_rate", [2e-3]) == (learning[1], cost)
    *put_in, last = select([*learning, cost], "learning_rate", [5e-3])
    assert [cell.learning_rate for cell in put_in] == [5e-3, 5e-3] and last == cost
    (several,) = select([tiny("lstm", learning_rates=(1e-3, 3e-3))], "learning_rate", [5e-3])
    assert (several.learning_rate, several.learning_rates) == (5e-3, ())
    with pytest.raises(ValueError, match="learning_rate: "):
        select(learning, "learning_rate", [-1.0])


def test_a_new_task_runs_once_for_each_size_and_length(tmp_path: Path) -> None:
    """Whatever options, tests and tokens the suite's tasks have in several grids."""
    grids = (
        GOOD
        + """
[[grid]]
kind = "learn"
task = "mqar"
task_options = { pairs = 4 }
test_options = [{ pairs = 2 }]
model = ["rwkv", "lstm"]
length = 64
steps = 7
"""
    )
    cells = select(read_suite(suite_file(tmp_path, grids)).cells, "task", ["mine"])
    assert [(cell.model, cell.length) for cell in cells] == [
        ("rwkv", 64),
        ("lstm", 64),
        ("rwkv", 128),
        ("lstm", 128),
    ]
    assert all(cell.task == "mine" and not cell.task_options for cell in cells)
    assert all(isinstance(cell, LearnCell) and not cell.test_options for cell in cells)


def test_every_suite_has_a_smoke_scale(tmp_path: Path) -> None:
    plain = GOOD.partition("[scales.smoke]")[0]
    cells = read_suite(suite_file(tmp_path, plain), "smoke").cells
    sizes = {(c.width, c.depth, c.steps, c.length) for c in cells if isinstance(c, LearnCell)}
    assert sizes == {(16, 1, 2, 64), (16, 1, 2, 128)}

    matched = GOOD + '[match]\nto = "rwkv"\n'
    suite = read_suite(suite_file(tmp_path, matched), "smoke")
    assert suite.match is not None and suite.match.tolerance == 0.2
    assert {c.steps for c in suite.cells if isinstance(c, LearnCell)} == {1}  # the suite's own


def test_a_suite_names_its_plugins_beside_it(tmp_path: Path) -> None:
    path = suite_file(tmp_path, 'plugins = ["mine.py"]\n' + GOOD)
    assert read_suite(path).plugins == (str(tmp_path / "mine.py"),)
    for wrong in ('"mine.py"', "[3]"):
        with pytest.raises(ValueError, match="plugins: expected a list of files"):
            read_suite(suite_file(tmp_path, f"plugins = {wrong}\n" + GOOD))


def scales(name: str) -> list[str]:
    return ["small", "smoke"] if name == "quick" else ["small", "smoke", "paper"]


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name in suite_names() for scale in scales(name)]
)
def test_every_suite_of_ours_asks_for_what_exists(name: str, scale: str) -> None:
    cells = read_suite(name, scale).cells
    seen: set[object] = set()
    for (
        cell
    ) in cells:  # tasks, lengths, models and options; seeds and rates need no check of their own
        key = cell.model_copy(update={"seed": 0, "learning_rate": 1.0}).canonical()
        if key not in seen:
            seen.add(key)
            assert check(cell) > 0


def test_check_tells_what_a_cell_cannot_have(cell: Cell) -> None:
    for change, words in (
        ({"task": "copi"}, "unknown task"),
        ({"model": "rnn"}, "unknown model"),
        ({"length": 3}, "no sequences"),
        ({"test_lengths": (24, 5)}, "length 5"),
        ({"model_options": {"x": 1}}, "no option 'x'"),
        ({"task_options": {"symbols": 13}}, "at least 26"),
        ({"device": "cuda"}, "no CUDA GPU"),
    ):
        with pytest.raises(ValueError, match=words):
            check(cell.model_copy(update=change))


def test_a_model_that_needs_a_gpu_is_refused_on_a_cpu_unless_it_runs_elsewhere(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model of flash-linear-attention is, also inside a hybrid."""
    kernels = dataclasses.replace(find_architecture("rwkv"), spec=ArchitectureSpec(needs_gpu=True))
    monkeypatch.setitem(model._architectures, "kernels", kernels)
    alone = cell.model_copy(update={"model": "kernels"})
    options = {"pattern": "rwkv+kernels"}
    inside = cell.model_copy(update={"model": "hybrid", "model_options": options})
    for refused in (alone, inside):
        assert check(refused, here=False) > 0
        with pytest.raises(ValueError, match="needs a GPU"):
            check(refused)
