"""The little Markdown that reports are written in, as HTML; whatever else it holds is shown as the text it is."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

ADDRESS = re.compile(r"(?:https?://[^\s\"'<>]+|[\w-][\w./-]*(?:#[\w-]+)?)")
STEPS = (
    (re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])"), r"<em>\1</em>"),
)


def prose(text: str) -> Markup:
    """Paragraphs, headings, lists and tables, apart by an empty line."""
    blocks = re.split(r"\n[ \t]*\n", text.strip("\n"))
    return Markup("\n").join(_block(block.strip("\n")) for block in blocks if block.strip())


def _block(block: str) -> Markup:
    lines = block.split("\n")
    if lines[0].startswith("- "):
        items = [inline(item) for item in re.split(r"^- ", block, flags=re.M)[1:]]
        return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(item) for item in items))
    if lines[0].startswith("|") and len(lines) > 2:
        return _table(lines)
    heading = re.match(r"#{1,3} (.+)", block)
    if heading:
        return Markup("<h2>{}</h2>").format(inline(heading[1]))
    return Markup("<p>{}</p>").format(inline(block))


def _table(lines: list[str]) -> Markup:
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    head, body = rows[0], rows[2:]
    return TABLE.format(
        head=Markup("").join(Markup('<th scope="col">{}</th>').format(inline(cell)) for cell in head),
        body=Markup("").join(
            Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(inline(cell)) for cell in row))
            for row in body
        ),
    )


TABLE = Markup(
    '<div class="box" tabindex="0" role="region" aria-label="table"><table><thead><tr>{head}</tr></thead>'
    "<tbody>{body}</tbody></table></div>"
)


def inline(text: str) -> Markup:
    """Code, strong, emphasis and links of one paragraph."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else _links(part) for i, part in enumerate(parts)
    )


def _links(text: str) -> Markup:
    """Links to places on the web or beside the page; of any other address only the words remain."""
    parts = re.split(r"!?\[([^\]]*)\]\(([^)\s]*)\)", text)
    found = [_stressed(parts[0])]
    for words, address, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        shown = _stressed(words)
        found += [link(address, shown) if ADDRESS.fullmatch(address) else shown, _stressed(after)]
    return Markup("").join(found)


def link(address: str, words: str) -> Markup:
    """A link that tells the other side nothing of where it came from."""
    return Markup('<a href="{}" rel="noopener noreferrer">{}</a>').format(address, words)


def _stressed(text: str) -> Markup:
    written = str(escape(text))
    for pattern, by in STEPS:
        written = pattern.sub(by, written)
    return Markup(written)  # escaped above, and the patterns add tags alone
