"""Columns of images: paths or the bytes of files, read into arrays of bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.schema import ImageColumn
from polytask.errors import DataError, MissingExtraError, RowError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Endings by which text is taken for paths of images."""
_MODES = {1: "L", 3: "RGB"}
_TEXT = (pl.String, pl.Categorical, pl.Enum)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """The images of a column.

    Args:
        pixels: ``[rows, channels, height, width]``; zeros for a bad row.
        sizes: Height and width of each file's image ``[rows, 2]``, before it was resized.
        bad: For each row that could not be read, from 0, what is wrong with it.
    """

    pixels: Bytes
    sizes: NDArray[np.int64]
    bad: dict[int, str]


def holds_files(series: pl.Series) -> bool:
    """Whether a column holds paths or the bytes of files."""
    return series.dtype in _TEXT or series.dtype == pl.Binary


def holds_pixels(series: pl.Series) -> bool:
    """Whether a column holds images as arrays of bytes ``[1 or 3, height, width]``."""
    return bool(_pixel_shape(series))


def _pixel_shape(series: pl.Series) -> tuple[int, ...]:
    """The shape of a row's pixels; empty if the column does not hold any."""
    kind = series.dtype
    if not isinstance(kind, pl.Array) or len(kind.shape) != 3 or kind.shape[0] not in _MODES:
        return ()
    return tuple(kind.shape) if _inner(kind) == pl.UInt8 else ()


def _inner(kind: Any) -> Any:
    return _inner(kind.inner) if isinstance(kind, pl.Array) else kind


def with_folder(frame: pl.DataFrame, columns: Collection[str], folder: Path) -> pl.DataFrame:
    """The frame with the relative paths of some columns taken from a folder; columns of other types stay.

    Example:
        >>> frame = pl.DataFrame({"photo": ["a.png", "/b/c.png", None]})
        >>> with_folder(frame, ["photo"], Path("/data"))["photo"].to_list()
        ['/data/a.png', '/b/c.png', None]
    """
    paths = [name for name in columns if name in frame.columns and frame.schema[name] in _TEXT]
    if not paths or folder == Path():
        return frame
    # Joining with an absolute path gives that path.
    joined = [
        pl.Series(name, [None if path is None else str(folder / path) for path in frame[name].cast(pl.String)])
        for name in paths
    ]
    return frame.with_columns(joined)


def read_images(
    series: pl.Series, size: tuple[int, int] | None = None, channels: int = 3, *, skip_bad: bool = False
) -> Images:
    """Read a column of paths or of the bytes of files.

    Args:
        series: The column.
        size: Height and width that every image is resized to; None if all have one size.
        channels: 3 for colours, 1 for grey.
        skip_bad: Whether rows that cannot be read are noted instead of raising an error.

    Raises:
        DataError: for a file that is missing or cannot be read, and for images of different sizes without ``size``.
            The message names the record.
        MissingExtraError: if Pillow is not installed.
    """

    def read(source: Any) -> tuple[Bytes, tuple[int, int]] | str:
        return _read(source, size, _MODES[channels])

    found = _in_parallel(read, series)
    bad = {row: image for row, image in enumerate(found) if isinstance(image, str)}
    good = [(row, image) for row, image in enumerate(found) if not isinstance(image, str)]
    if bad and not skip_bad:
        raise unreadable(series, bad)
    if not good:
        raise DataError(f"Column '{series.name}' has no image that can be read. {next(iter(bad.values()), '')}.")
    shape = size or good[0][1][1]
    pixels = np.zeros((len(found), *shape, channels), dtype=np.uint8)
    # Boxes of a bad row are never outside of its image: the row is left out anyway.
    sizes = np.full((len(found), 2), np.iinfo(np.int32).max, dtype=np.int64)
    for row, (image, original) in good:
        if image.shape[:2] != tuple(shape):
            raise DataError(
                f"Record {row + 1}, column '{series.name}': the image has {original[0]} x {original[1]} pixels (height "
                f"and width), others {shape[0]} x {shape[1]}. Give the input a size: "
                f"{{kind: image, size: [{shape[0]}, {shape[1]}]}}."
            )
        pixels[row], sizes[row] = image.reshape(*shape, channels), original
    return Images(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), sizes, bad)


def read_masks(series: pl.Series, size: Sequence[int] | None = None) -> list[NDArray[Any] | None]:
    """Read a column of image files whose pixels are class numbers; None where there is none.

    Args:
        series: Paths or the bytes of files, of grey or palette images.
        size: Height and width that every mask is brought to, each pixel to its nearest one; None leaves it.

    Raises:
        DataError: for a file that is missing, cannot be read or has colours; the message names the record.
    """

    def read(source: Any) -> NDArray[Any] | str | None:
        return None if source is None else _read_mask(source, size)

    found = _in_parallel(read, series)
    bad = {row: mask for row, mask in enumerate(found) if isinstance(mask, str)}
    if bad:
        raise unreadable(series, bad)
    return found


def unreadable(series: pl.Series, bad: Mapping[int, str]) -> RowError:
    """The error for rows of a column whose files cannot be read.

    Args:
        series: The column.
        bad: For each such row, from 0, what is wrong with it.
    """
    row, problem = next(iter(bad.items()))
    more = f" {len(bad) - 1:,} more records have a fault like this." if len(bad) > 1 else ""
    return RowError(
        f"Record {row + 1}, column '{series.name}': {problem}.{more} Correct it, or have such rows skipped: data: "
        "{on_bad: skip}.",
        {row: f"column '{series.name}': {what}" for row, what in bad.items()},
    )


def image_column(series: pl.Series, size: tuple[int, int] | None, channels: int) -> ImageColumn:
    """What training rows fix about a column of images.

    Args:
        series: Paths, bytes of files, or pixels that were read before.
        size: Height and width, or None for those of the images.
        channels: Of images from files.
    """
    shape = _pixel_shape(series)
    if shape:
        return ImageColumn(series.name, (shape[1], shape[2]), shape[0])
    return ImageColumn(series.name, size or read_images(series.head(1), None, channels).pixels.shape[2:], channels)


def pixels_of(series: pl.Series, column: ImageColumn) -> Bytes:
    """The pixels of a column ``[rows, channels, height, width]``, read now unless they were read before.

    Raises:
        DataError: for an image that cannot be read, or pixels of another shape than in training.
    """
    if holds_files(series):
        return read_images(series, column.size, column.channels).pixels
    wanted = (column.channels, *column.size)
    shape = _pixel_shape(series)
    if shape != wanted:
        raise DataError(
            f"Column '{series.name}' holds {series.dtype}; in training it was images of {list(wanted)}. Give paths, "
            "the bytes of files, or arrays of bytes of this shape."
        )
    return np.array(series.to_numpy(), dtype=np.uint8)


def _in_parallel(read: Any, series: pl.Series) -> list[Any]:
    values = series.cast(pl.String).to_list() if series.dtype in _TEXT else series.to_list()
    # Decoding runs outside of Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, values))


def _open(source: Any) -> Any:
    """An image, or what is wrong with it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        text = "Images need the package Pillow. Install it with: pip install 'polytask[vision]'"
        raise MissingExtraError(text) from error
    if source is None:
        return "there is no image"
    if isinstance(source, str) and not Path(source).is_file():
        return f"there is no image file '{source}'"
    name = f"'{source}'" if isinstance(source, str) else "what it holds"
    try:
        # Pillow leaves a file that it could not read open.
        image = Image.open(io.BytesIO(Path(source).read_bytes() if isinstance(source, str) else source))
        image.load()
    except UnidentifiedImageError:
        return f"{name} is not an image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{name} cannot be read as an image ({str(error).rstrip('.')})"
    return image


def _read(source: Any, size: tuple[int, int] | None, mode: str) -> tuple[Bytes, tuple[int, int]] | str:
    image = _open(source)
    if isinstance(image, str):
        return image
    original = (image.height, image.width)
    image = image.convert(mode)
    if size is not None and original != tuple(size):
        image = image.resize((size[1], size[0]))
    return np.asarray(image, dtype=np.uint8), original


def _read_mask(source: Any, size: Sequence[int] | None) -> NDArray[Any] | str:
    image = _open(source)
    if isinstance(image, str):
        return image
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        return f"a mask is a grey or palette image of class numbers; found the mode {image.mode}"
    if size is not None and (image.height, image.width) != tuple(size):
        # 0 is the nearest pixel: class numbers cannot be averaged.
        image = image.resize((size[1], size[0]), 0)
    return np.asarray(image)
