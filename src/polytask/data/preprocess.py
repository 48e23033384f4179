"""From a table's columns to the tensors that an encoder takes, fitted on training rows alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from polytask.data.images import holds_files, holds_pixels, image_column, pixels_of, read_images
from polytask.data.numbers import Floats, fill, find_faults, fit_number, scale_number
from polytask.data.pretrained import read_extractor, read_tokenizer
from polytask.data.schema import (
    FIRST_SLOT,
    MISSING_SLOT,
    UNSEEN_SLOT,
    CategoryColumn,
    NumberColumn,
    SoundColumn,
    TableSchema,
    TextColumn,
)
from polytask.data.sounds import encode_sounds
from polytask.data.spec import InputSpec
from polytask.data.table import as_text, column_of, parse_numbers
from polytask.data.text import encode_text, fit_words
from polytask.errors import DataError, RecipeError, listed


class TablePreprocessor:
    """Turns tables into tensors by what it saw in the training rows.

    Args:
        schema: What the training rows fixed; see ``fit``.

    Example:
        >>> train = pl.DataFrame({"age": ["20", "40", None], "sex": ["f", "m", "f"]})
        >>> table = TablePreprocessor.fit(train, {"age": InputSpec("number"), "sex": InputSpec("category")})
        >>> inputs = table.transform(pl.DataFrame({"age": ["50", None], "sex": ["m", "x"]}))
        >>> inputs["numbers"], inputs["missing"], inputs["categories"]
        (tensor([[2.],
                [0.]]), tensor([[False],
                [ True]]), tensor([[3],
                [1]]))
    """

    def __init__(self, schema: TableSchema):
        self.schema = schema

    @classmethod
    def from_schema(cls, schema: TableSchema) -> TablePreprocessor:
        """The preprocessor that a stored schema describes."""
        return cls(schema)

    @classmethod
    def fit(cls, frame: pl.DataFrame, inputs: Mapping[str, InputSpec]) -> TablePreprocessor:
        """Learn means, deviations, bin edges and vocabularies from training rows.

        Args:
            frame: The training rows.
            inputs: How each input column is read; the tensors keep this order.

        Raises:
            DataError: if a column is missing, a value does not parse (record, column and value are named),
                a column has no value at all, or there are no inputs.

        Warns:
            UserWarning: for a number column that is constant: it tells the model nothing.
        """
        if not inputs:
            raise DataError(f"There are no input columns. The table has: {listed(frame.columns)}. Name some as inputs.")
        numbers, categories, images, arrays, texts, sounds = [], [], [], {}, [], []
        for name, spec in inputs.items():
            series = column_of(frame, name, "input column")
            if spec.kind == "number":
                numbers.append(_fit_number(series, spec))
            elif spec.kind == "category":
                categories.append(_fit_category(series, spec.min_count))
            elif spec.kind == "text":
                texts.append(_fit_text(_texts(frame, name, spec.pair), spec))
            elif spec.kind == "audio":
                sounds.append(_fit_sound(name, spec))
            elif holds_files(series) or holds_pixels(series):
                images.append(image_column(series, spec.size, spec.channels))
            else:
                arrays[name] = _array_shape(series)
        known = TableSchema(tuple(numbers), tuple(categories), arrays, images=tuple(images))
        return cls(replace(known, texts=tuple(texts), sounds=tuple(sounds)))

    def inputs(self, frame: pl.DataFrame) -> Any:
        """What the model takes: the tensors of ``transform``, or those of the only column where the schema says so."""
        tensors = self.transform(frame)
        return next(iter(tensors.values())) if self.schema.single else tensors

    def transform(self, frame: pl.DataFrame) -> dict[str, Any]:
        """The inputs of rows, seen in training or not.

        Args:
            frame: Rows with all input columns; other columns are not read.

        Returns:
            As far as there are such columns: ``"numbers"`` float32 ``[n, d]``; ``"missing"`` bool
            ``[n, d']``, whether a value was missing, with a column for each number column of which training
            rows lacked values; ``"categories"`` int64 ``[n, c]``; every image column under its name,
            float32 ``[n, ...]``, its values as they are, or uint8 ``[n, 1 or 3, h, w]`` where they come from files or
            are bytes; and every text column and column of sounds under its name, a dict of tensors
            (``data.text.encode_text``, ``data.sounds.encode_sounds``).

        Raises:
            DataError: if a column is missing (the nearest is named), a value does not parse, is infinite or
                is missing where that is an error, or an array has another shape than in training.
        """
        schema = self.schema
        result: dict[str, Any] = {}
        if schema.numbers:
            result["numbers"] = torch.empty(frame.height, len(schema.numbers))
        if schema.missing:
            result["missing"] = torch.zeros(frame.height, len(schema.missing), dtype=torch.bool)
        for place, number in enumerate(schema.numbers):
            values, gone = _numbers(frame, number)
            result["numbers"][:, place] = torch.from_numpy(scale_number(number, values))
            if number.has_missing:
                result["missing"][:, schema.missing.index(number.name)] = torch.from_numpy(gone)
        if schema.categories:
            result["categories"] = torch.empty(frame.height, len(schema.categories), dtype=torch.int64)
        for place, category in enumerate(schema.categories):
            series = column_of(frame, category.name, "input column")
            result["categories"][:, place] = torch.from_numpy(encode_category(series, category.values))
        for name, shape in schema.arrays.items():
            result[name] = torch.from_numpy(_arrays(column_of(frame, name, "input column"), tuple(shape)))
        for image in schema.images:
            result[image.name] = torch.from_numpy(pixels_of(column_of(frame, image.name, "input column"), image))
        for text in schema.texts:
            result[text.name] = encode_text(_texts(frame, text.name, text.pair), text)
        for sound in schema.sounds:
            result[sound.name] = encode_sounds(column_of(frame, sound.name, "input column"), sound)
        return result

    def image_sizes(self, frame: pl.DataFrame) -> NDArray[np.int64] | None:
        """Height and width of every row's image file ``[rows, 2]``; None unless there is one column of such files."""
        names = [image.name for image in self.schema.images if holds_files(column_of(frame, image.name))]
        return read_images(frame.get_column(names[0]), (1, 1)).sizes if len(names) == 1 else None


def encode_category(series: pl.Series, values: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Slots of the values of a column: 0 missing, 1 not in ``values``, then in the order of ``values``.

    Example:
        >>> encode_category(pl.Series("sex", ["m", None, "x", "f"]), ("f", "m"))
        array([3, 0, 1, 2])
    """
    text = as_text(series)
    codes = text.cast(pl.Enum(values), strict=False).to_physical().cast(pl.Int64) + FIRST_SLOT
    codes = codes.fill_null(UNSEEN_SLOT).set(text.is_null(), MISSING_SLOT)
    return np.array(codes.to_numpy(), dtype=np.int64)


def _fit_number(series: pl.Series, spec: InputSpec) -> NumberColumn:
    values, gone = find_faults(series.name, parse_numbers(series), spec.impute_infinite, spec.missing == "error")
    known = values[~gone]
    if len(known) == 0:
        raise DataError(f"Column '{series.name}' has no value in the training rows. Leave it out of the inputs.")
    if known.min() == known.max() and not gone.any():
        warnings.warn(
            f"Column '{series.name}' is {known[0]:g} in every training row, so it tells the model nothing. "
            "Leave it out of the inputs."
        )
    return fit_number(
        series.name,
        known,
        bins=spec.bins,
        scale=spec.scale,
        missing=spec.missing,
        impute_infinite=spec.impute_infinite,
        has_missing=bool(gone.any()) and spec.missing == "indicate",
    )


def _fit_category(series: pl.Series, min_count: int) -> CategoryColumn:
    counts = as_text(series).drop_nulls().value_counts(name="rows of the value")
    if counts.height == 0:
        raise DataError(f"Column '{series.name}' has no value in the training rows. Leave it out of the inputs.")
    if counts.height == 1 and series.null_count() == 0:
        warnings.warn(
            f"Column '{series.name}' is '{counts.row(0)[0]}' in every training row, so it tells the model nothing. "
            "Leave it out of the inputs."
        )
    kept = counts.filter(counts.to_series(1) >= min_count).to_series(0)
    return CategoryColumn(series.name, tuple(kept.sort().to_list()))


def _texts(frame: pl.DataFrame, name: str, pair: str) -> list[pl.Series]:
    return [column_of(frame, column, "input column") for column in ((name, pair) if pair else (name,))]


def _fit_text(series: Sequence[pl.Series], spec: InputSpec) -> TextColumn:
    if spec.tokenizer is None:
        made = fit_words(
            series,
            min_count=spec.min_count,
            lowercase=spec.lowercase,
            longest_word=spec.longest_word,
            split=spec.split,
        )
    else:
        tokenizer = read_tokenizer(spec.tokenizer)
        made = TextColumn(series[0].name, tokenizer=tokenizer, longest=spec.longest, split=spec.split)
    return replace(made, pair=spec.pair)


def _fit_sound(name: str, spec: InputSpec) -> SoundColumn:
    if spec.extractor is None:
        raise RecipeError(
            f"Column '{name}' holds sounds, and nothing says how they become inputs. Use the encoder hub, or name a "
            "pretrained model: {kind: audio, extractor: ...}."
        )
    return SoundColumn(name, read_extractor(spec.extractor), spec.rate, spec.seconds)


def _numbers(frame: pl.DataFrame, column: NumberColumn) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    parsed = parse_numbers(column_of(frame, column.name, "input column"))
    values, gone = find_faults(column.name, parsed, column.impute_infinite, column.missing == "error")
    return fill(values, gone, column.mean), gone


def _array_shape(series: pl.Series) -> tuple[int, ...]:
    # Stacking all training images to learn this would take as much memory again.
    return tuple(series.dtype.shape) if isinstance(series.dtype, pl.Array) else _arrays(series, None).shape[1:]


def _arrays(series: pl.Series, shape: tuple[int, ...] | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if not isinstance(series.dtype, pl.List | pl.Array):
        raise DataError(f"Column '{series.name}' holds {series.dtype}; an image column holds lists or arrays.")
    absent = series.is_null().arg_true()
    if len(absent):
        raise DataError(f"Record {int(absent[0]) + 1}, column '{series.name}': there is no array. Leave such rows out.")
    if isinstance(series.dtype, pl.Array):
        stacked = np.array(series.to_numpy(), dtype=np.float32)
    else:
        rows = [np.array(row, dtype=np.float32) for row in series.to_list()]
        wanted = shape or rows[0].shape
        for number, row in enumerate(rows, start=1):
            if row.shape != wanted:
                raise DataError(
                    f"Record {number}, column '{series.name}': the array has the shape {list(row.shape)}, but "
                    f"{list(wanted)} is needed. Bring all arrays to one shape."
                )
        stacked = np.stack(rows)
    if shape is not None and stacked.shape[1:] != shape:
        raise DataError(
            f"Column '{series.name}' holds arrays of shape {list(stacked.shape[1:])}; in training it was {list(shape)}."
        )
    if not np.isfinite(stacked).all():
        at = int(np.nonzero(~np.isfinite(stacked.reshape(len(stacked), -1)).all(1))[0][0])
        raise DataError(f"Record {at + 1}, column '{series.name}': the array holds NaN or infinite values.")
    return stacked
