"""Column files of tagged texts, as the CoNLL shared tasks write them: a line a word, an empty line between texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from polytask.errors import DataError, listed

DOCUMENT = "-DOCSTART-"
"""First field of a line that marks a new document; it is no word."""


def read_column_file(path: str | Path, columns: Sequence[str], bad: dict[int, str] | None = None) -> pl.DataFrame:
    r"""Read a file with a line for each word and its tags in columns, separated by spaces or tabs.

    Args:
        path: The file, UTF-8.
        columns: Names of all columns of a line, in order.
        bad: Gets for each text, from 0, that has a line with another number of fields what is wrong with it; such a
            text comes without these lines then. None makes it an error.

    Returns:
        A row for each text, with a list for each column.

    Raises:
        DataError: if there is no such file, it holds no text, or a line has another number of fields (its number is
            named).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_text("Oslo B-LOC\nis O\n\nfine O\n")
        >>> read_column_file(path, ["word", "name"]).to_dicts()
        [{'word': ['Oslo', 'is'], 'name': ['B-LOC', 'O']}, {'word': ['fine'], 'name': ['O']}]
    """
    path = Path(path)
    if not columns:
        raise DataError(f"'{path}': name the columns of a line, such as columns: [word, tag].")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"There is no file at '{path}'.") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"'{path}' cannot be read as UTF-8 text: {error}.") from None
    texts: list[list[list[str]]] = [[]]
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0] == DOCUMENT:
            if texts[-1] or len(texts) - 1 in (bad or ()):
                texts.append([])
            continue
        if len(fields) == len(columns):
            texts[-1].append(fields)
            continue
        fault = f"has {len(fields)} fields, but {len(columns)} were expected ({listed(columns)}): {line.strip()!r}"
        if bad is None:
            raise DataError(f"Line {number} of '{path}' {fault}. Correct the line, or name its columns.")
        bad.setdefault(len(texts) - 1, f"line {number} {fault}")
    whole = [text for at, text in enumerate(texts) if text or at in (bad or ())]
    if not any(whole):
        raise DataError(f"'{path}' has no words.")
    kinds = dict.fromkeys(columns, pl.List(pl.String))
    return pl.DataFrame({name: [[w[at] for w in text] for text in whole] for at, name in enumerate(columns)}, kinds)
