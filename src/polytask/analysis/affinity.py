"""Measuring what the tasks of a recipe do for each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polytask.analysis.estimates import KINDS, Affinity, Estimate, Matrix
from polytask.analysis.jobs import Result
from polytask.analysis.lookahead import require_shared
from polytask.analysis.pool import Job
from polytask.analysis.subsets import subset_recipe
from polytask.analysis.workshop import Say, Workshop, workshop
from polytask.errors import RecipeError, unknown
from polytask.recipes.load import load_recipe
from polytask.recipes.schema import Recipe
from polytask.reporting.versions import versions
from polytask.tasks.task import Task

SEEDS = 3
LOOKS = 60
JOBS = "polytask.analysis.affinity_jobs"


def affinity(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    kinds: Sequence[str] | str = ("tag", "cosine", "transfer"),
    seeds: int = SEEDS,
    epochs: int | None = None,
    steps: int | None = None,
    looks: int = LOOKS,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    say: Say | None = None,
) -> Affinity:
    """Measure what the tasks of a recipe do for each other, as ``polytask affinity`` does.

    - ``tag``: the loss of task j after a step on the gradient of task i, during the training of all tasks together.
      The entry is the share of j's loss that the step takes away, on average.
    - ``cosine``: the cosine between the gradients of the shared parameters, in the same runs.
    - ``transfer``: how much better, in percent, task j's primary metric is when it is trained with i than alone.
    - ``backward``: the same when i is added later: j is trained, then both, against j alone for the same time.

    ``tag`` and ``cosine`` cost one training of all tasks a seed. ``transfer`` costs one training for every task and
    pair, ``backward`` two for every task and one for every ordered pair. The test rows are never read.

    Args:
        recipe: A YAML file, plain data, or a Recipe.
        kinds: What to measure, or text such as ``"tag,transfer"``.
        seeds: How many seeds, counted from the recipe's.
        epochs: Length of every training; the recipe's if left out.
        steps: The same in steps.
        looks: At how many steps a run is looked at, for ``tag`` and ``cosine``.
        jobs: Worker processes; one a core if left out.
        overrides: Such as ``["training.lr=0.01"]``.
        out: Folder; ``affinity/NAME`` if left out. What is there is not measured again.
        say: Gets a sentence about what goes on, as it does.

    Returns:
        The matrices with intervals; the folder has ``report.html`` and ``results.json``.

    Raises:
        RecipeError: for an unknown kind, a single task, or a folder of another recipe; nothing is trained then.
        DataError: for data that cannot be used.

    Example:
        >>> import polars as pl, numpy as np, tempfile, polytask as pt
        >>> folder = tempfile.mkdtemp()
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> table = pl.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "up": x[:, 0] > 0, "high": x[:, 0] + x[:, 1] > 0})
        >>> table.write_csv(f"{folder}/rows.csv")
        >>> tasks = {name: {"type": "binary"} for name in ("up", "high")}
        >>> recipe = {"data": {"table": f"{folder}/rows.csv"}, "tasks": tasks}
        >>> found = pt.affinity(recipe, kinds="cosine", seeds=1, steps=20, looks=10, jobs=1, out=f"{folder}/affinity")
        >>> found["cosine"].mean.shape, bool(found["cosine"].mean[0, 1] > 0)
        ((2, 2), True)

    Reference:
        Fifty et al., Efficiently identifying task groupings for multi-task learning (2021); Standley et al., Which
        tasks should be learned together in multi-task learning? (2020).
    """
    wanted = parse_kinds(kinds)
    loaded = budgeted(load_recipe(recipe, overrides), epochs, steps)
    require_counts(seeds=seeds, looks=looks)
    if len(loaded.tasks) < 2:
        raise RecipeError(f"The recipe has one task, '{next(iter(loaded.tasks))}', which has no other to be affine to.")
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    folder = Path(out) if out is not None else Path("affinity") / name
    with workshop(loaded, folder, "affinity", jobs=jobs, say=say, facts={"looks": looks}) as shop:
        found = measure(shop, wanted, seeds, looks, loaded.report.title or name)
    found.write(folder)
    return found


def parse_kinds(kinds: Sequence[str] | str) -> list[str]:
    """The kinds that are asked for, in their order.

    Raises:
        RecipeError: for an unknown kind, or none.
    """
    names = [part.strip() for part in kinds.split(",")] if isinstance(kinds, str) else list(kinds)
    for name in names:
        if name not in KINDS:
            raise RecipeError(f"kind: {unknown('kind', name, KINDS)}")
    if not names:
        raise RecipeError(f"Nothing is to be measured. Name some of: {', '.join(KINDS)}.")
    return [kind for kind in KINDS if kind in names]


def require_counts(**counts: int) -> None:
    """Check numbers that have to be at least 1.

    Raises:
        RecipeError: for the first that is not; the message names it.
    """
    for name, value in counts.items():
        if value < 1:
            raise RecipeError(f"{name} is {value}; it has to be at least 1.")


def budgeted(recipe: Recipe, epochs: int | None, steps: int | None) -> Recipe:
    """The recipe with the length of every training; no epoch is chosen, so that all are trained as long.

    Raises:
        RecipeError: if both are given, or one is below 1.
    """
    if epochs is not None and steps is not None:
        raise RecipeError("Give epochs or steps, not both.")
    length = {"epochs": epochs, "steps": None} if epochs is not None else {"steps": steps} if steps is not None else {}
    training = replace(
        recipe.training, select="last", patience=None, monitor_every=0, monitor_layers=False, loggers=(), **length
    )
    return replace(recipe, training=training)


def measure(shop: Workshop, kinds: Sequence[str], seeds: int, looks: int, title: str) -> Affinity:
    """Do the trainings that are missing, and put the numbers together."""
    model = shop.built.model
    if not model.is_built:
        model.build(shop.built.sources["train"][0].example)
    require_shared(model)
    first = shop.base["training"]["seed"]
    numbers = tuple(first + at for at in range(seeds))
    results = shop.done([job for seed in numbers for job in _jobs(shop, kinds, seed, looks)])
    tasks = shop.built.model.tasks
    estimates = {}
    for kind in kinds:
        if kind in ("tag", "cosine"):
            parts = np.array([results[f"looks-seed{seed}"][kind] for seed in numbers], dtype=np.float64)
            estimates[kind] = Estimate(_mean(parts), parts)
        else:
            gains = _transfer if kind == "transfer" else _backward
            estimates[kind] = Estimate(np.array([gains(results, tasks, seed) for seed in numbers]))
    training = shop.base["training"]
    budget = f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"
    return Affinity(
        title, tuple(tasks), estimates, numbers, budget, looks, sum(of["seconds"] for of in results.values()),
        _alone(results, tasks, numbers) if "transfer" in kinds else {}, versions(), shop.folder.path,
    )  # fmt: skip


def _mean(parts: Matrix) -> Matrix:
    """Means over stretches, where they have a number."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(parts, 1) / (~np.isnan(parts)).sum(1))


def _jobs(shop: Workshop, kinds: Sequence[str], seed: int, looks: int) -> Iterator[Job]:
    recipe = {**shop.base, "training": {**shop.base["training"], "seed": seed}}
    if {"tag", "cosine"} & set(kinds):
        yield Job(f"looks-seed{seed}", f"{JOBS}:look", {"recipe": recipe, "looks": looks})
    if "transfer" in kinds:
        for group in _groups(shop.tasks):
            key = _key(shop.tasks, group, seed)
            weights = str(shop.folder.path / "weights" / f"{key}.safetensors")
            yield Job(key, f"{JOBS}:train_tasks", {"recipe": subset_recipe(recipe, group), "weights": weights})
    if "backward" in kinds:
        for at, task in enumerate(shop.tasks):
            yield Job(f"later-{at}-seed{seed}", f"{JOBS}:later", {"recipe": recipe, "task": task})


def _groups(tasks: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every task and every pair."""
    yield from ((task,) for task in tasks)
    yield from ((one, other) for at, one in enumerate(tasks) for other in tasks[at + 1 :])


def _key(tasks: Sequence[str], group: Sequence[str], seed: int) -> str:
    """A name for files; of numbers, since a task's name may hold any letter."""
    return f"tasks-{'-'.join(str(list(tasks).index(name)) for name in group)}-seed{seed}"


def gain(task: Task, value: float | None, alone: float | None) -> float:
    """How much better a task's primary metric is than alone, in percent; NaN where that is undefined."""
    if value is None or alone is None or alone == 0:
        return math.nan
    better = value - alone if task.metrics[task.primary].higher_is_better else alone - value
    return 100 * better / abs(alone)


def _transfer(results: Mapping[str, Result], tasks: Mapping[str, Task], seed: int) -> Matrix:
    names = list(tasks)
    found = np.full((len(names), len(names)), np.nan)

    def score(group: Sequence[str], name: str) -> float | None:
        value: float | None = results[_key(names, group, seed)]["validation"][name][tasks[name].primary]
        return value

    for group in _groups(names):
        for at, name in enumerate(group):
            if len(group) == 2:
                i, j = names.index(group[1 - at]), names.index(name)
                found[i, j] = gain(tasks[name], score(group, name), score((name,), name))
    return found


def _backward(results: Mapping[str, Result], tasks: Mapping[str, Task], seed: int) -> Matrix:
    names = list(tasks)
    found = np.full((len(names), len(names)), np.nan)
    for j, name in enumerate(names):
        of, metric = results[f"later-{j}-seed{seed}"], tasks[name].primary
        for other, scores in of["then"].items():
            found[names.index(other), j] = gain(tasks[name], scores[metric], of["alone"][metric])
    return found


def _alone(
    results: Mapping[str, Result], tasks: Mapping[str, Task], seeds: Sequence[int]
) -> dict[str, tuple[str, float]]:
    found = {}
    for name, task in tasks.items():
        values = [results[_key(list(tasks), (name,), seed)]["validation"][name][task.primary] for seed in seeds]
        if None not in values:
            found[name] = (task.primary, float(np.mean(values)))
    return found
