"""The frame of a page: heading, contents and sections, whatever the sections tell of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polytask.files import replacing
from polytask.reporting.section import Section, fill


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page.

    Args:
        title: Its heading.
        kind: What stands above the heading, such as "polytask report".
        sections: Its parts; ``polytask.reporting.blocks.section`` makes one of paragraphs, tables and drawings.
        lead: One line below the heading, or empty.
        footer: One line at the end.
    """

    title: str
    kind: str
    sections: tuple[Section, ...]
    lead: str = ""
    footer: str = ""


def render_page(page: Page) -> str:
    """The page as HTML. It loads nothing: style and drawings are inside it. It has no script.

    Args:
        page: What to draw.

    Example:
        >>> from polytask.reporting.blocks import Paragraph, section
        >>> html = render_page(Page("Tasks", "polytask report", (section("a", "First", Paragraph("Two < three.")),)))
        >>> "<h2>First</h2>" in html, "Two &lt; three." in html
        (True, True)
    """
    return str(fill("page.html.j2", page=page))


def write_page(page: Page, path: Path | str) -> Path:
    """Write a page, whole or not at all.

    Args:
        page: What to draw.
        path: Where the HTML file goes; folders are made.

    Returns:
        The path.
    """
    path = Path(path)
    with replacing(path) as unfinished:
        unfinished.write_text(render_page(page), encoding="utf-8")
    return path
