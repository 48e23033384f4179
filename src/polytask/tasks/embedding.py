"""A vector a row, near to those of rows that belong together: for retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from polytask.tasks import options as checks
from polytask.tasks.losses import upcast
from polytask.tasks.metrics import Array, mean_defined, row_weights
from polytask.tasks.outputs import DecodeValues, value_scores
from polytask.tasks.task import Metric, TargetSpec, Task

_AT_A_TIME = 1024


@dataclass(frozen=True)
class ContrastiveLoss:
    r"""Supervised contrastive loss: rows of one group against all other rows of the batch.

    With unit vectors z, temperature :math:`\tau`, :math:`s_{ij} = z_i \cdot z_j / \tau` and :math:`P(i)` the other
    rows of i's group, :math:`\frac{1}{|P(i)|} \sum_{p \in P(i)} (\log \sum_{a \neq i} e^{s_{ia}} - s_{ip})`; 0 for a
    row whose group has no other row in the batch. With groups of two it is InfoNCE.

    Args:
        temperature: :math:`\tau`.

    Example:
        >>> ContrastiveLoss(1.0)(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor([0.3133, 0.3133, 0.0000])

    Reference:
        Khosla et al., Supervised contrastive learning (2020), equation 2.
    """

    temperature: float = 0.1

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of vectors ``[rows, d]`` and groups ``[rows]``."""
        unit = functional.normalize(upcast(raw), dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logs = (unit @ unit.T / self.temperature).masked_fill(itself, float("-inf")).log_softmax(1)
        together = (target[:, None] == target[None, :]) & ~itself
        # A row alone has minus infinity everywhere; what is not of the group is taken out before the sum.
        own = (-logs).masked_fill(~together, 0.0).sum(1)
        return own / together.sum(1).clamp_min(1)


def have_company(target: Tensor) -> Tensor:
    """Whether a row's group has another row, ``[rows]``.

    Example:
        >>> have_company(torch.tensor([0, 0, 1]))
        tensor([1, 1, 0])
    """
    return ((target[:, None] == target[None, :]).sum(1) > 1).long()


def embedding(
    name: str,
    dimensions: int = 64,
    *,
    temperature: float = 0.1,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
) -> Task:
    """A vector a row, near to those of rows that belong together: for retrieval.

    Rows with the same value in the task's column belong together, such as a question and its answers or pictures of
    one thing; values may be others in test data. The raw output is ``[rows, d]``. Each row is compared with the
    other labelled rows of its micro-batch, so ``accumulate`` and several processes change what is learned: use as
    large batches as memory allows. Rows whose group has no other row there do not count.

    Metrics compare every row with all others by the cosine: ``recall_at_1`` and ``recall_at_5`` are the share of rows
    with a row of their group among the nearest, ``map`` is the mean average precision of the ranked rows.

    Args:
        name: The task's name.
        dimensions: Width of the vector.
        temperature: Of the softmax over the other rows; lower looks at the nearest ones only.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> task = embedding("topic", dimensions=2)
        >>> list(task.decode(torch.tensor([[3.0, 4.0]])))
        ['0', '1']
    """
    checks.check_count(name, "dimensions", dimensions, 2)
    checks.check_number(name, "temperature", temperature, "a number above 0", lambda value: value > 0)
    options = {
        "dimensions": dimensions,
        "temperature": temperature,
        **checks.shared_options(name, hidden, dropout, metrics),
    }
    chosen, primary = checks.pick_metrics(name, RETRIEVAL, tuple(RETRIEVAL), metrics)
    return Task(
        name=name,
        kind="embedding",
        loss=ContrastiveLoss(float(temperature)),
        head=checks.head_spec(dimensions, hidden, dropout),
        metrics=chosen,
        score=unit_scores,
        decode=DecodeUnits(dimensions),
        target=TargetSpec("group"),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
        units=have_company,
    )


def unit_scores(raw: Tensor) -> NDArray[np.float64]:
    """Vectors of length 1, ``[rows, d]``."""
    return value_scores(functional.normalize(raw.double(), dim=1))


@dataclass(frozen=True)
class DecodeUnits:
    """The vector of length 1, a column for each dimension.

    Args:
        dimensions: How many.
    """

    dimensions: int

    def __call__(self, raw: Tensor) -> dict[str, NDArray[Any]]:
        """Columns of raw outputs ``[rows, d]``."""
        names = tuple(str(number) for number in range(self.dimensions))
        return DecodeValues(names)(functional.normalize(raw, dim=1))


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    checks.check_shape(
        name, targets, "group numbers [rows] of an integer type", targets.dim() == 1 and checks.is_integer(targets)
    )
    checks.known_rows(name, targets, weights)
    return {}


def _ranked(scores: Array, targets: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the other rows, nearest first, are of a row's group ``[rows, rows - 1]``; and which rows have company."""
    parts = []
    for start in range(0, len(scores), _AT_A_TIME):
        near = scores[start : start + _AT_A_TIME] @ scores.T
        rows = np.arange(len(near))
        near[rows, rows + start] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")[:, :-1]
        parts.append(targets[order] == targets[start : start + _AT_A_TIME, None])
    hits: NDArray[np.bool_] = np.concatenate(parts)
    known = np.asarray(hits.any(axis=1))
    return hits, known


@dataclass(frozen=True)
class _Recall:
    count: int

    def __call__(self, scores: Array, targets: Array, weights: Array | None) -> float:
        hits, known = _ranked(scores, targets)
        return mean_defined(hits[known, : self.count].any(1), row_weights(weights, len(targets))[known])


def mean_average_precision(scores: Array, targets: Array, weights: Array | None) -> float:
    """The mean over rows of the average precision of the other rows, nearest first; NaN if no row has company.

    Example:
        >>> near = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> mean_average_precision(near, np.array([0, 0, 1]), None)
        1.0
    """
    hits, known = _ranked(scores, targets)
    hits = hits[known]
    places = np.arange(1, hits.shape[1] + 1)
    precision = hits.cumsum(1) / places
    own = (precision * hits).sum(1) / hits.sum(1)
    return mean_defined(own, row_weights(weights, len(targets))[known])


RETRIEVAL = {
    metric.name: metric
    for metric in (
        Metric("recall_at_1", True, _Recall(1)),
        Metric("recall_at_5", True, _Recall(5)),
        Metric("map", True, mean_average_precision),
    )
}
