"""Ordered classes, cumulative logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses import OrdinalLoss
from polytask.tasks.metrics_classes import ORDINAL, ORDINAL_DEFAULT
from polytask.tasks.outputs import DecodeClasses, ordinal_scores
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task


def ordinal(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
) -> Task:
    r"""Ordered classes, cumulative logits.

    The raw output r is ``[rows, k - 1]``. The cumulative logits :math:`c_0 = r_0`,
    :math:`c_j = c_{j-1} - \mathrm{softplus}(r_j)` fall, so :math:`P(y > j) = \sigma(c_j)` gives a valid
    distribution for every row. Each row has thresholds of its own: odds need not be proportional. The loss is
    the negative log-likelihood. The head starts at equal probabilities. The prediction is the median class,
    which makes the expected distance in classes smallest.

    Args:
        name: The task's name.
        classes: How many, or their names from lowest to highest; None until the training data show them.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, the mean distance in
            classes (``mae``) first.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = ordinal("grade", ["low", "middle", "high"])
        >>> task.decode(torch.tensor([[9.0, -9.0]]))[""].tolist()
        ['high']

    Reference:
        McCullagh, Regression models for ordinal data (1980).
    """
    names = checks.class_names(name, "classes", classes, 2)
    options = {
        "classes": checks.plain_classes(classes),
        **checks.shared_options(name, hidden, dropout, metrics),
    }
    head = checks.head_spec(UNKNOWN_WIDTH if names is None else len(names) - 1, hidden, dropout)
    chosen, primary = checks.pick_metrics(name, ORDINAL, ORDINAL_DEFAULT, metrics)
    return Task(
        name=name,
        kind="ordinal",
        loss=OrdinalLoss(),
        head=head if names is None else checks.shifted(head, _even(len(names))),
        metrics=chosen,
        score=ordinal_scores,
        decode=DecodeClasses(None if isinstance(classes, int) else names, ordered=True),
        target=TargetSpec("class", names),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _even(classes: int) -> tuple[float, ...]:
    """Raw outputs that give all classes the same probability."""
    logits = [math.log((classes - 1 - j) / (1 + j)) for j in range(classes - 1)]
    gaps = [before - after for before, after in itertools.pairwise(logits)]
    # The inverse of the softplus.
    return (logits[0], *(math.log(math.expm1(gap)) for gap in gaps))


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    shape_fits = checks.is_integer(targets) and targets.dim() == 1
    checks.check_shape(name, targets, "class numbers [rows] as integers", shape_fits)
    known, _ = checks.known_rows(name, targets, weights)
    count, found = checks.class_count(name, options["classes"], known)
    checks.check_values(name, targets, targets >= count, f"a class number from 0 to {count - 1}")
    return found
