"""From a person's arrays, lists and items to inputs and targets as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data import dense
from polytask.data.batch import Batch, joined_rows, map_tensors
from polytask.data.targets import encode_target
from polytask.errors import DataError, listed, suggestion
from polytask.tasks.task import Task


def as_batch(item: Any, tasks: Sequence[Task]) -> Batch:
    """A Batch from what a DataLoader yields: a Batch, ``(inputs, targets by task)``, or a mapping of both.

    Raises:
        DataError: if it is something else, or has no target for any of the tasks.
    """
    if isinstance(item, Batch):
        return item
    known = {task.name: task for task in tasks}
    inputs, targets = split_item(item, known)
    return Batch(
        map_tensors(single(inputs), as_input), {name: as_target(value, known[name]) for name, value in targets.items()}
    )


def single(inputs: Any) -> Any:
    """The only input of a mapping; several stay a mapping."""
    return next(iter(inputs.values())) if isinstance(inputs, Mapping) and len(inputs) == 1 else inputs


def split_item(item: Any, tasks: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Inputs and targets of what a Dataset or a DataLoader gives.

    Raises:
        DataError: if it is neither a pair nor a mapping, or names no task.
    """
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping):
        inputs, targets = item
    elif isinstance(item, Mapping):
        inputs = {name: value for name, value in item.items() if name not in tasks}
        targets = {name: value for name, value in item.items() if name in tasks}
        if not inputs:
            raise DataError(f"The item holds targets only: {listed(targets)}. It needs an input as well.")
    else:
        raise DataError(
            f"Expected (inputs, targets by task), or a mapping with both by name; found {type(item).__name__}."
        )
    strange = [name for name in targets if name not in tasks]
    if strange:
        near = suggestion(strange[0], tasks)
        raise DataError(f"The data have a target '{strange[0]}', but the tasks are: {listed(tasks)}.{near}")
    if not targets:
        raise DataError(f"The data have no target for any of the tasks: {listed(tasks)}.")
    return inputs, targets


def as_input(value: Any) -> Tensor:
    """An input as a tensor: float64 becomes float32, int16 and int32 become int64, others stay.

    Raises:
        DataError: for text and for rows of different lengths.

    Example:
        >>> as_input([[1.0, 2.0]]).dtype, as_input(np.array([3], dtype=np.int32)).dtype
        (torch.float32, torch.int64)
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except ValueError:
            raise DataError("An input has rows of different lengths. Bring them to one shape first.") from None
        if array.dtype.kind not in "fiub":
            raise DataError(f"An input holds {array.dtype}, not numbers. Encode it first, or use a frame.")
        value = np.ascontiguousarray(array)
    tensor: Tensor = torch.as_tensor(value)
    if tensor.dtype == torch.float64:
        return tensor.float()
    return tensor.long() if tensor.dtype in (torch.int16, torch.int32) else tensor


def as_target(value: Any, task: Task) -> Tensor:
    """A target as its TargetSpec says, from a tensor, an array or a list; None and NaN are missing.

    Args:
        value: Rows first. Text is looked up among the declared classes (or compared with ``positive``).
            Numbers of a class target are class numbers; negative ones are missing.
        task: The task.

    Returns:
        Float32, or int64 for classes; a small integer type for masks.

    Raises:
        DataError: for a value that the task does not know, or of another shape.
    """
    if task.target.form in dense.ROWS:
        return dense.ROWS[task.target.form](value, task)
    if task.target.form == "tags":
        return _tag_numbers(value, task)
    rows = _array(value) if isinstance(value, Tensor) else value
    rows = [_plain(row) for row in rows] if isinstance(rows, list | tuple) else _listed_objects(np.asarray(rows))
    if isinstance(rows, list) and any(isinstance(row, list | np.ndarray) for row in rows):
        width = next(np.shape(row)[0] for row in rows if row is not None)
        array = np.array([np.full(width, np.nan) if row is None else row for row in rows], dtype=np.float64)
    elif isinstance(rows, list):
        if any(isinstance(row, str) for row in rows):
            return _encoded(pl.Series(task.name, [None if row is None else str(row) for row in rows]), task)
        array = np.array([np.nan if row is None else row for row in rows], dtype=np.float64)
    else:
        array = rows
    return _class_numbers(array, task) if task.target.form in ("class", "group") else _floats(array, task)


def _tag_numbers(value: Any, task: Task) -> Tensor:
    """Tag numbers ``[rows, words]`` of a tensor or array of them, or of lists of numbers or names a row."""
    if isinstance(value, Tensor | np.ndarray):
        numbers = torch.as_tensor(value)
        if numbers.dim() != 2 or numbers.is_floating_point():
            raise DataError(
                f"Task '{task.name}' takes a tag number for every word, [rows, words] of an integer type; its target "
                f"is {str(numbers.dtype).removeprefix('torch.')} of shape {list(numbers.shape)}."
            )
        return numbers.long().clamp_min(-1)
    rows = [None if row is None else list(row) for row in value]
    if any(isinstance(tag, str) for row in rows for tag in row or ()):
        return _encoded(pl.Series(task.name, rows, dtype=pl.List(pl.String)), task)
    return joined_rows([torch.tensor([[-1 if tag is None else tag for tag in row or (-1,)]]) for row in rows])


def _class_numbers(array: np.ndarray[Any, Any], task: Task) -> Tensor:
    if array.ndim != 1:
        raise DataError(f"Task '{task.name}' takes one class a row; its target has the shape {list(array.shape)}.")
    gone = np.isnan(array) if array.dtype.kind == "f" else np.zeros(len(array), dtype=bool)
    numbers = np.where(gone, -1, array).astype(np.int64)
    broken = np.nonzero(~gone & (numbers != array))[0]
    if len(broken):
        raise DataError(f"Row {broken[0]} of task '{task.name}': {array[broken[0]]:g} is not a class number.")
    count = len(task.target.classes) if task.target.classes else None
    beyond = np.nonzero(numbers >= (count or np.inf))[0]
    if len(beyond):
        raise DataError(
            f"Row {beyond[0]} of task '{task.name}': class number {numbers[beyond[0]]}, but there are {count} classes: "
            f"{listed(task.target.classes or ())}. Class numbers start at 0."
        )
    return torch.from_numpy(np.where(numbers < 0, -1, numbers))


def _floats(array: np.ndarray[Any, Any], task: Task) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if values.isinf().any():
        row = (
            int(values.flatten(1).isinf().any(1).nonzero()[0]) if values.dim() > 1 else int(values.isinf().nonzero()[0])
        )
        raise DataError(f"Row {row} of task '{task.name}': the target is infinite. Use NaN where a label is missing.")
    if task.target.form == "binary" and bool(((values < 0) | (values > 1)).any()):
        row = int(((values < 0) | (values > 1)).nonzero()[0][0])
        raise DataError(f"Row {row} of task '{task.name}': {values[row].tolist()} is no 0, 1 or probability.")
    return values


def _encoded(series: pl.Series, task: Task) -> Tensor:
    column = replace(task, target=replace(task.target, columns=()))
    return encode_target(pl.DataFrame({task.name: series}), column)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()


def _plain(row: Any) -> Any:
    if isinstance(row, Tensor):
        row = _array(row)
    if isinstance(row, np.ndarray | np.generic) and row.ndim == 0:
        row = row.item()
    return None if row is None or (isinstance(row, float) and np.isnan(row)) else row


def _listed_objects(array: np.ndarray[Any, Any]) -> Any:
    return [_plain(row) for row in array.tolist()] if array.dtype.kind in "OUS" else array
