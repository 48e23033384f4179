"""How a recipe or a caller says that an input column is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.errors import RecipeError, unknown

KINDS = ("number", "category", "image", "text", "audio")
SCALES = ("standard", "quantile", "none")
MISSING = ("indicate", "mean", "error")
COLOURS = {"rgb": 3, "grey": 1}
SPLITS = ("spaces", "characters")


@dataclass(frozen=True)
class InputSpec:
    """How an input column is read.

    Args:
        kind: ``"number"``, ``"category"``, ``"image"`` (paths or the bytes of image files, or arrays of one shape),
            ``"text"`` (text, or lists of words) or ``"audio"`` (paths or the bytes of WAV files, or lists of samples
            from -1 to 1).
        scale: Of numbers: ``"standard"`` (training mean 0 and deviation 1), ``"quantile"`` (to a normal
            distribution by the training quantiles) or ``"none"``.
        missing: Of numbers: ``"indicate"`` (the training mean, and an input that says so if training rows
            lacked values), ``"mean"`` (the training mean) or ``"error"``. NaN counts as missing.
        min_count: Of categories, words and characters: those that come less often in training rows share the slot
            of unseen ones.
        bins: Of numbers: quantile bins, whose edges the schema keeps for piecewise-linear embeddings.
        impute_infinite: Of numbers: infinite values count as missing instead of raising an error.
        size: Of images from files: height and width that they are resized to; None if all have one size. A recipe
            with the encoder ``hub`` fills in that of the model.
        colour: Of images from files: ``"rgb"`` or ``"grey"``.
        split: Of texts: ``"spaces"`` between words, or ``"characters"``: each is a word, as for Chinese.
        lowercase: Of words: whether their case is left to their characters.
        longest_word: Of words: characters that are read.
        tokenizer: Of texts: a pretrained model whose tokenizer cuts them, by its name in a hub or its folder; a
            recipe with the encoder ``hub`` fills it in. None makes a vocabulary of words.
        longest: Of texts with a tokenizer: tokens that are read.
        pair: Of texts: a second column whose text follows that of the first, for tasks about two sentences.
        extractor: Of sounds: a pretrained model whose extractor makes its inputs, by its name in a hub or its folder; a
            recipe with the encoder ``hub`` fills it in.
        rate: Of sounds that are lists: samples a second; None if they have the model's own rate. Sounds of another
            rate are resampled.
        seconds: Of sounds: how much of each is read; None reads all.

    Raises:
        RecipeError: for an unknown kind, scale or missing, or a count below one.

    Example:
        >>> InputSpec("number", scale="quantile").bins
        48
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    kind: str
    scale: str = "standard"
    missing: str = "indicate"
    min_count: int = 1
    bins: int = 48
    impute_infinite: bool = False
    size: tuple[int, int] | None = None
    colour: str = "rgb"
    split: str = "spaces"
    lowercase: bool = True
    longest_word: int = 20
    tokenizer: str | None = None
    longest: int = 256
    pair: str = ""
    extractor: str | None = None
    rate: int | None = None
    seconds: float | None = None

    @property
    def channels(self) -> int:
        """Of images from files."""
        return COLOURS[self.colour]

    def __post_init__(self) -> None:
        for what, value, known in (
            ("kind of input", self.kind, KINDS),
            ("scale", self.scale, SCALES),
            ("missing", self.missing, MISSING),
            ("colour", self.colour, COLOURS),
            ("split", self.split, SPLITS),
        ):
            if value not in known:
                raise RecipeError(unknown(what, value, known))
        for what in ("min_count", "bins", "longest_word", "longest"):
            count = getattr(self, what)
            if count < 1:
                raise RecipeError(f"{what} is {count}; it has to be 1 or more.")
        for what in ("rate", "seconds"):
            value = getattr(self, what)
            if value is not None and value <= 0:
                raise RecipeError(f"{what} is {value}; it has to be above 0.")
        if self.size is not None and min(self.size) < 1:
            raise RecipeError(f"size is {list(self.size)}; give height and width in pixels, 1 or more.")
