"""Shapes: scenes of garments and emoji with boxes, masks and the classes that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.datasets import multi_fashion
from polytask.data.fetch import Archive, fetch
from polytask.data.scenes import Bytes, Things, scenes
from polytask.errors import DataError, MissingExtraError

GARMENTS: Mapping[str, tuple[str, ...]] = {
    "top": ("T-shirt/top", "pullover", "coat", "shirt"),
    "trouser": ("trouser",),
    "dress": ("dress",),
    "shoe": ("sandal", "sneaker", "ankle boot"),
    "bag": ("bag",),
}
"""Classes made of Fashion-MNIST's."""
EMOJI: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "face": ("Smileys & Emotion", ("face-", "cat-face", "monkey-face")),
    "animal": ("Animals & Nature", ("animal-",)),
    "food": ("Food & Drink", ("food-",)),
}
"""Classes made of Unicode's groups, and beginnings of their subgroups."""
CLASSES = (*GARMENTS, *EMOJI)
ROWS = {"train": 4_000, "validation": 500, "test": 1_000}
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Shares of the emoji that each part is composed from."""

FONT = Archive(
    package="fonts-noto-color-emoji",
    version="2.042-0+deb12u1",
    sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    wheel=False,
    members={"NotoColorEmoji.ttf": "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"},
    terms="Noto Color Emoji, Copyright Google, SIL Open Font License 1.1.",
    tool="apt-get",
)
NAMES = Archive(
    package="unicode-data",
    version="15.0.0-1",
    sha256="5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
    wheel=False,
    members={"emoji-test.txt": "usr/share/unicode/emoji/emoji-test.txt"},
    terms="Unicode Data Files, Copyright Unicode, Inc., Unicode License.",
    tool="apt-get",
)

RECIPE: dict[str, Any] = {"inputs": {"image": "image"}}
"""What a recipe need not say: the scene is the input, all other columns are targets."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Compose scenes of 64 x 64 pixels from Fashion-MNIST's garments and Noto's emoji, fetched at the first call.

    See ``polytask.data.scenes.scenes`` for how. Garments are tinted at random; of the emoji only those of a single
    code point are used. No picture is in scenes of two parts: garments of the training set's last 6,000 pictures make
    the validation scenes, those of the test set the test scenes, and emoji are divided 70 : 10 : 20 by chance. The
    scenes are the same for everybody with the same version of Pillow.

    Args:
        root: A folder with the four ``*-ubyte.gz`` files of Fashion-MNIST, ``NotoColorEmoji.ttf`` and
            ``emoji-test.txt``.

    Returns:
        ``"train"`` (4,000 rows), ``"validation"`` (500) and ``"test"`` (1,000), with the columns ``image``, ``boxes``,
        ``parts``, ``shown`` and ``things``.

    Raises:
        DataError: if the data cannot be fetched, or a file in ``root`` is not what it should be.
        MissingExtraError: if Pillow is not installed.
    """
    fashion = fetch("multi_fashion", multi_fashion.ARCHIVE, root)
    font = fetch("noto_color_emoji", FONT, root)["NotoColorEmoji.ttf"]
    names = fetch("unicode_emoji", NAMES, root)["emoji-test.txt"]
    garments = _garments(fashion)
    emoji = _divided(read_emoji(names))
    return {
        part: scenes([*_clothes(*garments[part]), *_symbols(font, emoji[part])], rows, seed)
        for seed, (part, rows) in enumerate(ROWS.items())
    }


def _garments(files: Mapping[str, Path]) -> dict[str, tuple[Bytes, Bytes]]:
    read = {
        part: (
            multi_fashion.read_idx(files[f"{part}-images-idx3-ubyte.gz"], (count, 28, 28)),
            multi_fashion.read_idx(files[f"{part}-labels-idx1-ubyte.gz"], (count,)),
        )
        for part, count in multi_fashion.COUNTS.items()
    }
    pictures, labels = read["train"]
    last = len(labels) - multi_fashion.VALIDATION
    return {
        "train": (pictures[:last], labels[:last]),
        "validation": (pictures[last:], labels[last:]),
        "test": read["t10k"],
    }


def _clothes(pictures: Bytes, labels: Bytes) -> list[Things]:
    found = []
    for name, kinds in GARMENTS.items():
        numbers = np.flatnonzero(np.isin(labels, [multi_fashion.CLASSES.index(kind) for kind in kinds]))

        def cutout(number: int, generator: np.random.Generator, of: NDArray[Any] = numbers) -> Bytes:
            grey = pictures[of[number]]
            tint = generator.uniform(0.35, 1.0, 3)
            # The ground of these pictures is black; dark cloth keeps a soft edge.
            solid = np.minimum(4 * grey.astype(np.int64), 255)
            coloured = (90 + 165 * (grey[..., None] / 255)) * tint
            return np.dstack([coloured, solid]).astype(np.uint8)

        found.append(Things(name, len(numbers), cutout))
    return found


def _symbols(font: Path, emoji: Mapping[str, Sequence[str]]) -> list[Things]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        text = "Emoji are drawn with the package Pillow. Install it with: pip install 'polytask[vision]'"
        raise MissingExtraError(text) from error
    # The bitmaps in the font have this one size.
    face = ImageFont.truetype(str(font), 109)

    def drawn(symbol: str) -> Bytes:
        image = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(image).text((0, 0), symbol, font=face, embedded_color=True)
        pixels = np.asarray(image)
        if not (pixels[..., 3] > 127).any():
            raise DataError(f"'{font}' has no picture of '{symbol}'. It is not the font that was checked.")
        return pixels

    found = []
    for name, symbols in emoji.items():
        pictures = [drawn(symbol) for symbol in symbols]
        found.append(Things(name, len(pictures), lambda number, _, of=pictures: of[number]))  # type: ignore[misc]
    return found


def read_emoji(path: Path) -> dict[str, list[str]]:
    """The emoji of a single code point by class, in the file's order.

    Args:
        path: Unicode's ``emoji-test.txt``.

    Raises:
        DataError: if a class has none: it is another file.
    """
    group = subgroup = ""
    found: dict[str, list[str]] = {name: [] for name in EMOJI}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            # A variation selector (FE0F) asks for the coloured picture.
            points = [point for point in line.partition(";")[0].split() if point != "FE0F"]
            for name, (wanted, beginnings) in EMOJI.items():
                if len(points) == 1 and group == wanted and subgroup.startswith(beginnings):
                    found[name].append(chr(int(points[0], 16)))
    for name, symbols in found.items():
        if not symbols:
            raise DataError(f"'{path}' has no emoji for '{name}'; it is not Unicode's emoji-test.txt.")
    return found


def _divided(emoji: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Emoji by part and class, each in one part only."""
    generator = np.random.default_rng(0)
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in SHARES}
    ends = np.cumsum(list(SHARES.values()))
    for name, symbols in emoji.items():
        order = generator.permutation(len(symbols))
        cuts = [0, *(round(float(end) * len(symbols)) for end in ends)]
        for part, start, stop in zip(SHARES, cuts, cuts[1:], strict=False):
            parts[part][name] = [symbols[at] for at in order[start:stop]]
    return parts
