"""What metrics share: undefined ratios, weighted counts, means that leave the undefined out.

A metric reads scores, targets and row weights of labelled rows. Where it is undefined, such as the AUROC
of rows that all belong to one class, it is NaN and nothing warns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polytask.tasks.task import Metric

Array = NDArray[Any]
Floats = NDArray[np.float64]
Compute = Callable[[Array, Array, Array | None], float]
Parts = Callable[[Array, Array, Array | None], Floats]

EPSILON = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 before a logarithm is taken."""


SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


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


@dataclass(frozen=True)
class Derived:
    """A figure of something that other metrics of the task are made of as well, and that is made once for all of them.

    Args:
        base: Makes it of scores, targets and row weights, such as a confusion matrix.
        figure: The figure of it: a number, or the values of classes or labels.

    Example:
        >>> Derived(lambda s, t, w: confusion_matrix(t, s, 2, w), np.diag)(np.array([0, 1]), np.array([1, 1]), None)
        array([0., 1.])
    """

    base: Callable[[Array, Array, Array | None], Any]
    figure: Callable[[Any], Any]

    def __call__(self, scores: Array, targets: Array, weights: Array | None) -> Any:
        """The figure of labelled rows."""
        return self.figure(self.base(scores, targets, weights))


def averaged(name: str, parts: Parts, higher_is_better: bool = True) -> Metric:
    """The metric that averages values of classes or labels, leaving out the undefined ones."""

    def compute(scores: Array, targets: Array, weights: Array | None) -> float:
        return mean_defined(parts(scores, targets, weights))

    return Metric(name, higher_is_better, compute, parts)


def auroc(probability: Array, target: Array, weights: Array | None) -> float:
    """Area under the ROC curve of yes-or-no targets; NaN unless both have weight.

    It is the share of pairs of a positive and a negative row in which the positive one is higher; a tie counts half.
    """
    if not _has_both(target, weights):
        return float("nan")
    score, positive = np.asarray(probability), np.asarray(target, dtype=bool)
    if weights is None:
        return _plain_auroc(score, positive)
    of_rows = row_weights(weights, len(score))
    order = np.argsort(score[~positive])
    lower, sums = score[~positive][order], np.append(0.0, np.cumsum(of_rows[~positive][order]))
    below, upto = (sums[np.searchsorted(lower, score[positive], side)] for side in SIDES)
    return float(of_rows[positive] @ (below + upto) / (2 * of_rows[positive].sum() * sums[-1]))


def _plain_auroc(score: Array, positive: Array) -> float:
    # Sorting values is many times as fast as sorting their places, and sorted values are found faster than others. So
    # the rows of the rarer target are looked up among all; n of them have n * n such pairs among themselves.
    ones, rows = int(positive.sum()), len(positive)
    rare = positive if 2 * ones <= rows else ~positive
    few, everyone = np.sort(score[rare]), np.sort(score)
    found = sum(int(np.searchsorted(everyone, few, side).sum()) for side in SIDES) - len(few) ** 2
    pairs = 2 * ones * (rows - ones)
    return (found if rare is positive else pairs - found) / pairs


def average_precision(probability: Array, target: Array, weights: Array | None) -> float:
    """Average precision of yes-or-no targets; NaN without positives.

    It is the mean over positive rows of the precision among all rows that score at least as high.
    """
    score, positive = np.asarray(probability), np.asarray(target, dtype=bool)
    if weights is not None:
        # A row of weight 0 at the top would have no precision.
        known = np.asarray(weights) > 0
        score, positive, weights = score[known], positive[known], row_weights(weights, len(known))[known]
    if not positive.any():
        return float("nan")
    if weights is None:
        yes = np.sort(score[positive])
        hits, alarms = (_weight_from(yes, others, None) for others in (yes, score[~positive]))
        return float((hits / (hits + alarms)).mean())
    yes, own = score[positive], weights[positive]
    hits, alarms = _weight_from(yes, yes, own), _weight_from(yes, score[~positive], weights[~positive])
    return mean_defined(hits / (hits + alarms), own)


def _weight_from(values: Array, others: Array, weights: Array | None) -> Array:
    """Weight, or number, of the others that are at least as high as each value."""
    if weights is None:
        return len(others) - np.searchsorted(np.sort(others), values)
    order = np.argsort(others)
    count = len(others) - np.searchsorted(others[order], values)
    # Added up from the top, so that the few rows there lose no digits to the many below.
    sums: Array = np.append(0.0, np.cumsum(weights[order][::-1]))[count]
    return sums


def _has_both(target: Array, weights: Array | None) -> bool:
    if weights is None:
        positives = np.asarray(target, dtype=bool)
        return bool(positives.any() and not positives.all())
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
