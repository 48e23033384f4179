"""Real numbers, standardised inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses import RegressionLoss
from polytask.tasks.metrics_values import REGRESSION, REGRESSION_DEFAULT
from polytask.tasks.outputs import DecodeValues, value_scores
from polytask.tasks.task import TargetSpec, Task

FORMS = ("mse", "mae", "huber")


def regression(
    name: str,
    *,
    dimensions: int = 1,
    loss: str = "mse",
    delta: float = 1.0,
    standardize: bool = True,
    columns: Sequence[str] = (),
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
) -> Task:
    """A real number, standardised inside.

    With ``standardize`` the head multiplies by the training deviation and adds the training mean, and the loss
    divides by the deviation. So outputs and metrics are in the target's unit while the loss is of order 1. A
    target that does not vary in training gets the deviation 1. A row may hold several numbers.

    Args:
        name: The task's name.
        dimensions: Numbers a row; with one the raw output is ``[rows]``, else ``[rows, dimensions]``. Missing
            entries (NaN) leave a row's mean and the metrics.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        delta: Where Huber's loss turns linear, in deviations (in the target's unit without ``standardize``).
        standardize: Whether to use the training mean and deviation.
        columns: Table columns, one a dimension; empty takes the column with the task's name.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, RMSE first. They are
            averaged over dimensions.
        mean: Of each dimension in the training data; filled in by ``Task.fitted``.
        deviation: Of each dimension in the training data, positive; filled in by ``Task.fitted``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = regression("age").fitted(torch.tensor([20.0, 40.0, float("nan")]))
        >>> task.head.shift, task.head.scale
        (30.0, 10.0)
    """
    checks.check_choice(name, "loss", loss, FORMS)
    checks.check_number(name, "delta", delta, "a positive number", lambda v: v > 0)
    checks.check_list(name, "columns", columns, "a list of columns, one a dimension")
    if columns and dimensions == 1:
        dimensions = len(columns)
    checks.check_count(name, "dimensions", dimensions, 1)
    if columns and len(columns) != dimensions:
        raise checks.bad_option(name, "columns", list(columns), f"one column for each of the {dimensions} dimensions")
    if not isinstance(standardize, bool):
        raise checks.bad_option(name, "standardize", standardize, "true or false")
    shift = _numbers(name, "mean", mean, dimensions, 0.0)
    scale = _numbers(name, "deviation", deviation, dimensions, 1.0)
    for value in scale:
        checks.check_number(name, "deviation", value, "positive numbers", lambda v: v > 0)
    options = {
        "dimensions": dimensions,
        "loss": loss,
        "delta": delta,
        "standardize": standardize,
        "columns": list(columns),
        **checks.shared_options(name, hidden, dropout, metrics),
        "mean": None if mean is None else list(shift),
        "deviation": None if deviation is None else list(scale),
    }
    head = checks.head_spec(None if dimensions == 1 else dimensions, hidden, dropout)
    chosen, primary = checks.pick_metrics(name, REGRESSION, REGRESSION_DEFAULT, metrics)
    names = tuple(str(column) for column in columns) or tuple(str(number) for number in range(dimensions))
    return Task(
        name=name,
        kind="regression",
        loss=RegressionLoss(loss, float(delta), scale),
        head=checks.shifted(head, *((shift[0], scale[0]) if dimensions == 1 else (shift, scale))),
        metrics=chosen,
        score=value_scores,
        decode=DecodeValues(names),
        target=TargetSpec("number", columns=tuple(columns)),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _numbers(
    name: str, option: str, given: Sequence[float] | None, dimensions: int, default: float
) -> tuple[float, ...]:
    if given is None:
        return (default,) * dimensions
    wanted = f"a list of {dimensions} numbers, one a dimension"
    checks.check_list(name, option, given, wanted)
    if len(given) != dimensions:
        raise checks.bad_option(name, option, given, wanted)
    for value in given:
        checks.check_number(name, option, value, "finite numbers", lambda v: True)
    return tuple(float(value) for value in given)


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    dimensions = options["dimensions"]
    wanted = "numbers [rows]" if dimensions == 1 else f"numbers [rows, {dimensions}]"
    shape_fits = targets.dim() == 1 if dimensions == 1 else targets.shape[1:] == (dimensions,)
    checks.check_shape(name, targets, f"{wanted} in floating point", shape_fits and targets.is_floating_point())
    known, of_rows = checks.known_rows(name, targets, weights)
    checks.check_values(name, targets, targets.isinf(), "finite")
    if not options["standardize"]:
        return {}
    values = known.double().reshape(len(known), dimensions)
    mass = of_rows[:, None] * ~values.isnan()
    total = mass.sum(0)
    # A dimension without any label keeps mean 0 and deviation 1.
    mean = ((mass * values.nan_to_num(0.0)).sum(0) / total).nan_to_num(0.0)
    deviation = ((mass * (values - mean).nan_to_num(0.0).square()).sum(0) / total).sqrt().nan_to_num(0.0)
    # Rounding leaves a constant target with a deviation of a few units in its last place.
    floor = 1e-12 * values.nan_to_num(0.0).abs().amax(0)
    deviation = deviation.where(deviation > floor, 1.0)
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}
