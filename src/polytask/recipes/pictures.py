"""A recipe's columns of image files -> pixels, before anything else reads the rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import polars as pl

from polytask.data.images import Images, holds_files, read_images, with_folder
from polytask.data.preprocess import InputSpec
from polytask.data.table import column_of
from polytask.data.target_forms import target_columns
from polytask.errors import DataError
from polytask.recipes.frames import Loaded, Sheet
from polytask.tasks.task import Task


def read_pictures(loaded: Loaded, inputs: Mapping[str, InputSpec], tasks: Mapping[str, Task]) -> list[str]:
    """Read the image files that the rows name, and put pixels in their place.

    Rows whose image cannot be read leave their parts where the input says so.

    Args:
        loaded: The rows; their sheets are changed.
        inputs: How each input column is read.
        tasks: The tasks, whose masks may be files as well.

    Returns:
        A line for each sheet and column that lost rows.

    Raises:
        DataError: for an image that cannot be read, or a part that loses all of its rows.

    Warns:
        UserWarning: for each of the lines.
    """
    masks = [name for task in tasks.values() if task.target.form == "mask" for name in target_columns(task)]
    notes = []
    for sheet in (sheet for group in loaded.groups for sheet in group.sheets):
        named = {name: spec for name, spec in inputs.items() if spec.kind == "image"}
        sounds = [name for name, spec in inputs.items() if spec.kind == "audio"]
        sheet.frame = with_folder(sheet.frame, [*named, *sounds, *masks], sheet.folder)
        for name, spec in named.items():
            series = column_of(sheet.frame, name, "input column")
            if not holds_files(series):
                continue
            try:
                found = read_images(series, spec.size, spec.channels, skip_bad=spec.on_bad == "skip")
            except DataError as error:
                raise DataError(f"{sheet.name}: {error}") from None
            sheet.frame = sheet.frame.with_columns(pl.Series(name, found.pixels))
            sheet.sizes = found.sizes if len(named) == 1 else None
            if found.bad:
                notes.append(_skip(sheet, name, found))
                warnings.warn(notes[-1], stacklevel=2)
    return notes


def _skip(sheet: Sheet, name: str, found: Images) -> str:
    """Take bad rows out of the sheet's parts; the line that says so."""
    bad = np.array(list(found.bad))
    for part, rows in sheet.parts.items():
        every = np.arange(sheet.frame.height) if rows is None else rows
        left = every[~np.isin(every, bad)]
        sheet.parts[part] = left
        if len(left) == 0:
            raise DataError(f"{sheet.name}: no row of '{part}' has an image in column '{name}' that can be read.")
    first, problem = next(iter(found.bad.items()))
    return (
        f"{sheet.name}: skipped {len(bad):,} of {sheet.frame.height:,} rows, whose image in column '{name}' cannot be "
        f"read. The first is record {first + 1}: {problem}."
    )
