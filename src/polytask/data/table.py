"""Reading tables: CSV, TSV, Parquet, Arrow, Feather and JSON files, polars and pandas frames."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from polytask.errors import DataError, RowError, listed, suggestion

NA = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""What stands for a missing value in a CSV unless the caller says otherwise."""

_COMPACT_FROM = 8_000_000
"""Bytes of a CSV from which on columns of repeating text are held dictionary-encoded."""

_ENCODED_TEXT = (pl.Categorical, pl.Enum)
_SAMPLE = 2_000
_SHORT = "\0 last field is absent"
_TEXT = (".csv", ".tsv", ".txt", ".data")
_BINARY: dict[str, Callable[..., pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".pq": pl.read_parquet,
    ".arrow": pl.read_ipc,
    ".feather": pl.read_ipc,
    ".ipc": pl.read_ipc,
    ".json": lambda path, columns: pl.read_json(path),
    ".jsonl": lambda path, columns: pl.read_ndjson(path),
    ".ndjson": lambda path, columns: pl.read_ndjson(path),
}


def read_table(
    path: str | Path,
    *,
    header: bool = True,
    separator: str = ",",
    na: Sequence[str] = NA,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    r"""Read a table from a file.

    The fields of a CSV stay text, without the spaces around them; what they mean is decided later, column
    by column, so that a value that does not parse can be named. Records are numbered from 1, without
    the header.

    Args:
        path: A ``.csv``, ``.tsv``, ``.txt``, ``.data``, ``.parquet``, ``.pq``, ``.arrow``, ``.feather``, ``.ipc``,
            ``.json`` (a list of objects), ``.jsonl`` or ``.ndjson`` (an object a line) file. The fields of ``.tsv``
            are separated by tabs whatever ``separator`` says.
        header: Whether a CSV starts with the column names.
        separator: One character between the fields of a CSV.
        na: What stands for a missing value in a CSV.
        columns: Names of all columns of a CSV without a header; for any other file, the columns to read.
            A CSV without a header and names has ``column_1``, ``column_2``, ...

    Returns:
        The table; text columns for a CSV (dictionary-encoded text, polars' Categorical, where values repeat
        in a large file), the file's own types otherwise.

    Raises:
        DataError: if there is no such file or it is of another format, for duplicate or empty column names,
            for a record with too few or too many fields, and for an empty table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "people.csv"
        >>> _ = path.write_text("age, income\n31, high\nNA, low\n")
        >>> read_table(path).to_dicts()
        [{'age': '31', 'income': 'high'}, {'age': None, 'income': 'low'}]
    """
    path = Path(path)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix in _BINARY:
        try:
            frame = _BINARY[suffix](path, columns=list(columns) if columns else None)
            if columns:
                frame = frame.select([column_of(frame, name) for name in columns])
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"'{path}' cannot be read as {suffix[1:]}: {_first_line(error)}.") from None
    else:
        frame = _read_csv(path, header, "\t" if suffix == ".tsv" else separator, na, columns)
    if frame.height == 0:
        raise DataError(f"'{path}' has no records. A table needs at least one.")
    return frame


def as_frame(table: Any) -> pl.DataFrame:
    """A polars frame from a polars or pandas frame; NaN in pandas columns becomes missing.

    Raises:
        DataError: if ``table`` is neither.

    Example:
        >>> as_frame(pl.DataFrame({"age": [31]}).lazy()).height
        1
    """
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if type(table).__module__.partition(".")[0] == "pandas" and hasattr(table, "columns"):
        names = [str(name) for name in table.columns]
        _check_names(names, "The pandas frame")
        return pl.DataFrame([_from_pandas(table.iloc[:, place], name) for place, name in enumerate(names)])
    raise DataError(f"Expected a polars or pandas frame, found {type(table).__name__}. Read a file with read_table.")


def column_of(frame: pl.DataFrame, name: str, what: str = "column") -> pl.Series:
    """One column of a frame.

    Raises:
        DataError: if the frame has no such column; the message names the nearest one.
    """
    if name not in frame.columns:
        near = suggestion(name, frame.columns)
        raise DataError(f"The table has no {what} '{name}'. It has: {listed(frame.columns)}.{near}")
    return frame.get_column(name)


def parse_numbers(series: pl.Series, what: str = "column") -> pl.Series:
    """A column as float64 numbers, NaN as missing.

    Raises:
        DataError: for a value that is not a number; the message gives record, column and value.

    Example:
        >>> parse_numbers(pl.Series("age", ["31", " 4.5", None])).to_list()
        [31.0, 4.5, None]
    """
    if series.dtype in _ENCODED_TEXT:
        series = series.cast(pl.String)
    if not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(f"{what.capitalize()} '{series.name}' holds {series.dtype}; numbers are needed there.")
    if series.dtype == pl.String:
        numbers = series.cast(pl.Float64, strict=False)
        if numbers.null_count() > series.null_count():
            # Only text with spaces or with real faults comes here, so the usual table pays nothing.
            stripped = series.str.strip_chars()
            numbers = stripped.cast(pl.Float64, strict=False)
            faults = (numbers.is_null() & series.is_not_null()).arg_true()
            if len(faults):
                at = int(faults[0])
                more = f" {len(faults) - 1:,} more records have the same fault." if len(faults) > 1 else ""
                raise RowError(
                    f"Record {at + 1}, {what} '{series.name}': '{series[at]}' is not a number.{more} Correct it, list "
                    f"it among the missing values (na), or read the column as a category.",
                    {row: f"{what} '{series.name}': '{series[row]}' is not a number" for row in faults},
                )
    else:
        numbers = series.cast(pl.Float64)
    return numbers.fill_nan(None)


def as_text(series: pl.Series) -> pl.Series:
    """A column as text, so that 1, 1.0 and "1" are the same class.

    Raises:
        DataError: if the column holds lists or arrays.
    """
    if series.dtype.is_nested():
        raise DataError(f"Column '{series.name}' holds {series.dtype}; classes have to be text, numbers or booleans.")
    if series.dtype.is_float():
        series = series.fill_nan(None)
        known = series.drop_nulls()
        if bool((known.is_finite() & (known == known.floor())).all()):
            series = series.cast(pl.Int64)
    return series if series.dtype == pl.String else series.cast(pl.String)


def _check_file(path: Path) -> None:
    if path.is_file():
        known = (*_TEXT, *_BINARY)
        if path.suffix.lower() not in known:
            raise DataError(f"'{path}' has the ending '{path.suffix}'. Tables are read from: {listed(known)}.")
        return
    if path.is_dir():
        raise DataError(f"'{path}' is a folder. Give one file: {listed(p.name for p in sorted(path.iterdir()))}.")
    if not path.parent.is_dir():
        raise DataError(f"There is no table at '{path}': its folder '{path.parent}' does not exist.")
    near = suggestion(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
    raise DataError(f"There is no table at '{path}'.{near}")


def _read_csv(
    path: Path, header: bool, separator: str, na: Sequence[str], columns: Sequence[str] | None
) -> pl.DataFrame:
    if len(separator) != 1:
        raise DataError(f"The separator is {separator!r}; it has to be one character.")
    first, skip = _start(path, header, separator)
    names = [field.strip() for field in first] if header else _names(path, first, columns)
    _check_names(names, f"The header of '{path}'" if header else "columns")
    try:
        frame = _scan(path, skip, separator, names, na).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        _check_records(path, separator, len(names), skip)
        raise DataError(f"'{path}' cannot be read as CSV: {_first_line(error)}.") from None
    if frame.drop_in_place(_SHORT).any():
        # A record with too few fields comes back filled with nulls, the last field always among them; so
        # does a blank line, which is no record.
        blank = _check_records(path, separator, len(names), skip)
        if blank:
            frame = frame.filter(~pl.int_range(pl.len()).is_in(blank))
    if header and columns:
        return frame.select([column_of(frame, name) for name in columns])
    return frame


def _scan(path: Path, skip: int, separator: str, names: Sequence[str], na: Sequence[str]) -> pl.LazyFrame:
    def read(records: int | None) -> pl.LazyFrame:
        schema: dict[str, Any] = dict.fromkeys(names, pl.String)
        scan = pl.scan_csv(
            path,
            has_header=False,
            skip_rows=skip,
            schema=schema,
            glob=False,
            separator=separator,
            n_rows=records,
        )
        short = pl.col(names[-1]).is_null().alias(_SHORT)
        stripped = [pl.col(name).str.strip_chars() for name in names]
        return scan.with_columns(short, *stripped).with_columns(
            pl.when(~pl.col(name).is_in(list(na))).then(pl.col(name)).alias(name) for name in names
        )

    if path.stat().st_size < _COMPACT_FROM:
        return read(None)
    # Text takes 16 bytes or more a field. Columns whose values repeat are held as numbers of a dictionary,
    # which is what keeps a table smaller in memory than its file.
    sample = read(_SAMPLE).collect()
    repeating = [name for name in names if 2 * sample.get_column(name).n_unique() <= sample.height]
    return read(None).with_columns(pl.col(name).cast(pl.Categorical) for name in repeating)


def _start(path: Path, header: bool, separator: str) -> tuple[list[str], int]:
    """The first record or header, and how many lines lie before the first record (blank ones may)."""
    written = ((place, record) for place, record in enumerate(_records(path, separator)) if record)
    place, first = next(written, (0, []))
    if not first:
        raise DataError(f"'{path}' is empty.")
    if header:
        # In a single column a blank line is a missing value, so it may be the first record.
        place = next(written, (place + 1, []))[0] if len(first) > 1 else place + 1
    return first, place


def _names(path: Path, first: list[str], columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return [f"column_{i + 1}" for i in range(len(first))]
    if len(columns) != len(first):
        raise DataError(f"'{path}' has {len(first)} fields a record but columns names {len(columns)}. Name them all.")
    return list(columns)


def _check_names(names: Sequence[str], where: str) -> None:
    if "" in names:
        raise DataError(f"{where} has no name for column {names.index('') + 1}. Name every column.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where} names more than once: {listed(twice)}. Rename all but one of each.")


def _records(path: Path, separator: str) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from csv.reader(file, delimiter=separator)
        except UnicodeDecodeError as error:
            raise DataError(f"'{path}' is not UTF-8 text: {error.reason}. Save it as UTF-8.") from None
        except csv.Error as error:
            raise DataError(f"'{path}' cannot be read as CSV: {error}.") from None


def _check_records(path: Path, separator: str, width: int, skip: int) -> list[int]:
    """Raise for a record of another width; return where blank lines lie among the records, from 0."""
    blank: list[int] = []
    for place, record in enumerate(_records(path, separator), start=-skip):
        if place < 0:
            continue
        if not record and width > 1:
            blank.append(place)
        elif len(record) != width and not (width == 1 and not record):
            raise DataError(
                f"Record {place + 1 - len(blank)} of '{path}' has {len(record)} fields, but {width} were expected: "
                f"{listed((repr(field) for field in record), 6)}. Correct the record, or quote a field that "
                f"holds the separator {separator!r}."
            )
    return blank


def _from_pandas(column: Any, name: str) -> pl.Series:
    plain = column.to_numpy()
    if plain.dtype.kind in "fiub":
        return pl.Series(name, plain, nan_to_null=True)
    # Nullable columns, text and categories: pandas has several marks for missing values, isna knows them all.
    gone = column.isna().tolist()
    values = [None if absent else value for value, absent in zip(column.tolist(), gone, strict=True)]
    return pl.Series(name, values, strict=True) if _same_type(values) else pl.Series(name, list(map(_text, values)))


def _same_type(values: list[Any]) -> bool:
    return len({type(value) for value in values if value is not None}) <= 1


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
