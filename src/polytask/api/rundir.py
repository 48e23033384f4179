"""The folder that a run leaves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.errors import RecipeError, suggestion
from polytask.files import replacing
from polytask.recipes.load import load_recipe, write_yaml
from polytask.recipes.schema import Recipe
from polytask.reporting.versions import versions

RECIPE = "recipe.yaml"
FACTS = "run.json"
METRICS = "metrics.json"


@dataclass(frozen=True)
class RunDirectory:
    """Where a run's files lie.

    Args:
        path: The folder.
    """

    path: Path

    @staticmethod
    def require_new(path: str | Path) -> None:
        """Refuse a folder that exists already.

        Raises:
            RecipeError: if it does.
        """
        if Path(path).exists():
            raise RecipeError(
                f"'{path}' exists already. Choose another --out, delete it, or go on with that run: "
                f"polytask fit --resume {path}"
            )

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """Make the folder of a new run.

        Raises:
            RecipeError: if it exists already.
        """
        cls.require_new(path)
        Path(path).mkdir(parents=True)
        return cls(Path(path))

    @classmethod
    def next_free(cls, name: str, below: Path = Path("runs")) -> RunDirectory:
        """Make ``runs/NAME-NUMBER`` with the first number that is free."""
        taken = [re.fullmatch(rf"{re.escape(name)}-(\d+)", p.name) for p in below.glob(f"{name}-*")]
        number = 1 + max((int(match[1]) for match in taken if match), default=0)
        return cls.create(below / f"{name}-{number}")

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The folder of an existing run.

        Raises:
            RecipeError: if there is none.
        """
        folder = Path(path)
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise RecipeError(f"There is no run at '{folder}'.{suggestion(folder.name, siblings)}")
        return cls(folder)

    def write_start(self, recipe: Mapping[str, Any], seed: int, command: str) -> None:
        """Write the resolved recipe, versions and seed, before anything trains."""
        with replacing(self.path / RECIPE) as file:
            file.write_text(write_yaml(recipe), encoding="utf-8")
        self.write_facts(seed, command)

    def write_facts(self, seed: int, command: str) -> None:
        """Write seed, command and versions."""
        self.write_json(FACTS, {"seed": seed, "command": command, "versions": versions()})

    def write_json(self, name: str, data: Any) -> None:
        """Write plain data as a JSON file."""
        with replacing(self.path / name) as file:
            file.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")

    def recipe(self) -> Recipe:
        """The run's recipe.

        Raises:
            RecipeError: if the run was started from Python and has none.
        """
        path = self.path / RECIPE
        if not path.exists():
            raise RecipeError(
                f"'{self.path}' has no {RECIPE}: it was started from Python, or is no run. "
                "Go on with polytask.fit(..., resume=...)."
            )
        return load_recipe(path)

    def balancing_rows(self, most: int = 400) -> list[dict[str, float]]:
        """Rows of scope "step" of history.csv, thinned to ``most``, with their numbers; for the report.

        Conflict figures are there in every tenth row only: where there are such rows, the others are left out.
        """
        path = self.path / "history.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            looked_at = [n for n in reader.fieldnames or () if n == "conflict_rate" or n.startswith("layer_cosine.")]
            rows = [row for row in reader if row["scope"] == "step"]
        rows = [row for row in rows if any(row.get(name) for name in looked_at)] or rows
        stride = -(-len(rows) // most) or 1
        chosen = rows[::stride]
        return [{k: float(v) for k, v in row.items() if v and k not in ("scope", "epoch")} for row in chosen]

    def facts(self) -> dict[str, Any]:
        """Seed, command and versions of the run."""
        facts: dict[str, Any] = json.loads((self.path / FACTS).read_text(encoding="utf-8"))
        return facts
