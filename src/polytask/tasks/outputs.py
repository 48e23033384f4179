"""From raw outputs to what metrics read, and to what a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polytask.tasks.losses import ordinal_log_probabilities
from polytask.tasks.metrics_classes import median_class

Columns = dict[str, NDArray[Any]]


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return array


def logistic_scores(raw: Tensor) -> NDArray[np.float64]:
    """Probabilities of logits, the same shape."""
    return _numpy(raw.detach().double().sigmoid())


def softmax_scores(raw: Tensor) -> NDArray[np.float64]:
    """Class probabilities ``[rows, k]`` of logits ``[rows, k]``."""
    return _numpy(raw.detach().double().softmax(-1))


def ordinal_scores(raw: Tensor) -> NDArray[np.float64]:
    """Class probabilities ``[rows, k]`` of the cumulative logit model's raw outputs ``[rows, k - 1]``."""
    return _numpy(ordinal_log_probabilities(raw.detach().double()).exp())


def value_scores(raw: Tensor) -> NDArray[np.float64]:
    """The raw outputs themselves, which are in the target's unit."""
    return _numpy(raw)


def rate_scores(raw: Tensor) -> NDArray[np.float64]:
    """Rates of log-rates, ``[rows]``."""
    return _numpy(raw.detach().double().exp())


def _named(numbers: NDArray[Any], names: Sequence[str] | None) -> NDArray[Any]:
    return numbers if names is None else np.asarray(names, dtype=object)[numbers]


@dataclass(frozen=True)
class DecodeBinary:
    """The more probable of two labels, and the probability of the positive one.

    Args:
        names: Of the negative and the positive label; None gives 0 and 1.
    """

    names: tuple[str, str] | None

    def __call__(self, raw: Tensor) -> Columns:
        """Columns of raw outputs ``[rows]``."""
        probability = logistic_scores(raw)
        return {"": _named((probability >= 0.5).astype(np.int64), self.names), "probability": probability}


@dataclass(frozen=True)
class DecodeClasses:
    """The predicted class and its probability, and a probability for each class.

    Args:
        names: Of the classes; None gives their numbers.
        ordered: Whether the median class is predicted, not the most probable one.
    """

    names: tuple[str, ...] | None
    ordered: bool = False

    def __call__(self, raw: Tensor) -> Columns:
        """Columns of raw outputs ``[rows, k]``, or ``[rows, k - 1]`` for ordered classes."""
        scores = ordinal_scores(raw) if self.ordered else softmax_scores(raw)
        best = median_class(scores) if self.ordered else scores.argmax(1)
        names = self.names or tuple(str(number) for number in range(scores.shape[1]))
        columns = {"": _named(best, self.names), "probability": scores[np.arange(len(scores)), best]}
        return columns | {f"probability_{name}": scores[:, at] for at, name in enumerate(names)}


@dataclass(frozen=True)
class DecodeLabels:
    """The names of a row's labels, and a probability for each label.

    Args:
        names: Of the labels.
    """

    names: tuple[str, ...]

    def __call__(self, raw: Tensor) -> Columns:
        """Columns of raw outputs ``[rows, k]``; the labels of a row are joined by ``|``, as in a table's column."""
        scores = logistic_scores(raw)
        rows = ["|".join(name for name, on in zip(self.names, row, strict=True) if on) for row in scores >= 0.5]
        columns: Columns = {"": np.array(rows, dtype=object)}
        return columns | {f"probability_{name}": scores[:, at] for at, name in enumerate(self.names)}


@dataclass(frozen=True)
class DecodeValues:
    """Values as they are; one column a dimension where there are several.

    Args:
        names: Of the dimensions, if there are several.
    """

    names: tuple[str, ...] = ()

    def __call__(self, raw: Tensor) -> Columns:
        """Columns of raw outputs ``[rows]`` or ``[rows, d]``."""
        values = value_scores(raw)
        return {name: values[:, at] for at, name in enumerate(self.names)} if values.ndim > 1 else {"": values}


def decode_rates(raw: Tensor) -> Columns:
    """The expected count of log-rates ``[rows]``."""
    return {"": rate_scores(raw)}
