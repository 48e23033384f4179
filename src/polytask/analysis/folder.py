"""The folder of a comparison: what it compares, and every result so far."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polytask.analysis.jobs import write_json
from polytask.analysis.methods import Method, recipe_of
from polytask.analysis.methods import Path as KeyPath
from polytask.errors import RecipeError, listed
from polytask.files import remove_unfinished
from polytask.recipes.load import dump_recipe, load_recipe

FORMAT = 1
PLAN = "comparison.json"
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
        told = json.dumps([self.method.to_dict(), settings, self.seed], sort_keys=True)
        slug = re.sub(r"\W+", "-", self.method.name).strip("-")[:40]
        return f"{slug}-seed{self.seed}-{hashlib.blake2b(told.encode(), digest_size=5).hexdigest()}"

    def recipe(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The plain recipe of a network."""
        return recipe_of(base, self.method, self.settings, self.seed)


@dataclass(frozen=True)
class Folder:
    """Where a comparison's files lie.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def rows(self) -> Path:
        """Where the encoded rows lie while workers need them."""
        return self.path / "rows"

    @property
    def store(self) -> Path:
        """The store of the searches."""
        return self.path / "search.sqlite3"

    def result(self, work: Work) -> Path:
        """File of what a training gave."""
        return self.path / "results" / f"{work.key}.json"

    def test_result(self, work: Work) -> Path:
        """File of the scores on the test rows."""
        return self.path / "results" / f"{work.key}.test.json"

    def weights(self, work: Work) -> Path:
        """File of trained weights."""
        return self.path / "weights" / f"{work.key}.safetensors"

    def keep_weights(self, final: Sequence[Work]) -> None:
        """Delete the weights of settings that were tried and not chosen."""
        wanted = {self.weights(work) for work in final}
        for path in (self.path / "weights").glob("*.safetensors"):
            if path not in wanted:
                path.unlink()

    def plan(self) -> Plan | None:
        """What was compared here so far, or None.

        Raises:
            RecipeError: if the folder holds something else.
        """
        if not (self.path / PLAN).exists():
            if self.path.exists() and any(entry.name != LOCK for entry in self.path.iterdir()):
                raise RecipeError(f"'{self.path}' exists and holds no comparison. Choose another --out.")
            return None
        plain = json.loads((self.path / PLAN).read_text(encoding="utf-8"))
        if plain["format"] > FORMAT:
            raise RecipeError(f"'{self.path}' has format {plain['format']}; this polytask reads up to {FORMAT}.")
        return Plan.from_dict(plain)

    def settle(self, wanted: Plan) -> Plan:
        """Write down what is compared: what was wanted before, and what is new.

        Raises:
            RecipeError: if the folder is of another recipe, other data or another budget.
        """
        before = self.plan()
        if before is not None:
            _require_same(self.path, before, wanted)
            known = {method.name: method for method in before.methods} | {m.name: m for m in wanted.methods}
            methods = sorted(known.values(), key=lambda method: not method.is_baseline)
            seeds = sorted({*before.seeds, *wanted.seeds})
            wanted = replace(wanted, methods=tuple(methods), seeds=tuple(seeds))
        write_json(self.path / PLAN, wanted.to_dict())
        return wanted

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, and leave no rows behind.

        Raises:
            RecipeError: if another process works in the folder.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RecipeError(
                f"Another process works on the comparison in '{self.path}'. Wait for it, or choose another --out."
            ) from None
        try:
            remove_unfinished(self.path)
            yield
        finally:
            shutil.rmtree(self.rows, ignore_errors=True)
            lock.release()


LOCK = "lock"


def identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A plain recipe without what changes no score."""
    kept = {key: value for key, value in recipe.items() if key not in NO_PART}
    kept["training"] = {key: value for key, value in recipe["training"].items() if key not in NO_TRAINING}
    # As it comes back from a file.
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def filled(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain recipe of a folder with the defaults of keys that recipes had not yet when it was written."""
    try:
        return identity(dump_recipe(load_recipe(recipe)))
    except RecipeError:
        # Of a key that is gone. What is compared with it then names that key.
        return recipe


def _require_same(path: Path, before: Plan, wanted: Plan) -> None:
    elsewhere = "Choose another --out, or use the recipe that this folder is of."
    old, new = flat(filled(before.recipe)), flat(wanted.recipe)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        told = [f"{key} was {old.get(key, 'not set')!r} and is {new.get(key, 'not set')!r}" for key in changed]
        raise RecipeError(f"'{path}' compares another recipe: {listed(told, 5)}. {elsewhere}")
    if before.data != wanted.data:
        raise RecipeError(f"'{path}' compares the same recipe on other rows: the data have changed. {elsewhere}")
    if before.budget != wanted.budget:
        raise RecipeError(
            f"'{path}' has the budget {before.budget}, not {wanted.budget}; methods with unequal budgets cannot be "
            "compared. Leave --budget out, or choose another --out."
        )


def flat(plain: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    Example:
        >>> flat({"training": {"lr": 0.1}, "balancer": "equal"})
        {'training.lr': 0.1, 'balancer': 'equal'}
    """
    if not isinstance(plain, Mapping) or not plain:
        return {path: plain}
    return {k: v for name, item in plain.items() for k, v in flat(item, f"{path}.{name}" if path else name).items()}
