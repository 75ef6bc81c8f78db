"""Pages of one file: safe against what records hold, the same bytes again, and whole in a real
browser.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lookback.benchmarks.record import Cell, LearnCell, Outcome, Record
from lookback.benchmarks.report import frames, make_reports, style
from lookback.benchmarks.report.costs import costs_of
from lookback.benchmarks.report.drawing import inline_svg
from lookback.benchmarks.report.gaps import missing_table
from lookback.benchmarks.report.headline import of_scores
from lookback.benchmarks.report.html import EMBEDDED, columns, read_card, write_index
from lookback.benchmarks.report.page import make_page
from lookback.benchmarks.report.prose import prose
from lookback.benchmarks.report.tradeoff import points_of
from lookback.benchmarks.storage import write_record
from tests.records import FACTS, as_cost, cost_record, learn_record, record, score, trained

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

ROOT = Path(__file__).parents[3]
EVIL = '<script>window.stolen = 1</script><img src="https://evil.example/x.png" onerror="window.stolen = 2">'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """What stands in a page: elements with their attributes, and the text; elements must be closed
    in their order.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def records(cell: Cell) -> list[Record]:
    """Four models with scores and costs, one of them out of memory at the end, one that failed with
    a bad message.
    """
    found = []
    for place, model in enumerate(("transformer", "rwkv", "rrwkv", "mine")):
        named = cell.model_copy(update={"model": model})
        found += [
            learn_record(named.model_copy(update={"seed": seed}), 95 - 20 * place + seed)
            for seed in (0, 1, 2)
        ]
        for length in (256, 512, 1024, 2048):
            costs = as_cost(named, {"length": length})
            slow = 1e-4 * length ** (2 if model == "transformer" else 1)
            found.append(cost_record(costs, slow, failed=model == "transformer" and length == 2048))
    broken = cell.model_copy(update={"model": "broken"})
    return [
        *found,
        record(broken, Outcome(status="error", message=f"Traceback\nValueError: {EVIL}")),
    ]


def drawn(figure: Figure, path: Path) -> None:
    """What reports save of a figure, but for the pictures, which take most of the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(style.RC):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def make(folder: Path) -> None:
    """Reports of the records above, of a task and a device of bad intent: as if nothing had been
    checked before.
    """
    cell = LearnCell(
        kind="learn",
        task="copy",
        model="rwkv",
        width=16,
        depth=1,
        length=24,
        batch_size=4,
        steps=6,
        warmup=2,
        validations=3,
        test_examples=40,
        test_lengths=(24, 40),
    )
    found = []
    for one in records(cell):
        task = FACTS.model_copy(
            update={"source": EVIL, "data": {"text": "https://example.org/a?b=1&c=2 and\u202emore"}}
        )
        outcome = one.outcome.model_copy(update={"task": task}) if one.outcome.task else one.outcome
        machine = one.machine.model_copy(update={"device": f"Device {EVIL}"})
        found.append(one.model_copy(update={"outcome": outcome, "machine": machine}))
    with mock.patch.object(style, "save", drawn):
        make_page(found, folder / "some-machine" / "suite")
    write_index(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Path:
    return made / "some-machine" / "suite" / "index.html"


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    return Reader(page.read_text())


# --- what stands in it


def test_a_page_holds_what_was_measured(read: Reader) -> None:
    for words in (
        "0.960",
        "oom",
        "1,234",
        "Effective range",
        "Score against cost",
        "this project's reconstruction",
        "3 seeds",
        "What did not end well",
    ):
        assert words in read.text, words
    figures = read.all("svg")
    assert len(figures) >= 6 and all(
        figure["role"] == "img" and figure["aria-label"] for figure in figures
    )
    anchors = {attributes["id"] for attributes in read.all("section")}
    links = [attributes["href"] for attributes in read.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} == anchors and len(anchors) >= 10


def test_what_records_hold_is_text(read: Reader, page: Path) -> None:
    """No element, attribute or address of a record's making; its words are there to be read."""
    assert EVIL in read.text  # as text: a task's source, a message, a device
    assert (
        "and more" in read.text and "\u202e" not in read.text
    )  # which would turn what follows around
    assert not read.all("img")
    assert len(read.all("script")) == 1
    assert not [
        name for _, attributes in read.elements for name in attributes if name.startswith("on")
    ]
    web = {a["href"] for a in read.all("a") if a["href"].startswith("http")}
    assert web == {
        "https://evil.example/x.png",
        "https://example.org/a?b=1&c=2",
    }  # for a hand to click, no more


def test_a_page_needs_nothing_from_elsewhere(read: Reader, page: Path, made: Path) -> None:
    """What a browser fetches by itself is inside; the policy allows this script and this style
    alone.
    """
    fetched = [
        a.get("src") or a.get("href", "")
        for tag in ("link", "script", "image", "use", "iframe", "object")
        for a in read.all(tag)
    ]
    assert all(not address or address.startswith(("data:", "#")) for address in fetched)
    for path in (page, made / "index.html"):
        text = path.read_text()
        reader = Reader(text)
        policy = next(
            a["content"]
            for a in reader.all("meta")
            if a.get("http-equiv") == "Content-Security-Policy"
        )
        assert (
            policy.startswith("default-src 'none'; ")
            and "unsafe" not in policy
            and "http" not in policy
        )
        for tag in ("script", "style"):
            (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not [a for _, a in reader.elements if "style" in a]  # which it would forbid


def test_names_in_a_page_are_of_one_thing_each(read: Reader) -> None:
    names = Counter(attributes["id"] for _, attributes in read.elements if "id" in attributes)
    assert len(names) > 100 and max(names.values()) == 1
    uses = {
        a["href"][1:]
        for tag in ("use", "a")
        for a in read.all(tag)
        if a.get("href", "").startswith("#")
    }
    clips = set(re.findall(r"url\(#([^)]+)\)", str(read.elements)))
    assert uses | clips <= set(names) and clips


def test_data_are_inside(read: Reader, page: Path) -> None:
    """Each figure's numbers can be taken from the page alone, and are those of the file beside it."""
    found = {a["download"]: a["href"] for a in read.all("a") if "download" in a}
    beside = {path.name: path.read_bytes() for path in page.parent.glob("*.csv")}
    assert set(found) == set(beside) and len(found) >= 5
    for name, address in found.items():
        kind, content = address.split(",", 1)
        assert (
            kind == "data:text/csv;charset=utf-8;base64"
            and base64.b64decode(content) == beside[name]
        )
        assert len(beside[name]) < EMBEDDED


def test_the_page_of_all_pages(made: Path, tmp_path: Path) -> None:
    reader = Reader((made / "index.html").read_text())
    assert {"some-machine/suite/index.html"} == {a["href"] for a in reader.all("a")}
    for words in (EVIL, "2026-01-01", "transformer 0.96", "train peak"):
        assert words in reader.text, words
    assert not reader.all("img") and len(reader.all("script")) == 1
    other = tmp_path / "machine" / "strange" / "index.html"
    other.parent.mkdir(parents=True)
    other.write_text("<title>not ours</title>")
    assert read_card(other) is None
    assert "None yet" in Reader(write_index(tmp_path).read_text()).text


def test_the_same_records_give_the_same_bytes(made: Path, page: Path, tmp_path: Path) -> None:
    """From a process of its own, in which sets stand in another order."""
    code = f"import pathlib, tests.benchmarks.report.test_html as t; t.make(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "some-machine" / "suite" / "index.html").read_bytes() == page.read_bytes()
    assert (tmp_path / "index.html").read_bytes() == (made / "index.html").read_bytes()


def test_reports_come_with_an_index(cell: Cell, tmp_path: Path) -> None:
    write_record(tmp_path / "results", learn_record(cell))
    with mock.patch.object(style, "save", drawn):
        (found,) = make_reports(tmp_path / "results", tmp_path / "reports", [])
    assert (found.path.parent / "index.html").exists()
    assert "suite on Some Machine" in (tmp_path / "reports" / "index.html").read_text()


# --- its pieces


def test_prose_is_markdown_and_nothing_else() -> None:
    """Expected texts are those of CommonMark for these inputs."""
    assert prose("a *b* **c** `d*e*` < 2·T*3 and x*y*z") == (
        "<p>a <em>b</em> <strong>c</strong> <code>d*e*</code> &lt; 2·T*3 and x*y*z</p>"
    )
    assert (
        prose("- one\n- *two*\n\nthree")
        == "<ul><li>one\n</li><li><em>two</em></li></ul>\n<p>three</p>"
    )
    assert prose("[x](data.csv)") == '<p><a href="data.csv" rel="noopener noreferrer">x</a></p>'
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "JAVASCRIPT:x",
        '"onclick="x',
    ):
        assert "<a" not in prose(f"[x]({address})")
    assert prose("## `T` of <b>") == "<h2><code>T</code> of &lt;b&gt;</h2>"
    table = prose("| a | b |\n| --- | ---: |\n| x\\|y | <i> |")
    assert "<td>x|y</td><td>&lt;i&gt;</td>" in table and '<th scope="col">b</th>' in table


def test_a_drawing_keeps_its_looks_without_styles() -> None:
    source = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt" '
        'viewBox="0 0 72 36"><metadata>x</metadata><defs><style type="text/css">*{fill: red}</style>'
        '<clipPath id="p"><rect x="0" y="0" width="7.123456" height="1"/></clipPath></defs><g id="axes_1">'
        '<path id="m" d="M 1.234567 2 \nL 3 -4.999999 \nz" clip-path="url(#p)" style="fill: none; stroke: #0072b2"/>'
        '<use xlink:href="#m" style="fill: url(#p)"/></g></svg>'
    )
    drawn = inline_svg(source, "f1", 'what "it" shows')
    assert 'd="M1.23 2L3 -5z"' in drawn and 'stroke="#0072b2"' in drawn and 'width="7.12"' in drawn
    assert 'width="96" height="48"' in drawn and 'aria-label="what &quot;it&quot; shows"' in drawn
    names = re.findall(r' id="([^"]+)"', drawn)
    assert len(names) == 2 and all(name.startswith("f1-") for name in names)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', drawn)) == set(names)
    for absent in ("style", "metadata", "axes_1", "ns0", "xlink"):
        assert absent not in drawn


def test_numbers_stand_to_the_right() -> None:
    table = pd.DataFrame(
        {"n": ["1,234", "≥ 255", ""], "m": ["rwkv", "lstm", "x"], "s": ["4.2 MB", "oom", "1.0 KB"]}
    )
    assert columns(table.assign(t="a" * 41)) == [
        ("n", "number"),
        ("m", "name"),
        ("s", "number"),
        ("t", "words"),
    ]


# --- what it says


def test_the_headline_is_that_of_the_scores(cell: Cell) -> None:
    """Means of 95, 96, 97 and of 15, 16, 17 of a hundred; 4.303 * 0.01 / sqrt(3) = 0.025 to either
    side.
    """
    found = [
        learn_record(cell.model_copy(update={"model": model, "seed": seed}), right + seed)
        for model, right in (("rwkv", 15), ("lstm", 95))
        for seed in (0, 1, 2)
    ]
    (line,) = of_scores(found)
    assert line == (
        "**copy**, trained at 24, asked at 40: lstm 0.96 (0.94 to 0.98), rwkv 0.16; "
        "the sighted floor 0.12 (accuracy)."
    )
    (line,) = of_scores(found[:3])
    assert "None learned it, which would take 0.56" in line
    alike = [
        learn_record(cell.model_copy(update={"model": model}), 90) for model in ("rwkv", "lstm")
    ]
    assert of_scores(alike)[0].endswith("Not told apart: rwkv and lstm.")
    paired = [
        learn_record(
            cell.model_copy(update={"model": model, "seed": seed}),
            right + 10 * seed + seed % 2 * more,
        )
        for model, right, more in (("rwkv", 60, 0), ("lstm", 66, 1))
        for seed in (0, 1, 2)
    ]
    assert (
        "Not told apart" not in of_scores(paired)[0]
    )  # seeds differ by more than models, which differ in every one
    many = [learn_record(cell.model_copy(update={"model": f"m{i}"}), 99 - 9 * i) for i in range(7)]
    assert "m2 0.81, m3 0.72, 3 more down to 0.45;" in of_scores(many)[0]


def test_fewer_bits_are_the_better_ones(cell: Cell) -> None:
    bits = FACTS.model_copy(update={"score": "bits per byte", "baseline_score": 4.5})
    tests = {"rwkv": 2.25, "lstm": 3.5}
    found = []
    for model, value in tests.items():
        test = score(24, 10).model_copy(update={"score": value})
        found.append(trained(cell.model_copy(update={"model": model}), [test], bits))
    (line,) = of_scores(found)
    assert (
        line
        == "**copy**, trained at 24: rwkv 2.25, lstm 3.50; the sighted floor 4.50 (bits per byte)."
    )


def test_scores_stand_against_costs(cell: Cell) -> None:
    """At the longest length that all have, 1024: the Transformer ran out of memory at 2048."""
    found = [*records(cell), learn_record(cell.model_copy(update={"model": "lonely"}), 50)]
    points = points_of(frames.scores(found), costs_of(found))
    assert list(points["model"]) == ["transformer", "rwkv", "rrwkv", "mine"] and set(
        points["test_length"]
    ) == {40}
    assert set(points["cost_length"]) == {1024}
    row = points.set_index("model").loc["rwkv"]
    assert (
        row["score"] == pytest.approx(0.76) and row["state_bytes"] == 1250
    )  # of four sequences: 5000
    assert (
        row["training_tokens_per_second"] == pytest.approx(1e4)
        and row["training_peak_bytes"] == 1024 * 1000
    )


def test_gaps_are_what_others_have(cell: Cell) -> None:
    found = [
        learn_record(cell.model_copy(update={"model": model, "seed": seed}))
        for model, seeds in (("rwkv", (0, 1)), ("lstm", (0,)))
        for seed in seeds
    ]
    found.append(cost_record(as_cost(cell, {"model": "rwkv", "length": 64})))
    rows = missing_table(found).to_dict("records")
    assert [(row["model"], row["what"], row["there are"]) for row in rows] == [
        ("lstm", "learn", "1 of 2")
    ]


# --- in a browser


class Tab:
    """A page of a browser, with the errors and warnings of its console and its requests."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._note_request)

    def _note_message(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _note_request(self, request: "Request") -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)

    def value(self, expression: str) -> object:
        return self.page.evaluate(expression)


Show = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    module = pytest.importorskip("lookback.benchmarks.describe.browser", exc_type=ImportError)
    if module.browser_path() is None:
        pytest.skip("no Chromium here: `apt-get install chromium`")
    with module.chromium() as started:
        yield started


@pytest.fixture
def show(browser: "Browser") -> Iterator[Show]:
    """Open a file in a window of this width."""
    contexts = []

    def open_tab(path: Path, width: int = 1440, dark: bool = False, script: bool = True) -> Tab:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            is_mobile=width < 600,
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.goto(path.resolve().as_uri())
        return tab

    yield open_tab
    for context in contexts:
        context.close()


PAGES = ("some-machine/suite/index.html", "index.html")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", (390, 1440))
def test_nothing_overflows_complains_or_is_fetched(
    show: Show, made: Path, name: str, width: int
) -> None:
    tab = show(made / name, width)
    wide, window = tab.value("[document.documentElement.scrollWidth, window.innerWidth]")
    assert window == width and wide <= window
    assert tab.value("typeof window.stolen") == "undefined"
    assert tab.complaints == []
    assert tab.requests == [(made / name).resolve().as_uri()]


def test_the_policy_holds(show: Show, page: Path, tmp_path: Path) -> None:
    """Were something not escaped, the page still runs and fetches nothing: the browser says so."""
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("<main>", f"<main>{EVIL}"))
    tab = show(bad)
    assert tab.value("typeof window.stolen") == "undefined"
    assert len([line for line in tab.complaints if "Content Security Policy" in line]) >= 2


COLUMN = "[...document.querySelector('header table').tBodies[0].rows].map(row => row.cells[0].textContent)"
CLICK = (
    "document.querySelector('header table').tHead.rows[0].cells[{}].querySelector('button').click()"
)


def test_tables_sort(show: Show, page: Path) -> None:
    tab = show(page)
    before = tab.value(COLUMN)
    assert before == ["transformer", "rwkv", "rrwkv", "mine"]
    tab.value(CLICK.format(0))
    assert tab.value(COLUMN) == sorted(before)
    for expected in (
        ["mine", "rrwkv", "rwkv", "transformer"],
        before,
        before,
    ):  # by score: up, down, as it was
        tab.value(CLICK.format(2))
        assert tab.value(COLUMN) == expected
    assert tab.value("document.querySelectorAll('th[aria-sort]').length") == 0


def test_units_sort_by_size(show: Show, page: Path) -> None:
    """1.0 KB before 4.2 MB, with words behind all numbers and nothing behind words."""
    tab = show(page)
    cells = ["4.2 MB", "", "1,000 B", "oom", "≥ 12", "999.0 KB", "-3"]
    values = f"{json.dumps(cells)}.map(text => {{const cell = document.createElement('td'); cell.textContent = text; "
    order = (
        "return key(cell)}).sort((a, b) => a.rank - b.rank || compare(a, b)).map(one => one.text)"
    )
    assert tab.value(values + order) == [
        "-3",
        "≥ 12",
        "1,000 B",
        "999.0 KB",
        "4.2 MB",
        "oom",
        "",
    ]


CONTRAST = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((one) => {
    const share = one / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const light = (colour) => parts(colour).reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, h2 a, p, li, td, th, a, .quiet, .text")].map((one) => {
    const [high, low] = [light(getComputedStyle(one).color), paper].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  }).reduce((least, one) => Math.min(least, one));
})()"""


@pytest.mark.parametrize("dark", (False, True))
@pytest.mark.parametrize("name", PAGES)
def test_words_are_readable_in_light_and_in_dark(
    show: Show, made: Path, name: str, dark: bool
) -> None:
    """Contrast of all text with the page, as WCAG 2 defines it: 4.5 and more; and the paper is what
    was asked for.
    """
    tab = show(made / name, 390, dark=dark)
    assert tab.value(CONTRAST) >= 4.5
    paper = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 60) == dark


def test_figures_are_dark_in_dark(show: Show, page: Path) -> None:
    """The corner of a figure, taken from the picture that the browser makes, is about as dark as
    the paper.
    """
    from io import BytesIO

    from PIL import Image

    for dark in (False, True):
        tab = show(page, 1440, dark=dark)
        place = "(() => {const box = document.querySelector('.figure svg'); box.scrollIntoView({behavior: 'instant'});"
        left, top = tab.value(
            place + "const at = box.getBoundingClientRect(); return [at.left, at.top]})()"
        )
        pixel = (
            Image.open(BytesIO(tab.page.screenshot()))
            .convert("L")
            .getpixel((int(left) + 3, int(top) + 3))
        )
        assert (pixel < 60) == dark


def test_it_reads_without_its_script(show: Show, page: Path) -> None:
    tab = show(page, 390, script=False)
    assert tab.value("document.querySelector('header th').textContent") == "model"
    assert tab.value("document.querySelectorAll('th button').length") == 0
