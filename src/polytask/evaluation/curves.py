"""Curves and histograms as plain numbers, thinned for drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.tasks.metrics import auroc, average_precision, mean_defined, row_weights, weighted_counts
from polytask.tasks.metrics_classes import reliability

Array = NDArray[Any]
Floats = NDArray[np.float64]
POINTS = 200
"""Most points of a curve: more than a drawing can show."""


@dataclass(frozen=True)
class Curve:
    """A curve with the area under it.

    Args:
        x: ``[points]``.
        y: ``[points]``.
        area: Of the whole curve, before thinning; NaN if the curve is undefined (then it has no points).
        base: What a guess reaches: 0.5 for ROC, the share of positives for precision-recall.
    """

    x: Floats
    y: Floats
    area: float
    base: float


@dataclass(frozen=True)
class Calibration:
    """A reliability curve: predicted probability against observed frequency, bin by bin; no empty bins.

    Args:
        predicted: Mean probability of each bin.
        observed: Weighted frequency of the positive class in each bin.
        rows: Rows in each bin.
        error: Expected calibration error over the same bins.
    """

    predicted: Floats
    observed: Floats
    rows: NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class Histogram:
    """A histogram.

    Args:
        edges: ``[bins + 1]``.
        counts: Weight in each bin, ``[bins]``.
        below: Weight of values below the first edge.
        above: Weight of values above the last edge.
    """

    edges: Floats
    counts: Floats
    below: float = 0.0
    above: float = 0.0


_EMPTY: Floats = np.zeros(0)


def roc_curve(score: Array, target: Array, weight: Array | None = None, points: int = POINTS) -> Curve:
    """True positive rate (y) against false positive rate (x).

    Args:
        score: Probabilities ``[rows]``, or any number that rises with them.
        target: 0, 1 or probabilities (read as 1 from one half on) ``[rows]``.
        weight: Row weights or None.
        points: Most points kept, two or more.

    Returns:
        The curve from (0, 0) to (1, 1); without points unless both classes have weight.

    Example:
        >>> roc_curve(np.array([0.1, 0.9]), np.array([0.0, 1.0])).area
        1.0
    """
    true = np.asarray(target) >= 0.5
    area = auroc(score, true, weight)
    if np.isnan(area):
        return Curve(_EMPTY, _EMPTY, area, 0.5)
    hits, alarms = _cumulative(score, true, weight)
    x, y = np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])
    return Curve(*_thinned(x, y, points), area, 0.5)


def precision_recall_curve(score: Array, target: Array, weight: Array | None = None, points: int = POINTS) -> Curve:
    """Precision (y) against recall (x).

    Args:
        score: Probabilities ``[rows]``, or any number that rises with them.
        target: 0, 1 or probabilities (read as 1 from one half on) ``[rows]``.
        weight: Row weights or None.
        points: Most points kept, two or more.

    Returns:
        The curve by rising recall, from (0, 1) on; its area is the average precision. Without points if no
        positive row has weight.

    Example:
        >>> precision_recall_curve(np.array([0.1, 0.9]), np.array([0.0, 1.0])).base
        0.5
    """
    true = np.asarray(target) >= 0.5
    of_rows = row_weights(weight, len(true))
    base = mean_defined(true, of_rows)
    area = average_precision(score, true, weight)
    if np.isnan(area):
        return Curve(_EMPTY, _EMPTY, area, base)
    hits, alarms = _cumulative(score, true, weight)
    x, y = np.append(0.0, hits / hits[-1]), np.append(1.0, hits / (hits + alarms))
    return Curve(*_thinned(x, y, points), area, base)


def calibration_curve(score: Array, target: Array, weight: Array | None = None, bins: int = 15) -> Calibration:
    """Observed frequency against predicted probability in bins of equal width.

    Args:
        score: Probabilities ``[rows]``.
        target: 0, 1 or probabilities ``[rows]``.
        weight: Row weights or None.
        bins: From 0 to 1.

    Example:
        >>> calibration_curve(np.array([0.2, 0.2]), np.array([0.0, 1.0])).observed
        array([0.5])
    """
    predicted, observed, mass = reliability(score, target, weight, bins)
    rows = reliability(score, target, None, bins)[2].astype(np.int64)
    used = mass > 0
    return Calibration(predicted[used], observed[used], rows[used], mean_defined(np.abs(predicted - observed), mass))


def error_histogram(
    score: Array, target: Array, weight: Array | None = None, bins: int = 40, cover: float = 0.995
) -> Histogram:
    """Predicted minus true, in bins of equal width.

    Args:
        score: Values ``[rows]``; rows without a target (NaN) are left out.
        target: True values ``[rows]``.
        weight: Row weights or None.
        bins: Number of bins.
        cover: The bins reach from 0 as far as this share of the rows; rarer errors are counted beside them,
            since one outlier would squeeze all others into a single bar.

    Returns:
        The histogram; without bins if no row has a target.

    Example:
        >>> error_histogram(np.array([1.0, 2.0]), np.array([0.0, 3.0]), bins=2, cover=1.0).counts
        array([1., 1.])
    """
    error = np.asarray(score, dtype=np.float64) - target
    known = ~np.isnan(error)
    error, of_rows = error[known], row_weights(weight, len(known))[known]
    if len(error) == 0:
        return Histogram(_EMPTY, _EMPTY)
    # The next value of the data, not one in between: with cover=1 the largest error lies inside.
    reach = float(np.quantile(np.abs(error), cover, method="higher")) or 1.0
    edges = np.linspace(-reach, reach, bins + 1)
    inside = np.abs(error) <= reach
    place = np.clip(((error[inside] + reach) / (2 * reach) * bins).astype(np.int64), 0, bins - 1)
    counts = weighted_counts(place, of_rows[inside], bins)
    return Histogram(edges, counts, float(of_rows[error < -reach].sum()), float(of_rows[error > reach].sum()))


def _cumulative(score: Array, true: Array, weight: Array | None) -> tuple[Floats, Floats]:
    """Weights of positives and negatives at or above each distinct score, from the highest score down."""
    of_rows = row_weights(weight, len(true))
    order = np.argsort(-np.asarray(score), kind="stable")
    ends = np.append(np.nonzero(np.diff(np.asarray(score)[order]))[0], len(order) - 1)
    hits = np.cumsum((of_rows * true)[order])[ends]
    alarms = np.cumsum((of_rows * ~true)[order])[ends]
    # Rows of weight 0 at the top would be a point where nothing has been predicted.
    some = hits + alarms > 0
    return hits[some], alarms[some]


def _thinned(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """At most ``points`` points, evenly spread along the curve's length; the ends stay."""
    if len(x) <= points:
        return x, y
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    chosen = np.searchsorted(length, np.linspace(0.0, length[-1], points))
    chosen = np.unique(np.clip(np.append(chosen, [0, len(x) - 1]), 0, len(x) - 1))
    chosen = chosen if len(chosen) <= points else np.delete(chosen, 1)
    return x[chosen], y[chosen]
