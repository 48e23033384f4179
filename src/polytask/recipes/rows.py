"""Rows are looked at before anything is learned from them, over whole files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from polytask.data.numbers import find_faults
from polytask.data.schema import TextColumn
from polytask.data.spec import InputSpec
from polytask.data.table import column_of, parse_numbers
from polytask.data.tags import check_tag_lengths
from polytask.data.targets import encode_target, infer_classes
from polytask.data.text import words_of
from polytask.recipes.frames import Loaded, Sheet
from polytask.tasks.task import Task


def check_rows(loaded: Loaded, inputs: Mapping[str, InputSpec], tasks: Mapping[str, Task]) -> None:
    """Find what is wrong with rows, so that an error names the record of the file; parse number columns.

    Rows that cannot be used leave their parts where the recipe says so.

    Args:
        loaded: The rows; their sheets are changed.
        inputs: How each input column is read.
        tasks: The tasks, before they have seen data.

    Raises:
        DataError: for a missing column, and for rows that cannot be used.
    """
    texts = [TextColumn(name, split=s.split, pair=s.pair) for name, s in inputs.items() if s.kind == "text"]
    for group in loaded.groups:
        of_group = [tasks[name] for name in group.tasks]
        for sheet in group.sheets:
            for name, spec in inputs.items():
                if spec.kind == "number":
                    sheet.frame = sheet.frame.with_columns(sheet.read(partial(_parsed, sheet, name, spec)))
            sheet.read(partial(_check_texts, sheet, texts, of_group))
            for task in of_group:
                sheet.read(partial(_check_target, sheet, task))


def _parsed(sheet: Sheet, name: str, spec: InputSpec) -> pl.Series:
    parsed = parse_numbers(column_of(sheet.frame, name, "input column"))
    find_faults(name, parsed, spec.impute_infinite, spec.missing == "error")
    return parsed


def _check_texts(sheet: Sheet, texts: Sequence[TextColumn], tasks: Sequence[Task]) -> None:
    for name in (name for column in texts for name in (column.name, column.pair) if name):
        words_of(column_of(sheet.frame, name, "input column"))
    check_tag_lengths(sheet.frame, texts, tasks)


def _check_target(sheet: Sheet, task: Task) -> None:
    """What can be told of a task's targets before its classes are known."""
    if task.target.form == "binary":
        encode_target(sheet.frame, task)
    elif task.target.form == "boxes" and task.target.classes is None:
        infer_classes(sheet.frame, task)
