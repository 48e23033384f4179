"""Scenes composed from cut-out pictures on cluttered ground: what the data set ``shapes`` is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.errors import MissingExtraError

SIDE = 64
"""Height and width of a scene in pixels."""
MOST = 4
"""Things in a scene, at most."""
EMPTY = 0.05
"""Share of scenes without things."""
SIZES = (16, 30)
"""Longer side of a thing in pixels."""
SEEN = 0.6
"""Part of every thing that later ones leave to be seen."""

Bytes = NDArray[np.uint8]
Cutout = Callable[[int, np.random.Generator], Bytes]
"""Makes picture number i with its mask, ``[h, w, 4]``."""


@dataclass(frozen=True)
class Things:
    """Pictures of one class.

    Args:
        name: Of the class.
        count: How many pictures there are.
        cutout: Makes one of them.
    """

    name: str
    count: int
    cutout: Cutout


def scenes(things: Sequence[Things], rows: int, seed: int) -> pl.DataFrame:
    """Compose scenes.

    One scene in twenty is empty; others have up to 4 things, each of a class, picture, size and place drawn at random.
    Later things lie over earlier ones, and one that would leave less than 60 % of an earlier one to be seen is left
    out. The ground is a smooth mixture of colours with small rectangles and discs over it; all has a little noise.

    Args:
        things: The classes, with pictures that no other part of the data uses.
        rows: How many scenes.
        seed: Of everything drawn.

    Returns:
        ``image`` (bytes ``[3, 64, 64]``), ``boxes`` (lists of ``label``, ``x1``, ``y1``, ``x2``, ``y2``: the sides of a
        whole thing, hidden parts included), ``parts`` (for each pixel 0, or 1 and more for the class that is seen
        there), ``shown`` (the classes in the scene, separated by ``|``) and ``things`` (their number).
    """
    generator = np.random.default_rng(seed)
    images = np.empty((rows, SIDE, SIDE, 3), dtype=np.uint8)
    parts = np.zeros((rows, SIDE, SIDE), dtype=np.int8)
    boxes = []
    for row in range(rows):
        images[row], parts[row], found = _scene(things, generator)
        boxes.append(found)
    kind = pl.List(pl.Struct({"label": pl.String} | dict.fromkeys(("x1", "y1", "x2", "y2"), pl.Float64)))
    shown = ["|".join(sorted({box["label"] for box in found})) for found in boxes]
    return pl.DataFrame(
        {
            "image": pl.Series(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            "boxes": pl.Series(boxes, dtype=kind),
            "parts": pl.Series(parts),
            "shown": shown,
            "things": [len(found) for found in boxes],
        }
    )


def _scene(things: Sequence[Things], generator: np.random.Generator) -> tuple[Bytes, NDArray[np.int8], list[Any]]:
    canvas = _ground(generator)
    owner = np.full((SIDE, SIDE), -1)
    numbers: list[int] = []
    areas: list[int] = []
    boxes: list[dict[str, Any]] = []
    wanted = 0 if generator.random() < EMPTY else generator.integers(1, MOST + 1)
    for _ in range(wanted):
        number = int(generator.integers(len(things)))
        picture = _resized(
            things[number].cutout(int(generator.integers(things[number].count)), generator),
            int(generator.integers(SIZES[0], SIZES[1] + 1)),
        )
        height, width = picture.shape[:2]
        y, x = (int(generator.integers(SIDE - side + 1)) for side in (height, width))
        place = (slice(y, y + height), slice(x, x + width))
        solid = picture[..., 3] > 127
        hidden = np.bincount(owner[place][solid] + 1, minlength=len(boxes) + 1)[1:]
        left = np.bincount(owner.reshape(-1) + 1, minlength=len(boxes) + 1)[1:] - hidden
        if (left < SEEN * np.array(areas)).any():
            continue
        alpha = picture[..., 3:].astype(np.float32) / 255
        canvas[place] = canvas[place] * (1 - alpha) + picture[..., :3] * alpha
        owner[place][solid] = len(boxes)
        numbers.append(number)
        areas.append(int(solid.sum()))
        sides = {"x1": float(x), "y1": float(y), "x2": float(x + width), "y2": float(y + height)}
        boxes.append({"label": things[number].name, **sides})
    noisy = canvas + 4 * generator.standard_normal(canvas.shape, dtype=np.float32)
    classes = np.array([0, *(number + 1 for number in numbers)], dtype=np.int8)
    return np.clip(noisy, 0, 255).astype(np.uint8), classes[owner + 1], boxes


def _ground(generator: np.random.Generator) -> NDArray[np.float32]:
    """Clutter ``[64, 64, 3]``."""
    coarse = generator.integers(30, 226, (4, 4, 3)).astype(np.uint8)
    canvas = np.asarray(_pillow().fromarray(coarse).resize((SIDE, SIDE), 3), dtype=np.float32).copy()
    for _ in range(generator.integers(4, 11)):
        height, width = generator.integers(1, 6, 2)
        y, x = generator.integers(0, SIDE - height), generator.integers(0, SIDE - width)
        patch = canvas[y : y + 2 * height + 1, x : x + 2 * width + 1]
        rows, columns = np.ogrid[-height : height + 1, -width : width + 1]
        disc = (rows / height) ** 2 + (columns / width) ** 2 <= 1
        inside = disc[: patch.shape[0], : patch.shape[1]] if generator.random() < 0.5 else slice(None)
        patch[inside] = generator.integers(0, 256, 3)
    return canvas


def _resized(picture: Bytes, longer: int) -> Bytes:
    """What is solid of a picture, with its longer side as asked for."""
    ys, xs = np.nonzero(picture[..., 3] > 127)
    inner = picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = longer / max(inner.shape[:2])
    height, width = (max(2, round(side * scale)) for side in inner.shape[:2])
    return np.asarray(_pillow().fromarray(inner).resize((width, height), 2))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        text = "Composing scenes needs the package Pillow. Install it with: pip install 'polytask[vision]'"
        raise MissingExtraError(text) from error
    return Image
