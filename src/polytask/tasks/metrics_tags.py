"""Metrics of tags: single ones, and the entities that they make up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polytask.tasks.metrics import (
    Array,
    Derived,
    Floats,
    confusion_matrix,
    mean_defined,
    ratio,
    row_weights,
    weighted_counts,
)
from polytask.tasks.metrics_classes import accuracy_of, f1_of
from polytask.tasks.spans import TagSet
from polytask.tasks.task import Metric


@dataclass(frozen=True)
class EntityCounts:
    """Entities by type, weighted by their rows: those that are right, predicted and true, each ``[types]``."""

    right: Floats
    predicted: Floats
    true: Floats

    @property
    def precision(self) -> Floats:
        """Share of predicted entities that are right, ``[types]``; 0 for a type that is never predicted."""
        return np.nan_to_num(ratio(self.right, self.predicted))

    @property
    def recall(self) -> Floats:
        """Share of true entities that were found, ``[types]``; 0 for a type that is never true."""
        return np.nan_to_num(ratio(self.right, self.true))

    @property
    def f1(self) -> Floats:
        """F1 of each type."""
        return np.nan_to_num(ratio(2 * self.right, self.predicted + self.true))

    @property
    def seen(self) -> Array:
        """Which types occur, truly or as predicted."""
        return (self.predicted > 0) | (self.true > 0)

    def average(self, kind: str) -> dict[str, float]:
        """Precision, recall, F1 and support over the types that occur; NaN if none does.

        Args:
            kind: ``"micro"`` (entities pooled), ``"macro"`` (mean of the types) or ``"weighted"`` (by support).
        """
        support = float(self.true.sum())
        if not self.seen.any():
            return {"precision": np.nan, "recall": np.nan, "f1": np.nan, "support": support}
        if kind == "micro":
            pooled = EntityCounts(*(np.array([values.sum()]) for values in (self.right, self.predicted, self.true)))
            return {name: float(getattr(pooled, name)[0]) for name in ("precision", "recall", "f1")} | {
                "support": support
            }
        weights = self.true[self.seen] if kind == "weighted" else None
        values = {name: mean_defined(getattr(self, name)[self.seen], weights) for name in ("precision", "recall", "f1")}
        return {**values, "support": support}


def count_entities(
    scores: Array, targets: Array, weights: Array | None, tags: TagSet, strict: bool = False
) -> EntityCounts:
    """Count right, predicted and true entities by type.

    Args:
        scores: Numbers of the predicted tags ``[rows, width]``, NaN where a row has no word.
        targets: Numbers of the true tags ``[rows, width]``, -1 where there is none.
        weights: Row weights ``[rows]``, or None.
        tags: Their names.
        strict: Whether entities have to keep to the scheme, see ``TagSet.spans``.

    Example:
        >>> tags = TagSet(("B-LOC", "I-LOC", "O"), "bio")
        >>> found = count_entities(np.array([[0.0, 1.0, 2.0]]), np.array([[0, 1, 0]]), None, tags)
        >>> found.right.tolist(), found.predicted.tolist(), found.true.tolist()
        ([1.0], [1.0], [2.0])
    """
    predicted, true = aligned(scores, targets)
    # A place without a true tag is in no entity of either side.
    predicted = np.where(true < 0, -1, predicted)
    found, wanted = tags.spans(predicted, strict), tags.spans(true, strict)
    right = np.isin(found.keys(), wanted.keys())
    of_rows = row_weights(weights, len(targets))

    def by_kind(kind: Array, row: Array) -> Floats:
        return weighted_counts(kind, of_rows[row], len(tags.types))

    hits = by_kind(found.kind[right], found.row[right])
    return EntityCounts(hits, by_kind(found.kind, found.row), by_kind(wanted.kind, wanted.row))


def aligned(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Predicted and true tags of one width, int64, -1 where there is none."""
    width = max(scores.shape[1], targets.shape[1])
    numbers = np.nan_to_num(scores, nan=-1.0).astype(np.int64)
    first, second = (
        np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=-1) for values in (numbers, targets)
    )
    return first, second


def tag_matrix(scores: Array, targets: Array, weights: Array | None, count: int) -> Floats:
    """Weighted counts of true tags (rows) and predicted ones (columns), ``[k, k]``; words without a tag are left out.

    Example:
        >>> tag_matrix(np.array([[0.0, 1.0]]), np.array([[0, -1]]), None, 2)
        array([[1., 0.],
               [0., 0.]])
    """
    predicted, true = aligned(scores, targets)
    known = (true >= 0) & (predicted >= 0)
    of_words = np.broadcast_to(row_weights(weights, len(targets))[:, None], true.shape)[known]
    return confusion_matrix(true[known], predicted[known], count, of_words)


@dataclass(frozen=True)
class _Tags:
    """Counts of tags; equal to another one of as many tags, as ``partial`` would not be."""

    count: int

    def __call__(self, scores: Array, targets: Array, weights: Array | None) -> Floats:
        return tag_matrix(scores, targets, weights, self.count)


@dataclass(frozen=True)
class _Entities:
    tags: TagSet
    strict: bool = False

    def __call__(self, scores: Array, targets: Array, weights: Array | None) -> EntityCounts:
        return count_entities(scores, targets, weights, self.tags, self.strict)


@dataclass(frozen=True)
class _Average:
    kind: str
    figure: str

    def __call__(self, counts: EntityCounts) -> float:
        return counts.average(self.kind)[self.figure]


def _macro_f1(matrix: Floats) -> float:
    return mean_defined(f1_of(matrix))


def _weighted_f1(matrix: Floats) -> float:
    return mean_defined(f1_of(matrix), matrix.sum(1))


def tag_metrics(tags: TagSet) -> Mapping[str, Metric]:
    """The metrics of a tag set by name: entities first where its tags make some.

    Precision, recall and F1 are those of entities, pooled over the types unless ``macro`` or ``weighted`` says
    otherwise; they are right only if bounds and type are. They count as the CoNLL script does, those named
    ``strict`` by the scheme alone. Without a scheme, F1 is of single tags.
    """
    matrix = _Tags(len(tags.names))
    accuracy = {"accuracy": Derived(matrix, accuracy_of)}
    if tags.scheme == "none":
        made = {**accuracy, "macro_f1": Derived(matrix, _macro_f1), "weighted_f1": Derived(matrix, _weighted_f1)}
    else:
        counts, strict = _Entities(tags), _Entities(tags, strict=True)
        made = {figure: Derived(counts, _Average("micro", figure)) for figure in ("f1", "precision", "recall")}
        made |= {f"{kind}_f1": Derived(counts, _Average(kind, "f1")) for kind in ("macro", "weighted")}
        made |= {"strict_f1": Derived(strict, _Average("micro", "f1")), **accuracy}
    return {name: Metric(name, True, compute) for name, compute in made.items()}
