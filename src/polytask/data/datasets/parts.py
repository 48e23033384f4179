"""Data sets of tagged texts whose training and test rows are files of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from polytask.data.fetch import Archive, fetch
from polytask.data.tags import with_all_labels
from polytask.errors import DataError


def load_parts(
    name: str,
    archive: Archive,
    root: str | Path | None,
    rows: Mapping[str, tuple[str, int]],
    read: Callable[[Path], pl.DataFrame],
    labels: Sequence[str],
) -> dict[str, pl.DataFrame]:
    """The parts of a data set; columns of labels know those of all parts.

    Args:
        name: The data set's name.
        archive: Where its files are.
        root: A folder that has the files already, or None.
        rows: For each part its file, and how many sentences that has.
        read: Reads a file.
        labels: Names of columns of labels, or of lists of labels.

    Raises:
        DataError: if the data cannot be fetched, a file does not parse, or it has another number of sentences.
    """
    files = fetch(name, archive, root)
    found = {}
    for part, (member, count) in rows.items():
        found[part] = read(files[member])
        if found[part].height != count:
            raise DataError(f"'{files[member]}' has {found[part].height:,} sentences, not the {count:,} of '{name}'.")
    return with_all_labels(found, labels)
