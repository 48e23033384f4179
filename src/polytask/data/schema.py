"""What a fitted table looks like: plain data that an encoder is built from and a bundle stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from polytask.errors import DataError

_NO_ARRAYS: Mapping[str, tuple[int, ...]] = MappingProxyType({})

MISSING_SLOT = 0
"""Embedding row of a missing category."""
UNSEEN_SLOT = 1
"""Embedding row of a category that training did not have, or had too rarely."""
FIRST_SLOT = 2
"""Embedding row of the first category of the vocabulary."""


@dataclass(frozen=True)
class NumberColumn:
    """A number column as it was in the training data.

    Args:
        name: The column's name.
        mean: Training mean, in the column's own units.
        std: Training standard deviation, in the column's own units; 1 for a constant column.
        edges: Rising bin edges of the *scaled* training values, for piecewise-linear embeddings.
        has_missing: Whether training rows lacked a value and missing values are indicated, so that a column
            of the tensor ``"missing"`` belongs to this one.
        scale: ``"standard"``, ``"quantile"`` or ``"none"``.
        missing: ``"indicate"``, ``"mean"`` or ``"error"``.
        impute_infinite: Whether infinite values count as missing.
        quantiles: For ``scale="quantile"``: evenly spaced quantiles of the training values, rising.
    """

    name: str
    mean: float
    std: float
    edges: tuple[float, ...]
    has_missing: bool
    scale: str = "standard"
    missing: str = "indicate"
    impute_infinite: bool = False
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class CategoryColumn:
    """A category column as it was in the training data.

    Args:
        name: The column's name.
        values: The vocabulary; value ``i`` has the embedding row ``i + 2``. Row 0 stands for a missing
            value and row 1 for one that training did not have, or had too rarely.
    """

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of embedding rows.

        Example:
            >>> CategoryColumn("sex", ("Female", "Male")).size
            4
        """
        return len(self.values) + FIRST_SLOT


@dataclass(frozen=True)
class ImageColumn:
    """A column of images as it was in the training data.

    Args:
        name: The column's name.
        size: Height and width that the model reads.
        channels: 3 for colours, 1 for grey.
    """

    name: str
    size: tuple[int, int]
    channels: int


@dataclass(frozen=True)
class TextColumn:
    """A text column as it was in the training data: a vocabulary of words, or the tokenizer of a pretrained model.

    Args:
        name: The column's name.
        words: The vocabulary; word ``i`` has the number ``i + 1``, and 0 stands for any other.
        characters: The same for the characters of words.
        split: Where text is cut into words: ``"spaces"``, or ``"characters"`` makes each character a word.
        lowercase: Whether words are looked up without their case.
        longest_word: Characters of a word that are read.
        tokenizer: The tokenizer of a pretrained model, as its ``tokenizer.json`` has it; the fields above are
            unused then.
        longest: With a tokenizer: tokens of a text that are read.
        pair: A second column whose text follows that of the first; empty if there is none.
    """

    name: str
    words: tuple[str, ...] = ()
    characters: tuple[str, ...] = ()
    split: str = "spaces"
    lowercase: bool = True
    longest_word: int = 20
    tokenizer: str | None = None
    longest: int = 256
    pair: str = ""


@dataclass(frozen=True)
class SoundColumn:
    """A column of sounds as it was in the training data.

    Args:
        name: The column's name.
        extractor: What makes a pretrained model's inputs of sounds, as its preprocessor_config.json has it.
        rate: Samples a second of sounds that are lists; None if they have the model's own rate.
        seconds: How much of a sound is read; None reads all.
    """

    name: str
    extractor: str
    rate: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class TableSchema:
    """All input columns of a table, in the order in which their tensors hold them.

    Args:
        numbers: Columns of the tensor ``"numbers"``.
        categories: Columns of the tensor ``"categories"``.
        arrays: Array columns by name, with the shape of one row.
        images: Columns of images from files, or of bytes.
        single: Whether the model takes the only column's tensors themselves, not a dict of them by name.
        texts: Text columns.
        sounds: Columns of sounds.

    Example:
        >>> schema = TableSchema((NumberColumn("age", 38.6, 13.1, (-1.5, 0.0, 2.0), True),), (), {})
        >>> schema.missing
        ('age',)
        >>> TableSchema.from_dict(schema.to_dict()) == schema
        True
    """

    numbers: tuple[NumberColumn, ...] = ()
    categories: tuple[CategoryColumn, ...] = ()
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: _NO_ARRAYS)
    single: bool = False
    images: tuple[ImageColumn, ...] = ()
    texts: tuple[TextColumn, ...] = ()
    sounds: tuple[SoundColumn, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return (*(c.name for c in self.numbers), *(c.name for c in self.categories), *self.beside)

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the columns that are neither numbers nor categories."""
        return (*self.pictures, *(c.name for c in self.texts), *(c.name for c in self.sounds))

    @property
    def missing(self) -> tuple[str, ...]:
        """Number columns with an indicator, in the order of the columns of the tensor ``"missing"``."""
        return tuple(column.name for column in self.numbers if column.has_missing)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of the columns of arrays and images."""
        return (*self.arrays, *(column.name for column in self.images))

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain JSON values."""
        return {
            "numbers": [asdict(c) | {"edges": list(c.edges), "quantiles": list(c.quantiles)} for c in self.numbers],
            "categories": [{"name": c.name, "values": list(c.values)} for c in self.categories],
            "arrays": {name: list(shape) for name, shape in self.arrays.items()},
            "single": self.single,
            "images": [asdict(c) | {"size": list(c.size)} for c in self.images],
            "texts": [asdict(c) | {"words": list(c.words), "characters": list(c.characters)} for c in self.texts],
            "sounds": [asdict(c) for c in self.sounds],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TableSchema:
        """The schema that ``to_dict`` wrote.

        Raises:
            DataError: if a part is missing or unknown.
        """
        try:
            numbers = tuple(
                NumberColumn(**{**c, "edges": tuple(c["edges"]), "quantiles": tuple(c.get("quantiles", ()))})
                for c in plain["numbers"]
            )
            categories = tuple(CategoryColumn(c["name"], tuple(c["values"])) for c in plain["categories"])
            images = tuple(ImageColumn(**{**c, "size": tuple(c["size"])}) for c in plain.get("images", ()))
            texts = tuple(
                TextColumn(**{**c, "words": tuple(c["words"]), "characters": tuple(c["characters"])})
                for c in plain.get("texts", ())
            )
            sounds = tuple(SoundColumn(**c) for c in plain.get("sounds", ()))
            arrays = {name: tuple(shape) for name, shape in plain["arrays"].items()}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The stored table schema cannot be read: {error}. It was written by something else."
            ) from error
        return cls(numbers, categories, arrays, bool(plain["single"]), images, texts, sounds)
