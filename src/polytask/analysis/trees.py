"""Gradient-boosted trees, one model a task: what a person with a table would use otherwise."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polytask.analysis.jobs import Result, watch_memory, write_json
from polytask.analysis.rows import Rows, read_part
from polytask.data.batch import Batch
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.errors import RecipeError, listed
from polytask.evaluation import Scores, TaskOutputs, score_outputs
from polytask.tasks.task import Task, labelled

ROUNDS = 500
"""Most rounds of boosting; the validation rows say when to stop."""
PATIENCE = 20
MOST_CATEGORIES = 255
"""What scikit-learn can split by sets; a column with more enters as a number."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """A task's labelled rows of one part.

    Args:
        inputs: ``[rows, columns]``.
        targets: ``[rows]`` or ``[rows, targets]``.
        weights: ``[rows]`` or None.
    """

    inputs: Array
    targets: Array
    weights: Array | None

    def column(self, at: int) -> Part:
        """One target of several, where it is known."""
        known = ~np.isnan(self.targets[:, at])
        weights = None if self.weights is None else self.weights[known]
        return Part(self.inputs[known], self.targets[known, at], weights)


def require_support(schema: TableSchema) -> None:
    """Check that there can be trees at all.

    Raises:
        RecipeError: for inputs that are no table, or a scikit-learn that is too old.
    """
    from sklearn import __version__
    from sklearn.ensemble import HistGradientBoostingRegressor

    if schema.beside:
        raise RecipeError(
            f"The baseline 'trees' reads numbers and categories only, and the inputs have: {listed(schema.beside)}. "
            "Leave 'trees' out."
        )
    if "X_val" not in inspect.signature(HistGradientBoostingRegressor.fit).parameters:
        raise RecipeError(f"The baseline 'trees' needs scikit-learn 1.7 or newer; found {__version__}. Upgrade it.")


def fit_trees(rows: Rows, *, options: Mapping[str, Any], seed: int, result: str) -> Result:
    """Grow trees for every task that they can do, and score them on the validation rows.

    Args:
        rows: The worker's rows.
        options: Of scikit-learn's histogram gradient boosting.
        seed: Of the draw of rows from which bin edges come, where there are more than 200,000.
        result: File of the result.
    """
    peak = watch_memory("cpu")
    began = time.perf_counter()
    rounds: dict[str, list[int]] = {}
    outputs: dict[str, TaskOutputs | None] = {}
    for task in rows.tasks:
        held_out = part_of(task, rows.sources["validation"], rows.schema)
        models = _grown(task, rows, options, seed, held_out)
        rounds[task.name] = [model.n_iter_ for model in models]
        outputs[task.name] = _outputs(task, models, held_out)
    scores = _scores(rows.tasks, outputs)
    found = {
        "validation": scores.to_dict(),
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak(),
        "rounds": rounds,
        "notes": [],
    }
    write_json(Path(result), found)
    return found


def score_trees(
    rows: Rows, *, options: Mapping[str, Any], seed: int, rounds: Mapping[str, Sequence[int]], result: str
) -> Result:
    """Score trees on the test rows.

    Trees cannot be kept without pickling them. So they are grown again with the numbers of rounds that were chosen,
    which gives the same trees; only then are the test rows opened.
    """
    grown = {task.name: _grown(task, rows, options, seed, None, rounds[task.name]) for task in rows.tasks}
    test = read_part(rows.folder, "test")
    outputs = {task.name: _outputs(task, grown[task.name], part_of(task, test, rows.schema)) for task in rows.tasks}
    scores = _scores(rows.tasks, outputs)
    found = {"test": scores.to_dict(), "counts": scores.counts}
    write_json(Path(result), found)
    return found


def part_of(task: Task, sources: Sequence[TensorSource], schema: TableSchema) -> Part | None:
    """The labelled rows of a task; None if there is none."""
    found = []
    for source in sources:
        if task.name in source.tasks:
            batch = source.rows
            known = labelled(batch.targets[task.name]).numpy()
            weight = batch.weights.get(task.name)
            found.append(
                (
                    matrix(batch, schema)[known],
                    batch.targets[task.name].numpy()[known],
                    np.ones(int(known.sum())) if weight is None else weight.double().numpy()[known],
                    weight is not None,
                )
            )
    if not found or not sum(len(part[1]) for part in found):
        return None
    inputs, targets, weights = (np.concatenate([part[at] for part in found]) for at in range(3))
    return Part(inputs, targets, weights if any(part[3] for part in found) else None)


def matrix(batch: Batch, schema: TableSchema) -> Array:
    """Inputs as trees read them: numbers, missing ones as NaN, then category codes; float32 ``[rows, columns]``."""
    if isinstance(batch.inputs, torch.Tensor):
        single: Array = batch.inputs.numpy()
        return single
    columns = []
    if schema.numbers:
        numbers = batch.inputs["numbers"].numpy().copy()
        for at, name in enumerate(schema.missing):
            place = [column.name for column in schema.numbers].index(name)
            numbers[batch.inputs["missing"][:, at].numpy() > 0, place] = np.nan
        columns.append(numbers)
    if schema.categories:
        columns.append(batch.inputs["categories"].numpy())
    return np.concatenate(columns, 1, dtype=np.float32)


def _grown(
    task: Task,
    rows: Rows,
    options: Mapping[str, Any],
    seed: int,
    held_out: Part | None,
    rounds: Sequence[int] | None = None,
) -> list[Any]:
    """One model, or one for each target of several; none for a task that trees cannot do."""
    train = part_of(task, rows.sources["train"], rows.schema)
    if train is None or not _can(task, train):
        return []
    wide = train.targets.ndim > 1
    parts = [train.column(at) for at in range(train.targets.shape[1])] if wide else [train]
    checks = [held_out.column(at) if held_out and wide else held_out for at in range(len(parts))]
    most: Sequence[int | None] = rounds or [None] * len(parts)
    is_category = [False] * len(rows.schema.numbers) + [c.size <= MOST_CATEGORIES for c in rows.schema.categories]
    return [
        _fit(task, part, check, {**options, "categorical_features": is_category, "random_state": seed}, count)
        for part, check, count in zip(parts, checks, most, strict=True)
    ]


def _can(task: Task, train: Part) -> bool:
    """Whether scikit-learn has trees for such targets; it has none for soft labels or a single class."""
    form = task.target.form
    if form in ("number", "count"):
        return True
    if form not in ("binary", "class", "labels"):
        return False
    columns = train.targets.reshape(len(train.targets), -1).T
    known = [np.unique(column[~np.isnan(column)]) for column in columns]
    return all(len(values) > 1 and (values == values.round()).all() for values in known)


def _fit(task: Task, train: Part, held_out: Part | None, options: dict[str, Any], rounds: int | None) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    is_value = task.target.form in ("number", "count")
    make = HistGradientBoostingRegressor if is_value else HistGradientBoostingClassifier
    if task.target.form == "count":
        options = {**options, "loss": "poisson"}
    targets = train.targets if is_value else train.targets.astype(np.int64)
    checked = held_out is not None and (is_value or set(np.unique(held_out.targets)) <= set(np.unique(targets)))
    model = make(
        **options,
        max_iter=rounds or ROUNDS if rounds or checked else 100,
        early_stopping=checked,
        n_iter_no_change=PATIENCE,
    )
    extra: dict[str, Any] = {}
    if checked and held_out is not None:
        answers = held_out.targets if is_value else held_out.targets.astype(np.int64)
        extra = {"X_val": held_out.inputs, "y_val": answers, "sample_weight_val": held_out.weights}
    return model.fit(train.inputs, targets, sample_weight=train.weights, **extra)


def _outputs(task: Task, models: Sequence[Any], part: Part | None) -> TaskOutputs | None:
    if not models or part is None:
        return None
    columns = [_predicted(task, model, part.inputs) for model in models]
    score = np.stack(columns, 1) if part.targets.ndim > 1 else columns[0]
    targets = part.targets.astype(np.float64) if part.targets.dtype.kind == "f" else part.targets
    return TaskOutputs(torch.empty(0), score.astype(np.float64), targets, part.weights)


def _predicted(task: Task, model: Any, inputs: Array) -> Array:
    """What the task's metrics read: a value, a probability, or a probability for every class."""
    if task.target.form in ("number", "count"):
        values: Array = model.predict(inputs)
        return values
    probabilities = model.predict_proba(inputs)
    if task.target.form != "class":
        positive: Array = probabilities[:, 1]
        return positive
    assert task.target.classes is not None
    whole = np.zeros((len(inputs), len(task.target.classes)))
    whole[:, model.classes_] = probabilities
    return whole


def _scores(tasks: Sequence[Task], outputs: Mapping[str, TaskOutputs | None]) -> Scores:
    values = {task.name: score_outputs(task, outputs[task.name])[0] for task in tasks}
    return Scores(values, {name: 0 if found is None else len(found) for name, found in outputs.items()})
