"""What evaluation keeps of maps, and what metrics and people read of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.tasks.outputs import Columns


def keep_classes(raw: Tensor) -> Tensor:
    """The most probable class of every pixel, int16 ``[rows, H, W]``: a small part of the logits' memory.

    Example:
        >>> keep_classes(torch.tensor([[[[0.0, 3.0]], [[1.0, 2.0]]]]))
        tensor([[[1, 0]]], dtype=torch.int16)
    """
    return raw.argmax(1).to(torch.int16)


def keep_values(raw: Tensor) -> Tensor:
    """Values at pixels, float32 ``[rows, H, W]``."""
    return raw.squeeze(1).float()


def keep_exponentials(raw: Tensor) -> Tensor:
    """Values at pixels of their logarithms, float32 ``[rows, H, W]``."""
    return keep_values(raw).exp()


def map_scores(kept: Tensor) -> NDArray[Any]:
    """What was kept, in its own type: in float64 it would be several times as large."""
    return kept.detach().cpu().numpy()


def decode_values(kept: Tensor) -> Columns:
    """A map of values for each row."""
    return {"": map_scores(kept)}


@dataclass(frozen=True)
class DecodeMask:
    """The class number of every pixel, and each class's share of the pixels.

    Args:
        names: Of the classes; None gives their numbers.
        count: How many there are.
    """

    names: tuple[str, ...] | None
    count: int

    def __call__(self, kept: Tensor) -> Columns:
        """Columns of class maps ``[rows, H, W]``."""
        mask = map_scores(kept)
        names = self.names or tuple(str(number) for number in range(self.count))
        flat = mask.reshape(len(mask), -1)
        return {"": mask} | {f"share_{name}": np.mean(flat == at, 1) for at, name in enumerate(names)}
