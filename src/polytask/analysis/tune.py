"""Searching settings of a recipe on its validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.analysis.pool import cores
from polytask.analysis.searching import Search, written
from polytask.analysis.space import Choice, Range, parse, require_optuna
from polytask.analysis.tuning import Tuning
from polytask.analysis.workshop import Say, workshop
from polytask.errors import RecipeError
from polytask.files import replacing
from polytask.recipes.load import dump_recipe, load_recipe, write_yaml
from polytask.recipes.schema import Recipe

TRIALS = 20
FIXED = ("data", "index", "decision", "report", "training.select", "training.seed", "training.device")
"""What a search may not change: it decides what is measured, or on which rows."""

Given = str | Range | Choice | Sequence[Any]


def tune(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    space: Mapping[str, Given],
    trials: int | None = None,
    minutes: float | None = None,
    objectives: Sequence[str] | str = (),
    jobs: int | None = None,
    store: str | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    say: Say | None = None,
) -> Tuning:
    """Search settings of a recipe, as ``polytask tune`` does.

    A setting is judged by the recipe's criterion (``training.select``) on the validation rows, at its best epoch.
    ``mean_improvement`` is relative to the recipe as it stands, which is trained first: 0 is as good as that, 0.01 is
    one percent better. Settings that lie behind the others are given up early. The test rows are never read.

    With ``objectives``, each is maximised, nothing is given up early, and the result is the set of settings that no
    other is better than in all of them.

    Args:
        recipe: A YAML file, plain data, or a Recipe.
        space: For each key of the recipe what to try: ``"log:1e-4..1e-2"``, ``"0.0..0.5"``, ``"1..8"``,
            ``"equal,uncertainty"``, ``"[64],[128,64]"``, or a list of choices.
        trials: How many settings are tried, those of earlier sittings included; 20 if neither this nor ``minutes``
            is given.
        minutes: Start no new trial after so long, in this sitting.
        objectives: Several criteria such as ``"income.auroc,education.accuracy"`` instead of one.
        jobs: Worker processes; one a core if left out.
        store: Address of a store that several machines share, such as ``sqlite:///search.sqlite3``; one in the folder
            if left out.
        overrides: Such as ``["training.epochs=3"]``.
        out: Folder; ``tuned/NAME`` if left out. A search that is there goes on.
        say: Gets a sentence about what goes on, as it does.

    Returns:
        The search; the folder has ``best.yaml``, ``report.html`` and ``results.json``.

    Raises:
        RecipeError: for a key or value that cannot be, or a store of another recipe or space; nothing is trained then.
        TrainingError: if no trial came to a value.
        MissingExtraError: if Optuna is not installed.
    """
    require_optuna()
    loaded = load_recipe(recipe, overrides)
    wanted = {key: _parsed(key, value) for key, value in space.items()}
    goals = [part.strip() for part in objectives.split(",")] if isinstance(objectives, str) else list(objectives)
    goals = [goal for goal in goals if goal]
    _require_sense(wanted, trials, minutes, goals)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    folder = Path(out) if out is not None else Path("tuned") / name
    facts = {"space": written(wanted), "objectives": goals}
    with workshop(loaded, folder, "tune", jobs=jobs, say=say, facts=facts) as shop:
        address = store or f"sqlite:///{(folder / 'study.sqlite3').resolve()}"
        search = Search(shop, dump_recipe(loaded), wanted, goals, address)
        search.try_out()
        search.open(facts)
        search.run(jobs or cores(), trials if trials is not None or minutes is not None else TRIALS, minutes)
        found = search.result(loaded.report.title or name)
        for number, setting in enumerate(found.best, start=1):
            file = "best.yaml" if len(goals) < 2 else f"best-{number}.yaml"
            with replacing(folder / file) as unfinished:
                unfinished.write_text(write_yaml(search.recipe(setting.values)), encoding="utf-8")
    found.write(folder)
    return found


def _parsed(key: str, given: Given) -> Range | Choice:
    if isinstance(given, Range | Choice):
        return given
    if isinstance(given, str):
        return parse(given, f"space {key}")
    if len(given) < 2:
        raise RecipeError(f"space {key}: {list(given)} leaves nothing to choose. Give two values or more.")
    return Choice(tuple(given))


def _require_sense(
    space: Mapping[str, Range | Choice], trials: int | None, minutes: float | None, goals: Sequence[str]
) -> None:
    if not space:
        raise RecipeError("space is empty. Name a key and what to try, such as training.lr=log:1e-4..1e-2.")
    for key in space:
        for fixed in FIXED:
            if key == fixed or key.startswith(f"{fixed}."):
                raise RecipeError(f"space {key}: a search cannot change {fixed}: it decides what is measured.")
    if trials is not None and trials < 1:
        raise RecipeError(f"trials is {trials}; at least one is needed.")
    if minutes is not None and minutes <= 0:
        raise RecipeError(f"minutes is {minutes:g}; it has to be above 0.")
    if len(goals) == 1:
        raise RecipeError(f"objectives has one, '{goals[0]}'. Set training.select to it, or name another one.")
