"""Forms of targets with more than a label or a vector a row: masks, maps and boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.boxes import as_boxes, box_rows
from polytask.data.images import holds_files, read_masks
from polytask.data.maps import as_map, as_mask, column_rows
from polytask.tasks.task import Task

Sizes = NDArray[Any] | None

ROWS: Mapping[str, Callable[[Any, Task], Tensor]] = {
    "mask": lambda rows, task: as_mask(rows, f"task '{task.name}'"),
    "map": lambda rows, task: as_map(rows, f"task '{task.name}'"),
    "boxes": as_boxes,
}
"""From a person's arrays and lists to a target, by ``TargetSpec.form``."""


def _mask(series: pl.Series, task: Task, where: str, sizes: Sizes) -> Tensor:
    if holds_files(series):
        return as_mask(read_masks(series, task.options["size"]), where)
    return as_mask(column_rows(series, where), where)


def _map(series: pl.Series, task: Task, where: str, sizes: Sizes) -> Tensor:
    return as_map(column_rows(series, where), where)


def _boxes(series: pl.Series, task: Task, where: str, sizes: Sizes) -> Tensor:
    return as_boxes(box_rows(series, where), task, sizes, record=True)


COLUMNS: Mapping[str, Callable[[pl.Series, Task, str, Sizes], Tensor]] = {"mask": _mask, "map": _map, "boxes": _boxes}
"""From a table's column to a target, by ``TargetSpec.form``.

The arguments are the column, the task, what errors call the column, and the sizes of the rows' images, if known.
"""
