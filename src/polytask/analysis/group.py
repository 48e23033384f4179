"""Splitting the tasks of a recipe over several models, and checking whether that was worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polytask.analysis.affinity import LOOKS, SEEDS, budgeted, measure, parse_kinds, require_counts
from polytask.analysis.estimates import Affinity
from polytask.analysis.folder import Folder
from polytask.analysis.grouping import best_split, split_gain
from polytask.analysis.jobs import Result
from polytask.analysis.plan import identity
from polytask.analysis.pool import Job
from polytask.analysis.splits import TOGETHER, Grouping, Option, Trained
from polytask.analysis.subsets import subset_recipe
from polytask.analysis.workshop import Say, Workshop, workshop
from polytask.errors import RecipeError
from polytask.files import replacing
from polytask.recipes.load import dump_recipe, load_recipe, write_yaml
from polytask.recipes.schema import Recipe
from polytask.reporting.versions import versions

JOBS = "polytask.analysis.affinity_jobs"
SEPARATE = "separate"
GROUPS = "groups"


def group(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    models: int = 2,
    by: str = "tag",
    seeds: int = SEEDS,
    epochs: int | None = None,
    steps: int | None = None,
    looks: int = LOOKS,
    parameters: int | None = None,
    seconds: float | None = None,
    check: bool = True,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    say: Say | None = None,
) -> Grouping:
    """Split the tasks of a recipe over several models, as ``polytask group`` does, and check the split.

    What each task does for each other is measured (see ``affinity``), and the split is taken in which the tasks get
    most from the others of their group: the mean over tasks of the mean over the group's other members. Every task is
    in one group. Then one model a group, one of all tasks, and one for every task are trained with the recipe's own
    settings, as long each, and scored on the test rows once, at the end.

    Args:
        recipe: A YAML file, plain data, or a Recipe.
        models: How many models.
        by: The kind of affinity: ``tag``, ``cosine``, ``transfer`` or ``backward``.
        seeds: How many seeds, of the measurement and of the check, counted from the recipe's.
        epochs: Length of the trainings of the measurement; the recipe's if left out. The check has the recipe's.
        steps: The same in steps.
        looks: At how many steps a run is looked at, for ``tag`` and ``cosine``.
        parameters: The most trained parameters of all models together. Every model has its own shared part, so that
            this limits the number of models.
        seconds: The most training time of all models together, reckoned from a few steps; limits the same.
        check: Whether to train the groups and compare.
        jobs: Worker processes; one a core if left out.
        overrides: Such as ``["training.lr=0.01"]``.
        out: Folder; ``groups/NAME`` if left out. What is there is not done again.
        say: Gets a sentence about what goes on, as it does.

    Returns:
        The grouping; the folder has ``report.html``, ``results.json`` and a recipe for every group.

    Raises:
        RecipeError: for a number of models or a budget that cannot be, or a folder of another recipe.
        DataError: for data that cannot be used, or affinities that are undefined.
    """
    (kind,) = parse_kinds([by])
    loaded = load_recipe(recipe, overrides)
    require_counts(seeds=seeds, looks=looks)
    budgeted(loaded, epochs, steps)
    if not 1 <= models <= len(loaded.tasks):
        raise RecipeError(f"models is {models}; {len(loaded.tasks)} tasks go into 1 to {len(loaded.tasks)} models.")
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    folder = Path(out) if out is not None else Path("groups") / name
    facts = {"measured": {"epochs": epochs, "steps": steps, "looks": looks}}
    with workshop(loaded, folder, "group", jobs=jobs, say=say, facts=facts) as shop:
        most, limit = _most_models(shop, models, parameters, seconds)
        short = identity(dump_recipe(budgeted(load_recipe(shop.base), epochs, steps)))
        measuring = replace(shop, folder=Folder(folder / "affinity"), base=short)
        measured = measure(measuring, [kind], seeds, looks, loaded.report.title or name)
        measured.write(folder / "affinity")
        options = tuple(_option(measured, kind, count) for count in range(1, most + 1))
        tasks = shop.built.model.tasks.values()
        found = Grouping(
            title=measured.title,
            tasks=measured.tasks,
            by=kind,
            options=options,
            seeds=measured.seeds,
            part="test" if shop.built.sources["test"] else "validation",
            metrics={task.name: (task.primary, task.metrics[task.primary].higher_is_better) for task in tasks},
            limit=limit,
            trained=_checked(shop, options[-1].groups, measured.seeds) if check else {},
            versions=versions(),
            path=folder,
        )
        _write_recipes(shop, found)
    found.write(folder)
    return found


def _option(measured: Affinity, kind: str, count: int) -> Option:
    """The best split into so many models, and what it promises under every seed."""
    estimate = measured[kind]
    groups = best_split(estimate.mean, count, exactly=True)
    gains = tuple(split_gain(values, groups) for values in estimate.values)
    return Option(tuple(tuple(measured.tasks[at] for at in members) for members in groups), gains)


def _most_models(shop: Workshop, models: int, parameters: int | None, seconds: float | None) -> tuple[int, str]:
    """How many models the budgets allow, and a sentence if that is fewer than asked for."""
    most, limit = models, ""
    if parameters is not None:
        shared, own = _sizes(shop)
        allowed = models if shared == 0 else (parameters - own) // shared
        if allowed < 1 or own + shared > parameters:
            raise RecipeError(
                f"parameters is {parameters:,}, but one model of all tasks has {shared + own:,}. Allow more, or make "
                "model.encoder smaller."
            )
        if allowed < most:
            most, limit = allowed, f"{parameters:,} parameters allow {allowed} of {models} models"
    if seconds is not None:
        one, each = _pace(shop)
        whole = one + each * len(shop.tasks)
        allowed = models if one <= 0 else math.floor((seconds - each * len(shop.tasks)) / one)
        if allowed < 1:
            raise RecipeError(
                f"seconds is {seconds:g}, but one model of all tasks takes about {whole:.3g}. Allow more."
            )
        if allowed < most:
            most, limit = allowed, f"{seconds:g} seconds allow about {allowed} of {models} models"
    return most, limit


def _sizes(shop: Workshop) -> tuple[int, int]:
    """Trained parameters that every further model has again, and those of the tasks."""
    model = shop.built.model
    if not model.is_built:
        model.build(shop.built.sources["train"][0].example)
    parts = model.summary()
    shared = sum(part.parameters for part in parts if part.owner == "shared")
    return shared, sum(part.parameters for part in parts) - shared


def _pace(shop: Workshop) -> tuple[float, float]:
    """Seconds of a training: what every model takes, and what every task adds."""
    count = len(shop.tasks)
    job = Job("pace", "polytask.analysis.group_jobs:pace", {"recipe": shop.base, "sizes": [1, count]})
    least, whole = shop.done([job])["pace"]["seconds"]
    each = max(whole - least, 0.0) / max(count - 1, 1)
    return max(least - each, 0.0), each


def _checked(shop: Workshop, groups: Sequence[Sequence[str]], seeds: Sequence[int]) -> dict[str, Trained]:
    """Train groups, all together and every task alone; then score all on the test rows."""
    ways: dict[str, list[Sequence[str]]] = {
        GROUPS: list(groups),
        TOGETHER: [shop.tasks],
        SEPARATE: [[task] for task in shop.tasks],
    }
    models = {_key(shop, members, seed): (members, seed) for of in ways.values() for members in of for seed in seeds}
    results = shop.done([_training(shop, key, members, seed) for key, (members, seed) in models.items()])
    scores: Mapping[str, Result]
    if shop.open_test_rows():
        shop.say(f"Scoring {len(models)} trained models on the test rows.")
        jobs = [_scoring(shop, key, members, seed) for key, (members, seed) in models.items()]
        scores = {job.key.removesuffix("-test"): of for job, of in zip(jobs, shop.done(jobs).values(), strict=True)}
    else:
        scores = {key: {"test": of["validation"]} for key, of in results.items()}
    found = {}
    for way, of in ways.items():
        keys = {seed: [_key(shop, members, seed) for members in of] for seed in seeds}
        found[way] = Trained(
            scores={seed: _primary(shop, [scores[key] for key in keys[seed]]) for seed in seeds},
            parameters=sum(results[key]["parameters"] for key in keys[seeds[0]]),
            seconds=tuple(sum(results[key]["seconds"] for key in keys[seed]) for seed in seeds),
        )
    return found


def _primary(shop: Workshop, results: Sequence[Result]) -> dict[str, float | None]:
    tasks = shop.built.model.tasks
    found = {name: values[tasks[name].primary] for result in results for name, values in result["test"].items()}
    return {name: found[name] for name in tasks}


def _key(shop: Workshop, members: Sequence[str], seed: int) -> str:
    return f"tasks-{'-'.join(str(shop.tasks.index(name)) for name in members)}-seed{seed}"


def _recipe(shop: Workshop, members: Sequence[str], seed: int) -> dict[str, Any]:
    cut = subset_recipe(shop.base, members)
    return {**cut, "training": {**cut["training"], "seed": seed}}


def _weights(shop: Workshop, key: str) -> str:
    return str(shop.folder.path / "weights" / f"{key}.safetensors")


def _training(shop: Workshop, key: str, members: Sequence[str], seed: int) -> Job:
    arguments = {"recipe": _recipe(shop, members, seed), "weights": _weights(shop, key)}
    return Job(key, f"{JOBS}:train_tasks", arguments)


def _scoring(shop: Workshop, key: str, members: Sequence[str], seed: int) -> Job:
    arguments = {"recipe": _recipe(shop, members, seed), "weights": _weights(shop, key)}
    return Job(f"{key}-test", f"{JOBS}:score_tasks", arguments)


def _write_recipes(shop: Workshop, found: Grouping) -> None:
    """A recipe for every group, which ``polytask fit`` runs."""
    for old in shop.folder.path.glob("group-*.yaml"):
        old.unlink()
    for number, members in enumerate(found.groups, start=1):
        with replacing(shop.folder.path / f"group-{number}.yaml") as unfinished:
            unfinished.write_text(write_yaml(subset_recipe(shop.base, members)), encoding="utf-8")
