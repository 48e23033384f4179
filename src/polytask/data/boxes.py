"""Boxes of images: from lists, JSON text or structs of a person to one padded tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.errors import DataError, RowError, listed, suggestion
from polytask.tasks.task import Task

SIDES = ("x1", "y1", "x2", "y2")
PADDING = (-1.0, 0.0, 0.0, 0.0, 0.0)
"""What fills an image's row up to the number of boxes of the fullest one."""

Box = tuple[Any, float, float, float, float]
Read = TypeVar("Read")


def as_boxes(rows: Any, task: Task, sizes: NDArray[Any] | None = None, *, record: bool = False) -> Tensor:
    """Boxes of images, float32 ``[rows, n, 5]``: class, x1, y1, x2, y2; padded by class -1, missing rows all NaN.

    Args:
        rows: A tensor or array like the result; or for each image None (no label) or its boxes, none of them for an
            image without any: a list, or JSON text of a list. A box is ``{"label": ..., "box": [x1, y1, x2, y2]}``,
            ``{"label": ..., "x1": ..., "y1": ..., "x2": ..., "y2": ...}`` or ``[label, x1, y1, x2, y2]``; a label is
            a class's name, or its number where classes have no names.
        task: A detection task whose classes are known.
        sizes: Height and width of the image that the boxes of each row are in, ``[rows, 2]``; they are scaled to the
            task's size. None if they are in its pixels.
        record: Whether errors count records from 1, as tables do, and not rows from 0.

    Raises:
        DataError: for text that does not parse, an unknown class, and, unless the task clips or drops such boxes, a
            box outside of its image or without area. The message names the row.

    Example:
        >>> from polytask.tasks import detection
        >>> task = detection("things", ["cup", "box"], size=[32, 32])
        >>> as_boxes(['[{"label": "box", "box": [1, 2, 9, 8]}]', "[]", None], task)[:, 0]
        tensor([[ 1.,  1.,  2.,  9.,  8.],
                [-1.,  0.,  0.,  0.,  0.],
                [nan, nan, nan, nan, nan]])
    """
    if isinstance(rows, Tensor | np.ndarray) and np.ndim(rows) == 3:
        return torch.as_tensor(rows).float()
    if task.target.classes is None:
        raise DataError(f"The classes of task '{task.name}' are not known yet. Declare them: classes=[...].")
    own = np.asarray(task.options["size"], dtype=np.float64)

    def read(number: int) -> list[list[float]] | None:
        where = f"{'Record' if record else 'Row'} {number + record} of task '{task.name}'"
        boxes = parse_boxes(rows[number], where)
        if boxes is None:
            return None
        size = own if sizes is None else np.asarray(sizes[number], dtype=np.float64)
        numbered = [(_class(box[0], task, where), *box[1:]) for box in boxes]
        kept = [fits for box in numbered if (fits := _inside(box, size, task.options["on_bad"], where)) is not None]
        scale = np.tile((own / size)[::-1], 2)
        return [[box[0], *(np.array(box[1:]) * scale).tolist()] for box in kept]

    return _padded(_every(len(rows), read))


def _every(count: int, read: Callable[[int], Read]) -> list[Read]:
    """What ``read`` makes of every row; an error that tells all rows of which it raises one."""
    found, faults = [], {}
    for number in range(count):
        try:
            found.append(read(number))
        except DataError as error:
            faults[number] = str(error)
    if faults:
        # They begin with "Record 3 of", which who lists rows says in words of its own.
        raise RowError(next(iter(faults.values())), {at: text.partition(" of ")[2] for at, text in faults.items()})
    return found


def _padded(rows: Sequence[Sequence[Sequence[float]] | None]) -> Tensor:
    most = max([1, *(len(boxes) for boxes in rows if boxes is not None)])
    found = np.full((len(rows), most, 5), np.nan, dtype=np.float32)
    for number, boxes in enumerate(rows):
        if boxes is not None:
            found[number] = PADDING
            found[number, : len(boxes)] = np.array(boxes).reshape(-1, 5)
    return torch.from_numpy(found)


def box_rows(series: pl.Series, where: str) -> list[Any]:
    """The rows of a column of boxes.

    Raises:
        DataError: if it holds neither text nor lists.
    """
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if not (series.dtype == pl.String or isinstance(series.dtype, pl.List)):
        raise DataError(f"In {where} there is {series.dtype}; boxes are JSON text or lists.")
    return series.to_list()


def box_labels(rows: Sequence[Any], where: str) -> tuple[str, ...]:
    """The labels of all boxes as text, sorted, by value if they are numbers."""
    parsed = _every(len(rows), lambda number: parse_boxes(rows[number], f"Record {number + 1} of {where}"))
    found = {_text(box[0]) for boxes in parsed for box in boxes or ()}
    return tuple(sorted(found, key=lambda text: (0, float(text), "") if _is_number(text) else (1, 0.0, text)))


def parse_boxes(row: Any, where: str) -> list[Box] | None:
    """Boxes of one image as ``(label, x1, y1, x2, y2)``; None without a label.

    Raises:
        DataError: if it is no list of boxes.
    """
    if row is None or (isinstance(row, float) and math.isnan(row)):
        return None
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: the boxes are not JSON: {error}.") from None
        if row is None:
            return None
    if not isinstance(row, Sequence | np.ndarray | Tensor):
        raise DataError(f"{where}: found {type(row).__name__}, not a list of boxes.")
    return [_box(box, where) for box in (row.tolist() if hasattr(row, "tolist") else row)]


def _box(box: Any, where: str) -> Box:
    if isinstance(box, Mapping):
        sides = box.get("box") if "box" in box else [box.get(side) for side in SIDES]
        parts = [box.get("label"), *(sides if isinstance(sides, Sequence) else [sides])]
    else:
        parts = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else [box]
    numbers = [value for value in parts[1:] if isinstance(value, int | float) and math.isfinite(value)]
    if len(parts) != 5 or len(numbers) != 4 or parts[0] is None:
        raise DataError(
            f"{where}: {json.dumps(box, default=str)} is no box. Write "
            '{"label": ..., "box": [x1, y1, x2, y2]} with the left, upper, right and lower side in pixels.'
        )
    return (parts[0], *map(float, numbers))


def _class(label: Any, task: Task, where: str) -> int:
    names = task.target.classes or ()
    text = _text(label)
    if text not in names:
        raise DataError(f"{where}: '{text}' is not among the classes: {listed(names)}.{suggestion(text, names)}")
    return names.index(text)


def _inside(box: Box, size: NDArray[Any], on_bad: str, where: str) -> Box | None:
    """The box if it can be used, clipped if that is wanted; None to leave it out."""
    label, x1, y1, x2, y2 = box
    height, width = map(float, size)
    within = x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
    if within and x1 < x2 and y1 < y2:
        return box
    if on_bad == "error":
        what = "has no area" if within else f"reaches outside of the image of {width:g} x {height:g} pixels"
        raise DataError(
            f"{where}: the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) {what}. Correct it, or set the task's on_bad to clip "
            "or drop."
        )
    clipped = (label, max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
    return clipped if on_bad == "clip" and clipped[1] < clipped[3] and clipped[2] < clipped[4] else None


def _text(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
