"""Forms of targets with more than a label or a vector a row: masks, maps and boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from torch import Tensor

from polytask.data.boxes import as_boxes, box_rows
from polytask.data.maps import as_map, as_mask, column_rows
from polytask.tasks.task import Task

ROWS: Mapping[str, Callable[[Any, Task], Tensor]] = {
    "mask": lambda rows, task: as_mask(rows, f"task '{task.name}'"),
    "map": lambda rows, task: as_map(rows, f"task '{task.name}'"),
    "boxes": as_boxes,
}
"""From a person's arrays and lists to a target, by ``TargetSpec.form``."""

COLUMNS: Mapping[str, Callable[[pl.Series, Task, str], Tensor]] = {
    "mask": lambda series, task, where: as_mask(column_rows(series, where), where),
    "map": lambda series, task, where: as_map(column_rows(series, where), where),
    "boxes": lambda series, task, where: as_boxes(box_rows(series, where), task, record=True),
}
"""From a table's column to a target, by ``TargetSpec.form``; the last argument is what errors call the column."""
