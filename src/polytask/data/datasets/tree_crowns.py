"""Tree crowns: boxes that people drew around trees in aerial pictures, cut into tiles."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.fetch import Archive, fetch
from polytask.data.images import read_images
from polytask.errors import DataError

WINDOW, SIDE = 128, 64
"""Pixels of a picture that a tile covers, and those that it has: half the resolution."""
SEEN = 0.5
"""Part of a crown's box that has to lie in a tile to count there."""
TRAINING = "2019_YELL_2_528000_4978000_image_crop2"
VALIDATION_FROM = 14
"""Column of the training picture's tiles from which on they are for validation."""
TESTED = ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061")

ARCHIVE = Archive(
    package="deepforest",
    version="2.1.0",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    wheel=True,
    members={
        f"{name}.{ending}": f"deepforest/data/{name}.{ending}"
        for name in (TRAINING, *TESTED)
        for ending in ("png", "xml")
    },
    terms="Aerial pictures with boxes from the package DeepForest, MIT licence. Name the source where you use them.",
)

RECIPE: dict[str, Any] = {"inputs": {"image": "image"}}
"""What a recipe need not say: the tile is the input, ``boxes`` and ``trees`` are targets."""

Box = tuple[float, float, float, float]


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load four aerial pictures with 951 boxes of tree crowns, fetched at the first call, as tiles of 64 x 64 pixels.

    A tile shows 128 x 128 pixels at half their resolution. A box counts in a tile that holds half of it or more, and is
    clipped to it. The largest picture (Yellowstone) makes the training tiles; its right side, from the 15th column of
    tiles on, those for validation, so that a crown on the border may be seen in part by both. The other three pictures,
    from Yellowstone, Florida and California, make the test tiles.

    Args:
        root: A folder with the four ``.png`` and ``.xml`` files.

    Returns:
        ``"train"``, ``"validation"`` and ``"test"`` with the columns ``image``, ``boxes``, ``trees`` (how many) and
        ``picture``.

    Raises:
        DataError: if the data cannot be fetched, or a file cannot be read.
        MissingExtraError: if Pillow is not installed.

    Reference:
        Weinstein et al., "DeepForest: A Python package for RGB deep learning tree crown delineation" (Methods in
        Ecology and Evolution, 2020).
    """
    files = fetch("tree_crowns", ARCHIVE, root)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for name in (TRAINING, *TESTED):
        picture = read_images(pl.Series("image", [str(files[f"{name}.png"])])).pixels[0]
        boxes = np.array(read_boxes(files[f"{name}.xml"]))
        for column, tile in _tiles(picture, boxes):
            trained = "validation" if column >= VALIDATION_FROM else "train"
            parts[trained if name == TRAINING else "test"].append(tile | {"picture": name})
    return {part: _frame(tiles) for part, tiles in parts.items()}


def read_boxes(path: Path) -> list[Box]:
    """The boxes of a file in the Pascal VOC format, in pixels.

    Raises:
        DataError: if it is none, or has no box.
    """
    try:
        root = ElementTree.parse(path).getroot()
        found = [
            (_side(box, "xmin"), _side(box, "ymin"), _side(box, "xmax"), _side(box, "ymax"))
            for box in root.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"'{path}' is no file of boxes in the Pascal VOC format: {error}.") from None
    if not found:
        raise DataError(f"'{path}' has no box.")
    return found


def _tiles(picture: NDArray[np.uint8], boxes: NDArray[np.float64]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Tiles of a picture ``[3, h, w]``, each with the number of its column; a rest at the border is left out."""
    scale = WINDOW // SIDE
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for row in range(picture.shape[1] // WINDOW):
        for column in range(picture.shape[2] // WINDOW):
            corner = np.array([column, row]) * WINDOW
            window = picture[:, corner[1] : corner[1] + WINDOW, corner[0] : corner[0] + WINDOW]
            # The mean of 2 x 2 pixels.
            small = window.reshape(3, SIDE, scale, SIDE, scale).mean((2, 4)).round().astype(np.uint8)
            low, high = (np.clip(ends - corner, 0, WINDOW) for ends in (boxes[:, :2], boxes[:, 2:]))
            inside = (high - low).prod(1) >= SEEN * whole
            sides = np.concatenate([low, high], 1)[inside] / scale
            yield column, {"image": small, "boxes": sides.tolist()}


def _frame(tiles: list[dict[str, Any]]) -> pl.DataFrame:
    named = [[dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in tile["boxes"]] for tile in tiles]
    boxes = [[{"label": "tree", **box} for box in image] for image in named]
    kind = pl.List(pl.Struct({"label": pl.String} | dict.fromkeys(("x1", "y1", "x2", "y2"), pl.Float64)))
    return pl.DataFrame(
        {
            "image": pl.Series(np.stack([tile["image"] for tile in tiles])),
            "boxes": pl.Series(boxes, dtype=kind),
            "trees": [len(image) for image in boxes],
            "picture": [tile["picture"] for tile in tiles],
        }
    )


def _side(box: ElementTree.Element, side: str) -> float:
    return float(box.findtext(f"bndbox/{side}", ""))
