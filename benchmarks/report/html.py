"""Pages that open offline and mail as one file: figures and data inside, nothing asked from anywhere.

A page is `index.html` beside its README.md, made of the same parts. What comes from records is text and nothing else:
the templates escape it, and a policy in the page forbids every script and style but its own, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lookback.benchmarks.report.drawing import inline_svg
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.prose import inline, link, prose
from lookback.benchmarks.storage import write_atomically

FOLDER = Path(__file__).parent / "templates"
TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    keep_trailing_newline=True,
)  # fmt: skip
EMBEDDED = 500_000  # bytes: a figure's data that are more are linked beside the page, not put into it
CARD = re.compile(r'<meta name="lookback" content="([^"]*)">')
NUMBER = re.compile(r"(?:[≥×<>~] ?)?[-+−]?[\d,]*\.?\d")
WEB = re.compile(r"(https?://[^\s\"'<>()]+)")
SENTENCES = 6  # of a page's headline that the page of all pages tells


@dataclass(frozen=True)
class Document:
    """What a page is made of besides its parts; texts are Markdown."""

    title: str
    measured: str = ""  # when and on what, as people read it
    headline: Sequence[str] = ()  # sentences
    text: str = ""
    summary: pd.DataFrame = field(default_factory=pd.DataFrame)


def write(document: Document, parts: Sequence[Part], folder: Path) -> Path:
    """Write `index.html` into `folder`, in which the parts' own files have been written, and return its path."""
    sections = [_section(part, number, folder) for number, part in enumerate(parts, 1)]
    card = {
        "title": document.title, "measured": document.measured,
        "headline": list(document.headline[:SENTENCES]), "more": len(document.headline) > SENTENCES,
        "columns": [str(column) for column in document.summary.columns],
        "rows": [[str(value) for value in row] for row in document.summary.itertuples(index=False)],
    }  # fmt: skip
    page = _render("page.html", document=document, sections=sections, card=json.dumps(card, ensure_ascii=False))
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def write_index(reports: Path) -> Path:
    """Write reports/index.html: every page that stands below `reports`, by machine, as it describes itself."""
    machines: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(reports.glob("*/*/index.html")):
        card = read_card(path)
        if card is not None:
            place = path.relative_to(reports)
            machines.setdefault(place.parts[0], []).append({**card, "address": place.as_posix()})
    write_atomically(reports / "index.html", _render("index.html", machines=machines))
    return reports / "index.html"


def read_card(path: Path) -> dict[str, Any] | None:
    """What a page says of itself; None where it is not one of ours."""
    found = CARD.search(path.read_text(encoding="utf-8"))
    return dict(json.loads(html.unescape(found[1]))) if found else None


def _render(template: str, **values: Any) -> str:
    style, script = (Markup((FOLDER / f"report.{ending}").read_text(encoding="utf-8")) for ending in ("css", "js"))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return TEMPLATES.get_template(template).render(style=style, script=script, policy=policy, **values)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- a part


@dataclass(frozen=True)
class Data:
    """The numbers behind a figure: inside the page where they are not too many."""

    name: str
    address: str
    kilobytes: str
    inside: bool


@dataclass(frozen=True)
class Section:
    """A part of a page as its template takes it."""

    part: Part
    anchor: str
    drawing: Markup | None
    data: Data | None


def _section(part: Part, number: int, folder: Path) -> Section:
    words = re.sub(r"[^a-z0-9]+", "-", part.title.lower()).strip("-")
    drawing = None
    if part.figure is not None:
        source = (folder / f"{part.name}.svg").read_text(encoding="utf-8")
        drawing = inline_svg(source, f"f{number}", part.alternative)
    return Section(part, f"{number}-{words}", drawing, _data(folder / f"{part.name}.csv") if part.has_data else None)


def _data(path: Path) -> Data:
    content = path.read_bytes()
    inside = len(content) <= EMBEDDED
    packed = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"
    return Data(path.name, packed if inside else path.name, f"{len(content) / 1e3:,.0f}", inside)


# --- filters of the templates


def columns(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Each column's name, and how its cells stand: numbers to the right, texts to the left and over several lines."""
    return [(str(name), _kind([str(value) for value in table.iloc[:, i]])) for i, name in enumerate(table.columns)]


def _kind(cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell]
    if filled and 2 * sum(bool(NUMBER.match(cell)) for cell in filled) > len(filled):
        return "number"
    return "words" if max(map(len, filled), default=0) > 40 else "name"


def cell(value: object) -> Markup:
    """Text on one line, in which addresses on the web are links; letters that only steer a screen are spaces."""
    parts = WEB.split("".join(letter if letter.isprintable() else " " for letter in str(value)))
    return Markup("").join(link(part, part) if i % 2 else Markup.escape(part) for i, part in enumerate(parts))


def frame(card: dict[str, Any]) -> pd.DataFrame:
    """A table of a card, as a frame."""
    return pd.DataFrame(card["rows"], columns=card["columns"])


TEMPLATES.filters.update({"prose": prose, "inline": inline, "columns": columns, "cell": cell, "frame": frame})
