"""Yeast: which of 14 groups of functions a gene of baker's yeast has, from microarrays and phylogenetic profiles.

A small and well-worn benchmark of multi-label learning; each label is a task of its own here.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.fetch import Archive, fetch
from polytask.data.split import split_rows
from polytask.errors import DataError

INPUTS = tuple(f"Att{number}" for number in range(1, 104))
LABELS = tuple(f"Class{number}" for number in range(1, 15))
ROWS = 2_417
TEST_SHARE = 917 / ROWS
"""As many test rows as the usual division has; which ones is drawn here, since the file does not say."""

ARCHIVE = Archive(
    package="river",
    version="0.26.1",
    sha256="2326f87f396801cfd8672ac02d9f9731c10e936696e7a0a1f89a378b994fba3f",
    wheel=False,
    members={"yeast.csv.gz": "river/datasets/yeast.csv.gz"},
    terms="Yeast, from the Mulan library of multi-label data sets. Name Elisseeff and Weston (2001) where you use it.",
    backend="maturin",
)

RECIPE: dict[str, Any] = {"inputs": dict.fromkeys(INPUTS, "number")}
"""What a recipe need not say: all inputs are numbers."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the genes, fetching them at the first call.

    Args:
        root: A folder with ``yeast.csv.gz``.

    Returns:
        ``"train"`` with 1,500 genes and ``"test"`` with 917, by a fixed draw: 103 numbers and 14 columns of 0 and 1.

    Raises:
        DataError: if the data cannot be fetched, or the file in ``root`` is another.

    Reference:
        Elisseeff and Weston, "A kernel method for multi-labelled classification", NIPS 2001.
    """
    path = fetch("yeast", ARCHIVE, root)["yeast.csv.gz"]
    with gzip.open(path, "rb") as file:
        frame = pl.read_csv(file.read())
    if frame.columns != [*INPUTS, *LABELS] or frame.height != ROWS:
        raise DataError(
            f"'{path}' has {frame.height:,} records and {frame.width} columns, not the {ROWS:,} and "
            f"{len(INPUTS) + len(LABELS)} of Yeast."
        )
    parts = split_rows(ROWS, validation=0.0, test=TEST_SHARE, seed=0)
    return {part: frame[rows] for part, rows in parts.items()}
