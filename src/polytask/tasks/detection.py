"""Boxes with a class, any number of them in an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from polytask.errors import DataError
from polytask.tasks import options as checks
from polytask.tasks.losses_boxes import DetectionLoss, counted_boxes
from polytask.tasks.metrics_boxes import DETECTION, detection_metrics
from polytask.tasks.outputs_boxes import DecodeBoxes, KeepBoxes
from polytask.tasks.outputs_maps import map_scores
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task

ON_BAD = ("error", "clip", "drop")
FIRST_PROBABILITY = 0.1
"""What every score starts at: almost all positions hold no centre."""
FIRST_DISTANCE = 2.0
"""Raw output with which the distances to the sides start, about two strides."""


def detection(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    size: Sequence[int],
    box_weight: float = 2.0,
    most: int = 50,
    overlap: float = 0.5,
    threshold: float = 0.3,
    on_bad: str = "error",
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
) -> Task:
    """Boxes with a class, any number of them in an image.

    The head reads a feature map and gives ``[rows, 4 + k, h, w]``: at each position the distances to the sides of a
    box, and for each class how much the position is the centre of one. Targets are ``[rows, n, 5]``: class, x1, y1,
    x2, y2 in pixels, padded by class -1; an image without boxes has padding only, an image without a label is all NaN.
    Losses are means over all boxes of a step, an image without boxes counting as one. Evaluation keeps the best boxes
    of an image. Row weights count in the loss and not in the metrics, which are COCO's.

    Args:
        name: The task's name.
        classes: How many, or their names in order; None until the training data show them.
        size: Height and width in pixels of the images that the model reads; boxes are in these pixels.
        box_weight: Weight of the boxes' GIoU loss beside the loss of the centres.
        most: Boxes of an image that evaluation and prediction keep, at most.
        overlap: IoU above which the lower-scored box of a class is taken out.
        threshold: Score from which on a prediction for a person names a box; metrics read all that are kept.
        on_bad: What to do with a box outside the image or without area: ``"error"``, ``"clip"`` it to the image and
            leave it out if nothing is left, or ``"drop"`` it.
        hidden: Channels of private 3 x 3 convolutions before the last layer.
        dropout: Probability that a channel of those is dropped, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all, COCO's mAP first.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = detection("things", ["cup", "box"], size=[32, 32])
        >>> task.decode(torch.tensor([[[1.0, 0.9, 2, 3, 10, 12], [-1, 0, 0, 0, 0, 0]]]))[""].tolist()
        ['[{"label": "box", "score": 0.9, "box": [2.0, 3.0, 10.0, 12.0]}]']
    """
    names = checks.class_names(name, "classes", classes, 1)
    sides = checks.check_size(name, "size", size)
    if sides is None:
        raise checks.bad_option(name, "size", size, "a list of the images' height and width in pixels")
    checks.check_number(name, "box_weight", box_weight, "a positive number", lambda v: v > 0)
    checks.check_count(name, "most", most, 1)
    checks.check_number(name, "overlap", overlap, "an IoU from 0 to 1", lambda v: 0 <= v <= 1)
    checks.check_number(name, "threshold", threshold, "a score from 0 to 1", lambda v: 0 <= v <= 1)
    checks.check_choice(name, "on_bad", on_bad, ON_BAD)
    options = {
        "classes": checks.plain_classes(classes),
        "size": list(sides),
        "box_weight": box_weight,
        "most": most,
        "overlap": overlap,
        "threshold": threshold,
        "on_bad": on_bad,
        **checks.shared_options(name, hidden, dropout, metrics),
    }
    count = 0 if names is None else len(names)
    chosen, primary = checks.pick_metrics(name, detection_metrics(count), DETECTION, metrics)
    start = math.log(FIRST_PROBABILITY / (1 - FIRST_PROBABILITY))
    head = checks.head_spec(4 + count if count else UNKNOWN_WIDTH, hidden, dropout)
    return Task(
        name=name,
        kind="detection",
        loss=DetectionLoss(sides, float(box_weight)),
        head=replace(head, form="map", shift=(FIRST_DISTANCE,) * 4 + (start,) * count if count else 0.0),
        metrics=chosen,
        score=map_scores,
        decode=DecodeBoxes(None if isinstance(classes, int) else names, float(threshold)),
        target=TargetSpec("boxes", names),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
        units=counted_boxes,
        keep=KeepBoxes(sides, most, float(overlap)),
    )


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    fits = targets.is_floating_point() and targets.dim() == 3 and targets.shape[2:] == (5,) and targets.shape[1] > 0
    checks.check_shape(name, targets, "boxes [rows, n, 5] in floating point, each class, x1, y1, x2, y2", fits)
    checks.known_rows(name, targets, weights)
    numbers = targets[..., 0]
    real = numbers >= 0
    checks.check_values(name, numbers, real & (numbers != numbers.floor()), "a whole class number")
    seen = numbers[real].long()
    if len(seen) == 0 and options["classes"] is None:
        raise DataError(f"Task '{name}' has no box in the training data, so its classes are unknown. Name them.")
    count, found = checks.class_count(name, options["classes"], seen, 1)
    checks.check_values(name, numbers, numbers >= count, f"a class number from 0 to {count - 1}")
    height, width = options["size"]
    x1, y1, x2, y2 = targets[..., 1:].unbind(-1)
    bad = ~((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)) & real
    wanted = f"the left side of a box with an area, inside of {width} x {height} pixels"
    checks.check_values(name, x1, bad, wanted)
    return found
