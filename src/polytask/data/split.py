"""Dividing rows into train, validation and test, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.table import as_text
from polytask.errors import DataError, unknown

Rows = NDArray[np.int64]
PARTS = ("train", "validation", "test")


def split_rows(
    rows: int,
    *,
    validation: float = 0.1,
    test: float = 0.0,
    seed: int = 0,
    stratify: pl.Series | None = None,
) -> dict[str, Rows]:
    """Divide rows by chance.

    The draw sorts the raw output of the PCG64 generator, so it depends on the seed alone: not on the number
    of processes, the platform or the version of NumPy.

    Args:
        rows: Number of rows.
        validation: Share for validation, of the rows that are not test rows.
        test: Share of all rows for the test.
        seed: Of the draw.
        stratify: A column with ``rows`` values; each part gets every value in the same share, as far as whole
            rows allow. Missing values count as a value.

    Returns:
        ``"train"``, and ``"validation"`` and ``"test"`` where their share is not 0: row numbers from 0, rising.

    Raises:
        DataError: for a share outside of [0, 1), or a part that would be empty.

    Example:
        >>> parts = split_rows(20, validation=0.25, test=0.2, seed=3)
        >>> {name: len(part) for name, part in parts.items()}
        {'train': 12, 'validation': 4, 'test': 4}
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise DataError(f"The share of {name} rows is {share}; it has to be from 0 to below 1.")
    if stratify is not None and len(stratify) != rows:
        raise DataError(f"There are {rows} rows but {len(stratify)} values to stratify by.")
    order = _shuffled(rows, seed, stratify)
    held, rest = _hold_out(order, test)
    chosen, train = _hold_out(rest, validation)
    parts = {"train": train}
    if validation:
        parts["validation"] = chosen
    if test:
        parts["test"] = held
    return _checked({name: np.sort(part) for name, part in parts.items()}, f"splitting {rows} rows")


def held_out_tenth(rows: int) -> dict[str, Rows]:
    """The fixed validation tenth of data that come with train and test rows only; it knows no seed.

    Example:
        >>> [len(part) for part in held_out_tenth(1000).values()]
        [900, 100]
    """
    return split_rows(rows, validation=0.1, seed=0)


def split_by(column: pl.Series, values: Mapping[str, str] | None = None) -> dict[str, Rows]:
    """Divide rows by what a column says.

    Args:
        column: Says for every row to which part it belongs.
        values: From what the column says to ``"train"``, ``"validation"`` or ``"test"``; without it, the
            column says that itself (``val``, ``valid`` and ``dev`` mean validation, in any case).

    Returns:
        Row numbers from 0, rising, of the parts that occur.

    Raises:
        DataError: for an unknown or missing value (the record is named), or if there are no training rows.

    Example:
        >>> split_by(pl.Series("part", ["train", "test", "train"]))
        {'train': array([0, 2]), 'test': array([1])}
    """
    names = values or {**{part: part for part in PARTS}, **dict.fromkeys(("val", "valid", "dev"), "validation")}
    for part in names.values():
        if part not in PARTS:
            raise DataError(unknown("part of a split", part, PARTS))
    said = as_text(column)
    said = said if values else said.str.strip_chars().str.to_lowercase()
    unusable = (~said.is_in(list(names)) | said.is_null()).fill_null(True).arg_true()
    if len(unusable):
        at = int(unusable[0])
        found = "nothing" if said[at] is None else f"'{column[at]}'"
        raise DataError(
            f"Record {at + 1}, split column '{column.name}' says {found}. It has to say one of: {', '.join(names)}."
        )
    parts = said.replace_strict(dict(names), return_dtype=pl.String).to_numpy()
    found_parts = {part: np.nonzero(parts == part)[0] for part in PARTS if part == "train" or (parts == part).any()}
    return _checked(found_parts, f"splitting by '{column.name}'")


def _shuffled(rows: int, seed: int, stratify: pl.Series | None) -> Rows:
    """Rows in an order of which every stretch is a fair sample."""
    keys = np.random.PCG64(seed).random_raw(rows)
    order = np.argsort(keys, kind="stable")
    if stratify is None:
        return order
    _, codes = np.unique(as_text(stratify).fill_null("\0").to_numpy().astype(str), return_inverse=True)
    grouped = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    place = np.arange(rows) - starts[codes[grouped]]
    # Row i of a group of c is put at (i + 1/2) / c, so any stretch of the order holds each group in its share.
    return grouped[np.argsort((place + 0.5) / counts[codes[grouped]], kind="stable")]


def _hold_out(order: Rows, share: float) -> tuple[Rows, Rows]:
    count = round(share * len(order))
    return order[:count], order[count:]


def _checked(parts: dict[str, Rows], doing: str) -> dict[str, Rows]:
    for name, part in parts.items():
        if len(part) == 0:
            sizes = ", ".join(f"{key} {len(rows)}" for key, rows in parts.items())
            raise DataError(f"No {name} rows are left after {doing} ({sizes}). Change the shares, or bring more rows.")
    return parts
