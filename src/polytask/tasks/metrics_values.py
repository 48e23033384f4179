"""Metrics of multilabel, regression and count tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from polytask.tasks.metrics import (
    Array,
    Floats,
    Parts,
    auroc,
    average_precision,
    averaged,
    confusion_matrix,
    correlation,
    mean_defined,
    ratio,
    row_weights,
    spearman,
)
from polytask.tasks.metrics_classes import f1_of
from polytask.tasks.task import Metric

Column = Callable[[Array, Array, Array | None], float]


def _columns(column: Column) -> Parts:
    """Apply a figure to every column of scores and targets, on that column's known rows."""

    def parts(scores: Array, targets: Array, weights: Array | None) -> Floats:
        wide, known_wide = (values.reshape(len(values), -1) for values in (scores, targets))
        found = []
        for score, target in zip(wide.T, known_wide.T, strict=True):
            known = ~np.isnan(target)
            of_rows = None if weights is None else weights[known]
            has_weight = known.any() if of_rows is None else of_rows.sum() > 0
            found.append(column(score[known], target[known], of_rows) if has_weight else np.nan)
        return np.array(found)

    return parts


def _label_f1(scores: Array, targets: Array, weights: Array | None) -> float:
    return float(f1_of(confusion_matrix(targets >= 0.5, scores >= 0.5, 2, weights))[1])


def _pooled_f1(scores: Array, targets: Array, weights: Array | None) -> float:
    known = ~np.isnan(targets)
    of_entries = np.broadcast_to(row_weights(weights, len(scores))[:, None], scores.shape)
    return _label_f1(scores[known], targets[known], of_entries[known])


def _right(scores: Array, targets: Array) -> Array:
    right: Array = (scores >= 0.5) == (targets >= 0.5)
    return right


def _hamming(scores: Array, targets: Array, weights: Array | None) -> float:
    known = ~np.isnan(targets)
    of_entries = known * row_weights(weights, len(scores))[:, None]
    return float(ratio((of_entries * ~_right(scores, targets)).sum(), of_entries.sum()))


def _subset(scores: Array, targets: Array, weights: Array | None) -> float:
    whole = (_right(scores, targets) | np.isnan(targets)).all(1)
    return mean_defined(whole.astype(np.float64), row_weights(weights, len(scores)))


MULTILABEL: Mapping[str, Metric] = {
    "macro_f1": averaged("macro_f1", _columns(_label_f1)),
    "micro_f1": Metric("micro_f1", True, _pooled_f1),
    "macro_auroc": averaged("macro_auroc", _columns(lambda s, t, w: auroc(s, t >= 0.5, w))),
    "macro_average_precision": averaged(
        "macro_average_precision", _columns(lambda s, t, w: average_precision(s, t >= 0.5, w))
    ),
    "hamming_loss": Metric("hamming_loss", False, _hamming),
    "subset_accuracy": Metric("subset_accuracy", True, _subset),
}
MULTILABEL_DEFAULT = tuple(MULTILABEL)


def _mean(values: Array, weights: Array | None) -> float:
    return mean_defined(values, row_weights(weights, len(values)))


def _rmse(scores: Array, targets: Array, weights: Array | None) -> float:
    return float(np.sqrt(_mean((scores - targets) ** 2, weights)))


def _mae(scores: Array, targets: Array, weights: Array | None) -> float:
    return _mean(np.abs(scores - targets), weights)


def _r2(scores: Array, targets: Array, weights: Array | None) -> float:
    of_rows = row_weights(weights, len(targets))
    if np.ptp(targets[of_rows > 0]) == 0:
        return float("nan")
    centre = _mean(targets, weights)
    return float(1 - ratio(_mean((scores - targets) ** 2, weights), _mean((targets - centre) ** 2, weights)))


def _median_absolute_error(scores: Array, targets: Array, weights: Array | None) -> float:
    if weights is None:
        # Without scikit-learn, which takes a second to import.
        return float(np.median(np.abs(scores - targets)))
    from sklearn.metrics import median_absolute_error

    return float(median_absolute_error(targets, scores, sample_weight=weights))


def _poisson_deviance(scores: Array, targets: Array, weights: Array | None) -> float:
    from scipy.special import xlogy

    # A rate that has underflowed to 0 would be an infinite surprise at the first event.
    rate = np.maximum(scores, np.finfo(np.float64).tiny)
    return _mean(2 * (xlogy(targets, targets / rate) - targets + rate), weights)


REGRESSION: Mapping[str, Metric] = {
    "rmse": averaged("rmse", _columns(_rmse), higher_is_better=False),
    "mae": averaged("mae", _columns(_mae), higher_is_better=False),
    "r2": averaged("r2", _columns(_r2)),
    "median_absolute_error": averaged(
        "median_absolute_error", _columns(_median_absolute_error), higher_is_better=False
    ),
    "pearson": averaged("pearson", _columns(correlation)),
    "spearman": averaged("spearman", _columns(spearman)),
}
REGRESSION_DEFAULT = tuple(REGRESSION)

COUNTS: Mapping[str, Metric] = {
    "poisson_deviance": Metric("poisson_deviance", False, _poisson_deviance),
    "mae": Metric("mae", False, _mae),
    "rmse": Metric("rmse", False, _rmse),
}
COUNTS_DEFAULT = tuple(COUNTS)
