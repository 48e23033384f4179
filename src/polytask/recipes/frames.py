"""A recipe's data -> sheets of rows, and which rows are for training, validation and test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from polytask import registry
from polytask.data.columns import read_column_file
from polytask.data.split import Rows, held_out_tenth, split_by, split_rows
from polytask.data.table import column_of, read_table
from polytask.errors import DataError, RecipeError, RowError, unknown
from polytask.recipes.schema import DataSettings, Recipe, SplitSettings

SHOWN = 3
"""Rows that cannot be used and are shown with what is wrong."""

Read = TypeVar("Read")


@dataclass
class Sheet:
    """The rows of one file. They are encoded as a whole, so that errors name records of the file.

    Args:
        name: What errors call it.
        frame: Its rows.
        parts: Row numbers of ``train``, ``validation`` or ``test``; None stands for all rows.
        skip: Whether rows that cannot be used leave the parts, instead of being an error.
        sizes: Height and width of each row's image ``[rows, 2]``, if its images come from one column of files.
        bad: Rows that have left the parts, from 0, with what is wrong with each.
    """

    name: str
    frame: pl.DataFrame
    parts: dict[str, Rows | None]
    skip: bool = False
    sizes: Rows | None = None
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the relative paths in its cells start: the folder of the file."""
        return Path(self.name).parent

    def rows(self, part: str) -> pl.DataFrame:
        """The rows of one part."""
        chosen = self.parts[part]
        return self.frame if chosen is None else self.frame[chosen]

    def read(self, work: Callable[[], Read]) -> Read:
        """What ``work`` makes of the rows; where bad ones are skipped, it runs again without those that it names.

        Raises:
            DataError: as ``work`` does, with the name of the sheet; or if no row of a part is left.
        """
        try:
            return work()
        except RowError as error:
            if not self.skip:
                raise DataError(f"{self.name}: {error}") from None
            self.leave_out(error.rows)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        return self.read(work)

    def leave_out(self, rows: Mapping[int, str]) -> None:
        """Take rows out of the parts. A usable row stands in for each, so that all others keep their numbers."""
        self.bad |= rows
        usable = np.setdiff1d(np.arange(self.frame.height), list(self.bad))
        for part, chosen in self.parts.items():
            left = usable if chosen is None else chosen[np.isin(chosen, usable)]
            if len(left) == 0:
                raise DataError(f"{self.name}: no row of '{part}' can be used. {self.told}")
            self.parts[part] = left
        stand_ins = np.arange(self.frame.height)
        stand_ins[list(self.bad)] = usable[0]
        self.frame = self.frame[stand_ins]
        self.sizes = None if self.sizes is None else self.sizes[stand_ins]

    @property
    def told(self) -> str:
        """How many rows were left out, and what is wrong with the first ones."""
        first = [f"Record {row + 1}, {self.bad[row]}." for row in sorted(self.bad)[:SHOWN]]
        more = " ..." if len(self.bad) > SHOWN else ""
        return f"Skipped {len(self.bad):,} of {self.frame.height:,} rows that cannot be used. {' '.join(first)}{more}"


@dataclass(frozen=True)
class Group:
    """Tasks that share rows, and those rows.

    Args:
        tasks: Names of the tasks.
        sheets: Files with their rows; exactly one has the training rows.
        weight: Column of row weights for all of them, or by task.
    """

    tasks: tuple[str, ...]
    sheets: list[Sheet]
    weight: str | Mapping[str, str] | None

    @property
    def training(self) -> Sheet:
        """The file with the training rows."""
        return next(sheet for sheet in self.sheets if "train" in sheet.parts)


@dataclass(frozen=True)
class Loaded:
    """All rows, and what the data set itself says about its columns.

    Args:
        groups: One group for each entry of ``data.tables``; else one.
        inputs: How a built-in data set says that its input columns are read, or None.
        split_columns: Columns that only said which part a row belongs to.
    """

    groups: tuple[Group, ...]
    inputs: Mapping[str, Any] | None
    split_columns: frozenset[str]


def load_frames(recipe: Recipe) -> Loaded:
    """Read and divide the rows of a recipe.

    Raises:
        DataError: if a file is missing or a part would be empty.
        RecipeError: if ``data.tables`` and ``tasks`` do not name the same tasks.
    """
    settings, tasks = recipe.data, tuple(recipe.tasks)
    if settings.tables is None:
        sheets, inputs = _read(settings, recipe, settings.on_bad == "skip")
        by = frozenset({settings.split.by} if settings.split.by else ())
        return Loaded((Group(tasks, sheets, settings.weight),), inputs, by)
    served = _served(settings.tables, tasks)
    groups = tuple(
        Group(
            own,
            _read(entry, recipe, (entry.on_bad or settings.on_bad) == "skip")[0],
            entry.weight or settings.weight,
        )
        for own, entry in ((own, settings.tables[name]) for name, own in served.items())
    )
    return Loaded(groups, None, frozenset(s.split.by for s in settings.tables.values() if s.split.by))


def _served(tables: Mapping[str, DataSettings], tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The tasks of each table, in the order of the tasks."""
    entry_of: dict[str, str] = {}
    for name, entry in tables.items():
        for task in entry.tasks or (name,):
            if task not in tasks:
                more = "" if entry.tasks else " An entry of another name lists its tasks: tasks: [...]."
                raise RecipeError(f"data.tables: {unknown('task', task, tasks)}{more}")
            if task in entry_of:
                raise RecipeError(
                    f"data.tables: task '{task}' is in '{entry_of[task]}' and in '{name}'. A task has one table."
                )
            entry_of[task] = name
    for task in tasks:
        if task not in entry_of:
            raise RecipeError(f"Task '{task}' has no table. data.tables has: {', '.join(tables)}.")
    names = dict.fromkeys(entry_of[task] for task in tasks)
    return {name: tuple(task for task in tasks if entry_of[task] == name) for name in names}


def _read(settings: DataSettings, recipe: Recipe, skip: bool) -> tuple[list[Sheet], Mapping[str, Any] | None]:
    if settings.dataset is not None:
        frames = registry.build("datasets", settings.dataset, {"root": settings.root} if settings.root else {})
        sheets = [Sheet(f"{settings.dataset} ({part})", frame, {part: None}, skip) for part, frame in frames.items()]
        tenth = settings.split == SplitSettings()
        return _hold_out(sheets, settings, recipe, tenth=tenth), dataset_facts(settings.dataset).get("inputs")
    if settings.table is not None:
        return [_sheet(settings, settings.table, skip, lambda frame: _divide(frame, settings, recipe))], None
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    sheets = [_sheet(settings, path, skip, partial(_whole, part)) for part, path in named.items() if path is not None]
    return _hold_out(sheets, settings, recipe), None


def _whole(part: str, frame: pl.DataFrame) -> dict[str, Rows | None]:
    return {part: None}


def _sheet(
    settings: DataSettings, path: str, skip: bool, divide: Callable[[pl.DataFrame], dict[str, Rows | None]]
) -> Sheet:
    """The rows of a file; those whose lines do not parse have left their parts where bad rows are skipped."""
    bad: dict[int, str] = {}
    frame = read_file(settings, path, bad if skip else None)
    sheet = Sheet(path, frame, divide(frame), skip)
    if bad:
        sheet.leave_out(bad)
    return sheet


def dataset_facts(name: str) -> dict[str, Any]:
    """What a data set says about reading it: its module may have a ``RECIPE`` with ``inputs`` and ``data``."""
    facts: dict[str, Any] = getattr(sys.modules[registry.get("datasets", name).__module__], "RECIPE", {})
    return facts


def read_file(settings: DataSettings, path: str | Path, bad: dict[int, str] | None = None) -> pl.DataFrame:
    """A table, read as a recipe says that its tables are written.

    Args:
        settings: What the recipe says.
        path: The file.
        bad: Gets the texts of a column file that have lines which do not parse (see ``read_column_file``).
    """
    if settings.format == "conll":
        return read_column_file(path, settings.columns, bad)
    return read_table(path, header=settings.header, separator=settings.separator, na=tuple(settings.na))


def _divide(frame: pl.DataFrame, settings: DataSettings, recipe: Recipe) -> dict[str, Rows | None]:
    split = settings.split
    if split.by is not None:
        return dict(split_by(column_of(frame, split.by, "column to split by")))
    stratify = _stratify(frame, settings, recipe)
    return dict(
        split_rows(frame.height, validation=split.validation, test=split.test, seed=split.seed, stratify=stratify)
    )


def _hold_out(sheets: list[Sheet], settings: DataSettings, recipe: Recipe, tenth: bool = False) -> list[Sheet]:
    """Take validation rows out of the training rows where there are none yet."""
    split = settings.split
    if not split.validation or any("validation" in sheet.parts for sheet in sheets):
        return sheets
    train = next(sheet for sheet in sheets if "train" in sheet.parts)
    if tenth:
        train.parts = dict(held_out_tenth(train.frame.height))
    else:
        stratify = _stratify(train.frame, settings, recipe)
        rows = split_rows(train.frame.height, validation=split.validation, seed=split.seed, stratify=stratify)
        train.parts = dict(rows)
    return sheets


def _stratify(frame: pl.DataFrame, settings: DataSettings, recipe: Recipe) -> pl.Series | None:
    name = settings.split.stratify
    if name is None:
        return None
    column = recipe.tasks[name].get("column", name) if name in recipe.tasks else name
    if not isinstance(column, str):
        raise DataError(f"data.split.stratify: task '{name}' has several columns; name one of them instead.")
    return column_of(frame, column, "column to stratify by")
