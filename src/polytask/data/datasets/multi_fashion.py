"""Multi-Fashion: two garments of Fashion-MNIST in one picture, and a task for each of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.data.fetch import Archive, fetch
from polytask.data.overlay import overlaid
from polytask.errors import DataError

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
VALIDATION = 6_000
"""How many of the training pictures, the last ones, are for validation."""
COUNTS = {"train": 60_000, "t10k": 10_000}

ARCHIVE = Archive(
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    wheel=False,
    members={
        name: f"usr/share/datasets/fashion-mnist/{name}"
        for part in COUNTS
        for name in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
    },
    terms="Fashion-MNIST, Copyright 2017 Zalando SE, MIT licence: keep the notice with copies. Name the source.",
    tool="apt-get",
)

RECIPE: dict[str, Any] = {"inputs": {"image": "image"}}
"""What a recipe need not say: the picture is the input, ``left`` and ``right`` are targets."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load Fashion-MNIST, fetching it at the first call, and lay its pictures over each other in pairs.

    One garment is at the top left and one at the bottom right of 36 x 36 pixels; see
    ``polytask.data.overlay.overlaid``. The last 6,000 training pictures make the validation rows. No picture is in
    two parts.

    Args:
        root: A folder with the four ``*-ubyte.gz`` files of Fashion-MNIST.

    Returns:
        ``"train"`` (54,000 rows), ``"validation"`` (6,000) and ``"test"`` (10,000), with the columns ``image``,
        ``left`` and ``right``.

    Raises:
        DataError: if the data cannot be fetched, or a file in ``root`` is none of Fashion-MNIST's.

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms" (2017). Overlaid pairs as multi-task data: Lin et al., "Pareto Multi-Task Learning"
        (NeurIPS 2019), section 5.
    """
    files = fetch("multi_fashion", ARCHIVE, root)
    read = {}
    for part, count in COUNTS.items():
        pictures = read_idx(files[f"{part}-images-idx3-ubyte.gz"], (count, 28, 28))
        read[part] = pictures, read_idx(files[f"{part}-labels-idx1-ubyte.gz"], (count,))
    (pictures, labels), (tested, answers) = read["train"], read["t10k"]
    return {
        "train": overlaid(pictures[:-VALIDATION], labels[:-VALIDATION], CLASSES, seed=0),
        "validation": overlaid(pictures[-VALIDATION:], labels[-VALIDATION:], CLASSES, seed=1),
        "test": overlaid(tested, answers, CLASSES, seed=2),
    }


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of a compressed IDX file.

    Args:
        path: The file.
        shape: What it has to hold.

    Raises:
        DataError: if it holds something else.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"'{path}' is not a whole gzip file: {error}.") from None
    # Two zeros, the type (8 is unsigned bytes), the number of dimensions, and each one's size.
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    if raw[: len(head)] != head or len(raw) != len(head) + int(np.prod(shape)):
        raise DataError(f"'{path}' is no IDX file of {' x '.join(map(str, shape))} bytes, as Fashion-MNIST has.")
    return np.frombuffer(raw, dtype=np.uint8, offset=len(head)).reshape(shape)
