"""YAML and plain dicts -> a validated Recipe, and back."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from polytask.errors import RecipeError, suggestion, unknown
from polytask.recipes.schema import Recipe

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


@functools.cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: A YAML file, a plain mapping, or a Recipe.
        overrides: Such as ``training.epochs=3``; the value is read as YAML.

    Raises:
        RecipeError: if the file is missing or does not parse, or for an unknown key or wrong value; the
            message names the key by its path.

    Example:
        >>> recipe = load_recipe({"data": {"table": "a.csv"}, "tasks": {"income": {"type": "binary"}}},
        ...                      ["training.epochs=3"])
        >>> recipe.training.epochs
        3
    """
    plain = _plain(source)
    for override in overrides:
        _override(plain, override)
    try:
        return _adapter().validate_python(plain)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(problem, plain) for problem in _relevant(error))) from None


def with_values(plain: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe with the values of some keys changed; it is not validated.

    Example:
        >>> with_values({"balancer": "equal"}, {"balancer.name": "cagrad", "balancer.c": 0.4})
        {'balancer': {'name': 'cagrad', 'c': 0.4}}
    """
    changed = _plain(plain)
    for key, value in values.items():
        _set(changed, key, value, key)
    return changed


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, every default filled in."""
    plain: dict[str, Any] = _adapter().dump_python(recipe, mode="json")
    return plain


def write_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as YAML, in the order of its keys."""
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True, width=100)


def _plain(source: str | Path | Mapping[str, Any] | Recipe) -> dict[str, Any]:
    if isinstance(source, Recipe):
        return dump_recipe(source)
    if isinstance(source, Mapping):
        return {key: _copied(value) for key, value in source.items()}
    path = Path(source)
    if not path.exists():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.exists() else ""
        raise RecipeError(f"There is no recipe at '{path}'.{near}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"'{path}' is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise RecipeError(f"'{path}' holds {type(loaded).__name__}, not a mapping with data and tasks.")
    return loaded


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _override(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: write KEY=VALUE, such as training.epochs=3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from None
    _set(plain, key.strip(), value, f"--set {override}")


def _set(plain: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    place = plain
    for parent in parents:
        below = place.get(parent)
        # `balancer: equal` and {name: equal} say the same; an option needs the second form.
        place[parent] = {"name": below} if isinstance(below, str) else below or {}
        place = place[parent]
        if not isinstance(place, dict):
            raise RecipeError(f"{where}: '{parent}' is {place!r}, which has no keys below it.")
    place[last] = value


def _relevant(error: ValidationError) -> list[Any]:
    """Problems worth showing: where a value could be of several forms, those of the form that was tried."""
    problems = error.errors()
    deepest: dict[tuple[Any, ...], list[Any]] = {}
    for problem in problems:
        deepest.setdefault(_path(problem)[:2], []).append(problem)
    shown = []
    for group in deepest.values():
        # "Not a string" beside a problem inside of the mapping only says that there were two forms.
        inside = [p for p in group if p["type"] in UNKNOWN_KEY] or [p for p in group if p["type"] != "string_type"]
        shown += (inside or group)[:3]
    return shown


def _path(problem: Mapping[str, Any]) -> tuple[Any, ...]:
    """The keys of a problem's place, without the marks that a choice between forms leaves."""
    words, beginnings = (
        ("str", "int", "float", "bool", "none"),
        ("mapping[", "function-", "tuple[", "dict[", "constrained"),
    )
    path = [
        part
        for part in problem["loc"]
        if str(part) in _FIELDS or (str(part).lower() not in words and not str(part).lower().startswith(beginnings))
    ]
    return tuple(part for part in path if str(part) not in _CLASSES)


def _explain(problem: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    path = _path(problem)
    where = ".".join(str(part) for part in path)
    if problem["type"] in UNKNOWN_KEY:
        known = _fields_at(path[:-1])
        inside = ".".join(str(part) for part in path[:-1]) or "the recipe"
        return f"In {inside}: {unknown('key', str(path[-1]), known)}"
    if problem["type"] == "missing":
        return f"'{where}' is required and not given."
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return str(cause)
    return f"{where} is {problem.get('input')!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def _dataclasses_in(kind: Any) -> list[type]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return [kind]
    return [found for inner in typing.get_args(kind) for found in _dataclasses_in(inner)]


def _fields_at(path: Sequence[Any]) -> list[str]:
    """The keys that a recipe takes at ``path``."""
    current: type = Recipe
    for part in path:
        hints = typing.get_type_hints(current)
        if part not in hints:
            continue
        inner = _dataclasses_in(hints[part])
        if inner:
            current = inner[0]
    return [item.name for item in dataclasses.fields(current)]


def _all_dataclasses(start: type, seen: dict[str, type]) -> dict[str, type]:
    if start.__name__ not in seen:
        seen[start.__name__] = start
        for hint in typing.get_type_hints(start).values():
            for inner in _dataclasses_in(hint):
                _all_dataclasses(inner, seen)
    return seen


_CLASSES = _all_dataclasses(Recipe, {})
_FIELDS = {item.name for kind in _CLASSES.values() for item in dataclasses.fields(kind)}
