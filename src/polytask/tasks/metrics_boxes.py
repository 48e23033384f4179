"""Metrics of detection as COCO defines them, by its own tools."""

from __future__ import annotations

import contextlib
import functools
import io
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from polytask.errors import MissingExtraError
from polytask.tasks.metrics import Array, Floats, Parts, averaged
from polytask.tasks.task import Metric

THRESHOLDS = {"map": slice(None), "map_50": slice(0, 1), "map_75": slice(5, 6)}
"""Metrics, and which of COCO's ten IoU thresholds (0.5 to 0.95) each averages over."""
MOST = 100
"""Boxes of an image that count, the best ones."""


class _Latest:
    """The evaluation of the arrays that were seen last: several metrics read one."""

    def __init__(self) -> None:
        self._of: tuple[Any, Any, int] | None = None
        self._found: Mapping[str, Array] = {}

    def __call__(self, scores: Array, targets: Array, classes: int) -> Mapping[str, Array]:
        if self._of is None or self._of[0]() is not scores or self._of[1]() is not targets or self._of[2] != classes:
            self._found = coco_evaluation(scores, targets, classes)
            self._of = (weakref.ref(scores), weakref.ref(targets), classes)
        return self._found


_latest = _Latest()


def coco_evaluation(scores: Array, targets: Array, classes: int) -> Mapping[str, Array]:
    """What COCO's tools accumulate over all sizes of boxes: ``precision`` and ``recall``.

    Args:
        scores: Boxes ``[rows, d, 6]``: class (negative for none), score, x1, y1, x2, y2.
        targets: Boxes ``[rows, n, 5]``: class (negative or NaN for none), x1, y1, x2, y2.
        classes: k.

    Returns:
        ``precision`` ``[10 thresholds, 101 recalls, k]`` and ``recall`` ``[10, k]``; -1 where undefined.

    Raises:
        MissingExtraError: if pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtraError(
            "Metrics of detection need the package pycocotools. Install it with: pip install 'polytask[vision]'"
        ) from error
    # The tools print how long they took.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_as_coco(COCO, targets, classes), _as_coco(COCO, scores, classes), "bbox")
        parameters = evaluation.params
        # The metrics here are of all sizes; the other ranges of areas would take three times as long.
        parameters.areaRng, parameters.areaRngLbl, parameters.maxDets = [[0.0, 1e10]], ["all"], [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    found = evaluation.eval
    return {"precision": found["precision"][..., 0, 0], "recall": found["recall"][..., 0, 0]}


def _as_coco(kind: Any, boxes: Array, classes: int) -> Any:
    """Boxes as one of COCO's sets of annotations."""
    scored = boxes.shape[-1] == 6
    annotations: list[dict[str, Any]] = []
    for image, place in zip(*np.nonzero(boxes[..., 0] >= 0), strict=True):
        number, *score, x1, y1, x2, y2 = boxes[image, place].tolist()
        width, height = x2 - x1, y2 - y1
        place_of = {"id": len(annotations) + 1, "image_id": int(image), "category_id": int(number), "iscrowd": 0}
        box = {"bbox": [x1, y1, width, height], "area": width * height}
        annotations.append(place_of | box | ({"score": score[0]} if scored else {}))
    made = kind()
    made.dataset = {
        "images": [{"id": image} for image in range(len(boxes))],
        "categories": [{"id": number} for number in range(classes)],
        "annotations": annotations,
    }
    made.createIndex()
    return made


def _defined(values: Array) -> Array:
    return np.where(values < 0, np.nan, values)


def average_precisions(name: str, classes: int) -> Parts:
    """The average precision of every class, ``[k]``; NaN for one that no image shows.

    Args:
        name: Such as ``"map"``.
        classes: k.
    """

    def parts(scores: Array, targets: Array, weights: Array | None) -> Floats:
        precision = _latest(scores, targets, classes)["precision"][THRESHOLDS[name]]
        found: Floats = _defined(precision.mean((0, 1)))
        return found

    return parts


@functools.cache
def detection_metrics(classes: int) -> Mapping[str, Metric]:
    """Metrics by name. COCO's tools know no row weights, so every labelled image counts the same.

    Args:
        classes: k; 0 while it is unknown.
    """

    def recall(scores: Array, targets: Array, weights: Array | None) -> Floats:
        found: Floats = _defined(_latest(scores, targets, classes)["recall"].mean(0))
        return found

    found = [averaged(name, average_precisions(name, classes)) for name in THRESHOLDS]
    return {metric.name: metric for metric in [*found, averaged("average_recall", recall)]}


DETECTION = tuple(detection_metrics(0))
"""Names of the metrics of detection, the primary one first."""
