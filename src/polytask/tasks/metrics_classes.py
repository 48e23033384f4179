"""Metrics of binary, multiclass and ordinal tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polytask.tasks.metrics import (
    EPSILON,
    Array,
    Derived,
    Floats,
    auroc,
    average_precision,
    averaged,
    confusion_matrix,
    mean_defined,
    ratio,
    row_weights,
    spearman,
    weighted_counts,
)
from polytask.tasks.task import Metric


def as_classes(targets: Array) -> Array:
    """Class numbers of targets: themselves, or the most probable class of soft labels."""
    return targets.argmax(1) if targets.ndim == 2 else targets.astype(np.int64)


def median_class(probabilities: Array) -> Array:
    """The lowest class with at least half of the probability at or below it, ``[rows]``.

    It makes the expected distance in classes smallest, which is what ordered classes ask for.
    """
    # Rounding may leave the whole sum just below one half times two.
    median: Array = np.minimum((probabilities.cumsum(1) < 0.5).sum(1), probabilities.shape[1] - 1)
    return median


def _binary_matrix(scores: Array, targets: Array, weights: Array | None) -> Floats:
    return confusion_matrix(targets >= 0.5, scores >= 0.5, 2, weights)


def _class_matrix(scores: Array, targets: Array, weights: Array | None) -> Floats:
    return confusion_matrix(as_classes(targets), scores.argmax(1), scores.shape[1], weights)


def _ordinal_matrix(scores: Array, targets: Array, weights: Array | None) -> Floats:
    return confusion_matrix(targets, median_class(scores), scores.shape[1], weights)


def precision_of(matrix: Array) -> Floats:
    """Precision of every class; NaN where none was predicted."""
    return ratio(matrix.diagonal(), matrix.sum(0))


def recall_of(matrix: Array) -> Floats:
    """Recall of every class; NaN where it has no rows."""
    return ratio(matrix.diagonal(), matrix.sum(1))


def f1_of(matrix: Array) -> Floats:
    """F1 of every class; NaN where it has neither rows nor predictions."""
    return ratio(2 * matrix.diagonal(), matrix.sum(0) + matrix.sum(1))


def accuracy_of(matrix: Array) -> float:
    """Share of rows on the diagonal."""
    return float(ratio(matrix.trace(), matrix.sum()))


def mcc_of(matrix: Array) -> float:
    """Matthews correlation coefficient; NaN if all rows or all predictions are of one class."""
    true, predicted, total = matrix.sum(1), matrix.sum(0), matrix.sum()
    spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    return float(ratio(matrix.trace() * total - true @ predicted, np.sqrt(max(spread, 0.0))))


def kappa_of(matrix: Array, quadratic: bool = False) -> float:
    """Cohen's kappa, with squared distances between ordered classes if ``quadratic``; NaN if chance is perfect."""
    place = np.arange(len(matrix))
    distance = np.subtract.outer(place, place).astype(np.float64)
    cost = distance**2 if quadratic else (distance != 0).astype(np.float64)
    expected = ratio(np.outer(matrix.sum(1), matrix.sum(0)), matrix.sum())
    return float(1 - ratio((cost * matrix).sum(), (cost * expected).sum()))


def _distance_of(matrix: Array) -> float:
    place = np.arange(len(matrix))
    return float(ratio((np.abs(np.subtract.outer(place, place)) * matrix).sum(), matrix.sum()))


def reliability(scores: Array, targets: Array, weights: Array | None, bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """Mean probability, observed frequency and weight in bins of equal width (NaN in an empty bin).

    Args:
        scores: Probabilities ``[rows]``.
        targets: 0, 1 or probabilities ``[rows]``.
        weights: Row weights or None.
        bins: Number of bins from 0 to 1.

    Returns:
        Three arrays ``[bins]``.
    """
    of_rows = row_weights(weights, len(scores))
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    mass = weighted_counts(place, of_rows, bins)
    predicted, observed = (weighted_counts(place, of_rows * values, bins) for values in (scores, targets))
    return ratio(predicted, mass), ratio(observed, mass), mass


def _ece(scores: Array, targets: Array, weights: Array | None) -> float:
    predicted, observed, mass = reliability(scores, targets, weights)
    return mean_defined(np.abs(predicted - observed), mass)


def _weighted_mean(values: Array, weights: Array | None) -> float:
    return mean_defined(values, row_weights(weights, len(values)))


def _log_loss(scores: Array, targets: Array, weights: Array | None) -> float:
    p = np.clip(scores, EPSILON, 1 - EPSILON)
    return _weighted_mean(-(targets * np.log(p) + (1 - targets) * np.log1p(-p)), weights)


def class_log_loss(scores: Array, targets: Array, weights: Array | None) -> float:
    """Mean negative log-probability of the true class, or cross-entropy with soft labels."""
    if targets.ndim == 2:
        return _weighted_mean(-(targets * np.log(np.clip(scores, EPSILON, 1.0))).sum(1), weights)
    own = scores[np.arange(len(scores)), targets.astype(np.int64)]
    return _weighted_mean(-np.log(np.clip(own, EPSILON, 1.0)), weights)


def _one_vs_rest_auroc(scores: Array, targets: Array, weights: Array | None) -> Floats:
    true = as_classes(targets)
    # Classes side by side in memory, since each is read several times.
    return np.array([auroc(column, true == c, weights) for c, column in enumerate(np.ascontiguousarray(scores.T))])


def _top(count: int) -> Metric:
    def compute(scores: Array, targets: Array, weights: Array | None) -> float:
        true = as_classes(targets)
        own = scores[np.arange(len(scores)), true][:, None]
        # Of equal scores the lower class number goes first, as in argmax.
        earlier = np.arange(scores.shape[1]) < true[:, None]
        place = ((scores > own) | ((scores == own) & earlier)).sum(1)
        return _weighted_mean((place < count).astype(np.float64), weights)

    return Metric(f"top_{count}_accuracy", True, compute)


def _of_matrix(name: str, matrix: Any, figure: Any, higher_is_better: bool = True) -> Metric:
    return Metric(name, higher_is_better, Derived(matrix, lambda found: float(figure(found))))


def _by_name(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


BINARY = _by_name(
    Metric("auroc", True, lambda s, t, w: auroc(s, t >= 0.5, w)),
    Metric("average_precision", True, lambda s, t, w: average_precision(s, t >= 0.5, w)),
    _of_matrix("accuracy", _binary_matrix, accuracy_of),
    averaged("balanced_accuracy", Derived(_binary_matrix, recall_of)),
    _of_matrix("f1", _binary_matrix, lambda m: f1_of(m)[1]),
    _of_matrix("precision", _binary_matrix, lambda m: precision_of(m)[1]),
    _of_matrix("recall", _binary_matrix, lambda m: recall_of(m)[1]),
    Metric("log_loss", False, _log_loss),
    Metric("brier", False, lambda s, t, w: _weighted_mean((s - t) ** 2, w)),
    Metric("ece", False, _ece),
    _of_matrix("mcc", _binary_matrix, mcc_of),
)
BINARY_DEFAULT = tuple(BINARY)

MULTICLASS = _by_name(
    _of_matrix("accuracy", _class_matrix, accuracy_of),
    averaged("macro_f1", Derived(_class_matrix, f1_of)),
    # With one predicted class a row, pooled precision, recall and F1 all are the accuracy.
    _of_matrix("micro_f1", _class_matrix, accuracy_of),
    _of_matrix("weighted_f1", _class_matrix, lambda m: mean_defined(f1_of(m), m.sum(1))),
    averaged("macro_precision", Derived(_class_matrix, precision_of)),
    averaged("macro_recall", Derived(_class_matrix, recall_of)),
    Metric("log_loss", False, class_log_loss),
    averaged("auroc", _one_vs_rest_auroc),
    _of_matrix("kappa", _class_matrix, kappa_of),
    _of_matrix("mcc", _class_matrix, mcc_of),
    _top(3),
    _top(5),
)
MULTICLASS_DEFAULT = tuple(name for name in MULTICLASS if not name.startswith("top_"))

ORDINAL = _by_name(
    _of_matrix("mae", _ordinal_matrix, _distance_of, False),
    _of_matrix("accuracy", _ordinal_matrix, accuracy_of),
    _of_matrix("quadratic_kappa", _ordinal_matrix, lambda m: kappa_of(m, quadratic=True)),
    Metric("spearman", True, lambda s, t, w: spearman(median_class(s), t, w)),
    Metric("log_loss", False, class_log_loss),
)
ORDINAL_DEFAULT = tuple(ORDINAL)
