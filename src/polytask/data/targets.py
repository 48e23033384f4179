"""From a table's target columns to the tensors that tasks learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask import registry
from polytask.data import dense
from polytask.data.boxes import box_labels, box_rows
from polytask.data.table import as_text, column_of
from polytask.data.tags import read_tags
from polytask.data.target_forms import (
    FORMS,
    SEPARATOR,
    binary_values,
    finite_numbers,
    label_lists,
    only_column,
    shown_value,
    target_columns,
    where_of,
)
from polytask.errors import DataError, RowError, listed, suggestion
from polytask.tasks.task import Task, labelled

CLASSED = ("class", "labels", "distribution", "tags", "boxes")
"""Forms of targets that have classes."""


def fit_target(frame: pl.DataFrame, task: Task, *, separator: str = SEPARATOR) -> Task:
    """The task with its classes, or the value that means 1, taken from training rows where it does not say.

    Args:
        frame: Training rows.
        task: A task.
        separator: Between the labels of a row, for ``"labels"`` in a single column.

    Raises:
        DataError: if the classes cannot be told from the data, or the declared positive value never occurs.
    """
    found: dict[str, object] = {}
    if task.target.form in CLASSED and task.target.classes is None:
        found["classes"] = list(infer_classes(frame, task, separator=separator))
    elif task.target.form == "binary":
        positive = infer_positive(frame, task)
        if positive != task.target.positive:
            found["positive"] = positive
    if not found:
        return task
    fitted: Task = registry.build("tasks", task.kind, {**task.options, **found}, name=task.name)
    return fitted


def infer_classes(frame: pl.DataFrame, task: Task, *, separator: str = SEPARATOR) -> tuple[str, ...]:
    """The classes of training rows: sorted, by value if they are numbers.

    A column of polars' type Enum brings its classes along: all of them count, in their order, seen or not.
    For several columns (labels, soft labels) the classes are the columns' names, as they are given.

    Raises:
        DataError: if there are fewer than two classes.
    """
    columns = target_columns(task)
    if len(columns) > 1:
        return columns
    series = column_of(frame, columns[0], f"target column of task '{task.name}'")
    if task.target.form == "boxes":
        return box_labels(box_rows(series, where_of(task, series)), f"column '{series.name}'")
    inner = series.dtype.inner if isinstance(series.dtype, pl.List) else series.dtype
    if isinstance(inner, pl.Enum) and not task.target.repair:
        return tuple(inner.categories)
    values = _values(series, task, separator)
    found = values.drop_nulls().unique().sort()
    numbers = found.cast(pl.Float64, strict=False)
    if found.len() and numbers.null_count() == 0:
        found = found.gather(numbers.arg_sort())
    if len(found) < (1 if task.target.form == "labels" else 2):
        raise DataError(
            f"Task '{task.name}': column '{series.name}' has {len(found)} classes in the training rows"
            f"{': ' + listed(found.to_list()) if len(found) else ''}. There have to be two or more."
        )
    return tuple(found.to_list())


def _values(series: pl.Series, task: Task, separator: str) -> pl.Series:
    """All labels of a column, one after the other."""
    if task.target.form == "labels":
        return label_lists(series, separator).explode()
    if task.target.form == "tags":
        return pl.Series(series.name, [tag for row in read_tags(series, task) for tag in row or ()], dtype=pl.String)
    return as_text(series)


def infer_positive(frame: pl.DataFrame, task: Task) -> str | None:
    """The value that means 1 for a binary task: the declared one, or None where 1, true or yes does.

    Raises:
        DataError: if the values are others than 0/1, true/false, yes/no and none is declared, or the
            declared one never occurs.
    """
    series = only_column(frame, task)
    positive = task.target.positive
    if positive is not None:
        seen = as_text(series).drop_nulls().unique().sort().to_list()
        if positive not in seen:
            raise DataError(
                f"Task '{task.name}': positive is '{positive}', which no training row has in column '{series.name}'. "
                f"It has: {listed(seen)}.{suggestion(positive, seen)}"
            )
        return positive
    binary_values(series, task)
    return None


def encode_target(
    frame: pl.DataFrame, task: Task, *, separator: str = SEPARATOR, sizes: NDArray[Any] | None = None
) -> Tensor:
    """The target of a task, as its TargetSpec says.

    Args:
        frame: Rows with the target's columns.
        task: A task whose classes are known (see ``fit_target``).
        separator: Between the labels of a row, for ``"labels"`` in a single column.
        sizes: Height and width of each row's image ``[rows, 2]``, in whose pixels boxes are; None if those are in
            pixels of the task's size.

    Returns:
        A tensor of ``frame.height`` rows; missing values are -1 for classes and NaN for all else.

    Raises:
        DataError: if a column is missing; for a label outside of the classes, a value that is not a number,
            an infinite one, a count that is negative or broken, soft labels that do not add up to 1. The
            message names record (from 1, without the header), column and value.
    """
    if task.target.form in dense.COLUMNS:
        series = only_column(frame, task)
        return dense.COLUMNS[task.target.form](series, task, where_of(task, series), sizes)
    if task.target.form not in FORMS:
        raise DataError(f"Task '{task.name}' has targets of the form '{task.target.form}', which no table can hold.")
    return FORMS[task.target.form](frame, task, separator)


def encode_weight(frame: pl.DataFrame, column: str) -> Tensor:
    """Row weights, float32 ``[rows]``.

    Raises:
        DataError: for a weight that is missing, negative or not finite, or if all are 0.

    Example:
        >>> encode_weight(pl.DataFrame({"w": ["1.5", "0"]}), "w")
        tensor([1.5000, 0.0000])
    """
    weights = finite_numbers(column_of(frame, column, "weight column"), "weight column")
    wrong = np.nonzero(~(weights >= 0))[0]
    if len(wrong):
        faults = {at: f"weight column '{column}': {shown_value(weights[at])} is no weight" for at in wrong.tolist()}
        raise RowError(f"Record {wrong[0] + 1}, {faults[int(wrong[0])]}; it has to be 0 or more.", faults)
    if not weights.any():
        raise DataError(f"All weights in column '{column}' are 0, so no row counts.")
    return torch.from_numpy(weights.astype(np.float32))


def drop_unlabelled(targets: Mapping[str, Tensor]) -> tuple[Tensor, str | None]:
    """Find the rows with a label for at least one task.

    Args:
        targets: Encoded targets by task, all of the same rows.

    Returns:
        Their numbers (int64), and a line for a person if there are other rows.

    Raises:
        DataError: if no row has a label.

    Example:
        >>> drop_unlabelled({"a": torch.tensor([1, -1, -1]), "b": torch.tensor([float("nan"), float("nan"), 2.0])})
        (tensor([0, 2]), 'Skipped 1 of 3 rows: they have no label for any task.')
    """
    known = torch.stack([labelled(target) for target in targets.values()]).any(0)
    rows = known.nonzero().flatten()
    if len(rows) == 0:
        raise DataError(f"No row has a label for any of the tasks: {listed(targets)}. Check their columns.")
    lost = len(known) - len(rows)
    line = f"Skipped {lost:,} of {len(known):,} rows: they have no label for any task." if lost else None
    return rows, line
