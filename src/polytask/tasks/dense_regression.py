"""A real number for every pixel, such as depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses_maps import MapLoss, labelled_pixels
from polytask.tasks.metrics_maps import MAPS
from polytask.tasks.outputs_maps import decode_values, keep_exponentials, keep_values, map_scores
from polytask.tasks.task import TargetSpec, Task

FORMS = ("mae", "mse", "berhu", "log")


def dense_regression(
    name: str,
    *,
    loss: str = "mae",
    delta: float = 0.2,
    size: Sequence[int] | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    mean: float | None = None,
    deviation: float | None = None,
) -> Task:
    """A real number for every pixel, such as depth, standardised inside.

    The head reads a feature map and gives ``[rows, 1, H, W]``, times the training deviation plus the training mean;
    the loss divides by the deviation. Targets are ``[rows, H, W]``, NaN where a pixel has no label. Losses and metrics
    are means over all labelled pixels of all rows, metrics in the target's unit.

    Args:
        name: The task's name.
        loss: ``"mae"``, ``"mse"``, ``"berhu"`` (absolute for small errors, squared for large ones) or ``"log"``
            (absolute error of logarithms, for positive targets; the head predicts the logarithm).
        delta: Where berHu turns quadratic, in deviations.
        size: Height and width of the targets; filled in by ``Task.fitted``.
        hidden: Channels of private 3 x 3 convolutions before the last layer.
        dropout: Probability that a channel of those is dropped, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, RMSE first.
        mean: Of the training targets (of their logarithms for ``"log"``); filled in by ``Task.fitted``.
        deviation: Likewise, positive; filled in by ``Task.fitted``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = dense_regression("depth").fitted(torch.tensor([[[1.0, 3.0], [float("nan"), 2.0]]]))
        >>> task.head.shift, task.options["size"]
        (2.0, [2, 2])
    """
    checks.check_choice(name, "loss", loss, FORMS)
    checks.check_number(name, "delta", delta, "a positive number", lambda v: v > 0)
    if mean is not None:
        checks.check_number(name, "mean", mean, "None or a number", lambda v: True)
    if deviation is not None:
        checks.check_number(name, "deviation", deviation, "None or a positive number", lambda v: v > 0)
    sides = checks.check_size(name, "size", size)
    options = {
        "loss": loss,
        "delta": delta,
        "size": None if sides is None else list(sides),
        **checks.shared_options(name, hidden, dropout, metrics),
        "mean": mean,
        "deviation": deviation,
    }
    shift, scale = 0.0 if mean is None else float(mean), 1.0 if deviation is None else float(deviation)
    chosen, primary = checks.pick_metrics(name, MAPS, tuple(MAPS), metrics)
    head = checks.shifted(checks.head_spec(1, hidden, dropout), shift, scale)
    return Task(
        name=name,
        kind="dense_regression",
        loss=MapLoss(loss, float(delta), scale),
        head=replace(head, form="map", size=sides),
        metrics=chosen,
        score=map_scores,
        decode=decode_values,
        target=TargetSpec("map"),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
        units=labelled_pixels,
        keep=keep_exponentials if loss == "log" else keep_values,
    )


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    fits = targets.is_floating_point() and targets.dim() == 3
    checks.check_shape(name, targets, "numbers [rows, height, width] in floating point", fits)
    known, of_rows = checks.known_rows(name, targets, weights)
    checks.check_values(name, targets, targets.isinf(), "finite")
    if options["loss"] == "log":
        checks.check_values(name, targets, targets <= 0, "positive, as loss: log needs it")
        known = known.log()
    of_pixels = of_rows.repeat_interleave(labelled_pixels(known))
    values = known[~known.isnan()].double()
    mean = (of_pixels @ values) / of_pixels.sum()
    deviation = ((of_pixels @ (values - mean).square()) / of_pixels.sum()).sqrt()
    # Rounding leaves a constant target with a deviation of a few units in its last place.
    constant = bool(deviation <= 1e-12 * values.abs().max())
    fitted = checks.fitted_size(name, options["size"], targets)
    return {"mean": mean.item(), "deviation": 1.0 if constant else deviation.item(), **fitted}
