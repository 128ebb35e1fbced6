"""The content of a page, before it is HTML: a head, findings, and sections of texts, charts, tables and one gallery.

All fields are plain text, which the templates escape; only `Chart.svg` is markup, made by `svg.to_svg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Finding:
    """One finding, and what to do about it."""

    text: str
    advice: str = ""
    command: str = ""
    """The command to run, if any."""
    warning: bool = True


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot with its caption."""

    kind: ClassVar[str] = "chart"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column holds the names of the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: Sequence[Sequence[int]] = ()
    """Shade of each cell after the first of a row, 0 … 9."""
    total: bool = False
    """Whether the last row is a sum."""
    folded: bool = False
    """Whether it is collapsed at first."""
    texts: int = 1
    """How many of the first columns are text, aligned left."""


@dataclass(frozen=True)
class Thumbnail:
    """An image inside the page."""

    uri: str
    caption: str
    width: int
    height: int
    marked: bool = False


@dataclass(frozen=True)
class Level:
    """The rollouts of a sample at one mask ratio."""

    ratio: float
    right: int
    asked: int
    low: float = 0.0
    high: float = 1.0
    """95 % interval of the share of right ones; meaningful if there are any rollouts."""


@dataclass(frozen=True)
class CompletionGroup:
    """Equal completions at one mask ratio, with the same grade and finish state."""

    ratio: float
    text: str
    right: bool
    times: int
    finish: str = ""
    """How they ended, if not by themselves."""


@dataclass(frozen=True)
class Item:
    """One sample of the gallery."""

    id: str
    stratum: str
    """As shown; `tone` sets its colour."""
    tone: str
    ability: str
    source: str
    threshold: str
    facts: Sequence[tuple[str, str]]
    """Further facts: name and value."""
    order: dict[str, float | None]
    """Sort keys."""
    question: str
    solution: str
    images: Sequence[Thumbnail]
    masked: Sequence[Thumbnail]
    levels: Sequence[Level]
    curve: bool
    """Whether every level is full, so that there is a curve."""
    completions: Sequence[CompletionGroup]
    more: int
    """Completions that are not shown."""


@dataclass(frozen=True)
class Gallery:
    """Samples to look at, filter and sort."""

    kind: ClassVar[str] = "gallery"
    note: str
    items: Sequence[Item]
    orders: Sequence[tuple[str, str]]
    """Keys of `Item.order`, and their names."""
    tau: float

    def values(self, name: str) -> list[str]:
        """Return the distinct values of an attribute to filter by, in order."""
        values = dict.fromkeys(getattr(item, name) for item in self.items)
        return [*values] if name == "stratum" else sorted(filter(None, values))


@dataclass(frozen=True)
class Moved:
    """A list of rows that can be filtered and sorted: samples that changed their stratum."""

    kind: ClassVar[str] = "moved"
    note: str
    rows: Sequence[dict[str, str]]


Part = Text | Chart | Table | Gallery | Moved


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    anchor: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Share:
    """One segment of the bar at the top."""

    name: str
    tone: str
    count: int
    percent: float
    start: float
    """Per cent to the left of it."""


@dataclass(frozen=True)
class Page:
    """A whole page."""

    kind: str
    title: str
    facts: Sequence[tuple[str, str]]
    lead: Sequence[str]
    sections: Sequence[Section]
    findings: Sequence[Finding] = ()
    shares: Sequence[Share] = ()
    fine: str = "✓ No failure signature was found."
    """Text if there are no findings."""


def shares_of(counts: Sequence[tuple[str, str, int]]) -> list[Share]:
    """Return the segments of the bar at the top.

    Args:
        counts: (name, tone, number); zeros are left out.
    """
    total = sum(count for *_, count in counts)
    shares: list[Share] = []
    for name, tone, count in counts:
        if count:
            start = shares[-1].start + shares[-1].percent if shares else 0.0
            shares.append(Share(name, tone, count, 100 * count / total, start))
    return shares
