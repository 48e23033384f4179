"""Named things: looking them up, checking their options, building them.

What is built in is in ``catalogue.py``. Packages outside polytask add to a group through the entry points
``polytask.<group>``; a clash of names is an error.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import Any, TypeVar

from polytask.catalogue import GROUPS, Entry
from polytask.errors import MissingExtraError, RecipeError, suggestion, unknown

T = TypeVar("T")


@functools.cache
def entries(group: str) -> dict[str, Entry]:
    """All entries of a group: the built-in ones and those of installed packages.

    Raises:
        RecipeError: if the group is unknown, or a package claims a key that is taken.
    """
    if group not in GROUPS:
        raise RecipeError(unknown("group", group, GROUPS))
    found = dict(GROUPS[group])
    for point in metadata.entry_points(group=f"polytask.{group}"):
        if point.name in found:
            raise RecipeError(
                f"The name '{point.name}' in group '{group}' is claimed by '{point.value}' but belongs to "
                f"'{found[point.name].path}'. Rename the entry point."
            )
        found[point.name] = Entry(point.value, "From an installed package.")
    return found


def resolve(path: str) -> Any:
    """The object at ``pkg.mod:name`` (``pkg.mod.name`` works as well).

    Raises:
        RecipeError: if there is no such module or name.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon:
        module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except MissingExtraError:
        raise
    except (ImportError, ValueError) as error:
        raise RecipeError(f"Cannot import '{path}': {error}. Use 'package.module:Name'.") from error
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise RecipeError(f"'{module_name}' has no '{attribute}'.{suggestion(attribute, dir(module))}") from None


def get(group: str, name: str) -> Any:
    """The object that ``name`` names in ``group``; a name with a colon is an import path.

    Example:
        >>> get("tasks", "binary").__name__
        'binary'
    """
    if ":" in name:
        return resolve(name)
    known = entries(group)
    if name not in known:
        singular = f"{group[:-3]}y" if group.endswith("ies") else group.removesuffix("s")
        raise RecipeError(unknown(singular, name, known))
    return resolve(known[name].path)


def options_of(factory: Any) -> dict[str, inspect.Parameter]:
    """The options that a factory takes, from its signature."""
    parameters = inspect.signature(factory).parameters
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def check_options(label: str, factory: Any, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise a RecipeError for an option that ``factory`` does not take, or one that it lacks."""
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values()):
        return
    known = options_of(factory)
    open_to_users = [name for name in known if name not in given]
    for name in options:
        if name not in open_to_users:
            raise RecipeError(f"{label}: {unknown('option', name, open_to_users)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options and name not in given:
            raise RecipeError(f"{label}: option '{name}' is required.")


def build(group: str, name: str, options: Mapping[str, Any] | None = None, /, **given: Any) -> Any:
    """Call what ``name`` names with a user's ``options`` and what the program itself has ``given``.

    A trailing underscore in a parameter's name (``lambda_``) is left out in recipes (``lambda``).

    Raises:
        RecipeError: for an unknown name, an unknown option or a missing one.
    """
    factory = get(group, name)
    known = options_of(factory)
    spelled = {f"{key}_" if f"{key}_" in known else key: value for key, value in (options or {}).items()}
    check_options(f"'{name}'", factory, spelled, given)
    return factory(**spelled, **{key: value for key, value in given.items() if key in known})


def mark(thing: T, name: str, options: Mapping[str, Any]) -> T:
    """Note on an object how it was made, so that a bundle can make it again; returns the object."""
    object.__setattr__(thing, "_polytask_mark", {"name": name, "options": dict(options)})
    return thing


def mark_of(thing: Any) -> dict[str, Any] | None:
    """How an object was made: its key or import path, and plain options; None if nobody noted it."""
    noted: dict[str, Any] | None = getattr(thing, "_polytask_mark", None)
    return noted
