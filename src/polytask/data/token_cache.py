"""Tokens of texts, kept on disk: the same texts under the same tokenizer are cut once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytask.data.fetch import cache_folder
from polytask.data.ragged import TEXT_KEYS
from polytask.files import replacing

Ragged = Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
"""By name the numbers of all rows, one row after the other, and how many each row has."""

LAYOUT = 1
"""Goes up when what is kept for the same texts changes."""
FROM = 1_000
"""Fewer texts are not worth a file."""
LIMIT = 1 << 30
"""Bytes that all files may take; those that were not read for the longest time go first."""

_COUNTS = ":counts"


def cached(
    texts: Sequence[Sequence[Sequence[str]]], tokenizer: str, longest: int, make: Callable[[], tuple[Ragged, int]]
) -> tuple[Ragged, int]:
    """What ``make`` makes of texts, from the cache if it has made that before.

    The file's name is a digest of everything that the result depends on, so a file is never out of date. A file that
    cannot be read, or that holds something else than it should, counts as none; so does a cache that cannot be written.

    Args:
        texts: For each column the words of every row.
        tokenizer: Its definition, as ``tokenizer.json`` has it.
        longest: Tokens of a text that are read.
        make: Cuts the texts: the numbers, and how many texts were too long.
    """
    if len(texts[0]) < FROM:
        return make()
    path = cache_folder() / "tokens" / f"{_digest(texts, tokenizer, longest)}.safetensors"
    found = _read(path, len(texts[0]))
    if found is None:
        found = make()
        with contextlib.suppress(OSError):
            _write(path, *found)
            _prune(path.parent)
    return found


def _digest(texts: Sequence[Sequence[Sequence[str]]], tokenizer: str, longest: int) -> str:
    digest = hashlib.sha256()
    # JSON says where words and texts end, whatever they hold.
    for part in ([LAYOUT, metadata.version("tokenizers"), longest, tokenizer], *texts):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _read(path: Path, rows: int) -> tuple[Ragged, int] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            cut = int(file.metadata()["cut"])
            held = {name: file.get_tensor(name).astype(np.int64) for name in file.keys()}  # noqa: SIM118
        os.utime(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    names = [name for name in held if not name.endswith(_COUNTS)]
    found = {name: (held[name], held.get(name + _COUNTS, held[name][:0])) for name in names}
    whole = all(len(counts) == rows and counts.sum() == len(flat) for flat, counts in found.values())
    return (found, cut) if whole and set(TEXT_KEYS) <= found.keys() else None


def _write(path: Path, ragged: Ragged, cut: int) -> None:
    from safetensors.numpy import save_file

    held: dict[str, NDArray[np.int32]] = {}
    for name, (flat, counts) in ragged.items():
        held |= {name: flat.astype(np.int32), name + _COUNTS: counts.astype(np.int32)}
    with replacing(path) as unfinished:
        save_file(held, unfinished, {"cut": str(cut)})


def _prune(folder: Path) -> None:
    known = [(path, path.stat()) for path in folder.glob("*.safetensors")]
    taken = sum(stat.st_size for _, stat in known)
    for path, stat in sorted(known, key=lambda entry: entry[1].st_mtime_ns):
        if taken <= LIMIT:
            return
        path.unlink(missing_ok=True)
        taken -= stat.st_size
