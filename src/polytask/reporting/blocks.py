"""What most sections are made of: paragraphs, lists, facts, tables and drawings, without a template of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from polytask.reporting.section import Section, fill
from polytask.reporting.tables import Table


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    template = "heading"


@dataclass(frozen=True)
class Paragraph:
    """Text; a hint is small and quiet.

    Args:
        text: What it says.
        hint: Whether it explains what stands above it.
    """

    text: str
    hint: bool = False
    template = "paragraph"


@dataclass(frozen=True)
class Sentences:
    """A list of sentences.

    Args:
        lines: The sentences.
        notice: Heading of a box around them, or empty for no box.
    """

    lines: Sequence[str]
    notice: str = ""
    template = "sentences"


@dataclass(frozen=True)
class Facts:
    """Numbers, each with what it counts: ``(("3", "seeds"),)``."""

    items: Sequence[tuple[str, str]]
    template = "facts"


@dataclass(frozen=True)
class Figures:
    """Drawings side by side, or one that is as wide as the page.

    Args:
        drawn: SVG as ``polytask.reporting.plots.svg`` gives it.
        caption: What they show.
        wide: Whether each has the page's width.
    """

    drawn: Sequence[Markup]
    caption: str = ""
    wide: bool = False
    template = "figures"


@dataclass(frozen=True)
class Code:
    """Text as it stands, such as a command or a recipe."""

    text: str
    template = "code"


Block = Heading | Paragraph | Sentences | Facts | Figures | Code | Table


def section(anchor: str, title: str, *blocks: Block | None) -> Section:
    """A section of the page.

    Args:
        anchor: Its name in links.
        title: Its heading.
        *blocks: What stands below the heading, in order; None is left out.

    Example:
        >>> "<dd>3</dd>" in section("seeds", "Seeds", Facts([("3", "seeds")])).html
        True
    """
    drawn = [fill("blocks.html.j2", kind=_template(block), block=block) for block in blocks if block is not None]
    return Section(anchor, title, Markup("").join(drawn))


def _template(block: Any) -> str:
    return str(getattr(block, "template", "table"))
