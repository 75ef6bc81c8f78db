"""Pages: numbers as people read them, nothing of a record obeyed, the same bytes twice."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lookback.benchmarks.cli import main
from lookback.benchmarks.machine import ROOT
from lookback.benchmarks.record import Cell, Record
from lookback.benchmarks.report import page, plots
from lookback.benchmarks.report.figure import draw_figure
from lookback.benchmarks.report.make import make_pages
from lookback.benchmarks.storage import write_record
from tests.records import as_cost, cost_record, learn_record

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "<script>alert(1)</script> | `x` [a](javascript:b) & $x$ =1"


def written(results: Path, records: list[Record]) -> Path:
    for record in records:
        write_record(results / record.machine.slug / record.suite, record)
    return results


@pytest.fixture
def results(tmp_path: Path, cell: Cell) -> Path:
    """Two models, three seeds, and costs at three lengths."""
    records = []
    for model, correct in (("rwkv", 60), ("lstm", 80)):
        for seed in range(3):
            changed = cell.model_copy(update={"model": model, "seed": seed})
            records.append(learn_record(changed, correct + seed))
        for length in (16, 32, 64, 128):
            changed = cell.model_copy(update={"model": model, "length": length})
            records.append(cost_record(as_cost(changed), seconds=length / 100))
    return written(tmp_path / "results", records)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("score", 0.91748, "0.917"),
        ("parameters", 109312, "109,312"),
        ("training_peak_bytes", 59_299_672, "59.3 MB"),
        ("decode_seconds", 0.000183, "0.183 ms"),
        ("seconds_seconds", 12.34, "12.3 s"),
        ("difference", -0.0466, "-0.047"),
        ("score", math.nan, ""),
        ("score", None, ""),
        ("test_options", "{}", ""),
    ],
)
def test_values_are_written_by_their_columns(column: str, value: object, text: str) -> None:
    assert page.format_value(column, value) == text


def test_the_numbers_of_a_column_have_as_many_digits() -> None:
    table = pd.DataFrame({"percent": [100.0, 85.156, 6.25], "at": [128.0, 4.0, math.nan]})
    shown = page.formatted(table)
    assert list(shown["percent"]) == ["100.0", "85.2", "6.2"]
    assert list(shown["at"]) == ["128", "4", ""]


def test_an_interval_joins_its_number() -> None:
    table = pd.DataFrame([{"score": 0.5, "score_low": 0.45, "score_high": 0.55, "mark": ""}])
    assert page.formatted(table).to_dict("records") == [{"score": "0.50 (0.45 to 0.55)"}]
    exact = table.assign(score_low=-0.0001)
    assert page.formatted(exact)["score"][0] == "0.500 (0.000 to 0.550)"
    assert page.formatted(table, plus_minus=True)["score"][0] == "0.50 ± 0.05"


def test_tables_of_strangers_words_obey_nothing() -> None:
    table = pd.DataFrame([{"message": NASTY, "score": 0.5}])
    (row,) = page.markdown_table(table).splitlines()[2:]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    shown = page.MARKDOWN.render(page.markdown_table(table))
    assert not re.search("<(script|a|code)", shown)
    assert "javascript:b" in shown
    assert "<script" not in page.html_table(table)
    assert "\\$x\\$" in page.latex(table)
    assert "\n'=1" in page.csv(pd.DataFrame([{"message": "=1"}]))


def test_a_terminal_says_how_many_rows_it_does_not_show() -> None:
    table = pd.DataFrame({"score": [0.5, 0.6, 0.7]})
    lines = page.terminal_table(table, rows=2).splitlines()
    assert [line.strip() for line in lines] == ["score", "0.50", "0.60", "... and 1 more rows"]
    assert "more" not in page.terminal_table(table)


def test_csv_holds_numbers() -> None:
    text = page.csv(pd.DataFrame([{"score": 0.123456789, "score_low": 0.1, "parameters": 3888}]))
    assert text == "score,score_low,parameters\n0.123457,0.1,3888\n"


def test_the_best_accuracy_of_each_task_is_bold_in_a_paper() -> None:
    rows = [("a", "x", 0.5), ("a", "y", 0.7), ("b", "x", 0.9), ("b", "y", 0.1)]
    table = pd.DataFrame(rows, columns=["task_name", "model_name", "score"])
    text = page.latex(table)
    assert "\\bfseries 0.70" in text
    assert "\\bfseries 0.90" in text
    assert text.count("bfseries") == 2


def test_the_same_records_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        make_pages(results, folder)
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1]
    assert {path.suffix for path in files[0]} == {".md", ".html", ".svg", ".csv"}
    for path in files[0]:
        assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes(), path


def test_unchanged_records_are_left_alone_and_changed_ones_are_not(
    results: Path, tmp_path: Path, cell: Cell
) -> None:
    reports = tmp_path / "reports"
    assert all(made.is_new for made in make_pages(results, reports, ["suite"]))
    assert not any(made.is_new for made in make_pages(results, reports, ["suite"]))
    written(results, [learn_record(cell.model_copy(update={"seed": 9}))])
    assert all(made.is_new for made in make_pages(results, reports, ["suite"]))


def test_links_and_images_exist(results: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    for made in make_pages(results, reports):
        text = made.path.read_text() + made.path.with_name("index.html").read_text()
        names = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'href="([^"]+)"', text)
        for name in names:
            assert (made.path.parent / name).exists(), name


def test_pages_load_nothing(results: Path, tmp_path: Path) -> None:
    for made in make_pages(results, tmp_path / "reports"):
        html = made.path.with_name("index.html").read_text()
        assert "default-src 'none'" in html
        assert not re.search(r'(src|href)="https?:', html)
        assert "<script" not in html


def test_a_users_matplotlibrc_changes_nothing(results: Path, tmp_path: Path) -> None:
    """Settings such as usetex or a black background belong to the user's own figures."""
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\ntext.usetex: True\n")
    code = (
        "from pathlib import Path; from lookback.benchmarks.report.make import make_pages; "
        "import sys; make_pages(Path(sys.argv[1]), Path(sys.argv[2]), ['suite'])"
    )
    command = [sys.executable, "-c", code, str(results), str(tmp_path / "own")]
    environment = {"PATH": "/usr/bin:/bin", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(command, check=True, env=environment)
    make_pages(results, tmp_path / "plain", ["suite"])
    figures = list((tmp_path / "plain").rglob("*.svg"))
    for path in figures:
        other = tmp_path / "own" / path.relative_to(tmp_path / "plain")
        assert path.read_bytes() == other.read_bytes()
    assert figures


def test_paper_style_adds_pdf_and_latex(results: Path, tmp_path: Path) -> None:
    (made,) = make_pages(results, tmp_path / "paper", ["suite"], style="paper")
    endings = {path.suffix for path in made.path.parent.iterdir()}
    assert {".pdf", ".png", ".svg", ".tex", ".csv"} <= endings
    (table,) = made.path.parent.glob("scores.tex")
    assert "\\toprule" in table.read_text()


def test_panels_in_one_image_keep_what_their_ids_stand_for(results: Path, tmp_path: Path) -> None:
    """Every reference inside the image means the same as in its own panel."""
    make_pages(results, tmp_path, ["suite"])
    text = (tmp_path / "suite" / "cost-against-length.svg").read_text()
    panels = text.split("<svg x=")[1:]
    assert len(panels) == 5  # four and the legend
    content: dict[str, str] = {}
    for panel in panels:
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', panel))
        for tag in re.findall(r"<(?:path|clipPath|use)[^>]* id=.*?>(?:\s*<rect.*?>)?", panel, re.S):
            (name,) = re.findall(r' id="([^"]+)"', tag)
            if name in used:
                assert content.setdefault(name, tag) == tag
                used.discard(name)
        assert not used
    assert content


@pytest.mark.parametrize("name", ["page", "paper"])
def test_legends_fit_their_figures(name: str) -> None:
    """Eleven models with long names: no entry lies outside the figure, none over a panel."""
    models = [f"RRWKV, retrospection attentio{letter}" for letter in "abcdefghijk"]
    rows = [
        {
            "model": "mine",
            "model_name": model,
            "x": x,
            "mean": 0.5,
            "low": 0.4,
            "high": 0.6,
            "panel": panel,
        }
        for model in models
        for x in (16, 32, 64)
        for panel in ("one", "two", "three")
    ]
    with plots.style(name):
        plot = plots.curves(pd.DataFrame(rows), "x", ["panel"], y_label="accuracy")
        alone = plot.draw_legend()
        alone.draw_without_rendering()
        figure = plot.draw(name)
        figure.draw_without_rendering()
        (legend,) = alone.legends
        box, whole = legend.get_window_extent(), alone.bbox
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= whole.x1 and box.y1 <= whole.y1
        whole = figure.bbox
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1
        for axes in figure.axes:
            if axes.get_visible():
                assert not axes.get_tightbbox().overlaps(box)


def test_axes_of_panels_line_up_and_no_label_is_cut() -> None:
    rows = []
    long = "python, repeat 64 to 512, repeat 256, scored 64"
    for panel, largest in (("small", 1.0), (long, 1e-7), ("large", 1e9)):
        for x in (1, 4, 1_048_576):
            row = {"model": "mine", "model_name": "mine", "x": x, "panel": panel, "unit": "bytes"}
            rows.append(row | {"mean": largest / x, "low": largest / x, "high": largest})
    with plots.style():
        plot = plots.curves(pd.DataFrame(rows), "x", ["panel"], "a long label", log_y=True)
        figures = plot.draw_apart()
        places = set()
        for figure in figures:
            figure.draw_without_rendering()
            (axes,) = figure.axes
            places.add(tuple(axes.get_position().bounds))
            box = axes.get_tightbbox()
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert len(figures) == 3 and len(places) == 1


@pytest.mark.parametrize(
    ("lengths", "marks"),
    [
        ([256, 512, 1024], ["256", "512", "1,024"]),
        ([2.0**power for power in range(8, 15)], ["256", "1,024", "4,096", "16,384"]),
        ([3, 4, 6, 8, 12, 16, 24], ["4", "8", "16"]),  # bins of distance
        ([1e-3, 3e-3, 1e-2, 2e-2, 4e-2], ["0.001", "0.003", "0.01", "0.04"]),
        ([7], ["7"]),
        ([27.2764, 110.417], ["27.3", "110"]),
        ([], []),
    ],
)
def test_an_axis_of_lengths_has_few_marks(lengths: list[float], marks: list[str]) -> None:
    axes = plots.Figure().subplots()
    plots.length_axis(axes, lengths, "tokens")
    shown = axes.xaxis.get_major_formatter().format_ticks(axes.get_xticks())
    assert shown == marks


@pytest.mark.parametrize("lowest", [1e-18, 1e-5, 0.3])
def test_a_logarithmic_axis_has_a_few_marks(lowest: float) -> None:
    axes = plots.Figure().subplots()
    axes.plot([1, 2], [lowest, 1.0])
    plots.log_axis(axes)
    low, high = axes.get_ylim()
    assert 2 <= sum(low <= mark <= high for mark in axes.get_yticks()) <= 10


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_nothing_is_cut_in_a_browser() -> None:
    """No page or table is wider than the window, on a phone either, and all images are drawn."""
    from playwright.sync_api import sync_playwright

    pages = sorted((ROOT / "reports" / "published").rglob("index.html"))
    assert pages
    fits = "[...document.querySelectorAll('.table')].every(t => t.scrollWidth <= t.clientWidth)"
    drawn = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page()
        for page in pages:
            tab.goto(f"file://{page}")
            for width in (390, 1440):
                tab.set_viewport_size({"width": width, "height": 900})
                whole = tab.evaluate("document.documentElement.scrollWidth")
                assert whole <= width, (page, width)
                assert tab.evaluate(fits), (page, width)
                assert tab.evaluate(drawn), (page, width)
        browser.close()


PLUGIN = '''
"""How many records each model has."""

from lookback import register_section
from lookback.benchmarks.report.section import Content


@register_section("Records of each model", of="runs")
def records_of_each_model(runs):
    """One row per model."""
    return Content(table=runs.groupby("model").size().reset_index(name="records"))
'''


def test_a_section_of_ones_own(results: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "my_section.py"
    plugin.write_text(PLUGIN)
    command = [sys.executable, "-m", "lookback", "report", "suite"]
    command += ["--plugin", str(plugin), "--results", str(results)]
    command += ["--reports", str(tmp_path / "reports")]
    subprocess.run(command, check=True, capture_output=True)
    text = (tmp_path / "reports" / "suite" / "README.md").read_text()
    assert "Records of each model" in text
    assert re.search(r"\| rwkv +\| +7 \|", text)


def test_a_section_is_checked_when_it_registers() -> None:
    from lookback import register_section

    with pytest.raises(ValueError, match="already registered"):
        register_section("Scores", of="scores")(lambda scores: None)
    with pytest.raises(ValueError, match="no frame 'score': expected scores"):
        register_section("Mine", of="score")(lambda scores: None)


def test_a_model_of_ones_own_stands_beside_the_published_ones(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published scores join one's own page; a model that was run here is shown once."""
    others = [cell.model_copy(update={"model": name}) for name in ("rwkv", "lstm")]
    written(tmp_path / "published", [learn_record(other, 50) for other in others])
    monkeypatch.setattr("lookback.benchmarks.storage.PUBLISHED_RECORDS", tmp_path / "published")
    mine = learn_record(cell.model_copy(update={"model": "mine"}), 90)
    own = learn_record(others[0], 60)
    elsewhere = mine.machine.model_copy(update={"slug": "my-machine", "device": "My Machine"})
    records = [record.model_copy(update={"machine": elsewhere}) for record in (mine, own)]
    results = written(tmp_path / "results", records)
    (made,) = make_pages(results, tmp_path / "reports", ["suite"], published=True)
    scores = pd.read_csv(made.path.with_name("scores.csv"))
    first = scores[scores["test_length"] == 24].set_index("model_name")["score"]
    assert (
        "3 records of My Machine, 2 cores (2) and Some Machine (published), 2 cores (1)"
        in made.path.read_text()
    )
    assert first.to_dict() == {"mine": 0.9, "RWKV-4": 0.6, "LSTM": 0.5}


def test_seeds_of_two_machines_are_one_sample_and_their_costs_are_two(
    tmp_path: Path, cell: Cell
) -> None:
    costs = [cost_record(as_cost(cell))] * 2
    scores = [learn_record(cell.model_copy(update={"seed": seed}), 50) for seed in (0, 1)]
    records = []
    for name, pair in zip(("one", "two"), zip(scores, costs, strict=True), strict=True):
        machine = scores[0].machine.model_copy(update={"slug": name, "device": name})
        records += [record.model_copy(update={"machine": machine}) for record in pair]
    (made,) = make_pages(written(tmp_path / "r", records), tmp_path / "pages", ["suite"])
    assert set(pd.read_csv(made.path.with_name("scores.csv"))["seeds"]) == {2}
    prices = pd.read_csv(made.path.with_name("models.csv"))
    assert list(prices["machine"]) == ["one", "two"]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lookback", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_plot(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    output = tmp_path / f"figure.{ending}"
    options = ["--x", "distance", "--model", "rwkv", "--results", results]
    assert run(monkeypatch, "plot", output, *options) == 0
    assert output.stat().st_size > 2000


def test_a_plot_joins_the_points_whose_settings_follow_the_axis(cell: Cell, tmp_path: Path) -> None:
    """Each length is trained at a width and a rate of its own, and tested at itself."""
    records = []
    for length, width in ((16, 8), (32, 12), (64, 16)):
        changes = {"length": length, "width": width, "test_lengths": (), "learning_rate": 1 / width}
        records.append(learn_record(cell.model_copy(update=changes), length))
    numbers = draw_figure(records, "trained_length", "score", tmp_path / "figure.svg")
    assert set(numbers["model_name"]) == {"RWKV-4"}
    assert list(numbers["mean"]) == [0.16, 0.32, 0.64]
    assert "test_length" not in numbers  # which would make a panel of each

    wide = learn_record(cell.model_copy(update={"length": 16, "width": 16, "test_lengths": ()}))
    numbers = draw_figure([*records, wide], "trained_length", "score", tmp_path / "figure.svg")
    assert numbers["model_name"].nunique() > 1


def test_a_plot_shows_published_records_and_each_measurement_once(
    results: Path, tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied folder must not count as more seeds."""
    drawn = []
    monkeypatch.setattr(
        "lookback.benchmarks.report.figure.draw_figure",
        lambda records, *_, **__: drawn.append(records),
    )
    other = learn_record(cell.model_copy(update={"model": "rrwkv"}), 50)
    written(tmp_path / "published", [other])
    monkeypatch.setattr("lookback.benchmarks.storage.PUBLISHED_RECORDS", tmp_path / "published")
    shutil.copytree(results, results / "copy")
    assert run(monkeypatch, "plot", "f.svg", "--x", "distance", "--results", results) == 0
    options = ["--x", "distance", "--results", results, "--published"]
    assert run(monkeypatch, "plot", "f.svg", *options) == 0
    own, both = drawn
    assert len(own) == len({record.cell_id for record in own})
    assert [record.cell_id for record in both if record not in own] == [other.cell_id]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure.png", "--x", "pairs"], "no frame has columns 'pairs' and 'score'"),
        (["figure.jpg", "--x", "distance"], "ends in .png, .svg or .pdf"),
        (["figure.png", "--x", "distance", "--model", "gru"], "no records of model 'gru'"),
    ],
)
def test_a_plot_that_cannot_be(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    words = [str(tmp_path / words[0]), *words[1:]]
    assert run(monkeypatch, "plot", *words, "--results", results) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suit"], "no records of suite 'suit' in RESULTS: expected suite, or run it first"),
        (["suite", "--model", "rwk"], "no records of model 'rwk' in RESULTS: expected rwkv, or"),
        (["--task", "copi"], "no records of task 'copi' in RESULTS: expected copy, or"),
        (["claims", "suit"], "no records of suite 'suit' in RESULTS: expected suite, or"),
    ],
)
def test_what_has_no_record_is_named_before_a_page_is_written(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    options = ["--results", results, "--reports", tmp_path / "reports"]
    assert run(monkeypatch, "report", *words, *options) == 2
    assert message.replace("RESULTS", str(results)) in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_a_selection_and_a_title(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", "lstm", "--title", "Mine alone", "--results", results]
    assert run(monkeypatch, "report", "suite", *options, "--reports", tmp_path / "r") == 0
    text = (tmp_path / "r" / "suite" / "README.md").read_text()
    assert "Mine alone" in text
    assert "LSTM" in text
    assert "RWKV" not in text


@pytest.mark.parametrize("name", ["nosuch", "claims"])
def test_a_page_without_records_is_one_line(
    tmp_path: Path,
    cell: Cell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    results = written(tmp_path / "results", [learn_record(cell)])
    assert run(monkeypatch, "report", name, "--results", results) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run" in line
