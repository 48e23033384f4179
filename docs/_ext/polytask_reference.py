"""Pages that are written from the source: the recipe reference and the lists of named things."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.util.nodes import nested_parse_with_titles


def arguments(cls: type) -> dict[str, str]:
    """The Args section of a docstring, by name."""
    text = inspect.getdoc(cls) or ""
    _, _, rest = text.partition("Args:\n")
    section = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def default_of(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"``{field.default!r}``" if field.default is not None else "none"
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return f"``{value!r}``" if not dataclasses.is_dataclass(value) and value else "see below" if value else "empty"
    return "**required**"


class RecipeReference(Directive):
    """The keys of a recipe, from the dataclasses that validate it."""

    def run(self) -> list[nodes.Node]:
        from polytask.recipes import load

        lines: list[str] = []
        for name, cls in load._CLASSES.items():
            texts = arguments(cls)
            lines += ["", f".. rubric:: {name}", "", (inspect.getdoc(cls) or "").splitlines()[0], ""]
            lines += [".. list-table::", "   :header-rows: 1", "   :widths: 18 17 65", ""]
            lines += ["   * - key", "     - default", "     - meaning"]
            for field in dataclasses.fields(cls):
                if typing.get_origin(typing.get_type_hints(cls)[field.name]) is typing.ClassVar:
                    continue
                lines += [f"   * - ``{field.name}``", f"     - {default_of(field)}", f"     - {texts[field.name]}"]
        return parsed(self, lines)


class RegistryTable(Directive):
    """The named things of one group, from the registry."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from polytask import catalogue

        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 80", "", "   * - name", "     - what it is"]
        for name, entry in catalogue.GROUPS[self.arguments[0]].items():
            lines += [f"   * - ``{name}``", f"     - {entry.help}"]
        return parsed(self, lines)


def parsed(directive: Directive, lines: list[str]) -> list[nodes.Node]:
    node = nodes.section()
    node.document = directive.state.document
    nested_parse_with_titles(directive.state, StringList(lines, source="generated"), node)
    return node.children


def setup(app):
    app.add_directive("recipe-reference", RecipeReference)
    app.add_directive("registry-table", RegistryTable)
    return {"version": "1", "parallel_read_safe": True}
