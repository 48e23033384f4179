"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses_maps import SegmentationLoss, labelled_pixels
from polytask.tasks.metrics_maps import SEGMENTATION, segmentation_metrics
from polytask.tasks.outputs_maps import DecodeMask, keep_classes, map_scores
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task


def segmentation(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    size: Sequence[int] | None = None,
    label_smoothing: float = 0.0,
    class_weights: checks.Weights = None,
    dice: float = 0.0,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    class_shares: Sequence[float] | None = None,
) -> Task:
    """A class for every pixel, one logit each.

    The head reads a feature map and gives ``[rows, k, H, W]``; targets are class numbers ``[rows, H, W]``, negative
    where a pixel has no label. Losses and metrics are means over all labelled pixels of all rows. Small integer types
    such as int8 keep targets small. Evaluation keeps the most probable classes alone.

    Args:
        name: The task's name.
        classes: How many, or their names in order; None until the training data show them.
        size: Height and width of the targets; filled in by ``Task.fitted``.
        label_smoothing: How much of the target is spread over all classes, 0 to below 1.
        class_weights: None, ``"balanced"`` (each class gets the same whole weight), positive weights in order, or
            a mapping from class to weight.
        dice: Weight of a Dice loss beside the cross-entropy; 0 leaves it out.
        hidden: Channels of private 3 x 3 convolutions before the last layer.
        dropout: Probability that a channel of those is dropped, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all, mean IoU first.
        class_shares: Share of each class among the labelled training pixels; filled in for ``"balanced"``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> task = segmentation("parts", ["wall", "door"])
        >>> task.decode(task.kept(torch.tensor([[[[0.0, 3.0]], [[1.0, 2.0]]]])))["share_door"].tolist()
        [0.5]
    """
    checks.check_smoothing_and_focus(name, label_smoothing, None)
    checks.check_number(name, "dice", dice, "a number of at least 0", lambda v: v >= 0)
    names = checks.class_names(name, "classes", classes, 2)
    fixed = checks.fixed_weights(name, "class_weights", class_weights, names)
    shares = checks.check_shares(name, "class_shares", class_shares, names)
    sides = checks.check_size(name, "size", size)
    options = {
        "classes": checks.plain_classes(classes),
        "size": None if sides is None else list(sides),
        "label_smoothing": label_smoothing,
        "class_weights": checks.plain_weights(class_weights),
        "dice": dice,
        **checks.shared_options(name, hidden, dropout, metrics),
        "class_shares": None if shares is None else list(shares),
    }
    balanced = checks.balanced_weights(shares) if class_weights == "balanced" and shares else None
    count = UNKNOWN_WIDTH if names is None else len(names)
    chosen, primary = checks.pick_metrics(name, segmentation_metrics(count or None), SEGMENTATION, metrics)
    return Task(
        name=name,
        kind="segmentation",
        loss=SegmentationLoss(fixed or balanced, float(label_smoothing), float(dice)),
        head=replace(checks.head_spec(count, hidden, dropout), form="map", size=sides),
        metrics=chosen,
        score=map_scores,
        decode=DecodeMask(None if isinstance(classes, int) else names, count),
        target=TargetSpec("mask", names),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
        units=labelled_pixels,
        keep=keep_classes,
    )


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    fits = checks.is_integer(targets) and targets.dim() == 3
    checks.check_shape(name, targets, "class numbers [rows, height, width] as integers", fits)
    known, of_rows = checks.known_rows(name, targets, weights)
    count, found = checks.class_count(name, options["classes"], known)
    checks.check_values(name, targets, targets >= count, f"a class number from 0 to {count - 1}")
    found |= checks.fitted_size(name, options["size"], targets)
    if options["class_weights"] == "balanced":
        of_pixels = of_rows.repeat_interleave(labelled_pixels(known))
        totals = torch.bincount(known[known >= 0].long(), of_pixels, count)
        found["class_shares"] = (totals / totals.sum()).tolist()
    return found
