"""Pages are made from records alone, and the same records give the same bytes."""

import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from lookback.benchmarks.record import Cell, Outcome, Record
from lookback.benchmarks.report import make_reports, page
from lookback.benchmarks.report.frames import differences, over_seeds, scores
from lookback.benchmarks.report.page import make_page
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.statistics import t_interval, wilson_interval
from lookback.benchmarks.report.style import RC, in_order, looks, panels, using
from lookback.benchmarks.report.tables import latex, number, safe, size, tex
from lookback.benchmarks.storage import write_record
from tests.records import as_cost, cost_record, learn_record, record

ROOT = Path(__file__).parents[3]


def write_suite(folder: Path, cell: Cell) -> None:
    for model in ("transformer", "rwkv", "rrwkv", "mine"):
        for seed in (0, 1, 2):
            changed = cell.model_copy(update={"model": model, "seed": seed})
            write_record(folder / "m" / "suite", learn_record(changed, correct=70 + 3 * seed))
        for length in (256, 512):
            changed = as_cost(cell, {"model": model, "length": length})
            failed = model == "transformer" and length == 512
            write_record(folder / "m" / "suite", cost_record(changed, failed=failed))
    broken = cell.model_copy(update={"model": "broken"})
    write_record(
        folder / "m" / "suite",
        record(broken, Outcome(status="error", message="Traceback\nValueError: a|b $x$")),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_page_holds_what_was_measured(tmp_path: Path, cell: Cell) -> None:
    write_suite(tmp_path / "results", cell)
    (made,) = make_reports(tmp_path / "results", tmp_path / "reports", [])
    assert made.path == tmp_path / "reports" / "some-machine" / "suite" / "README.md"
    page = made.path.read_text()
    for words in (
        "# suite on Some Machine",
        "3 seeds",
        "0.730",
        "0.125",
        "oom",
        "ValueError: a\\|b $x$",
        "1,234",
        "n",
        "this project's reconstruction",
        "made up \\| here",
        "lookback::wkv_tiled",
        "(noisy)",
    ):
        assert words in page, words
    for name in ("score-by-length", "score-by-distance", "cost-by-length", "learning-curves"):
        assert f"]({name}.svg)" in page
        for ending in (".svg", ".csv"):
            assert (made.path.parent / name).with_suffix(ending).stat().st_size > 100
    assert {path.suffix for path in made.path.parent.iterdir()} == {".md", ".html", ".svg", ".csv"}
    assert "copy @24" in made.table and "0.73" in made.table


def test_the_same_records_give_the_same_bytes(tmp_path: Path, cell: Cell) -> None:
    """In every form that there is, and wherever hashes fall. Of pages, CI makes the committed ones
    anew.
    """
    write_suite(tmp_path / "results", cell)
    for name, seed in (("a", "1"), ("b", "2")):
        command = [
            sys.executable,
            "-m",
            "lookback.benchmarks.cli",
            "report",
            "--results",
            str(tmp_path / "results"),
            "--reports",
            str(tmp_path / name),
            "--style",
            "paper",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert [
        name for name in first if first[name] != second.get(name)
    ] == [] and first.keys() == second.keys()
    page = "some-machine/suite/"
    for name in ("score-by-length", "cost-by-length", "learning-curves"):
        assert_fits_a_paper(first[f"{page}{name}.pdf"], first[f"{page}{name}.png"])
    assert "copy @24" in first[f"{page}table-summary.tex"].decode()
    for name in (name for name in first if name.endswith(".tex")):
        rows = table_of(first[name].decode())
        assert len(rows) - 1 == len(pd.read_csv(io.BytesIO(first[name.replace(".tex", ".csv")]))), (
            name
        )


def assert_fits_a_paper(pdf: bytes, png: bytes) -> None:
    """In the width of one column or two, at 300 dots an inch, without a date and without Type 3
    fonts.
    """
    boxes = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ", pdf)
    assert boxes and all(float(width) / 72 in (3.25, 6.75) for width in boxes)
    assert b"CreationDate" not in pdf and b"/Type3" not in pdf
    with Image.open(io.BytesIO(png)) as image:
        assert image.width in (975, 2025) and image.info["dpi"] == pytest.approx(
            (300, 300), abs=0.1
        )


def table_of(text: str) -> list[list[str]]:
    """Cells of a `tabular` of booktabs, read strictly: one row a line, as many cells as columns,
    nothing unescaped.
    """
    first, begin, top, head, middle, *rows, bottom, end, after = text.split("\n")
    assert (first, top, middle, bottom, end, after) == (
        r"% \usepackage{booktabs}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
        "",
    )
    sides = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", begin)
    assert sides
    read = [
        [cell.strip() for cell in re.split(r"(?<!\\)&", row.removesuffix(r" \\"))]
        for row in (head, *rows)
    ]
    assert all(row.endswith(r" \\") for row in (head, *rows)) and {len(row) for row in read} == {
        len(sides[1])
    }
    for cell in (cell for row in read for cell in row):
        assert_typesets(cell)
    return read


COMMANDS = (
    "textbackslash",
    "textasciitilde",
    "textasciicircum",
    "textasciigrave",
    "ldots",
    "geq",
    "leq",
    "times",
    "pm",
    "cdot",
    "approx",
    "to",
)


def assert_typesets(cell: str) -> None:
    """Commands we know, escaped letters, formulas that end and braces that close; else no letter
    that TeX obeys.
    """
    assert not cell.startswith(("[", "*"))  # which would be the row's before it
    left = re.sub(r"\\[{}$&#_%]|\{[\[*]\}", "", cell)
    left = re.sub(r"\$(?:<|>|\||-|\^2|\\(?:" + "|".join(COMMANDS) + r"))\$", "", left)
    left = re.sub(r"\\(?:" + "|".join(COMMANDS) + r")\{\}", "", left)
    assert not re.search(r"[\\{}$&#^_%~<>|\x00-\x1f]", left), cell


@settings(deadline=None)
@given(st.text())
def test_no_text_is_a_command_of_latex(text: str) -> None:
    assert_typesets(tex(text))
    assert table_of(latex(pd.DataFrame({"model": [text], "score": ["0.5"]})))[1][1] == "0.5"


def test_latex_of_a_table() -> None:
    """Written by hand, as a booktabs table is."""
    table = pd.DataFrame({"model": ["a_b", "100 % & more"], "score": ["≥ 0.5", "-0.1 to +0.2"]})
    assert latex(table) == (
        "% \\usepackage{booktabs}\n\\begin{tabular}{lr}\n\\toprule\nmodel & score \\\\\n\\midrule\n"
        "a\\_b & $\\geq$ 0.5 \\\\\n100 \\% \\& more & $-$0.1 to +0.2 "
        "\\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert [tex(text) for text in ("2026-01-01", "L-2", "(-1, -.5)")] == [
        "2026-01-01",
        "L-2",
        "($-$1, $-$.5)",
    ]


def test_a_style_is_left_as_it_was_found() -> None:
    before = dict(RC)
    with pytest.raises(ValueError, match="expected one of page, paper"), using("poster"):
        pass
    with pytest.raises(RuntimeError), using("paper"):
        assert (
            panels(4)[0].get_figwidth() == 6.75
            and panels(1)[0].get_figwidth() == 3.25
            and before != RC
        )
        raise RuntimeError
    plt.close("all")
    assert before == RC and panels(4)[0].get_figwidth() == 12.4


def test_one_kind_of_cell_is_enough(tmp_path: Path, cell: Cell) -> None:
    write_record(tmp_path / "learn", learn_record(cell))
    (made,) = make_reports(tmp_path / "learn", tmp_path / "reports", [])
    assert (
        "One seed" in made.path.read_text()
        and not (made.path.parent / "cost-by-length.svg").exists()
    )
    write_record(tmp_path / "cost", cost_record(as_cost(cell)))
    (made,) = make_reports(tmp_path / "cost", tmp_path / "reports2", ["suite"])
    assert not (made.path.parent / "score-by-length.svg").exists()


def test_what_cannot_be_reported_is_told(
    tmp_path: Path, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_record(tmp_path, learn_record(cell))
    with pytest.raises(ValueError, match="no records of suite 'other'"):
        make_reports(tmp_path, tmp_path / "reports", ["other"])
    path.write_text("{")
    with pytest.raises(ValueError, match="no records"):
        make_reports(tmp_path, tmp_path / "reports", [])
    assert path.name in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_only_failures_still_make_a_page(tmp_path: Path, cell: Cell) -> None:
    write_record(
        tmp_path, record(cell, Outcome(status="timeout", message="not done after 5 seconds"))
    )
    (made,) = make_reports(tmp_path, tmp_path / "reports", [])
    assert "not done after 5 seconds" in made.path.read_text()


def test_t_interval_is_that_of_the_tables() -> None:
    """t of 97.5 % with 2 degrees of freedom is 4.303, with 4 it is 2.776 (any table)."""
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2) and (high - low) / 2 == pytest.approx(
        4.303 / math.sqrt(3), rel=1e-3
    )
    low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (high - low) / 2 == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert all(math.isnan(bound) for bound in t_interval([1.0]))


def test_wilson_interval_is_that_of_the_formula() -> None:
    """Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96."""
    for correct, count in ((0, 10), (7, 10), (512, 512), (80, 263)):
        p, z = correct / count, 1.959964
        middle, reach = (
            p + z * z / (2 * count),
            z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2)),
        )
        expected = [(middle - reach) / (1 + z * z / count), (middle + reach) / (1 + z * z / count)]
        assert wilson_interval(correct, count) == pytest.approx(expected, abs=1e-6)


def test_means_over_seeds_say_how_many(cell: Cell) -> None:
    records = [
        learn_record(cell.model_copy(update={"seed": seed}), correct)
        for seed, correct in ((0, 60), (1, 80))
    ]
    frame = over_seeds(scores(records), ["model", "test_length"], "score")
    assert list(frame["mean"]) == [0.7, 0.7] and list(frame["seeds"]) == [2, 2]
    assert (frame["low"] < 0.7).all() and (frame["high"] > 0.7).all()
    one = over_seeds(scores(records[:1]), ["model", "test_length"], "score")
    assert list(one["low"]) == pytest.approx([wilson_interval(60, 100)[0]] * 2)


def test_differences_are_paired_by_seed(cell: Cell) -> None:
    """Seeds differ more than models do; pairs take that away."""
    records = []
    for seed, base in ((0, 20), (1, 50), (2, 80)):
        for model, gain in (("rwkv", 0), ("rrwkv", 5 + seed)):
            changed = cell.model_copy(update={"seed": seed, "model": model, "test_lengths": ()})
            records.append(learn_record(changed, base + gain))
    (row,) = differences(scores(records), "rwkv").to_dict("records")
    assert row["mean"] == pytest.approx(0.06) and row["seeds"] == 3 and row["model"] == "rrwkv"
    assert (row["high"] - row["low"]) / 2 == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)


def test_models_look_the_same_in_every_report() -> None:
    assert in_order(["zebra", "lstm", "rwkv", "ant"]) == ["rwkv", "lstm", "ant", "zebra"]
    assert in_order(["rrwkv i=16", "rrwkv i=4", "rwkv"]) == ["rwkv", "rrwkv i=4", "rrwkv i=16"]
    few, many = looks(["rwkv"]), looks(["transformer", "rwkv", "rrwkv", "lstm", "mine"])
    assert few["rwkv"] == many["rwkv"]
    for key in ("color", "marker", "linestyle"):
        assert len({str(look[key]) for look in many.values()}) == 5


def test_numbers_read_well() -> None:
    assert [size(b) for b in (640, 2600, 4.2e6, 67e9, math.nan)] == [
        "640 B",
        "2.6 KB",
        "4.2 MB",
        "67.0 GB",
        "",
    ]
    assert number(26427.3) == "26,427" and number(pd.NA) == ""


def test_text_that_a_spreadsheet_would_run_is_marked() -> None:
    table = safe(
        pd.DataFrame({"text": ["=1+1", "-x", "@a", "+2", "", "a=b"], "number": [-1, 0, 1, 2, 3, 4]})
    )
    assert (
        list(table["text"]) == ["'=1+1", "'-x", "'@a", "'+2", "", "a=b"]
        and table["number"][0] == -1
    )


def test_a_page_is_made_of_parts_and_leaves_out_empty_ones(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"model": ["a|b"], "score": ["0.5"]})
    data = pd.DataFrame({"x": [1, 2]})
    figure, (axes,) = panels(1)
    axes.plot([1, 2])

    def parts(records: Sequence[Record]) -> list[Part]:
        return [
            Part("Nothing", "Only words."),
            Part("A table", "Words.", table=table),
            Part("Data", name="data", data=data),
            Part("A figure", "What it shows.", "drawn", figure),
            Part("Empty", table=table[:0], data=data[:0]),
        ]

    monkeypatch.setattr(page, "PARTS", (parts,))
    text = make_page([learn_record(cell)], tmp_path).path.read_text()
    assert text[text.index("## ") :] == (
        "## A table\n\nWords.\n\n| model | score |\n| --- | ---: |\n| a\\|b | 0.5 |\n\n"
        "## Data\n\nData: [data.csv](data.csv).\n\n"
        "## A figure\n\n![A figure: What it shows.](drawn.svg)\n\nWhat it shows.\n"
    )
    assert (tmp_path / "data.csv").read_text() == "x\n1\n2\n" and (
        tmp_path / "drawn.svg"
    ).stat().st_size > 100
    with pytest.raises(ValueError, match="expected a name"):
        Part("No name", data=data)
