"""A figure's SVG as part of an HTML page: names of its own, no style sheet, nothing that a policy has to allow."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

REFERENCE = re.compile(r"(?:(?<=href=\"#)|(?<=url\(#))[^\")]+")
LONG = re.compile(r"-?\d+\.\d{3,}")
COORDINATES = ("d", "x", "y", "width", "height", "points")
NATURAL = 640  # pixels: what is wider is never shrunk below what can be read, but scrolls


def inline_svg(source: str, prefix: str, label: str) -> Markup:
    """The drawing with `label` for whom it cannot be seen by; ids begin with `prefix`, which no other one may have.

    Styles become attributes, so that a page may forbid styles beside its own sheet; coordinates are of a hundredth of a
    point, and names that nothing refers to are left out: half the bytes.
    """
    names = {name: f"{prefix}-{i}" for i, name in enumerate(dict.fromkeys(REFERENCE.findall(source)))}
    root = ElementTree.fromstring(source)
    _without(root, "metadata")
    _without(root, "style")
    for element in root.iter():
        element.tag = _bare(element.tag)
        element.text = element.tail = None  # matplotlib writes text as paths
        _rewrite(element, names)
    width, height = (float(root.attrib.pop(side).removesuffix("pt")) * 4 / 3 for side in ("width", "height"))
    view = {"viewBox": root.attrib["viewBox"], "width": f"{width:.0f}", "height": f"{height:.0f}"}
    root.attrib.clear()
    root.attrib |= {
        **view, "role": "img", "aria-label": label, "class": "wide" if width > NATURAL else "narrow",
        "stroke-linejoin": "round", "stroke-linecap": "butt",
    }  # fmt: skip
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _bare(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _without(root: ElementTree.Element, tag: str) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if _bare(child.tag) == tag]:
            parent.remove(child)


def _rewrite(element: ElementTree.Element, names: dict[str, str]) -> None:
    given = {_bare(name): value for name, value in element.attrib.items()}
    for declaration in filter(None, (part.strip() for part in given.pop("style", "").split(";"))):
        name, value = declaration.split(":", 1)
        given[name.strip()] = value.strip()
    if "id" in given and given["id"] not in names:
        del given["id"]
    element.attrib.clear()
    for name, value in given.items():
        if name == "id":
            value = names[value]
        elif name == "href" and value.startswith("#"):
            value = f"#{names[value[1:]]}"
        elif value.startswith("url(#"):
            value = f"url(#{names[value[5:-1]]})"
        elif name in COORDINATES:
            value = _shorter(value)
        element.set(name, value)


def _shorter(value: str) -> str:
    rounded = LONG.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))
    return re.sub(r" ?([MLHVCSQTAZz]) ?", r"\1", rounded)
