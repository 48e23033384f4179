"""Targets with a label at every pixel: from arrays of a person or of a table's column to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.errors import DataError

UNLABELLED_BYTE = 255
"""What stands for a pixel without a label in masks of bytes, which cannot hold -1."""


def as_mask(rows: Any, where: str) -> Tensor:
    """Class numbers of pixels, a small integer type ``[rows, H, W]``, -1 without a label.

    Args:
        rows: An array or tensor, or one array a row with None where a whole row has no label. NaN, negative numbers,
            and 255 in arrays of bytes are pixels without a label.
        where: What an error calls the rows, such as ``"task 'parts'"``.

    Raises:
        DataError: for rows of different sizes or that are no maps, and for numbers that are not whole.

    Example:
        >>> as_mask(np.array([[[0, 255]]], dtype=np.uint8), "task 'parts'")
        tensor([[[ 0, -1]]], dtype=torch.int16)
    """
    array = _stacked(rows, where)
    if array.dtype == np.uint8:
        array = np.where(array == UNLABELLED_BYTE, -1, array.astype(np.int16))
    elif array.dtype.kind == "f":
        whole = np.where(np.isnan(array), -1, array)
        broken = (whole != np.floor(whole)).reshape(len(whole), -1)
        if broken.any():
            row = int(broken.any(1).argmax())
            value = whole.reshape(len(whole), -1)[row][broken[row]][0]
            raise DataError(f"Row {row} of {where}: a pixel has the class number {value:g}; it has to be whole.")
        array = whole
    elif array.dtype.kind not in "iub":
        raise DataError(f"In {where} there is {array.dtype}; a mask holds class numbers.")
    if array.size and int(array.max()) > np.iinfo(np.int16).max:
        raise DataError(f"In {where} there is the class number {array.max():g}; the largest is 32767.")
    small = array.dtype == np.int8
    return torch.from_numpy(np.maximum(array, -1).astype(np.int8 if small else np.int16))


def as_map(rows: Any, where: str) -> Tensor:
    """Numbers of pixels, float32 ``[rows, H, W]``, NaN without a label.

    Args:
        rows: An array or tensor, or one array a row with None where a whole row has no label.
        where: What an error calls the rows.

    Raises:
        DataError: for rows of different sizes or that are no maps, and for infinite numbers.
    """
    array = _stacked(rows, where)
    if array.dtype.kind not in "fiub":
        raise DataError(f"In {where} there is {array.dtype}; a map holds numbers.")
    infinite = np.isinf(array).reshape(len(array), -1).any(1)
    if infinite.any():
        raise DataError(f"Row {int(infinite.argmax())} of {where}: a pixel is infinite. Use NaN without a label.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def column_rows(series: pl.Series, where: str) -> Any:
    """The arrays of a column, one a row, None where there is none.

    Raises:
        DataError: if it holds something else.
    """
    if not isinstance(series.dtype, pl.List | pl.Array):
        raise DataError(f"In {where} there is {series.dtype}; it has to hold one array [height][width] a row.")
    if isinstance(series.dtype, pl.Array) and series.null_count() == 0:
        return series.to_numpy()
    return series.to_list()


def _stacked(rows: Any, where: str) -> NDArray[Any]:
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().numpy()
    if isinstance(rows, Sequence):
        rows = _stacked_list(rows, where)
    array = np.asarray(rows)
    if array.ndim != 3:
        raise DataError(
            f"The targets of {where} have the shape {list(array.shape)}; it has to be [rows, height, width], one "
            "number a pixel."
        )
    return array


def _stacked_list(rows: Sequence[Any], where: str) -> NDArray[Any]:
    known = [None if row is None else _array(row) for row in rows]
    first = next((row for row in known if row is not None), None)
    if first is None:
        raise DataError(f"There is no label at all in {where}.")
    for number, row in enumerate(known):
        if row is not None and row.shape != first.shape:
            raise DataError(
                f"Row {number} of {where} has a map of {list(row.shape)}; others have {list(first.shape)}. Bring all "
                "to one size."
            )
    if all(row is not None for row in known):
        return np.stack([row for row in known if row is not None])
    wide = np.result_type(first.dtype, np.float32 if first.dtype.kind == "f" else np.int16)
    missing = np.full(first.shape, np.nan if wide.kind == "f" else -1, dtype=wide)
    # Bytes are widened here, so what they mean by 255 has to be kept.
    widened = [missing if row is None else _widened(row, wide) for row in known]
    return np.stack(widened)


def _widened(row: NDArray[Any], wide: Any) -> NDArray[Any]:
    known = row.astype(wide)
    return np.where(row == UNLABELLED_BYTE, -1, known) if row.dtype == np.uint8 else known


def _array(row: Any) -> NDArray[Any]:
    array = np.asarray(row)
    # A list with None among its numbers.
    return array.astype(np.float64) if array.dtype == object else array
