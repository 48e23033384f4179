"""Tag columns: lists of tags, or text with a space between them, one tag for every word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.schema import TextColumn
from polytask.data.table import column_of
from polytask.data.text import words_of
from polytask.errors import DataError, RowError, listed, suggestion
from polytask.tasks.spans import TagSet, repaired
from polytask.tasks.task import Task

Rows = list[list[str | None] | None]


def read_tags(series: pl.Series, task: Task) -> Rows:
    """The tags of every row, as the task's scheme wants them; None for a row without tags.

    Raises:
        DataError: if the column holds something else, or tags break the scheme and are not to be repaired; the
            message names record and place.
    """
    if series.dtype == pl.Null:
        return [None] * len(series)
    if isinstance(series.dtype, pl.List | pl.Array):
        rows: Rows = series.cast(pl.List(pl.String)).to_list()
    elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
        rows = [None if text is None else text.split() for text in series.cast(pl.String).to_list()]
    else:
        raise DataError(f"{_where(task, series)}: the column holds {series.dtype}; tags are lists or text.")
    if task.target.scheme == "none":
        return rows
    tags = TagSet(tuple(sorted({tag for row in rows for tag in row or () if tag is not None})), task.target.scheme)
    if tags.bad_names():
        raise DataError(
            f"{_where(task, series)}: the scheme '{tags.scheme}' has no tags such as: {listed(tags.bad_names(), 8)}. "
            "They are O, or a prefix and a type such as B-LOC. Use scheme: none for tags that make no entities."
        )
    broken = tags.breaks(tag_numbers(rows, tags.names))
    faults = np.nonzero(broken.any(1))[0].tolist()
    if faults and not task.target.repair:
        found = {at: f"{_where(task, series)}, {_break(rows[at] or (), broken[at])}" for at in faults}
        raise RowError(
            f"Record {faults[0] + 1}, {found[faults[0]]}, which the scheme '{task.target.scheme}' does not allow. "
            "Correct the tags, or say repair: true to have them written anew.",
            found,
        )
    for number in faults:
        rows[number] = repaired(rows[number] or (), tags.scheme)
    return rows


def _break(row: Sequence[str | None], broken: NDArray[np.bool_]) -> str:
    """What stands at the first place where a row's tags break their scheme."""
    place = int(np.nonzero(broken)[0][0])
    found = f"'{row[place]}' stands" if place < len(row) else "the row ends"
    return f"word {place + 1}: {found} " + (f"behind '{row[place - 1]}'" if place else "at the start")


def tag_numbers(rows: Rows, names: Sequence[str]) -> NDArray[np.int64]:
    """Numbers of tags ``[rows, width]``, -1 where there is none or its name is not among ``names``.

    Example:
        >>> tag_numbers([["O", "B-X"], None], ["B-X", "O"]).tolist()
        [[1, 0], [-1, -1]]
    """
    at = {name: number for number, name in enumerate(names)}
    whole = np.full((len(rows), max((len(row) for row in rows if row), default=1)), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        if row:
            whole[number, : len(row)] = [at.get(tag, -1) if tag is not None else -1 for tag in row]
    return whole


def encode_tags(series: pl.Series, task: Task, classes: Sequence[str]) -> Tensor:
    """Numbers of tags, int64 ``[rows, width]``, missing -1.

    Raises:
        DataError: as ``read_tags``, and for a tag that is not among the classes.
    """
    rows = read_tags(series, task)
    known = {*classes, None}
    strange = {
        at: next(tag for tag in row if tag not in known) for at, row in enumerate(rows) if row and set(row) - known
    }
    if strange:
        first, tag = next(iter(strange.items()))
        raise RowError(
            f"Record {first + 1}, {_where(task, series)}: '{tag}' is not among the tags: {listed(classes)}."
            f"{suggestion(str(tag), classes)} Name all tags with classes: [...], or correct the record; a tag that "
            "training rows do not have cannot be learned.",
            {at: f"{_where(task, series)}: '{tag}' is not among the tags" for at, tag in strange.items()},
        )
    return torch.from_numpy(tag_numbers(rows, classes))


def check_tag_lengths(frame: pl.DataFrame, texts: Sequence[TextColumn], tasks: Iterable[Task]) -> None:
    """Check that every row has as many tags as words.

    Args:
        frame: Rows with the columns of texts and tags.
        texts: The text columns of the inputs.
        tasks: All tasks; only those of tags are looked at.

    Raises:
        DataError: if one has not (the record is named), or there is not exactly one text column.
    """
    of_tags = [task for task in tasks if task.target.form == "tags"]
    if not of_tags:
        return
    if len(texts) != 1:
        found = listed(column.name for column in texts) or "none"
        raise DataError(
            f"Task '{of_tags[0].name}' tags the words of a text, so the inputs need exactly one text column; found: "
            f"{found}. Say inputs: {{sentence: text}} with the name of yours."
        )
    if texts[0].pair:
        raise DataError(f"Task '{of_tags[0].name}' tags the words of one text; '{texts[0].name}' is a pair of them.")
    text = column_of(frame, texts[0].name, "text column")
    words = np.array([len(row) for row in words_of(text, texts[0].split)], dtype=np.int64)
    for task in of_tags:
        series = column_of(frame, (task.target.columns or (task.name,))[0], f"target column of task '{task.name}'")
        rows = read_tags(series, task)
        tags = np.array([-1 if row is None else len(row) for row in rows], dtype=np.int64)
        wrong = np.nonzero((tags >= 0) & (tags != words))[0]
        if len(wrong):
            faults = {at: f"there are {tags[at]} tags for the {words[at]} words of '{text.name}'" for at in wrong}
            raise RowError(
                f"Record {wrong[0] + 1}, {_where(task, series)}: {faults[wrong[0]]} ({len(wrong):,} such records in "
                "all). Every word needs one tag.",
                {int(at): f"{_where(task, series)}: {what}" for at, what in faults.items()},
            )


def with_all_labels(frames: Mapping[str, pl.DataFrame], columns: Sequence[str]) -> dict[str, pl.DataFrame]:
    """The parts of a data set, with columns that know the labels of all parts, by polars' type Enum.

    A label that training rows lack can be scored then; a model that never saw it gets it wrong.

    Args:
        frames: The parts.
        columns: Names of columns of labels, or of lists of labels.

    Example:
        >>> parts = {"train": pl.DataFrame({"y": ["a"]}), "test": pl.DataFrame({"y": ["b"]})}
        >>> with_all_labels(parts, ["y"])["train"]["y"].dtype
        Enum(categories=['a', 'b'])
    """
    whole = pl.concat(frames.values())
    kinds: list[pl.Expr] = []
    for name in columns:
        series = whole.get_column(name)
        nested = isinstance(series.dtype, pl.List)
        known = pl.Enum((series.explode() if nested else series).drop_nulls().unique().sort())
        kinds.append(pl.col(name).cast(pl.List(known) if nested else known))
    return {part: frame.with_columns(kinds) for part, frame in frames.items()}


def _where(task: Task, series: pl.Series) -> str:
    return f"task '{task.name}', column '{series.name}'"
