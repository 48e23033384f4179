"""What a section of the page is, and how its template is filled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from polytask.reporting.words import duration, memory, plural

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        anchor: Its name in links.
        title: Its heading.
        html: What stands below the heading.
        entries: Anchors and titles of its parts, for the table of contents.
    """

    anchor: str
    title: str
    html: Markup
    entries: tuple[tuple[str, str], ...] = ()


def fill(template: str, **values: Any) -> Markup:
    """A template with its values; every value that is not already markup is escaped.

    Args:
        template: File name below ``templates``.
        values: What the template asks for; one that it asks for in vain is an error.
    """
    return Markup(_environment().get_template(template).render(**values))


def task_anchor(index: int) -> str:
    """The anchor of a task's part; made of its place, since a name may hold any letter."""
    return f"task-{index + 1}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("polytask.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration,
        memory=memory,
    )
    environment.globals.update(plural=plural)
    return environment
