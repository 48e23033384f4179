"""What a comparison compares: the recipe, the budget, the methods, and every training that follows from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.analysis.methods import Method, recipe_of
from polytask.analysis.methods import Path as KeyPath
from polytask.errors import RecipeError
from polytask.recipes.load import dump_recipe, load_recipe

FORMAT = 1
NO_PART = ("report",)
NO_TRAINING = ("loggers", "checkpoint_every", "log_every")
"""Parts of a recipe that change no score, so two recipes that differ in them are one."""


@dataclass(frozen=True)
class Budget:
    """What every method may spend on its own options and learning rate.

    Args:
        trials: Settings that are tried; 1 takes the recipe's.
        minutes: Training time of the trials instead; as many settings as fit, and at least one.

    Example:
        >>> Budget.parse("trials=8"), str(Budget.parse("minutes=0.5"))
        (Budget(trials=8, minutes=None), 'minutes=0.5')
    """

    trials: int | None = 1
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``trials=8`` or ``minutes=10``.

        Raises:
            RecipeError: for anything else.
        """
        kind, _, number = text.partition("=")
        with contextlib.suppress(ValueError):
            if kind == "trials" and int(number) >= 1:
                return cls(int(number))
            if kind == "minutes" and float(number) > 0:
                return cls(None, float(number))
        raise RecipeError(f"budget is '{text}'; write trials=NUMBER (at least 1) or minutes=NUMBER (above 0).")

    def __str__(self) -> str:
        return f"trials={self.trials}" if self.minutes is None else f"minutes={self.minutes:g}"

    @property
    def searches(self) -> bool:
        """Whether anything but the recipe's settings is tried."""
        return self.trials != 1

    def is_spent(self, tried: int, seconds: float) -> bool:
        """Whether no further setting may be tried."""
        if self.minutes is not None:
            return tried > 0 and seconds >= 60 * self.minutes
        assert self.trials is not None
        return tried >= self.trials


@dataclass(frozen=True)
class Plan:
    """What a comparison compares.

    Args:
        recipe: The resolved recipe as plain data.
        data: Fingerprint of the encoded rows.
        budget: Of every method's search.
        methods: Baselines and methods.
        seeds: Every method is trained with each.
    """

    recipe: Mapping[str, Any]
    data: str
    budget: Budget
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "format": FORMAT,
            "recipe": self.recipe,
            "data": self.data,
            "budget": str(self.budget),
            "methods": [method.to_dict() for method in self.methods],
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Plan:
        """What ``to_dict`` wrote."""
        methods = tuple(Method.from_dict(method) for method in plain["methods"])
        return cls(plain["recipe"], plain["data"], Budget.parse(plain["budget"]), methods, tuple(plain["seeds"]))


@dataclass(frozen=True)
class Work:
    """One training: a method, its settings, a seed.

    Args:
        method: The method.
        settings: Values by path, beyond what the method itself says.
        seed: The seed.
    """

    method: Method
    settings: Mapping[KeyPath, Any]
    seed: int

    @property
    def key(self) -> str:
        """A name for files, equal if and only if the work is."""
        settings = sorted([list(path), value] for path, value in self.settings.items())
        return file_name(self.method, f"seed{self.seed}", [self.method.to_dict(), settings, self.seed])

    def recipe(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The plain recipe of a network."""
        return recipe_of(base, self.method, self.settings, self.seed)


def file_name(method: Method, what: str, facts: Any) -> str:
    """A name for files about a method, equal if and only if the facts are."""
    slug = re.sub(r"\W+", "-", method.name).strip("-")[:40]
    told = json.dumps(facts, sort_keys=True)
    return f"{slug}-{what}-{hashlib.blake2b(told.encode(), digest_size=5).hexdigest()}"


def identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe without what changes no score."""
    kept = {key: value for key, value in recipe.items() if key not in NO_PART}
    kept["training"] = {key: value for key, value in recipe["training"].items() if key not in NO_TRAINING}
    # As it comes back from a file.
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def filled(recipe: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The plain recipe of a folder with the defaults of keys that recipes had not yet when it was written.

    Raises:
        RecipeError: if this version of polytask cannot read it.
    """
    try:
        return identity(dump_recipe(load_recipe(recipe)))
    except RecipeError as error:
        raise RecipeError(
            f"'{path}' is of another version of polytask, whose recipe this one cannot read: "
            f"{str(error).splitlines()[0]} Choose another --out."
        ) from None


def flat(plain: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    Example:
        >>> flat({"training": {"lr": 0.1}, "balancer": "equal"})
        {'training.lr': 0.1, 'balancer': 'equal'}
    """
    if not isinstance(plain, Mapping) or not plain:
        return {path: plain}
    return {k: v for name, item in plain.items() for k, v in flat(item, f"{path}.{name}" if path else name).items()}
