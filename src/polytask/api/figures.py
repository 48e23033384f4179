"""What the report draws of a task's outputs, as plain lists and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytask.evaluation import (
    TaskOutputs,
    calibration_curve,
    confusion,
    error_histogram,
    precision_recall_curve,
    roc_curve,
)
from polytask.evaluation.confusion import AVERAGES
from polytask.tasks.metrics_boxes import average_precisions
from polytask.tasks.metrics_classes import f1_of, precision_of, recall_of
from polytask.tasks.metrics_maps import iou_of, pixel_matrix
from polytask.tasks.metrics_tags import count_entities, tag_matrix
from polytask.tasks.spans import TagSet
from polytask.tasks.task import Task

SAMPLE = 400
"""Most rows of the scatter of predicted against true values."""


def figures(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    """The figures of a task, by the names that ``TaskRecord`` describes.

    Example:
        >>> import torch
        >>> from polytask.tasks import regression
        >>> values = np.array([1.0, 2.0])
        >>> sorted(figures(regression("size"), TaskOutputs(torch.tensor(values), values, values, None)))
        ['errors', 'predicted_true']
    """
    makers = {
        "binary": (_confusion, _binary),
        "multiclass": (_confusion,),
        "ordinal": (_confusion,),
        "multilabel": (_labels,),
        "regression": (_values,),
        "segmentation": (_parts,),
        "detection": (_things,),
        "counts": (_values,),
        "tagging": (_tags,),
    }
    found: dict[str, Any] = {}
    for make in makers.get(task.kind, ()):
        found |= make(task, outputs)
    return found


def _confusion(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    return {"confusion": {"matrix": confusion(task, outputs)[""].matrix.tolist()}}


def _binary(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    arrays = (outputs.score, outputs.target, outputs.weight)
    roc, pr, calibration = roc_curve(*arrays), precision_recall_curve(*arrays), calibration_curve(*arrays)
    return {
        "roc": {"x": roc.x.tolist(), "y": roc.y.tolist(), "area": roc.area},
        "precision_recall": {"x": pr.x.tolist(), "y": pr.y.tolist(), "area": pr.area, "base": pr.base},
        "calibration": {
            "predicted": calibration.predicted.tolist(),
            "observed": calibration.observed.tolist(),
            "rows": calibration.rows.tolist(),
            "error": calibration.error,
        },
    }


def _labels(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    rows = []
    for at, (name, found) in enumerate(confusion(task, outputs).items()):
        known = ~np.isnan(outputs.target[:, at])
        weight = None if outputs.weight is None else outputs.weight[known]
        area = roc_curve(outputs.score[known, at], outputs.target[known, at], weight).area
        rates = found.per_class()[1]
        chosen = {"precision": rates["ppv"], "recall": rates["tpr"], "f1": rates["f1"]}
        rows.append({"label": name, "support": rates["support"], **chosen, "auroc": area})
    return {"labels": rows}


def _parts(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    """Rates of every class over pixels."""
    names = task.target.classes or ()
    matrix = pixel_matrix(outputs.score, outputs.target, outputs.weight, len(names))
    rates = {"iou": iou_of(matrix), "precision": precision_of(matrix), "recall": recall_of(matrix)}
    rows = [
        {"label": name, "support": float(matrix[at].sum()), **{key: float(of[at]) for key, of in rates.items()}}
        for at, name in enumerate(names)
    ]
    return {"labels": rows}


def _things(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    """Average precisions of every class."""
    names = task.target.classes or ()
    arrays = (outputs.score, outputs.target, outputs.weight)
    rates = {"ap": average_precisions("map", len(names)), "ap_50": average_precisions("map_50", len(names))}
    found = {name: of(*arrays) for name, of in rates.items()}
    boxes = [int((outputs.target[..., 0] == at).sum()) for at in range(len(names))]
    return {
        "labels": [
            {"label": name, "support": boxes[at], **{key: float(values[at]) for key, values in found.items()}}
            for at, name in enumerate(names)
        ]
    }


def _values(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    score, target = (np.asarray(values).reshape(len(outputs), -1) for values in (outputs.score, outputs.target))
    if score.shape[1] > 1:
        # Several values of different units do not share one axis; their errors are in the table of scores.
        return {}
    errors = error_histogram(score[:, 0], target[:, 0], outputs.weight)
    stride = -(-len(outputs) // SAMPLE)
    return {
        "errors": {"edges": errors.edges.tolist(), "counts": errors.counts.tolist()},
        "predicted_true": {"true": target[::stride, 0].tolist(), "predicted": score[::stride, 0].tolist()},
    }


def _tags(task: Task, outputs: TaskOutputs) -> dict[str, Any]:
    arrays = (outputs.score, outputs.target, outputs.weight)
    names = task.target.classes or tuple(str(number) for number in range(int(outputs.target.max()) + 1))
    tags = TagSet(names, task.target.scheme)
    if tags.scheme == "none":
        matrix = tag_matrix(*arrays, len(names))
        rates = {"precision": precision_of(matrix), "recall": recall_of(matrix), "f1": f1_of(matrix)}
        return {"tags": _rows("tag", names, rates, matrix.sum(1))}
    found = count_entities(*arrays, tags)
    rates = {"precision": found.precision, "recall": found.recall, "f1": found.f1}
    kinds = _rows("type", tags.types, rates, found.true)
    averages = [_counted({"type": f"{kind} average", **found.average(kind)}) for kind in AVERAGES]
    return {"entities": [row for row, seen in zip(kinds, found.seen, strict=True) if seen] + averages}


def _rows(what: str, names: Sequence[str], rates: Mapping[str, Any], support: Any) -> list[dict[str, Any]]:
    return [
        _counted(
            {what: name, **{key: float(values[at]) for key, values in rates.items()}, "support": float(support[at])}
        )
        for at, name in enumerate(names)
    ]


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its support as a whole number, which it is unless rows have weights."""
    support = float(row["support"])
    return {**row, "support": int(support) if support.is_integer() else support}
