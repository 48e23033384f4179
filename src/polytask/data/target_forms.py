"""How a table's columns hold targets: one function a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.table import as_text, column_of, parse_numbers
from polytask.data.tags import encode_tags
from polytask.errors import DataError, RowError, listed, suggestion
from polytask.tasks.task import Task

TRUE = ("1", "true", "yes", "y", "t")
FALSE = ("0", "false", "no", "n", "f")
SEPARATOR = "|"
"""Between the labels of a row, where one column holds them all."""


def target_columns(task: Task) -> tuple[str, ...]:
    """The columns that hold a task's target."""
    return task.target.columns or (task.name,)


def encode_labels(values: pl.Series, classes: Sequence[str], where: str) -> Tensor:
    """Class numbers of values, int64, missing -1.

    Args:
        values: Text, numbers or booleans.
        classes: The classes in order.
        where: What an error calls the column, such as ``"task 'income', column 'income'"``.

    Raises:
        DataError: for a value that is not among the classes.

    Example:
        >>> encode_labels(pl.Series(["b", None, "a"]), ["a", "b"], "task 'x'")
        tensor([ 1, -1,  0])
    """
    text = as_text(values)
    codes = text.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int64)
    strange = (codes.is_null() & text.is_not_null()).arg_true()
    if len(strange):
        names = text.gather(strange).unique().sort().to_list()
        more = f" {len(strange):,} records hold classes outside of them: {listed(names)}." if len(strange) > 1 else ""
        value = text[int(strange[0])]
        raise RowError(
            f"Record {int(strange[0]) + 1}, {where}: '{value}' is not among the classes: {listed(classes)}.{more}"
            f"{suggestion(value, classes)} Add it to the classes, or correct the record; a class that training rows "
            "do not have cannot be learned.",
            {at: f"{where}: '{text[at]}' is not among the classes" for at in strange.to_list()},
        )
    return torch.from_numpy(np.array(codes.fill_null(-1).to_numpy(), dtype=np.int64))


def where_of(task: Task, series: pl.Series) -> str:
    """What errors call a task's column."""
    return f"task '{task.name}', column '{series.name}'"


def only_column(frame: pl.DataFrame, task: Task) -> pl.Series:
    """The column of a task's target.

    Raises:
        DataError: if it is missing, or the task names several.
    """
    columns = target_columns(task)
    if len(columns) > 1:
        raise DataError(
            f"Task '{task.name}' of type '{task.kind}' has one target column; found {len(columns)}: {listed(columns)}."
        )
    return column_of(frame, columns[0], f"target column of task '{task.name}'")


def _classes_of(task: Task) -> tuple[str, ...]:
    if task.target.classes is None:
        raise DataError(f"The classes of task '{task.name}' are not known yet. Declare them, or call fit_target first.")
    return task.target.classes


def shown_value(value: float) -> str:
    """A number in an error, where NaN is a missing value."""
    return "a missing value" if np.isnan(value) else f"{value:g}"


def finite_numbers(series: pl.Series, what: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The numbers of a column, NaN where missing.

    Raises:
        DataError: for a value that is no number, or infinite.
    """
    values = np.array(parse_numbers(series, what).to_numpy(), dtype=np.float64)
    infinite = np.nonzero(np.isinf(values))[0]
    if len(infinite):
        raise RowError(
            f"Record {infinite[0] + 1}, {what} '{series.name}': the value is infinite "
            f"({len(infinite):,} records in all). Correct it, or leave it empty.",
            dict.fromkeys(infinite.tolist(), f"{what} '{series.name}': the value is infinite"),
        )
    return values


def _class(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    series = only_column(frame, task)
    return encode_labels(series, _classes_of(task), where_of(task, series))


def binary_values(series: pl.Series, task: Task) -> Tensor:
    """0, 1 or probabilities, float32 ``[rows]``, NaN where missing.

    Raises:
        DataError: for a value that is none of 0/1, true/false and yes/no, where the task declares no positive one.
    """
    text = as_text(series)
    if task.target.positive is not None:
        ones = (text == task.target.positive).cast(pl.Float64)
        return torch.from_numpy(np.array(ones.to_numpy(), dtype=np.float32))
    plain = text.str.strip_chars().str.to_lowercase()
    words = {**dict.fromkeys(TRUE, 1.0), **dict.fromkeys(FALSE, 0.0)}
    values = plain.replace_strict(words, default=None, return_dtype=pl.Float64)
    # What is no such word may still be a probability.
    values = values.fill_null(plain.cast(pl.Float64, strict=False).fill_nan(None))
    wrong = (text.is_not_null() & ~values.is_between(0, 1).fill_null(False)).arg_true()
    if len(wrong):
        at, seen = int(wrong[0]), text.drop_nulls().unique().sort().to_list()
        raise RowError(
            f"Record {at + 1}, {where_of(task, series)}: '{text[at]}' is none of 0/1, true/false and yes/no. Say which "
            f"value means 1 with positive: ...; the column has: {listed(seen, 8)}.",
            {row: f"{where_of(task, series)}: '{text[row]}' is none of 0/1, true/false and yes/no" for row in wrong},
        )
    return torch.from_numpy(np.array(values.to_numpy(), dtype=np.float32))


def _binary_of(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    return binary_values(only_column(frame, task), task)


def label_lists(series: pl.Series, separator: str) -> pl.Series:
    """The labels of every row, as a column of lists."""
    if isinstance(series.dtype, pl.List | pl.Array):
        return series.cast(pl.List(pl.String))
    parts = as_text(series).str.split(separator)
    return parts.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))


def _labels(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    columns = target_columns(task)
    if len(columns) > 1:
        series = [column_of(frame, name, f"target column of task '{task.name}'") for name in columns]
        return torch.stack([binary_values(column, task) for column in series], 1)
    whole = column_of(frame, columns[0], f"target column of task '{task.name}'")
    classes = _classes_of(task)
    lists = label_lists(whole, separator)
    rows = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
    flat = lists.drop_nulls().explode(empty_as_null=False) if len(rows) else pl.Series([], dtype=pl.String)
    strange = (~flat.is_in(list(classes))).arg_true()
    if len(strange):
        value = flat[int(strange[0])]
        raise RowError(
            f"Record {rows[int(strange[0])] + 1}, {where_of(task, whole)}: '{value}' is not among the labels: "
            f"{listed(classes)}.{suggestion(str(value), classes)} Labels of a row are separated by '{separator}'.",
            {int(rows[at]): f"{where_of(task, whole)}: '{flat[at]}' is not among the labels" for at in strange},
        )
    result = torch.zeros(len(lists), len(classes))
    result[rows, encode_labels(flat, classes, where_of(task, whole)).numpy()] = 1.0
    result[torch.from_numpy(np.array(lists.is_null().to_numpy()))] = torch.nan
    return result


def _number(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    what = f"target column of task '{task.name}'"
    columns = [finite_numbers(column_of(frame, name, what), what) for name in target_columns(task)]
    values = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    return values if len(columns) > 1 else values[:, 0]


def _count(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    series = only_column(frame, task)
    values = finite_numbers(series, "target column")
    wrong = np.nonzero((values < 0) | (values != np.floor(values)) & ~np.isnan(values))[0]
    if len(wrong):
        faults = {at: f"{where_of(task, series)}: {values[at]:g} is no count (0, 1, 2, ...)" for at in wrong.tolist()}
        raise RowError(f"Record {wrong[0] + 1}, {faults[int(wrong[0])]}.", faults)
    return torch.from_numpy(values.astype(np.float32))


def _distribution(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    columns, what = target_columns(task), f"target column of task '{task.name}'"
    if len(columns) < 2:
        raise DataError(f"Task '{task.name}' has soft labels; name a column for each class. Found: {listed(columns)}.")
    values = np.stack([finite_numbers(column_of(frame, name, what), what) for name in columns], 1)
    known, whole = ~np.isnan(values).all(1), values.sum(1)
    # Shares written with three decimals add up to 1 within a thousandth for each class.
    wrong = np.nonzero(known & ~((values >= 0).all(1) & (np.abs(whole - 1) <= 1e-3 * len(columns))))[0]
    if len(wrong):
        shares = listed((shown_value(value) for value in values[wrong[0]]), 8)
        raise RowError(
            f"Record {wrong[0] + 1}, task '{task.name}': the soft labels are {shares}. They have to be 0 or more and "
            "add up to 1, or all be missing.",
            dict.fromkeys(wrong.tolist(), f"task '{task.name}': the soft labels do not add up to 1"),
        )
    return torch.from_numpy(values.astype(np.float32))


def _tags(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    return encode_tags(only_column(frame, task), task, _classes_of(task))


def _group(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    # Only which rows are alike counts, so every table may number its values anew.
    text = as_text(only_column(frame, task))
    numbers = text.rank("dense").cast(pl.Int64) - 1
    return torch.from_numpy(np.array(numbers.fill_null(-1).to_numpy(), dtype=np.int64))


FORMS: Mapping[str, Callable[[pl.DataFrame, Task, str], Tensor]] = {
    "class": _class,
    "binary": _binary_of,
    "labels": _labels,
    "number": _number,
    "count": _count,
    "distribution": _distribution,
    "tags": _tags,
    "group": _group,
}
"""By ``TargetSpec.form``: rows, their task and the separator of labels -> the target."""
