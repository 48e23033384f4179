"""Two pictures in one: what ``multi_fashion`` and ``multi_mnist`` are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

SHIFT = 8
"""How far the second picture lies below and to the right of the first, in pixels."""


def overlaid(pictures: NDArray[np.uint8], labels: NDArray[np.integer], names: Sequence[str], seed: int) -> pl.DataFrame:
    """Lay every picture over another one of the same set: top left and bottom right.

    Each picture is once the left one, in order, and once the right one, as a seeded permutation says. Where both
    have ink the lighter pixel wins.

    Args:
        pictures: Grey values ``[n, height, width]``, 0 to 255.
        labels: Class numbers ``[n]``.
        names: Names of the classes.
        seed: Of the permutation.

    Returns:
        ``image`` (float32 arrays ``[1, height + 8, width + 8]``, 0 to 1), and the names ``left`` and ``right``.

    Example:
        >>> frame = overlaid(np.full((3, 2, 2), 255, np.uint8), np.array([0, 1, 1]), ["shoe", "bag"], seed=0)
        >>> frame.columns, frame["image"].dtype.shape, frame["left"].to_list()
        (['image', 'left', 'right'], (1, 10, 10), ['shoe', 'bag', 'bag'])
    """
    count, height, width = pictures.shape
    partner = np.random.default_rng(seed).permutation(count)
    canvas = np.zeros((count, 1, height + SHIFT, width + SHIFT), dtype=np.float32)
    canvas[:, 0, :height, :width] = pictures
    corner = canvas[:, 0, SHIFT:, SHIFT:]
    np.maximum(corner, pictures[partner], out=corner)
    canvas /= 255
    words = np.array(list(names))
    return pl.DataFrame(
        {"image": pl.Series(canvas), "left": words[labels].tolist(), "right": words[labels[partner]].tolist()}
    )
