"""Counts, with a Poisson log-rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses import PoissonLoss
from polytask.tasks.metrics_values import COUNTS, COUNTS_DEFAULT
from polytask.tasks.outputs import decode_rates, rate_scores
from polytask.tasks.task import TargetSpec, Task, labelled


def counts(
    name: str,
    *,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    mean: float | None = None,
) -> Task:
    r"""A count, with a Poisson log-rate.

    The raw output z is the log-rate ``[rows]``; the loss is the negative log-likelihood
    :math:`e^z - yz + \log y!`. The head starts at the logarithm of the training mean.

    Args:
        name: The task's name.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, Poisson deviance first.
        mean: Mean count in the training data, positive; filled in by ``Task.fitted``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = counts("visits")
        >>> task.decode(torch.zeros(1))[""].tolist()
        [1.0]
    """
    if mean is not None:
        checks.check_number(name, "mean", mean, "None or a positive number", lambda v: v > 0)
    options = {
        **checks.shared_options(name, hidden, dropout, metrics),
        "mean": mean,
    }
    chosen, primary = checks.pick_metrics(name, COUNTS, COUNTS_DEFAULT, metrics)
    return Task(
        name=name,
        kind="counts",
        loss=PoissonLoss(),
        head=checks.shifted(checks.head_spec(None, hidden, dropout), 0.0 if mean is None else math.log(mean)),
        metrics=chosen,
        score=rate_scores,
        decode=decode_rates,
        target=TargetSpec("count"),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    checks.check_shape(name, targets, "counts [rows]", targets.dim() == 1)
    known, of_rows = checks.known_rows(name, targets, weights)
    present = labelled(targets)
    wrong = present & ((targets < 0) | targets.isinf() | (targets != targets.floor()))
    checks.check_values(name, targets, wrong, "a whole number of at least 0")
    mean = float((of_rows * known.double()).sum() / of_rows.sum())
    # Without a single event there is no logarithm; the head then starts at the rate 1.
    return {"mean": mean or None}
