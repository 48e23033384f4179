"""Guessing how columns are read where a recipe does not say, and saying what was guessed and why.

The rules, in this order, over the values that are not missing:

1. lists of words: a text; other lists or arrays, the bytes of files, or text that ends like an image file in every
   row: an image; text that ends like a WAV file in every row: audio;
2. no value at all, or one value in every row: left out;
3. a whole number that counts the rows (all different, without gaps), or a column named ``id`` or
   ``..._id`` whose values nearly all differ: left out;
4. numbers (text that parses as numbers counts): a category if they are whole and at most
   ``FEW`` distinct, otherwise a number;
5. text of which nearly every value differs, or long text of which most do: left out as an id or free text;
6. the rest: a category.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from polytask.data.images import SUFFIXES
from polytask.data.sounds import SUFFIX
from polytask.data.table import as_text, parse_numbers
from polytask.errors import DataError

FEW = 20
"""Whole numbers with at most this many distinct values are read as a category."""
NEARLY_ALL = 0.9
"""Share of distinct values from which on text is taken for an id or free text."""
ENOUGH = 20
"""With fewer values than this, all being different says nothing."""
LONG = 30
"""Mean characters from which on text that mostly differs is taken for free text."""


_IMAGE_FILE = rf"({'|'.join(ending.replace('.', '[.]') for ending in SUFFIXES)})$"


@dataclass(frozen=True)
class Guess:
    """How a column is to be read.

    Args:
        column: Its name.
        kind: ``"number"``, ``"category"``, ``"image"``, ``"text"``, ``"audio"``, or None where it is left out.
        reason: What was seen, as a person reads it.
    """

    column: str
    kind: str | None
    reason: str


def guess_inputs(frame: pl.DataFrame, exclude: Collection[str] = ()) -> tuple[Guess, ...]:
    """A guess for every column, by the rules above.

    Args:
        frame: Training rows.
        exclude: Columns that are not inputs: targets, weights, and columns whose kind is stated.

    Example:
        >>> frame = pl.DataFrame({"age": ["31.5", "47", "22"], "sex": ["f", "m", "f"], "unit": ["a", "a", "a"]})
        >>> for guess in guess_inputs(frame):
        ...     print(guess.column, guess.kind, "-", guess.reason)
        age number - numbers from 22 to 47
        sex category - 2 different values
        unit None - every row has the value 'a'
    """
    return tuple(_guess(frame.get_column(name)) for name in frame.columns if name not in exclude)


def infer_inputs(frame: pl.DataFrame, exclude: Collection[str] = ()) -> dict[str, str]:
    """The kind of every column that can be an input; the others are left out.

    Args:
        frame: Training rows.
        exclude: Columns that are not inputs: targets, weights, and columns whose kind is stated.

    Example:
        >>> infer_inputs(pl.DataFrame({"age": [31.5, 47.0], "y": [0, 1]}), exclude=["y"])
        {'age': 'number'}
    """
    return {guess.column: guess.kind for guess in guess_inputs(frame, exclude) if guess.kind}


def describe_inference(guesses: Sequence[Guess]) -> list[str]:
    """Lines that tell a person what was guessed.

    Example:
        >>> describe_inference([Guess("age", "number", "numbers from 22 to 47"), Guess("key", None, "an id")])
        ['age: number (numbers from 22 to 47)', 'key: left out (an id). Name it among the inputs to use it.']
    """
    return [
        f"{guess.column}: {guess.kind} ({guess.reason})"
        if guess.kind
        else f"{guess.column}: left out ({guess.reason}). Name it among the inputs to use it."
        for guess in guesses
    ]


def _guess(series: pl.Series) -> Guess:
    name = series.name
    if isinstance(series.dtype, pl.List) and series.dtype.inner == pl.String:
        return Guess(name, "text", "holds lists of words")
    if isinstance(series.dtype, pl.List | pl.Array):
        return Guess(name, "image", "holds arrays")
    if series.dtype == pl.Binary:
        return Guess(name, "image", "holds the bytes of files")
    if series.dtype.is_temporal():
        return Guess(name, None, f"holds {series.dtype}, which is neither a number nor a category")
    if series.dtype.is_nested() or series.dtype == pl.Object:
        return Guess(name, None, f"holds {series.dtype}, which cannot be an input")
    text = as_text(series).drop_nulls()
    distinct = text.n_unique()
    if distinct == 0:
        return Guess(name, None, "no row has a value")
    if distinct == 1 and len(text) == len(series):
        return Guess(name, None, f"every row has the value '{text[0]}'")
    if distinct == 1:
        return Guess(name, "category", f"'{text[0]}' or missing")
    share = distinct / len(text)
    if len(text) >= ENOUGH and share > NEARLY_ALL and (name.lower() == "id" or name.lower().endswith("_id")):
        return Guess(name, None, f"named like an id, {distinct:,} different values in {len(text):,} rows")
    if bool(text.str.to_lowercase().str.contains(_IMAGE_FILE).all()):
        return Guess(name, "image", "holds paths of images")
    if bool(text.str.to_lowercase().str.ends_with(SUFFIX).all()):
        return Guess(name, "audio", "holds paths of sounds")
    if series.dtype == pl.Boolean:
        return Guess(name, "category", "true or false")
    try:
        numbers = parse_numbers(series).drop_nulls()
    except DataError:
        return _guess_text(name, text, distinct, share)
    return _guess_number(name, numbers, distinct)


def _guess_number(name: str, numbers: pl.Series, distinct: int) -> Guess:
    low, high = numbers.to_numpy().min(), numbers.to_numpy().max()
    span = f"from {low:.6g} to {high:.6g}"
    whole = bool((numbers.is_finite() & (numbers == numbers.floor())).all())
    if whole and len(numbers) >= ENOUGH and distinct == len(numbers) == high - low + 1:
        return Guess(name, None, f"counts the rows {span}")
    if whole and distinct <= FEW:
        return Guess(name, "category", f"{distinct} different whole numbers")
    return Guess(name, "number", f"{'whole ' if whole else ''}numbers {span}")


def _guess_text(name: str, text: pl.Series, distinct: int, share: float) -> Guess:
    if len(text) >= ENOUGH:
        length = text.str.len_chars().to_numpy().mean()
        if share > NEARLY_ALL or (share > 0.5 and length > LONG):
            return Guess(
                name, None, f"text with {distinct:,} different values in {len(text):,} rows: an id or free text"
            )
    fits = text.cast(pl.Float64, strict=False)
    misfit = text.filter(fits.is_null())
    if len(misfit) < 0.05 * len(text):
        return Guess(
            name, "category", f"numbers but for values such as '{misfit[0]}'; if that means missing, add it to na"
        )
    return Guess(name, "category", f"{distinct:,} different values")
