"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write a file or folder at; move it into place at the end.

    A reader sees the old thing or the new one, never a part. After an error the old one is untouched.

    Args:
        path: Where the thing goes.
        lasting: Whether a file has to outlast a power cut, which takes the time to bring it to the disk.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as unfinished:
        ...     _ = unfinished.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    _remove(unfinished)
    try:
        yield unfinished
        if unfinished.is_dir():
            _remove(path)
        elif lasting:
            # Without this, a power cut can leave an empty file under the final name.
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        _remove(unfinished)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half-written below ``folder``."""
    for path in folder.rglob(".*"):
        if path.name.rpartition(".")[2].isdigit():
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
