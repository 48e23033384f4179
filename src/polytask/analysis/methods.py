"""What a comparison compares: methods, their names, and how each changes the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from polytask import registry
from polytask.analysis import spaces
from polytask.analysis.space import Choice, Range
from polytask.errors import RecipeError, listed, suggestion, unknown
from polytask.recipes.schema import Recipe, named

Path = tuple[str, ...]
Given = str | Mapping[str, Any]

SEPARATE = "separate"
TUNED_STATIC = "tuned_static"
TREES = "trees"
BASELINES = (SEPARATE, TUNED_STATIC, TREES)


@dataclass(frozen=True)
class Method:
    """One way to train the recipe's tasks.

    Args:
        name: What tables call it.
        kind: ``"network"`` or ``"trees"``.
        sharing: Of a network, with its options: ``{"name": "mmoe", "experts": 4}``.
        balancer: Of a network, with its options.
    """

    name: str
    kind: str = "network"
    sharing: Mapping[str, Any] = field(default_factory=dict)
    balancer: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"name": self.name, "kind": self.kind, "sharing": dict(self.sharing), "balancer": dict(self.balancer)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Method:
        """What ``to_dict`` wrote."""
        return cls(plain["name"], plain["kind"], plain["sharing"], plain["balancer"])

    @property
    def is_baseline(self) -> bool:
        """Whether it is one of the baselines rather than a method that was asked for."""
        return self.name in BASELINES


def parse_names(text: str, where: str) -> list[dict[str, Any]]:
    """Read a list of names, each with options in brackets where it has some.

    Args:
        text: Such as ``equal, cagrad(c=0.4), mgda(normalize=l2, at=features)``; values are read as YAML.
        where: What errors call it.

    Raises:
        RecipeError: for text that is no such list.

    Example:
        >>> parse_names("equal,cagrad(c=0.2, at=features)", "--balancers")
        [{'name': 'equal'}, {'name': 'cagrad', 'c': 0.2, 'at': 'features'}]
    """
    found = []
    for part in _split(text, where):
        match = re.fullmatch(r"([\w.:-]+)\s*(?:\((.*)\))?", part, flags=re.DOTALL)
        if match is None:
            raise RecipeError(f"{where}: '{part}' is no name. Write NAME or NAME(OPTION=VALUE, ...).")
        entry: dict[str, Any] = {"name": match[1]}
        for option in _split(match[2] or "", where):
            key, equals, value = option.partition("=")
            if not equals:
                raise RecipeError(f"{where}: '{option}' in '{part}' is no option. Write NAME(OPTION=VALUE, ...).")
            entry[key.strip()] = yaml.safe_load(value)
        found.append(entry)
    return found


def _split(text: str, where: str) -> list[str]:
    """Parts between commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise RecipeError(f"{where}: the brackets in '{text}' do not match.")
    return [part.strip() for part in parts if part.strip()]


def label(entry: Mapping[str, Any]) -> str:
    """A name with its options, as ``parse_names`` reads it.

    Example:
        >>> label({"name": "cagrad", "c": 0.2, "at": "features"})
        'cagrad(c=0.2, at=features)'
    """
    options = [f"{key}={_shown(value)}" for key, value in entry.items() if key != "name"]
    return str(entry["name"]) + (f"({', '.join(options)})" if options else "")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else str(yaml.safe_dump(value, default_flow_style=True)).splitlines()[0]


def choose(
    recipe: Recipe,
    balancers: Sequence[Given] | str | None,
    sharings: Sequence[Given] | str | None,
    baselines: Sequence[str] | str | None,
) -> list[Method]:
    """The methods of a comparison: its baselines, then every balancer under every sharing.

    Args:
        recipe: A name that it uses itself keeps the options that it gives it.
        balancers: Names, mappings with options, or a list as ``parse_names`` reads it; None takes ``equal`` and the
            recipe's own.
        sharings: The same; None takes the recipe's own.
        baselines: Names from ``BASELINES``; ``separate`` is always there. None takes only that.

    Raises:
        RecipeError: for an unknown name or option; nothing has been trained then.
    """
    ways = _entries("balancer", balancers, recipe.balancer, ["equal", _name(recipe.balancer)])
    shapes = _entries("sharing", sharings, recipe.model.sharing, [_name(recipe.model.sharing)])
    found = [_baseline(name, recipe) for name in _baseline_names(baselines)]
    for shape in shapes:
        for way in ways:
            if shape["name"] == SEPARATE and way == {"name": "equal"} and len(shape) == 1:
                continue  # this is the baseline
            found.append(
                Method(f"{_short(shape, 'sharing', recipe)} + {_short(way, 'balancer', recipe)}", "network", shape, way)
            )
    return found


def _name(value: Given) -> str:
    return value if isinstance(value, str) else str(value.get("name"))


def _recipes_own(group: str, recipe: Recipe) -> dict[str, Any]:
    own = recipe.balancer if group == "balancer" else recipe.model.sharing
    name, options = named(own, "hard" if group == "sharing" else "equal", group)
    return {"name": name, **options}


def _short(entry: Mapping[str, Any], group: str, recipe: Recipe) -> str:
    """The bare name for the recipe's own entry, whose options may be long."""
    return str(entry["name"]) if entry == _recipes_own(group, recipe) else label(entry)


def _entries(
    group: str, given: Sequence[Given] | str | None, own: Given, default: Sequence[str]
) -> list[dict[str, Any]]:
    if given is None:
        given = list(dict.fromkeys(default))
    if isinstance(given, str):
        given = parse_names(given, f"{group}s")
    name, options = named(own, default[-1], group)
    entries = []
    for item in given:
        items = parse_names(item, f"{group}s") if isinstance(item, str) else [dict(item)]
        for entry in items:
            if "name" not in entry:
                raise RecipeError(f"{group}s: {entry} has no 'name'.{suggestion('name', entry)}")
            known = registry.entries(f"{group}s")
            if ":" not in entry["name"] and entry["name"] not in known:
                raise RecipeError(f"{group}s: {unknown(group, entry['name'], known)}")
            if entry == {"name": name}:
                entry = {"name": name, **options}
            if entry not in entries:
                entries.append(entry)
    if not entries:
        raise RecipeError(f"{group}s is empty. Name some, such as: {listed(registry.entries(f'{group}s'), 5)}.")
    return entries


def _baseline_names(given: Sequence[str] | str | None) -> list[str]:
    names = [] if given is None else _split(given, "baselines") if isinstance(given, str) else list(given)
    for name in names:
        if name not in BASELINES:
            raise RecipeError(f"baselines: {unknown('baseline', name, BASELINES)}")
    return [name for name in BASELINES if name == SEPARATE or name in names]


def _baseline(name: str, recipe: Recipe) -> Method:
    if name == TREES:
        return Method(TREES, "trees")
    if name == SEPARATE:
        return Method(SEPARATE, "network", {"name": SEPARATE}, {"name": "equal"})
    shape = _recipes_own("sharing", recipe)
    if shape["name"] == SEPARATE:
        shape = {"name": "hard"}
    return Method(TUNED_STATIC, "network", shape, {"name": "static", "weights": dict.fromkeys(recipe.tasks, 1.0)})


def space_of(method: Method, rate: float) -> dict[Path, Range | Choice]:
    """What is searched for a method: paths of keys in the recipe (or in the options of trees) and ranges.

    Args:
        method: The method.
        rate: The recipe's learning rate.
    """
    if method.kind == "trees":
        return {("trees", option): values for option, values in spaces.TREES.items()}
    low, high = spaces.RATE
    found: dict[Path, Range | Choice] = {("training", "lr"): Range(rate * low, rate * high, log=True)}
    if method.name == TUNED_STATIC:
        return found | {("balancer", "weights", task): spaces.STATIC_WEIGHT for task in method.balancer["weights"]}
    for place, entry, known in (
        (("balancer",), method.balancer, spaces.BALANCERS),
        (("model", "sharing"), method.sharing, spaces.SHARINGS),
    ):
        own = known.get(entry["name"], {})
        found |= {(*place, option): values for option, values in own.items() if option not in entry}
    return found


def defaults_of(method: Method, rate: float) -> dict[Path, Any]:
    """The values of ``space_of`` that the recipe and the constructors have: the first trial."""
    found: dict[Path, Any] = {}
    for path in space_of(method, rate):
        if path == ("training", "lr"):
            found[path] = rate
        elif path[0] == "trees":
            found[path] = TREE_DEFAULTS[path[1]]
        elif path[:2] == ("balancer", "weights"):
            found[path] = 1.0
        else:
            group, entry = ("balancers", method.balancer) if path[0] == "balancer" else ("sharings", method.sharing)
            known = registry.options_of(registry.get(group, entry["name"]))
            found[path] = known[path[-1] if path[-1] in known else f"{path[-1]}_"].default
    return found


TREE_DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.1,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "l2_regularization": 0.0,
}
"""The defaults of scikit-learn's histogram gradient boosting."""


def changed(plain: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Plain data with one value set, whatever was there.

    Example:
        >>> changed({"training": {"lr": 1}}, ("training", "lr"), 2)
        {'training': {'lr': 2}}
    """
    first, *rest = path
    below = plain.get(first)
    if not rest:
        return {**plain, first: value}
    if isinstance(below, str):
        below = {"name": below}
    return {**plain, first: changed(below or {}, tuple(rest), value)}


def recipe_of(base: Mapping[str, Any], method: Method, settings: Mapping[Path, Any], seed: int) -> dict[str, Any]:
    """The plain recipe that trains a network method with some settings and a seed."""
    plain = changed(changed(base, ("model", "sharing"), dict(method.sharing)), ("balancer",), dict(method.balancer))
    for path, value in settings.items():
        plain = changed(plain, path, value)
    return changed(plain, ("training", "seed"), seed)
