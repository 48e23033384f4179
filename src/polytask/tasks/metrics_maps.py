"""Metrics of segmentation and of numbers at every pixel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from polytask.tasks.metrics import Array, Derived, Floats, averaged, confusion_matrix, mean_defined, ratio, row_weights
from polytask.tasks.metrics_classes import accuracy_of, f1_of
from polytask.tasks.task import Metric


def pixel_matrix(predicted: Array, targets: Array, weights: Array | None, classes: int | None = None) -> Floats:
    """Weighted counts of labelled pixels by true class (rows) and predicted class (columns).

    Args:
        predicted: Class numbers ``[rows, H, W]``.
        targets: Class numbers ``[rows, H, W]``, negative without a label.
        weights: Row weights ``[rows]`` or None.
        classes: k; None takes what occurs.

    Example:
        >>> pixel_matrix(np.array([[[0, 1]]]), np.array([[[0, -1]]]), None, 2).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    count = classes or int(max(predicted.max(), targets.max())) + 1
    known = targets >= 0
    of_pixels = None if weights is None else np.repeat(row_weights(weights, len(targets)), known.sum((1, 2)))
    return confusion_matrix(targets[known], predicted[known], count, of_pixels)


def iou_of(matrix: Array) -> Floats:
    """Intersection over union of every class; NaN for one that is neither true nor predicted anywhere."""
    both = matrix.diagonal()
    return ratio(both, matrix.sum(0) + matrix.sum(1) - both)


@functools.cache
def segmentation_metrics(classes: int | None) -> Mapping[str, Metric]:
    """Metrics by name, over all labelled pixels of all rows together.

    Args:
        classes: k, or None while it is unknown.
    """
    matrix = functools.partial(pixel_matrix, classes=classes)
    accuracy = Metric("pixel_accuracy", True, Derived(matrix, accuracy_of))
    found = (averaged("miou", Derived(matrix, iou_of)), accuracy, averaged("mean_dice", Derived(matrix, f1_of)))
    return {metric.name: metric for metric in found}


SEGMENTATION = tuple(segmentation_metrics(None))
"""Names of the metrics of segmentation, the primary one first."""


def _over_pixels(name: str, figure: Callable[[Array, Array], Array], higher_is_better: bool = False) -> Metric:
    """The mean of a figure over all labelled pixels of all rows."""

    def compute(scores: Array, targets: Array, weights: Array | None) -> float:
        known = ~np.isnan(targets)
        of_rows = row_weights(weights, len(targets))
        of_pixels = np.repeat(of_rows, known.reshape(len(known), -1).sum(1))
        value = mean_defined(figure(scores[known].astype(np.float64), targets[known]), of_pixels)
        return float(np.sqrt(value)) if name == "rmse" else value

    return Metric(name, higher_is_better, compute)


def _within(scores: Array, targets: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.maximum(scores / targets, targets / scores)
    share: Array = ((factor < 1.25) & (scores > 0) & (targets > 0)).astype(np.float64)
    return share


MAPS: Mapping[str, Metric] = {
    "rmse": _over_pixels("rmse", lambda s, t: (s - t) ** 2),
    "mae": _over_pixels("mae", lambda s, t: np.abs(s - t)),
    "relative_error": _over_pixels("relative_error", lambda s, t: ratio(np.abs(s - t), np.abs(t))),
    "within_quarter": _over_pixels("within_quarter", _within, True),
}
"""Metrics of numbers at pixels; ``within_quarter`` is the share whose ratio to the truth is below 1.25 both ways."""
