"""What metrics share: undefined ratios, weighted counts, means that leave the undefined out.

A metric reads scores, targets and row weights of labelled rows. Where it is undefined, such as the AUROC
of rows that all belong to one class, it is NaN and nothing warns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.tasks.task import Metric

Array = NDArray[Any]
Floats = NDArray[np.float64]
Compute = Callable[[Array, Array, Array | None], float]
Parts = Callable[[Array, Array, Array | None], Floats]

EPSILON = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 before a logarithm is taken."""


def ratio(above: Any, below: Any) -> Floats:
    """Element-wise quotient, NaN where the denominator is 0.

    Example:
        >>> ratio([1.0, 1.0], [2.0, 0.0])
        array([0.5, nan])
    """
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    quotient: Floats = np.full(np.broadcast(above, below).shape, np.nan)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient


def mean_defined(values: Any, weights: Any = None) -> float:
    """Mean of the values that are not NaN; NaN if there is none.

    Example:
        >>> mean_defined([1.0, float("nan"), 3.0])
        2.0
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    of_values = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = of_values[known].sum()
    return float((values[known] * of_values[known]).sum() / total) if total > 0 else float("nan")


def row_weights(weights: Array | None, rows: int) -> Floats:
    """Row weights in float64, ones where there are none."""
    return np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)


def weighted_counts(numbers: Array, weights: Floats, length: int) -> Floats:
    """Weight of every number from 0 to ``length - 1``."""
    return np.bincount(numbers, weights, length).astype(np.float64, copy=False)


def confusion_matrix(true: Array, predicted: Array, classes: int, weights: Array | None = None) -> Floats:
    """Weighted counts of true classes (rows) and predicted ones (columns).

    Args:
        true: Class numbers ``[rows]``.
        predicted: Class numbers ``[rows]``.
        classes: k.
        weights: Row weights ``[rows]`` or None.

    Returns:
        ``[k, k]``, float64.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
        array([[1., 0.],
               [1., 1.]])
    """
    pairs = np.asarray(true, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return weighted_counts(pairs, row_weights(weights, len(pairs)), classes * classes).reshape(classes, classes)


def averaged(name: str, parts: Parts, higher_is_better: bool = True) -> Metric:
    """The metric that averages values of classes or labels, leaving out the undefined ones."""

    def compute(scores: Array, targets: Array, weights: Array | None) -> float:
        return mean_defined(parts(scores, targets, weights))

    return Metric(name, higher_is_better, compute, parts)


def auroc(probability: Array, target: Array, weights: Array | None) -> float:
    """Area under the ROC curve of yes-or-no targets; NaN unless both have weight."""
    if not _has_both(target, weights):
        return float("nan")
    if weights is not None:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(target, probability, sample_weight=weights))
    from scipy.stats import rankdata

    # The same number from the ranks of the positive rows, for half the time: many classes mean many areas.
    ranks, positive = rankdata(probability), np.asarray(target, dtype=bool)
    ones = int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))


def average_precision(probability: Array, target: Array, weights: Array | None) -> float:
    """Average precision of yes-or-no targets; NaN without positives."""
    if not (row_weights(weights, len(target)) * target).sum() > 0:
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(target, probability, sample_weight=weights))


def _has_both(target: Array, weights: Array | None) -> bool:
    of_rows = row_weights(weights, len(target))
    positive = (of_rows * target).sum()
    return bool(positive > 0 and (of_rows * (1 - target)).sum() > 0)


def correlation(first: Array, second: Array, weights: Array | None) -> float:
    """Weighted Pearson correlation; NaN if either does not vary."""
    of_rows = row_weights(weights, len(first))
    if not of_rows.sum() > 0 or np.ptp(first[of_rows > 0]) == 0 or np.ptp(second[of_rows > 0]) == 0:
        return float("nan")
    share = of_rows / of_rows.sum()
    a, b = first - share @ first, second - share @ second
    # Divide by the deviations first: the product of two variances may underflow.
    a, b = a / np.sqrt(share @ (a * a)), b / np.sqrt(share @ (b * b))
    return float(np.clip(share @ (a * b), -1.0, 1.0))


def ranks(values: Array, weights: Array | None) -> Floats:
    """Weighted ranks with ties at their middle: a row of weight 2 counts like two equal rows."""
    _, group = np.unique(values, return_inverse=True)
    mass = np.bincount(group.reshape(-1), row_weights(weights, len(values)))
    middle: Floats = (np.cumsum(mass) - mass / 2)[group.reshape(-1)]
    return middle


def spearman(first: Array, second: Array, weights: Array | None) -> float:
    """Weighted rank correlation; NaN if either does not vary."""
    return correlation(ranks(first, weights), ranks(second, weights), weights)
