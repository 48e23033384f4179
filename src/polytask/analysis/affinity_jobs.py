"""What the workers of affinity and grouping do: train some of a recipe's tasks, and look while they do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polytask.analysis.jobs import Result, score_network, train_network, write_json
from polytask.analysis.lookahead import Lookahead
from polytask.analysis.rows import Rows
from polytask.analysis.subsets import subset_recipe, subset_sources
from polytask.evaluation import Scores
from polytask.models import MultiTaskModel
from polytask.recipes.build import make_model
from polytask.recipes.load import load_recipe
from polytask.training.fit import seeded, train

PARTS = 10
"""Into how many stretches the looks of a run are cut: means of neighbours are nearly independent, single looks not."""


def subset_rows(rows: Rows, tasks: Sequence[str]) -> Rows:
    """A worker's rows with the labels of some tasks only."""
    if set(tasks) == {task.name for task in rows.tasks}:
        return rows
    sources = {part: subset_sources(of, tasks) for part, of in rows.sources.items()}
    return replace(rows, sources=sources, tasks=tuple(task for task in rows.tasks if task.name in tasks))


def train_tasks(rows: Rows, *, recipe: Mapping[str, Any], result: str, weights: str) -> Result:
    """Train the tasks of a recipe that may be fewer than the rows have labels for."""
    return train_network(subset_rows(rows, list(recipe["tasks"])), recipe=recipe, result=result, weights=weights)


def score_tasks(rows: Rows, *, recipe: Mapping[str, Any], weights: str, result: str) -> Result:
    """Score what ``train_tasks`` trained on the test rows."""
    return score_network(subset_rows(rows, list(recipe["tasks"])), recipe=recipe, weights=weights, result=result)


def look(rows: Rows, *, recipe: Mapping[str, Any], looks: int, result: str) -> Result:
    """Train all tasks together and look at what a step of one does to the others.

    Returns:
        Means over stretches of the run, ``[parts, m, m]`` as nested lists: ``tag`` and ``cosine``.
    """
    watcher = Lookahead(looks)
    loaded = load_recipe(recipe)
    with seeded(loaded.training.seed):
        model = make_model(loaded, rows.schema, rows.tasks)
    began = time.perf_counter()
    train(model, rows.sources["train"], balancer=loaded.balancer, settings=loaded.training, callbacks=[watcher])
    found = {
        "tag": means(watcher.affinities),
        "cosine": means(watcher.cosines),
        "looks": len(watcher.cosines),
        "seconds": time.perf_counter() - began,
    }
    write_json(Path(result), found)
    return found


def means(looks: NDArray[np.float64]) -> list[Any]:
    """Means over stretches of the looks, as plain data; None where no look of a stretch has a number."""
    parts = np.array_split(looks, min(PARTS, len(looks)))
    with np.errstate(invalid="ignore"):
        averaged = [np.nansum(part, 0) / (~np.isnan(part)).sum(0) for part in parts]
    return [[[None if np.isnan(v) else float(v) for v in row] for row in matrix] for matrix in averaged]


def later(rows: Rows, *, recipe: Mapping[str, Any], task: str, result: str) -> Result:
    """Train one task; then as long again, alone and with each of the others added.

    The added task starts with a new head and joins the shared parameters as the first task left them. The learning
    rate's schedule starts again in the second part.

    Returns:
        ``alone`` and ``then`` (scores of the task after the second part, by the task that was added).
    """
    began = time.perf_counter()
    first = _stretch(rows, recipe, [task], {})
    then = {}
    for other in [task, *(name for name in recipe["tasks"] if name != task)]:
        scores = _stretch(rows, recipe, list(dict.fromkeys([task, other])), first.state_dict())
        then[other] = _scores(rows, scores, task)
    found = {
        "alone": then.pop(task),
        "then": then,
        "first": _scores(rows, first, task),
        "seconds": time.perf_counter() - began,
    }
    write_json(Path(result), found)
    return found


def _stretch(
    rows: Rows, recipe: Mapping[str, Any], tasks: Sequence[str], start: Mapping[str, Tensor]
) -> MultiTaskModel:
    """Train some tasks from the weights that fit by name and shape."""
    plain, own = subset_recipe(recipe, tasks), subset_rows(rows, tasks)
    loaded = load_recipe(plain)
    with seeded(loaded.training.seed):
        model = make_model(loaded, rows.schema, own.tasks)
        if not model.is_built:
            model.build(own.sources["train"][0].example)
    new = model.state_dict()
    fitting = {name: tensor for name, tensor in start.items() if name in new and new[name].shape == tensor.shape}
    model.load_state_dict({**new, **fitting})
    train(model, own.sources["train"], balancer=loaded.balancer, settings=loaded.training)
    return model


def _scores(rows: Rows, model: MultiTaskModel, task: str) -> dict[str, float | None]:
    from polytask.evaluation import evaluate

    own = {task: model.tasks[task]}
    scores: Scores = evaluate(model, subset_sources(rows.sources["validation"], [task]), own)
    return scores.to_dict()[task]
