"""The folder of a comparison: what it compares, and every result so far."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polytask.analysis.claims import CLAIMS, LOCK, Claims
from polytask.analysis.jobs import write_json
from polytask.analysis.methods import Method
from polytask.analysis.plan import FORMAT, Plan, Work, file_name, filled, flat
from polytask.errors import RecipeError, listed
from polytask.files import remove_unfinished

PLAN = "comparison.json"
OPENINGS = "openings.json"
ROWS = "rows"
OF_PROCESSES = (LOCK, CLAIMS, ROWS)
"""What lies in a folder before it is known what is compared there."""


@dataclass(frozen=True)
class Folder:
    """Where a comparison's files lie.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def rows(self) -> Path:
        """Where the encoded rows lie while workers need them."""
        return self.path / ROWS

    def store(self, method: Method) -> Path:
        """Optuna's store of a method's search; one a method, so that no two processes ever write to one at a time."""
        return self.path / "searches" / f"{search_name(method)}.sqlite3"

    def search_result(self, method: Method) -> Path:
        """File of what a method's search tried, when it is over."""
        return self.path / "searches" / f"{search_name(method)}.json"

    def result(self, work: Work) -> Path:
        """File of what a training gave."""
        return self.path / "results" / f"{work.key}.json"

    def test_result(self, work: Work) -> Path:
        """File of the scores on the test rows."""
        return self.path / "results" / f"{work.key}.test.json"

    def weights(self, work: Work) -> Path:
        """File of trained weights."""
        return self.path / "weights" / f"{work.key}.safetensors"

    @property
    def openings(self) -> list[list[str]]:
        """Keys of the trainings that were scored each time the test rows were opened."""
        path = self.path / OPENINGS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def note_opening(self, final: Sequence[Work]) -> None:
        """Write down that the test rows are opened for those trainings that were not scored before."""
        known = self.openings
        if not known:
            # Of a folder in which this was not written down yet.
            scored = [work.key for work in final if self.test_result(work).exists()]
            known = [scored] if scored else []
        new = [work.key for work in final if not any(work.key in keys for keys in known)]
        if new:
            write_json(self.path / OPENINGS, [*known, new])

    def plan(self) -> Plan | None:
        """What was compared here so far, or None.

        Raises:
            RecipeError: if the folder holds something else.
        """
        if not (self.path / PLAN).exists():
            if self.path.exists() and any(entry.name not in OF_PROCESSES for entry in self.path.iterdir()):
                raise RecipeError(f"'{self.path}' exists and holds no comparison. Choose another --out.")
            return None
        plain = json.loads((self.path / PLAN).read_text(encoding="utf-8"))
        if plain["format"] > FORMAT:
            raise RecipeError(f"'{self.path}' has format {plain['format']}; this polytask reads up to {FORMAT}.")
        return Plan.from_dict(plain)

    def settle(self, wanted: Plan) -> Plan:
        """Write down what is compared: what was wanted before, and what is new.

        Raises:
            RecipeError: if the folder is of another recipe, other data or another budget.
        """
        before = self.plan()
        if before is not None:
            _require_same(self.path, before, wanted)
            known = {method.name: method for method in before.methods} | {m.name: m for m in wanted.methods}
            methods = sorted(known.values(), key=lambda method: not method.is_baseline)
            seeds = sorted({*before.seeds, *wanted.seeds})
            wanted = replace(wanted, methods=tuple(methods), seeds=tuple(seeds))
        write_json(self.path / PLAN, wanted.to_dict())
        return wanted

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, and leave no rows behind.

        Raises:
            RecipeError: if another process works in the folder.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RecipeError(
                f"Another process works in '{self.path}'. Wait for it, or choose another --out."
            ) from None
        try:
            remove_unfinished(self.path)
            yield
        finally:
            shutil.rmtree(self.rows, ignore_errors=True)
            lock.release()

    @contextlib.contextmanager
    def shared(self) -> Iterator[Claims]:
        """Work here beside other processes, and leave nothing of this one but results behind."""
        with Claims(self.path) as claims:
            try:
                with claims.locked():
                    if not claims.owners():
                        remove_unfinished(self.path)
                        shutil.rmtree(self.rows, ignore_errors=True)
                yield claims
            finally:
                shutil.rmtree(self.rows / claims.owner, ignore_errors=True)
                # The last one to leave, or the rows of a process that was killed while this one worked.
                with claims.locked():
                    if not claims.owners():
                        shutil.rmtree(self.rows, ignore_errors=True)


def search_name(method: Method) -> str:
    """A name for files about a method's search."""
    return file_name(method, "search", method.to_dict())


def _require_same(path: Path, before: Plan, wanted: Plan) -> None:
    elsewhere = "Choose another --out, or use the recipe that this folder is of."
    old, new = flat(filled(before.recipe, path)), flat(wanted.recipe)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        told = [f"{key} was {old.get(key, 'not set')!r} and is {new.get(key, 'not set')!r}" for key in changed]
        raise RecipeError(f"'{path}' compares another recipe: {listed(told, 5)}. {elsewhere}")
    if before.data != wanted.data:
        raise RecipeError(f"'{path}' compares the same recipe on other rows: the data have changed. {elsewhere}")
    if before.budget != wanted.budget:
        raise RecipeError(
            f"'{path}' has the budget {before.budget}, not {wanted.budget}; methods with unequal budgets cannot be "
            "compared. Leave --budget out, or choose another --out."
        )
