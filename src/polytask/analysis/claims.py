"""Who does which piece of work, where several processes share a folder, on one machine or on more."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from polytask.errors import RecipeError

LOCK = "lock"
CLAIMS = "claims"
BEAT = 10.0
"""Seconds between two signs of life."""
STALE = 120.0
"""Seconds without a sign of life after which a process of another machine counts as gone."""
PATIENCE = 60.0
"""Seconds to wait for another process that writes down what it found."""


class Claims:
    """One process among those that work in a folder.

    A claim is a file that names its owner. It holds as long as the owner lives, and every owner shows that it lives
    in two ways. It holds a lock, which the system takes from it when it ends; processes of the same machine look at
    that. And it counts up in a file; processes of other machines watch whether the count still moves, by their own
    clocks, so that no two clocks have to agree. What a process that is gone had claimed may be taken over.

    Claims save work and decide nothing else: two processes that did the same work would leave the same files.

    Args:
        folder: The folder that is shared.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Claims(folder) as mine, Claims(folder) as yours:
        ...     mine.take("a"), yours.take("a"), yours.take("b"), mine.owners() == {yours.owner}
        (True, False, True, True)
    """

    def __init__(self, folder: Path):
        self.owner = f"{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._folder, self._claims = folder, folder / CLAIMS
        self._seen: dict[str, tuple[str, float]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Claims:
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        self._life = FileLock(self._file(self.owner, "life"))
        with self.locked():
            # Here, since the last one to leave removes it.
            self._claims.mkdir(exist_ok=True)
            self._life.acquire()
            self._file(self.owner, "beat").write_text("0", encoding="utf-8")
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._heart.join()
        with self.locked():
            self._life.release()
            self._forget(self.owner)
            if not self.owners():
                shutil.rmtree(self._claims, ignore_errors=True)
            for claim in self._claims.glob("*.claim"):
                if _text(claim) == self.owner:
                    claim.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from writing down what concerns everybody; short, and not to be nested.

        Raises:
            RecipeError: if another process keeps the lock for a minute.
        """
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._folder / LOCK, timeout=PATIENCE):
                yield
        except Timeout:
            raise RecipeError(
                f"Another process holds '{self._folder / LOCK}' and does not let go. Wait for it, or choose another "
                "--out."
            ) from None

    def take(self, work: str) -> bool:
        """Claim a piece of work; False if somebody else has it."""
        claim = self._file(work, "claim")
        with self.locked():
            owner = _text(claim)
            if owner and owner != self.owner and self.lives(owner):
                return False
            # Others may have taken this process for gone and tidied up, if its machine slept.
            claim.parent.mkdir(exist_ok=True)
            claim.write_text(self.owner, encoding="utf-8")
        return True

    def drop(self, work: str) -> None:
        """Give a claim back."""
        self._file(work, "claim").unlink(missing_ok=True)

    def owners(self) -> set[str]:
        """The other processes that are at work here, as far as can be seen; what is left of dead ones is removed."""
        found = set()
        for beat in self._claims.glob("*.beat"):
            owner = beat.name.removesuffix(".beat")
            if owner != self.owner and self.lives(owner):
                found.add(owner)
            elif owner != self.owner:
                self._forget(owner)
        return found

    def lives(self, owner: str) -> bool:
        """Whether a process is still there, as far as can be seen."""
        from filelock import FileLock, Timeout

        if owner.rsplit(".", 2)[0] == self.owner.rsplit(".", 2)[0]:
            life = self._file(owner, "life")
            try:
                with FileLock(life, timeout=0) if life.exists() else contextlib.nullcontext():
                    return False
            except Timeout:
                return True
        count, now = _text(self._file(owner, "beat")), time.monotonic()
        before, since = self._seen.setdefault(owner, (count, now))
        if count != before:
            self._seen[owner] = (count, now)
            return True
        return now - since < STALE

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT):
            count += 1
            # A file system that is away for a moment is no reason to end.
            with contextlib.suppress(OSError):
                self._file(self.owner, "beat").write_text(str(count), encoding="utf-8")

    def _forget(self, owner: str) -> None:
        for kind in ("beat", "life"):
            self._file(owner, kind).unlink(missing_ok=True)

    def _file(self, name: str, kind: str) -> Path:
        return self._claims / f"{name}.{kind}"


def _machine() -> str:
    """A name of this machine that its processes agree on."""
    address = uuid.getnode()
    # Python makes one up, another one in each process, where it finds none; then this bit is set.
    known = not address >> 40 & 1
    return re.sub(r"\W+", "-", f"{platform.node()}-{address:x}" if known else platform.node()) or "machine"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
