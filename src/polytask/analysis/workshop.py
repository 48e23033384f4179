"""Where several trainings of one recipe are done: its folder, its rows, its workers, and the results so far."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.analysis.folder import Folder
from polytask.analysis.jobs import Result, write_json
from polytask.analysis.plan import filled, flat, identity
from polytask.analysis.pool import Job, Pool, cores
from polytask.analysis.rows import digest, write_rows
from polytask.errors import RecipeError, TrainingError, listed
from polytask.recipes.build import Built, build
from polytask.recipes.load import dump_recipe
from polytask.recipes.schema import Recipe
from polytask.training.fit import seeded

Say = Callable[[str], None]
FORMAT = 1


@dataclass(frozen=True)
class Workshop:
    """A recipe with workers that have its rows.

    Args:
        folder: Where files go.
        built: What the recipe stands for.
        base: The resolved recipe as plain data.
        data: Fingerprint of the encoded rows.
        pool: The workers; training and validation rows are their context.
        say: Gets a sentence about what goes on.
    """

    folder: Folder
    built: Built
    base: Mapping[str, Any]
    data: str
    pool: Pool
    say: Say

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.built.model.tasks)

    def file(self, name: str) -> Path:
        """Where a result lies."""
        return self.folder.path / "results" / f"{name}.json"

    def done(self, jobs: Sequence[Job]) -> dict[str, Result]:
        """Results by key; of an earlier sitting where they are there, else from the workers.

        Every job's function gets ``result``, the file that it has to leave.

        Raises:
            TrainingError: if a job failed; the results of the others are kept.
        """
        missing = [job for job in jobs if not self.file(job.key).exists()]
        if missing and len(missing) < len(jobs):
            self.say(f"{len(jobs) - len(missing)} of {len(jobs)} trainings are there already.")
        count, failed = 0, []
        for job in missing:
            self.pool.submit(Job(job.key, job.function, {**job.arguments, "result": str(self.file(job.key))}))
        while self.pool.unfinished:
            outcome = self.pool.wait()
            count += 1
            if outcome.error is not None:
                failed.append(f"'{outcome.job.key}' failed: {outcome.kind}: {outcome.error}")
            self.say(f"{count} of {len(missing)}: {outcome.job.key}")
        if failed:
            raise TrainingError(f"{listed(failed, 3)} The other results are kept in '{self.folder.path}'.")
        return {job.key: json.loads(self.file(job.key).read_text(encoding="utf-8")) for job in jobs}

    def open_test_rows(self) -> bool:
        """Let the workers read the test rows from now on; False if there are none."""
        if not self.built.sources["test"]:
            return False
        write_rows(self.built, self.folder.rows, ("test",))
        return True


@contextlib.contextmanager
def workshop(
    recipe: Recipe, out: Path, kind: str, *, jobs: int | None, say: Say | None, facts: Mapping[str, Any] | None = None
) -> Iterator[Workshop]:
    """Start workers, read a recipe's rows for them, and open its folder.

    Args:
        recipe: The recipe.
        out: The folder; one of an earlier sitting goes on.
        kind: What is done there, such as ``"affinity"``.
        jobs: Worker processes; one a core if left out.
        say: Gets a sentence about what goes on.
        facts: What else the results depend on; plain data.

    Raises:
        RecipeError: if the folder is of something else, or the recipe has no validation rows.
        DataError: for data that cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(f"{kind} starts its own processes. Run it once, without torchrun.")
    if jobs is not None and jobs < 1:
        raise RecipeError(f"jobs is {jobs}; at least one worker is needed.")
    folder = Folder(out)
    _require_kind(out, kind)
    workers = jobs if jobs is not None else cores()
    context = {"folder": str(folder.rows)}
    with (
        folder.held(),
        Pool(workers, context="polytask.analysis.rows:open_rows", context_arguments=context, on_event=say) as pool,
    ):
        # The workers start up while the data are read.
        with seeded(recipe.training.seed):
            built = build(recipe)
        if not built.sources["validation"]:
            raise RecipeError(
                f"{kind} scores on validation rows; this recipe has none. Set data.split.validation: 0.1."
            )
        base = identity(dump_recipe(built.recipe))
        data = digest(built)
        _settle(out, kind, {"format": FORMAT, "recipe": base, "data": data, **(facts or {})})
        write_rows(built, folder.rows, ("train", "validation"))
        yield Workshop(folder, built, base, data, pool, say or (lambda text: None))


def _plan(out: Path, kind: str) -> Path:
    return out / f"{kind}.json"


def _require_kind(out: Path, kind: str) -> None:
    if out.exists() and not _plan(out, kind).exists() and any(entry.name != "lock" for entry in out.iterdir()):
        raise RecipeError(f"'{out}' exists and is no folder of polytask {kind}. Choose another --out.")


def _settle(out: Path, kind: str, wanted: Mapping[str, Any]) -> None:
    """Write down what the results are of, or check it."""
    path = _plan(out, kind)
    plain = json.loads(json.dumps(wanted))
    if not path.exists():
        write_json(path, plain)
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    before, now = flat({**written, "recipe": filled(written["recipe"], out)}), flat(plain)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed == ["data"]:
        raise RecipeError(f"'{out}' is of the same recipe on other rows: the data have changed. Choose another --out.")
    if changed:
        told = [f"{key} was {before.get(key, 'not set')!r} and is {now.get(key, 'not set')!r}" for key in changed]
        raise RecipeError(f"'{out}' is of another recipe: {listed(told, 5)}. Choose another --out.")
