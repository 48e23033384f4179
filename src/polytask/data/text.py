"""Texts as tensors: words of a vocabulary with their characters, or a pretrained model's pieces of words."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.schema import TextColumn
from polytask.data.token_cache import Ragged, cached
from polytask.errors import DataError, MissingExtraError, RowError

UNSEEN = 0
"""Number of a word or character that training rows did not have, or had too rarely."""

BETWEEN = "[SEP]"
"""Stands between the words of two texts."""

SHAPES = ("special", "lower", "Title", "UPPER", "miXed", "with 4 digits", "other")
"""What a piece's number in ``"shapes"`` says about how its word is written."""


def words_of(series: pl.Series, split: str = "spaces") -> list[list[str]]:
    """The words of every text: those of a list column, or text that is split.

    Args:
        series: The texts.
        split: ``"spaces"``, or ``"characters"`` makes each character but spaces a word.

    Raises:
        DataError: if a text is missing or the column holds something else.

    Example:
        >>> words_of(pl.Series("s", ["fly to Boston", ""]))
        [['fly', 'to', 'Boston'], []]
        >>> words_of(pl.Series("s", ["走 吧"]), "characters")
        [['走', '吧']]
    """
    inner = series.dtype.inner if isinstance(series.dtype, pl.List | pl.Array) else series.dtype
    if inner not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"Column '{series.name}' holds {series.dtype}; a text column holds text or lists of words.")
    absent = series.is_null().arg_true()
    if len(absent):
        raise _no_text(series, dict.fromkeys(absent.to_list(), "there is no text"))
    if isinstance(series.dtype, pl.List | pl.Array):
        rows = series.to_list()
        broken = [at for at, row in enumerate(rows) if any(word is None or not word.strip() for word in row)]
        if broken:
            raise _no_text(series, dict.fromkeys(broken, "a word of the list is missing or empty"))
        return rows
    texts = [text.split() for text in series.cast(pl.String).to_list()]
    return [list("".join(parts)) for parts in texts] if split == "characters" else texts


def _no_text(series: pl.Series, rows: Mapping[int, str]) -> RowError:
    first = min(rows)
    return RowError(
        f"Record {first + 1}, column '{series.name}': {rows[first]}. Leave such rows out, or have them skipped: data: "
        "{on_bad: skip}.",
        {at: f"column '{series.name}': {what}" for at, what in rows.items()},
    )


def fit_words(
    series: Sequence[pl.Series], *, min_count: int, lowercase: bool, longest_word: int, split: str = "spaces"
) -> TextColumn:
    """The vocabulary of training texts.

    Args:
        series: Training texts; two columns for pairs.
        min_count: Rarer words share the number of unseen ones.
        lowercase: Whether case is left to the characters.
        longest_word: Characters of a word that are read.
        split: Where text is cut into words, see ``words_of``.

    Raises:
        DataError: if no text has a word.

    Example:
        >>> fit_words([pl.Series("s", ["To Rome", "to"])], min_count=2, lowercase=True, longest_word=20).words
        ('to',)
    """
    rows = _joined([words_of(column, split) for column in series])
    counts = Counter(word.lower() if lowercase else word for row in rows for word in row)
    if not counts:
        raise DataError(f"Column '{series[0].name}' has no word in the training rows. Leave it out of the inputs.")
    characters = Counter(letter for row in rows for word in row for letter in word)
    return TextColumn(
        series[0].name,
        words=tuple(sorted(word for word, count in counts.items() if count >= min_count)),
        characters=tuple(sorted(letter for letter, count in characters.items() if count >= min_count)),
        split=split,
        lowercase=lowercase,
        longest_word=longest_word,
    )


def _joined(texts: Sequence[list[list[str]]]) -> list[list[str]]:
    """The words of each row: those of its text, or of two with a word between them that no text has."""
    if len(texts) == 1:
        return texts[0]
    return [[*first, BETWEEN, *second] for first, second in zip(*texts, strict=True)]


def encode_text(series: Sequence[pl.Series], column: TextColumn) -> dict[str, Tensor]:
    """The inputs of texts; -1 is padding.

    Args:
        series: Texts; two columns for pairs.
        column: What training fixed.

    Returns:
        ``"tokens"`` int64 ``[rows, tokens]`` and ``"words"`` int64 ``[rows, words]``: for each word the place of its
        first token. With a vocabulary of words, a token is a word, and ``"characters"`` int16 ``[rows, words, c]``
        has its characters. With a pretrained model's tokenizer, ``"shapes"`` int64 ``[rows, tokens]`` says how each
        token's word is written, and of pairs ``"segments"`` int64 ``[rows, tokens]`` to which text it belongs. A word
        that a too long text has lost has the place 0, as if it were all of the text.

    Raises:
        DataError: if a text is missing.

    Warns:
        UserWarning: if texts are longer than the model reads, with their number.

    Example:
        >>> column = TextColumn("s", words=("rome", "to"), characters=("o", "t"), lowercase=True, longest_word=4)
        >>> found = encode_text([pl.Series("s", ["To Oslo", "to"])], column)
        >>> found["tokens"], found["words"]
        (tensor([[ 2,  0],
                [ 2, -1]]), tensor([[ 0,  1],
                [ 0, -1]]))
    """
    texts = [words_of(one, column.split) for one in series]
    return _pieces(texts, column) if column.tokenizer else _whole_words(_joined(texts), column)


def _whole_words(rows: Sequence[Sequence[str]], column: TextColumn) -> dict[str, Tensor]:
    numbers = {word: at for at, word in enumerate(column.words, start=UNSEEN + 1)}
    flat = [word for row in rows for word in row]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.array([numbers.get(w.lower() if column.lowercase else w, UNSEEN) for w in flat], dtype=np.int64)
    letters = {letter: at for at, letter in enumerate(column.characters, start=UNSEEN + 1)}
    # Words come again and again: each is spelled once.
    different = {word: at for at, word in enumerate(dict.fromkeys(flat))}
    longest = min(column.longest_word, max(map(len, different), default=1))
    spelled = np.full((len(different), longest), -1, dtype=np.int16)
    for word, at in different.items():
        codes = [letters.get(letter, UNSEEN) for letter in word[:longest]]
        spelled[at, : len(codes)] = codes
    which = np.array([different[word] for word in flat], dtype=np.int64)
    places = np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else lengths
    return {
        "tokens": torch.from_numpy(_padded(tokens, lengths)),
        "words": torch.from_numpy(_padded(places, lengths)),
        "characters": torch.from_numpy(_padded(spelled[which], lengths)),
    }


def _padded(flat: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of different lengths, one after the other, as one array padded with -1."""
    width = max(1, int(lengths.max(initial=1)))
    whole = np.full((len(lengths), width, *flat.shape[1:]), -1, dtype=flat.dtype)
    whole[np.arange(width) < lengths[:, None]] = flat
    return whole


@functools.lru_cache(maxsize=8)
def _tokenizer(definition: str, longest: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("Pretrained text models need the extra 'hub': pip install 'polytask[hub]'.") from None
    made = Tokenizer.from_str(definition)
    made.no_padding()
    made.enable_truncation(max_length=longest)
    return made


def _pieces(texts: Sequence[list[list[str]]], column: TextColumn) -> dict[str, Tensor]:
    assert column.tokenizer is not None
    made = _tokenizer(column.tokenizer, column.longest)
    ragged, cut = cached(texts, column.tokenizer, column.longest, lambda: _cut(texts, made))
    if cut:
        warnings.warn(
            f"Column '{column.name}': {cut:,} of {len(texts[0]):,} texts have more than {column.longest} tokens; what "
            "lies beyond is not read. Set longest: ... of the column to read more.",
            stacklevel=2,
        )
    return {key: torch.from_numpy(_padded(flat, lengths)) for key, (flat, lengths) in ragged.items()}


def _cut(texts: Sequence[list[list[str]]], tokenizer: Any) -> tuple[Ragged, int]:
    """The tokens of texts and what belongs to them, on all cores; and how many texts are too long to be read whole."""
    plain = [[" ".join(row) for row in rows] for rows in texts]
    found = tokenizer.encode_batch(plain[0] if len(plain) == 1 else list(zip(*plain, strict=True)))
    parts = [_aligned(row, encoding) for row, encoding in zip(zip(*texts, strict=True), found, strict=True)]
    ragged = {}
    for at, key in enumerate(("tokens", "words", "shapes", "segments")[: None if len(texts) > 1 else 3]):
        flat = [part[at] for part in parts]
        lengths = np.array([len(values) for values in flat], dtype=np.int64)
        ragged[key] = np.concatenate(flat) if flat else lengths, lengths
    return ragged, sum(bool(encoding.overflowing) for encoding in found)


def _aligned(texts: Sequence[Sequence[str]], encoding: Any) -> tuple[NDArray[np.int64], ...]:
    """A row's tokens, the place of each word's first one, and for each token the shape of its word and its text."""
    tokens = np.array(encoding.ids or [UNSEEN], dtype=np.int64)
    bounds = np.array(encoding.offsets or [(0, 0)], dtype=np.int64)
    owners = np.array([-1 if text is None else text for text in encoding.sequence_ids or [None]], dtype=np.int64)
    shapes, every_place = np.zeros(len(tokens), dtype=np.int64), []
    for number, words in enumerate(texts):
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        starts = np.cumsum(lengths + 1) - lengths - 1
        # A token belongs to the word of its last character: some tokenizers count a space before it as its first.
        real = np.nonzero((owners == number) & (bounds[:, 1] > bounds[:, 0]))[0]
        owner = np.searchsorted(starts, bounds[real, 1] - 1, side="right") - 1
        places = np.zeros(len(words), dtype=np.int64)
        places[owner[::-1]] = real[::-1]
        shapes[real] = np.array([word_shape(word) for word in words], dtype=np.int64)[owner]
        every_place.append(places)
    return tokens, np.concatenate(every_place), shapes, np.array(encoding.type_ids or [0], dtype=np.int64)


@functools.lru_cache(maxsize=65_536)
def word_shape(word: str) -> int:
    """How a word is written, as a place in ``SHAPES``.

    Example:
        >>> [SHAPES[word_shape(word)] for word in ("to", "Rome", "UN", "eBay", "1990s", "-")]
        ['lower', 'Title', 'UPPER', 'miXed', 'with 4 digits', 'other']
    """
    tests: Mapping[str, bool] = {
        "with 4 digits": any(letter.isdigit() for letter in word),
        "lower": word.islower(),
        "Title": word[:1].isupper() and (len(word) == 1 or word[1:].islower()),
        "UPPER": word.isupper(),
        "miXed": any(letter.isupper() for letter in word),
    }
    return SHAPES.index(next((name for name, fits in tests.items() if fits), "other"))
