"""Confusion matrices and the rates that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask.errors import DataError
from polytask.evaluation.predict import TaskOutputs
from polytask.tasks.metrics import Floats, confusion_matrix, mean_defined, ratio, row_weights
from polytask.tasks.metrics_classes import as_classes, f1_of, median_class, precision_of, recall_of
from polytask.tasks.task import Task

AVERAGES = ("micro", "macro", "weighted")


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    A rate is NaN where it is undefined, such as the recall of a class without rows.

    Args:
        matrix: Weighted counts ``[k, k]``; rows are true classes, columns predicted ones.
        classes: Names of the classes.

    Example:
        >>> found = Confusion(np.array([[8.0, 2.0], [1.0, 9.0]]), ("no", "yes"))
        >>> found.true_positive_rate.tolist()
        [0.8, 0.9]
        >>> found.average("macro")["recall"]
        0.8500000000000001
    """

    matrix: Floats
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        k = len(self.classes)
        if self.matrix.shape != (k, k):
            raise DataError(f"A confusion matrix of {k} classes is [{k}, {k}]; found {list(self.matrix.shape)}.")

    @property
    def _total(self) -> float:
        return float(self.matrix.sum())

    @property
    def support(self) -> Floats:
        """Weight of each true class, ``[k]``."""
        support: Floats = self.matrix.sum(1)
        return support

    @property
    def _negatives(self) -> Floats:
        """Weight of the rows of all other classes, ``[k]``."""
        return self._total - self.support

    @property
    def _true_negatives(self) -> Floats:
        negatives: Floats = self._total - self.matrix.sum(0) - self.matrix.sum(1) + self.matrix.diagonal()
        return negatives

    @property
    def true_positive_rate(self) -> Floats:
        """Recall: rows of a class that were found, ``[k]``."""
        return recall_of(self.matrix)

    @property
    def true_negative_rate(self) -> Floats:
        """Specificity: rows of other classes that were not taken for this one, ``[k]``."""
        return ratio(self._true_negatives, self._negatives)

    @property
    def false_positive_rate(self) -> Floats:
        """Rows of other classes that were taken for this one, ``[k]``."""
        return ratio(self.matrix.sum(0) - self.matrix.diagonal(), self._negatives)

    @property
    def positive_predictive_value(self) -> Floats:
        """Precision: predictions of a class that are right, ``[k]``."""
        return precision_of(self.matrix)

    @property
    def negative_predictive_value(self) -> Floats:
        """Predictions of other classes whose rows are indeed not of this one, ``[k]``."""
        return ratio(self._true_negatives, self._total - self.matrix.sum(0))

    @property
    def f1(self) -> Floats:
        """F1 of each class, ``[k]``."""
        return f1_of(self.matrix)

    def average(self, kind: str) -> dict[str, float]:
        """Precision, recall, F1 and support over all classes.

        Args:
            kind: ``"micro"`` (pooled rows), ``"macro"`` (mean of the classes where it is defined) or
                ``"weighted"`` (the same, weighted by support).

        Raises:
            DataError: for another kind.
        """
        if kind not in AVERAGES:
            raise DataError(f"Averages are micro, macro and weighted; found '{kind}'.")
        if kind == "micro":
            pooled = float(ratio(self.matrix.trace(), self._total))
            return {"precision": pooled, "recall": pooled, "f1": pooled, "support": self._total}
        weights = self.support if kind == "weighted" else None
        figures = {"precision": self.positive_predictive_value, "recall": self.true_positive_rate, "f1": self.f1}
        return {name: mean_defined(values, weights) for name, values in figures.items()} | {"support": self._total}

    def per_class(self) -> list[dict[str, str | float]]:
        """One mapping a class: its name, its rates by their usual short names, its support."""
        columns = {
            "tpr": self.true_positive_rate,
            "tnr": self.true_negative_rate,
            "ppv": self.positive_predictive_value,
            "npv": self.negative_predictive_value,
            "fpr": self.false_positive_rate,
            "f1": self.f1,
            "support": self.support,
        }
        return [
            {"class": name, **{key: float(values[at]) for key, values in columns.items()}}
            for at, name in enumerate(self.classes)
        ]


def confusion(task: Task, outputs: TaskOutputs) -> dict[str, Confusion]:
    """The confusion matrices of a task's outputs.

    Args:
        task: A binary, multiclass, ordinal or multilabel task.
        outputs: What ``collect`` gave for it.

    Returns:
        One matrix under the key "", or one a label under its name for a multilabel task.

    Raises:
        DataError: for a task without classes.
    """
    make = {"binary": _binary, "multiclass": _multiclass, "ordinal": _ordinal, "multilabel": _multilabel}.get(task.kind)
    if make is None:
        raise DataError(f"Task '{task.name}' of type '{task.kind}' has no classes, so it has no confusion matrix.")
    return make(task, outputs)


def _names(task: Task, count: int) -> tuple[str, ...]:
    return task.target.classes or tuple(str(number) for number in range(count))


def _yes_or_no(score: NDArray[np.float64], target: NDArray[np.float64], weight: Floats | None) -> Floats:
    return confusion_matrix(target >= 0.5, score >= 0.5, 2, weight)


def _binary(task: Task, outputs: TaskOutputs) -> dict[str, Confusion]:
    return {"": Confusion(_yes_or_no(outputs.score, outputs.target, outputs.weight), _names(task, 2))}


def _multiclass(task: Task, outputs: TaskOutputs) -> dict[str, Confusion]:
    return _classes(task, outputs, outputs.score.argmax(1))


def _ordinal(task: Task, outputs: TaskOutputs) -> dict[str, Confusion]:
    return _classes(task, outputs, median_class(outputs.score))


def _classes(task: Task, outputs: TaskOutputs, predicted: NDArray[np.int64]) -> dict[str, Confusion]:
    k = outputs.score.shape[1]
    return {"": Confusion(confusion_matrix(as_classes(outputs.target), predicted, k, outputs.weight), _names(task, k))}


def _multilabel(task: Task, outputs: TaskOutputs) -> dict[str, Confusion]:
    weight = row_weights(outputs.weight, len(outputs))
    found = {}
    for at, name in enumerate(_names(task, outputs.score.shape[1])):
        known = ~np.isnan(outputs.target[:, at])
        matrix = _yes_or_no(outputs.score[known, at], outputs.target[known, at], weight[known])
        found[name] = Confusion(matrix, (f"not {name}", name))
    return found
