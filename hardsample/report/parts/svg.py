"""matplotlib figures as inline SVG: with the colours of the page, text as text, and small.

The page's Content-Security-Policy would block `style` attributes, so none are left; nothing refers outside.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from hardsample.report.parts.charts import PALETTE
from hardsample.report.parts.figures import STRATUM_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "#000000": "var(--axis)",
    "#ffffff": "var(--card)",
    "#b0b0b0": "var(--line)",  # matplotlib's grid
    "#374151": "var(--bar)",
    "#9ca3af": "var(--muted)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(PALETTE, 1)},
    "#1f4e79": "var(--accent)",
    **{colour: f"var(--{stratum})" for stratum, colour in STRATUM_COLOURS.items()},
}
"""Colours of the figures → variables of page.css, which have a light and a dark value."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERRING = (_LINK, "clip-path")
_DROPPED = {"font-family", "style", "id", "version"}
_DEFAULTS = {("stroke-linejoin", "round"), ("fill-opacity", "1"), ("stroke-opacity", "1"), ("opacity", "1")}


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Convert a figure to SVG for the page.

    Args:
        figure: any of `hardsample.report.parts.figures` or `hardsample.report.parts.charts`.
        name: unique on the page, letters and digits; prefix of the ids inside the figure.
        label: description for screen readers.

    Returns:
        An `<svg>` element.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hardsample"}):
        figure.savefig(file, format="svg", transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    for child in list(root):
        if child.tag == f"{{{_SVG}}}metadata" or child.find(f"{{{_SVG}}}style") is not None:
            root.remove(child)
    del root.attrib["width"], root.attrib["height"]
    used = {_target(element.attrib[key]) for element in root.iter() for key in _REFERRING if key in element.attrib}
    for element in root.iter():
        _restyle(element, name, used)
    _flatten(root)
    root.attrib |= {
        "class": "chart",
        "role": "img",
        "aria-label": label,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _restyle(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Replace styles by attributes, colours by variables, and ids by unique ones; shorten numbers."""
    tag = element.tag.removeprefix(f"{{{_SVG}}}")
    element.tag = tag
    old = dict(element.attrib)
    for part in old.get("style", "").split(";"):
        key, _, value = part.partition(":")
        if value:
            old[key.strip()] = value.strip()
    element.attrib.clear()
    for key, value in old.items():
        if key == "id" and value in used:
            element.set("id", f"{name}-{value}")
        elif key == _LINK:
            element.set("href", f"#{name}-{_target(value)}")
        elif key == "clip-path":
            element.set(key, f"url(#{name}-{_target(value)})")
        elif key not in _DROPPED and (key, value) not in _DEFAULTS and "rotate(-0 " not in value:
            element.set(key, COLOURS.get(value, value) if tag != "text" or key != "fill" else _ink(value))
    if tag == "svg":
        element.set("xmlns", _SVG)
    if tag == "text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")
    for key in ("d", "x", "y", "width", "height", "transform", "points"):
        if key in element.attrib:
            short = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), element.attrib[key])
            element.set(key, re.sub(r"\s*([A-Za-z])\s+(?=[-\d])", r"\1", short).strip() if key == "d" else short)
    if tag != "text" and element.text and not element.text.strip():
        element.text = None
    element.tail = None


def _ink(value: str) -> str:
    """Return the colour of text: black becomes the text colour of the page."""
    return "currentColor" if value == "#000000" else COLOURS.get(value, value)


def _target(value: str) -> str:
    """Return the id that an attribute refers to."""
    return value.removeprefix("url(").removesuffix(")").removeprefix("#")


def _flatten(element: ElementTree.Element) -> None:
    """Replace groups without attributes by their children."""
    for index, child in reversed(list(enumerate(element))):
        _flatten(child)
        if child.tag in ("g", "defs") and not child.attrib and (child.tag == "g" or not len(child)):
            element.remove(child)
            for offset, grandchild in enumerate(child):
                element.insert(index + offset, grandchild)


__all__ = ["COLOURS", "to_svg"]
