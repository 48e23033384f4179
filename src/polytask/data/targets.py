"""From a table's target columns to the tensors that tasks learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask import registry
from polytask.data import dense
from polytask.data.boxes import box_labels, box_rows
from polytask.data.table import as_text, column_of, parse_numbers
from polytask.data.tags import encode_tags, read_tags
from polytask.errors import DataError, listed, suggestion
from polytask.tasks.task import Task, labelled

TRUE = ("1", "true", "yes", "y", "t")
FALSE = ("0", "false", "no", "n", "f")
SEPARATOR = "|"
"""Between the labels of a row, where one column holds them all."""
CLASSED = ("class", "labels", "distribution", "tags", "boxes")
"""Forms of targets that have classes."""


def target_columns(task: Task) -> tuple[str, ...]:
    """The columns that hold a task's target."""
    return task.target.columns or (task.name,)


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
        return box_labels(box_rows(series, _where(task, series)), f"column '{series.name}'")
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
        return _label_lists(series, separator).explode()
    if task.target.form == "tags":
        return pl.Series(series.name, [tag for row in read_tags(series, task) for tag in row or ()], dtype=pl.String)
    return as_text(series)


def infer_positive(frame: pl.DataFrame, task: Task) -> str | None:
    """The value that means 1 for a binary task: the declared one, or None where 1, true or yes does.

    Raises:
        DataError: if the values are others than 0/1, true/false, yes/no and none is declared, or the
            declared one never occurs.
    """
    series = _only_column(frame, task)
    positive = task.target.positive
    if positive is not None:
        seen = as_text(series).drop_nulls().unique().sort().to_list()
        if positive not in seen:
            raise DataError(
                f"Task '{task.name}': positive is '{positive}', which no training row has in column '{series.name}'. "
                f"It has: {listed(seen)}.{suggestion(positive, seen)}"
            )
        return positive
    _binary(series, task)
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
        series = _only_column(frame, task)
        return dense.COLUMNS[task.target.form](series, task, _where(task, series), sizes)
    if task.target.form not in _FORMS:
        raise DataError(f"Task '{task.name}' has targets of the form '{task.target.form}', which no table can hold.")
    return _FORMS[task.target.form](frame, task, separator)


def encode_weight(frame: pl.DataFrame, column: str) -> Tensor:
    """Row weights, float32 ``[rows]``.

    Raises:
        DataError: for a weight that is missing, negative or not finite, or if all are 0.

    Example:
        >>> encode_weight(pl.DataFrame({"w": ["1.5", "0"]}), "w")
        tensor([1.5000, 0.0000])
    """
    weights = _floats(column_of(frame, column, "weight column"), "weight column")
    wrong = np.nonzero(~(weights >= 0))[0]
    if len(wrong):
        raise DataError(
            f"Record {wrong[0] + 1}, weight column '{column}': {_shown(weights[wrong[0]])} is no weight; "
            "it has to be 0 or more."
        )
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
        raise DataError(
            f"Record {int(strange[0]) + 1}, {where}: '{value}' is not among the classes: {listed(classes)}.{more}"
            f"{suggestion(value, classes)} Add it to the classes, or correct the record; a class that training rows "
            "do not have cannot be learned."
        )
    return torch.from_numpy(np.array(codes.fill_null(-1).to_numpy(), dtype=np.int64))


def _where(task: Task, series: pl.Series) -> str:
    return f"task '{task.name}', column '{series.name}'"


def _only_column(frame: pl.DataFrame, task: Task) -> pl.Series:
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


def _shown(value: float) -> str:
    return "a missing value" if np.isnan(value) else f"{value:g}"


def _floats(series: pl.Series, what: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.array(parse_numbers(series, what).to_numpy(), dtype=np.float64)
    infinite = np.nonzero(np.isinf(values))[0]
    if len(infinite):
        raise DataError(
            f"Record {infinite[0] + 1}, {what} '{series.name}': the value is infinite "
            f"({len(infinite):,} records in all). Correct it, or leave it empty."
        )
    return values


def _class(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    series = _only_column(frame, task)
    return encode_labels(series, _classes_of(task), _where(task, series))


def _binary(series: pl.Series, task: Task) -> Tensor:
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
        raise DataError(
            f"Record {at + 1}, {_where(task, series)}: '{text[at]}' is none of 0/1, true/false and yes/no. Say which "
            f"value means 1 with positive: ...; the column has: {listed(seen, 8)}."
        )
    return torch.from_numpy(np.array(values.to_numpy(), dtype=np.float32))


def _binary_of(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    return _binary(_only_column(frame, task), task)


def _label_lists(series: pl.Series, separator: str) -> pl.Series:
    if isinstance(series.dtype, pl.List | pl.Array):
        return series.cast(pl.List(pl.String))
    parts = as_text(series).str.split(separator)
    return parts.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))


def _labels(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    columns = target_columns(task)
    if len(columns) > 1:
        series = [column_of(frame, name, f"target column of task '{task.name}'") for name in columns]
        return torch.stack([_binary(column, task) for column in series], 1)
    whole = column_of(frame, columns[0], f"target column of task '{task.name}'")
    classes = _classes_of(task)
    lists = _label_lists(whole, separator)
    rows = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
    flat = lists.drop_nulls().explode(empty_as_null=False) if len(rows) else pl.Series([], dtype=pl.String)
    strange = (~flat.is_in(list(classes))).arg_true()
    if len(strange):
        value = flat[int(strange[0])]
        raise DataError(
            f"Record {rows[int(strange[0])] + 1}, {_where(task, whole)}: '{value}' is not among the labels: "
            f"{listed(classes)}.{suggestion(str(value), classes)} Labels of a row are separated by '{separator}'."
        )
    result = torch.zeros(len(lists), len(classes))
    result[rows, encode_labels(flat, classes, _where(task, whole)).numpy()] = 1.0
    result[torch.from_numpy(np.array(lists.is_null().to_numpy()))] = torch.nan
    return result


def _number(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    what = f"target column of task '{task.name}'"
    columns = [_floats(column_of(frame, name, what), what) for name in target_columns(task)]
    values = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    return values if len(columns) > 1 else values[:, 0]


def _count(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    series = _only_column(frame, task)
    values = _floats(series, "target column")
    wrong = np.nonzero((values < 0) | (values != np.floor(values)) & ~np.isnan(values))[0]
    if len(wrong):
        raise DataError(
            f"Record {wrong[0] + 1}, {_where(task, series)}: {values[wrong[0]]:g} is no count (0, 1, 2, ...)."
        )
    return torch.from_numpy(values.astype(np.float32))


def _distribution(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    columns, what = target_columns(task), f"target column of task '{task.name}'"
    if len(columns) < 2:
        raise DataError(f"Task '{task.name}' has soft labels; name a column for each class. Found: {listed(columns)}.")
    values = np.stack([_floats(column_of(frame, name, what), what) for name in columns], 1)
    known, whole = ~np.isnan(values).all(1), values.sum(1)
    # Shares written with three decimals add up to 1 within a thousandth for each class.
    wrong = np.nonzero(known & ~((values >= 0).all(1) & (np.abs(whole - 1) <= 1e-3 * len(columns))))[0]
    if len(wrong):
        shares = listed((_shown(value) for value in values[wrong[0]]), 8)
        raise DataError(
            f"Record {wrong[0] + 1}, task '{task.name}': the soft labels are {shares}. They have to be 0 or more and "
            "add up to 1, or all be missing."
        )
    return torch.from_numpy(values.astype(np.float32))


def _tags(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    return encode_tags(_only_column(frame, task), task, _classes_of(task))


def _group(frame: pl.DataFrame, task: Task, separator: str) -> Tensor:
    # Only which rows are alike counts, so every table may number its values anew.
    text = as_text(_only_column(frame, task))
    numbers = text.rank("dense").cast(pl.Int64) - 1
    return torch.from_numpy(np.array(numbers.fill_null(-1).to_numpy(), dtype=np.int64))


_FORMS = {
    "class": _class,
    "binary": _binary_of,
    "labels": _labels,
    "number": _number,
    "count": _count,
    "distribution": _distribution,
    "tags": _tags,
    "group": _group,
}
