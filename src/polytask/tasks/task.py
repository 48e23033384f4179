"""Task: everything that belongs to one thing to predict, travelling together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polytask.errors import RecipeError

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps raw outputs ``[rows, ...]`` and labelled targets ``[rows, ...]`` to losses ``[rows]``."""


def mean_loss(loss: PerExampleLoss, raw: Tensor, targets: Tensor) -> Tensor:
    """The mean of the rows' losses; a loss may have a method ``mean`` that is faster than its rows' mean."""
    mean = getattr(loss, "mean", None)
    return loss(raw, targets).mean() if mean is None else mean(raw, targets)


UNKNOWN_WIDTH = 0
"""``HeadSpec.outputs`` of a task whose classes have not been seen yet; no head can be built from it."""


@dataclass(frozen=True)
class HeadSpec:
    """How to build a task's head from a feature shape: plain data.

    Args:
        outputs: Width of the raw output; ``None`` drops that dimension (raw output ``[rows]``);
            ``UNKNOWN_WIDTH`` until the training data have shown the classes (``Task.require_known``).
        hidden: Widths of private layers between the features and the output.
        dropout: Dropout probability between the private layers.
        shift: Added to the raw output after scaling: a target's training mean. A buffer of the head.
        scale: What the raw output is multiplied by: a target's training standard deviation.
        form: What kind of head: ``"vector"`` gives one output a row; other kinds are in ``models/heads``.
        size: Of heads that give maps: height and width of the output; None leaves that of the features.
    """

    outputs: int | None = None
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    shift: tuple[float, ...] | float = 0.0
    scale: tuple[float, ...] | float = 1.0
    form: str = "vector"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TargetSpec:
    """How a task's column becomes a tensor, and back: plain data.

    Args:
        form: ``"class"`` (int64 ``[rows]``, missing -1), ``"binary"`` (float32 ``[rows]``, 0/1 or a
            probability, missing NaN), ``"labels"`` (float32 ``[rows, k]``, missing NaN), ``"number"``
            (float32 ``[rows]`` or ``[rows, d]``, missing NaN), ``"count"`` (float32 ``[rows]``),
            ``"distribution"`` (float32 ``[rows, k]``, soft labels, a missing row is all NaN), ``"tags"`` (int64
            ``[rows, words]``, missing -1), or ``"group"`` (int64 ``[rows]``, equal for rows that belong together,
            missing -1). Of pixels: ``"mask"`` (integers ``[rows, H, W]``, missing -1) or ``"map"`` (float32
            ``[rows, H, W]``, missing NaN). ``"boxes"`` (float32 ``[rows, n, 5]``: class, x1, y1, x2, y2; padded by
            class -1, a missing row is all NaN).
        classes: Names of the classes or labels in order; None until seen in training data.
        positive: For binary: the raw value that means 1, or None for 1/true.
        columns: Table columns that hold the target, if they are not the one with the task's name.
        scheme: Of tags: what they have to keep to, see ``tasks/spans.py``.
        repair: Of tags: whether those that break the scheme are written anew.
    """

    form: str
    classes: tuple[str, ...] | None = None
    positive: str | None = None
    columns: tuple[str, ...] = ()
    scheme: str = "none"
    repair: bool = False


@dataclass(frozen=True)
class Metric:
    """A figure of merit that knows its direction.

    Args:
        name: Such as ``"auroc"``.
        higher_is_better: Its direction.
        compute: Maps scores (what ``Task.score`` returns), targets and row weights (or None), all numpy
            and of labelled rows only, to a float; NaN where it is undefined.
        parts: For a mean over classes or labels: the values that ``compute`` averages, NaN where one is
            undefined and left out. ``Scores.left_out`` counts those. None for other metrics.
    """

    name: str
    higher_is_better: bool
    compute: Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], float]
    parts: Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Task:
    """What one task is.

    Args:
        name: The key of its outputs, targets, losses and scores.
        kind: Its key in the registry, such as ``"binary"``.
        loss: Per-example losses; masking and reduction are not its business.
        head: How its head is built.
        metrics: Its metrics by name; ``primary`` names the one that stands for the task.
        score: Raw outputs (tensor) -> what metrics read (float64 numpy): probabilities or values.
        decode: Raw outputs -> columns for a person: ``{"": labels, "probability": ...}``. The key "" is the
            prediction itself, other keys are suffixes of the column name.
        target: How its column is encoded.
        primary: The metric that stands for the task in multi-task criteria.
        options: Plain data: ``registry.build("tasks", kind, options, name=name)`` makes this task again.
        refit: ``(targets, weights) -> options``: the options that the training data fix, filled in.
        units: Of tasks with several labels a row (a tag for each word, boxes of an image): maps labelled targets
            ``[rows, ...]`` to what each row counts, ``[rows]``, and ``loss`` is then the sum over a row's units. The
            mean is over all units of a step. None counts every row once.
        keep: Raw outputs of a batch -> what evaluation and prediction keep of them, still on the device: all that
            ``score`` and ``decode`` read. Rows of different lengths are padded with NaN. None keeps all.
    """

    name: str
    kind: str
    loss: PerExampleLoss
    head: HeadSpec
    metrics: Mapping[str, Metric]
    score: Callable[[Tensor], NDArray[np.float64]]
    decode: Callable[[Tensor], dict[str, NDArray[Any]]]
    target: TargetSpec
    primary: str
    options: Mapping[str, Any]
    refit: Callable[[Tensor, Tensor | None], Mapping[str, Any]]
    units: Callable[[Tensor], Tensor] | None = None
    keep: Callable[[Tensor], Tensor] | None = None

    def kept(self, raw: Tensor) -> Tensor:
        """What is kept of a batch's raw outputs: all that ``score`` and ``decode`` read."""
        return raw if self.keep is None else self.keep(raw)

    @property
    def is_known(self) -> bool:
        """Whether a head can be built: the number of classes or labels is known."""
        return self.head.outputs != UNKNOWN_WIDTH

    def require_known(self) -> None:
        """Check that a head can be built.

        Raises:
            RecipeError: if the classes were not given and no training data have shown them.
        """
        if not self.is_known:
            raise RecipeError(
                f"The classes of '{self.name}' are not known yet, so its head cannot be built. Fit the task to "
                "training targets (Task.fitted, which training does), or name them when you make the task."
            )

    def with_options(self, **changes: Any) -> Task:
        """The same task with some of its options changed, checked as if it were made anew.

        Raises:
            RecipeError: for an unknown option or a value that cannot be used.
        """
        from polytask import registry

        task: Task = registry.build("tasks", self.kind, {**self.options, **changes}, name=self.name)
        return task

    def fitted(self, targets: Tensor, weights: Tensor | None = None) -> Task:
        """The task with what the training data fix: mean and deviation, balanced class weights.

        Args:
            targets: All training targets, encoded, missing ones included, ``[rows, ...]``.
            weights: Row weights ``[rows]`` or None.

        Raises:
            DataError: if no row is labelled or a label is outside the declared classes.
        """
        return self.with_options(**self.refit(targets, weights))

    def labelled(self, targets: Tensor) -> Tensor:
        """Which rows have a label, bool ``[rows]``."""
        return labelled(targets)


def labelled(targets: Tensor) -> Tensor:
    """Which rows have a label: not NaN (at least one entry not NaN) or not negative; bool ``[rows]``.

    Example:
        >>> import torch
        >>> labelled(torch.tensor([1.0, float("nan")])), labelled(torch.tensor([-1, 2]))
        (tensor([ True, False]), tensor([False,  True]))
    """
    known = ~targets.isnan() if targets.is_floating_point() else targets >= 0
    return known.flatten(1).any(1) if known.dim() > 1 else known
