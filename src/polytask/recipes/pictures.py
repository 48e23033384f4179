"""A recipe's columns of image files -> pixels, before anything else reads the rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import polars as pl

from polytask.data.images import Images, holds_files, read_images, with_folder
from polytask.data.spec import InputSpec
from polytask.data.table import column_of
from polytask.data.target_forms import target_columns
from polytask.recipes.frames import Loaded, Sheet
from polytask.tasks.task import Task


def read_pictures(loaded: Loaded, inputs: Mapping[str, InputSpec], tasks: Mapping[str, Task]) -> None:
    """Read the image files that the rows name, and put pixels in their place.

    Rows whose image cannot be read leave their parts where the recipe says so.

    Args:
        loaded: The rows; their sheets are changed.
        inputs: How each input column is read.
        tasks: The tasks, whose masks may be files as well.

    Raises:
        DataError: for an image that cannot be read, or a part that loses all of its rows.
    """
    masks = [name for task in tasks.values() if task.target.form == "mask" for name in target_columns(task)]
    for sheet in (sheet for group in loaded.groups for sheet in group.sheets):
        named = {name: spec for name, spec in inputs.items() if spec.kind == "image"}
        sounds = [name for name, spec in inputs.items() if spec.kind == "audio"]
        sheet.frame = with_folder(sheet.frame, [*named, *sounds, *masks], sheet.folder)
        for name, spec in named.items():
            if holds_files(column_of(sheet.frame, name, "input column")):
                found = sheet.read(partial(_read_column, sheet, name, spec))
                sheet.frame = sheet.frame.with_columns(pl.Series(name, found.pixels))
                sheet.sizes = found.sizes if len(named) == 1 else None
                if found.bad:
                    sheet.leave_out({row: f"column '{name}': {problem}" for row, problem in found.bad.items()})


def _read_column(sheet: Sheet, name: str, spec: InputSpec) -> Images:
    # Where bad images are skipped they are noted: an error would have all of the column read again.
    return read_images(sheet.frame.get_column(name), spec.size, spec.channels, skip_bad=sheet.skip)
