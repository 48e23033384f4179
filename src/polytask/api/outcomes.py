"""What a decision rule decides for rows, and what was true of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polytask.data.batch import map_tensors
from polytask.data.source import Source
from polytask.evaluation import Decision
from polytask.evaluation.predict import evaluation_mode
from polytask.models import MultiTaskModel
from polytask.reporting import OutcomeRecord
from polytask.tasks.task import Task, labelled

VALUES = ("regression", "counts")
MOST_CLASSES = 12
"""A task with more classes shows those that are most frequent."""


@dataclass(frozen=True)
class Decided:
    """The decisions of one source's rows.

    Args:
        decisions: ``[rows]``, None where nothing was decided.
        targets: For each task its targets of the same rows.
        tasks: The tasks.
    """

    decisions: NDArray[Any]
    targets: dict[str, NDArray[Any]]
    tasks: dict[str, Task]


def decided(
    model: MultiTaskModel,
    sources: Sequence[Source],
    decision: Decision,
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[Decided]:
    """Decide for all rows of sources, source by source."""
    found = []
    with evaluation_mode(model), torch.inference_mode():
        for source in sources:
            decisions, targets = [], []
            for start in range(0, len(source), batch_size):
                batch = source.take(torch.arange(start, min(start + batch_size, len(source))))
                with autocast():
                    raw = model(map_tensors(batch.inputs, lambda t: t.to(device)), decision.needs)
                decisions.append(decision({task: output.cpu() for task, output in raw.items()}))
                targets.append(batch.targets)
            joined = {name: torch.cat([of[name] for of in targets]).cpu() for name in targets[0]}
            tasks = {name: model.tasks[name] for name in joined if name in model.tasks}
            numbers = {name: values.double().numpy() for name, values in joined.items() if name in tasks}
            for name, values in joined.items():
                numbers[name][~labelled(values).numpy()] = np.nan
            found.append(Decided(np.concatenate(decisions), numbers, tasks))
    return found


def outcomes(decision: Decision, found: Sequence[Decided]) -> dict[str, Any]:
    """Counts of the decisions and what was true of their rows: fields of a ``DecisionRecord``."""
    labels: list[str | None] = [*decision.labels]
    if any(value is None for part in found for value in part.decisions):
        labels.append(None)
    rows = [sum(int((part.decisions == label).sum()) for part in found) for label in labels]
    tasks = {name: task for part in found for name, task in part.tasks.items()}
    records = [record for task in tasks.values() if (record := _outcome(task, labels, found)) is not None]
    return {"labels": tuple(label or "" for label in labels), "rows": tuple(rows), "outcomes": tuple(records)}


def _outcome(task: Task, labels: Sequence[str | None], found: Sequence[Decided]) -> OutcomeRecord | None:
    parts = [part for part in found if task.name in part.targets]
    targets = np.concatenate([part.targets[task.name] for part in parts])
    decisions = np.concatenate([part.decisions for part in parts])
    named = _indicators(task, targets)
    if named is None:
        return None
    names, values = named
    known = ~np.isnan(values).all(1)
    chosen = [known & (decisions == label) for label in labels]
    return OutcomeRecord(
        task.name,
        task.kind not in VALUES,
        tuple(names),
        tuple(int(rows.sum()) for rows in chosen),
        tuple(
            tuple(float(np.nanmean(column)) if (~np.isnan(column)).any() else None for column in values[rows].T)
            for rows in chosen
        ),
    )


def _indicators(task: Task, targets: NDArray[Any]) -> tuple[list[str], NDArray[np.float64]] | None:
    """Names of columns, and ``[rows, columns]`` of what their means are to be taken of; None for other kinds."""
    if task.kind in VALUES:
        values = targets.reshape(len(targets), -1)
        names = ["mean"] if values.shape[1] == 1 else [f"mean of {at + 1}" for at in range(values.shape[1])]
        return names, values
    if task.kind == "binary":
        return [task.target.classes[1] if task.target.classes else "1"], targets[:, None]
    if task.kind == "multilabel" or (targets.ndim > 1 and task.target.form == "distribution"):
        classes = list(task.target.classes or map(str, range(targets.shape[1])))
        return _most_frequent(classes, targets)
    if task.kind in ("multiclass", "ordinal"):
        count = len(task.target.classes or ()) or int(np.nanmax(targets, initial=0)) + 1
        shares = (targets[:, None] == np.arange(count)).astype(np.float64)
        shares[np.isnan(targets)] = np.nan
        return _most_frequent(list(task.target.classes or map(str, range(count))), shares)
    return None


def _most_frequent(classes: list[str], shares: NDArray[np.float64]) -> tuple[list[str], NDArray[np.float64]]:
    if len(classes) <= MOST_CLASSES:
        return classes, shares
    keep = np.sort(np.argsort(-np.nansum(shares, 0), kind="stable")[:MOST_CLASSES])
    return [classes[at] for at in keep], shares[:, keep]
