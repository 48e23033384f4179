"""From the maps of detection to boxes, and to what a person reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polytask.tasks.boxes import suppressed
from polytask.tasks.losses_boxes import boxes_at
from polytask.tasks.outputs import Columns

LOWEST = 0.01
"""Boxes with a lower score are not kept."""


@dataclass(frozen=True)
class KeepBoxes:
    """The best boxes of every image.

    Candidates are positions whose score is the highest among their neighbours' scores of the class; of those that
    overlap, the best stay.

    Args:
        size: Height and width of the image.
        most: How many boxes are kept.
        overlap: IoU from which on a box of the same class is taken out.

    Reference:
        Peaks of the heat maps: Zhou, Wang and Krähenbühl, "Objects as Points" (2019), section 4. There no further
        suppression follows.
    """

    size: tuple[int, int]
    most: int
    overlap: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Boxes ``[rows, d, 6]``: class, score, x1, y1, x2, y2, best first; class -1 where there are fewer than d.

        Args:
            raw: ``[rows, 4 + k, h, w]``.
        """
        scores = raw[:, 4:].float().sigmoid()
        peaks = scores * (scores == functional.max_pool2d(scores, 3, 1, 1))
        found, places = peaks.flatten(1).topk(min(4 * self.most, peaks[0].numel()))
        positions = raw.shape[-2] * raw.shape[-1]
        classes, places = places // positions, places % positions
        whole = boxes_at(raw[:, :4].float(), self.size).flatten(1, 2)
        boxes = whole.gather(1, places.unsqueeze(-1).expand(-1, -1, 4))
        boxes = torch.minimum(boxes.clamp_min(0), boxes.new_tensor([self.size[1], self.size[0]] * 2))
        good = (found >= LOWEST) & suppressed(boxes, found, classes, self.overlap)
        kept = torch.cat([classes.unsqueeze(-1).to(boxes.dtype), found.unsqueeze(-1), boxes], -1)
        nothing = kept.new_tensor([-1.0, 0, 0, 0, 0, 0])
        kept = torch.where(good.unsqueeze(-1), kept, nothing)
        # The ones that stay come first, in the order of their scores.
        first = (~good).to(torch.int8).argsort(dim=1, stable=True)[:, : self.most]
        return kept.gather(1, first.unsqueeze(-1).expand(-1, -1, 6))


@dataclass(frozen=True)
class DecodeBoxes:
    """The boxes of every image as JSON text, and how many there are.

    Args:
        names: Of the classes; None gives their numbers.
        threshold: Boxes with a lower score are left out.
    """

    names: tuple[str, ...] | None
    threshold: float

    def __call__(self, kept: Tensor) -> Columns:
        """Columns of kept boxes ``[rows, d, 6]``; the text is a list of ``{"label", "score", "box"}``."""
        rows = [[box for box in image if box[0] >= 0 and box[1] >= self.threshold] for image in kept.tolist()]
        texts = [json.dumps([self._plain(box) for box in image], ensure_ascii=False) for image in rows]
        return {"": np.array(texts, dtype=object), "count": np.array([len(image) for image in rows])}

    def _plain(self, box: list[float]) -> dict[str, Any]:
        number = int(box[0])
        label = number if self.names is None else self.names[number]
        return {"label": label, "score": round(box[1], 4), "box": [round(value, 2) for value in box[2:]]}
