"""From a recipe to a finished run."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polytask.api.results import Context, finish
from polytask.api.rundir import RunDirectory
from polytask.recipes.build import Built, build
from polytask.recipes.load import dump_recipe, load_recipe
from polytask.recipes.schema import Recipe
from polytask.reporting import ColumnRecord
from polytask.training.callbacks import Callback
from polytask.training.fit import Run, seeded, train
from polytask.training.runtime import Runtime
from polytask.training.state import CHECKPOINT


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Train what a recipe describes, as ``polytask fit`` does.

    Args:
        recipe: A YAML file, plain data, or a Recipe.
        overrides: Such as ``["training.epochs=3"]``.
        out: Folder of the run, which must not exist; ``runs/NAME-NUMBER`` if left out.
        progress: Whether to show the live display.

    Returns:
        The run; ``.path`` holds metrics.json, report.html and the bundle.

    Raises:
        RecipeError: for a recipe that cannot be used, or an ``out`` that exists.
        DataError: for data that cannot be used.
    """
    loaded = load_recipe(recipe, overrides)
    runtime = Runtime(loaded.training.device, str(loaded.training.precision))
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    if out is not None:
        RunDirectory.require_new(out)
    # Data that cannot be used leave no folder behind.
    with seeded(loaded.training.seed):
        built = build(loaded)
    path = None
    if runtime.is_main:
        made = RunDirectory.create(out) if out is not None else RunDirectory.next_free(name)
        # With what was inferred filled in, a resume reads the columns in the same way.
        made.write_start(dump_recipe(built.recipe), loaded.training.seed, _command(recipe, overrides))
        path = made.path
    directory = RunDirectory(runtime.gather(path)[0])
    return _train(directory, built, name, resume=False, progress=progress)


def resume_run(path: str | Path, *, progress: bool = True) -> Run:
    """Go on with a run that was interrupted or killed, as ``polytask fit --resume`` does.

    Args:
        path: Folder of the run.
        progress: Whether to show the live display.

    Raises:
        RecipeError: if there is no run, or it was started from Python.
    """
    directory = RunDirectory.open(path)
    recipe = directory.recipe()
    with seeded(recipe.training.seed):
        built = build(recipe)
    started = (directory.path / CHECKPOINT).exists()
    return _train(directory, built, directory.path.name, resume=started, progress=progress)


def _command(recipe: Any, overrides: Sequence[str]) -> str:
    if not isinstance(recipe, str | Path):
        return "polytask.run(recipe)"
    changes = [part for change in overrides for part in ("--set", change)]
    return shlex.join(["polytask", "fit", str(recipe), *changes])


def _train(directory: RunDirectory, built: Built, name: str, *, resume: bool, progress: bool) -> Run:
    recipe = built.recipe
    with display(progress) as callbacks:
        for note in built.notes if progress else ():
            callbacks[0].message(note)
        done = train(
            built.model,
            built.sources["train"],
            built.sources["validation"],
            balancer=recipe.balancer,
            settings=recipe.training,
            index=built.index,
            callbacks=[*callbacks, SaysHowToResume(directory.path)],
            path=directory.path,
            resume=resume,
        )
    context = Context(
        title=recipe.report.title or name,
        recipe=dump_recipe(recipe),
        sources=built.sources,
        schema=built.schema,
        columns=tuple(ColumnRecord(**asdict(column)) for column in built.columns),
        notes=built.notes,
        skipped=built.skipped,
        reference=recipe.report.reference,
        index=built.index,
        decision=built.decision,
    )
    scores = finish(directory, done, recipe.training, context)
    return replace(done, scores=scores.get("validation"))


class SaysHowToResume(Callback):
    """Prints the command that goes on, after Ctrl-C."""

    def __init__(self, path: Path):
        self._path = path

    def on_interrupt(self, loop: Any) -> None:
        """Print it on the main process."""
        if loop.runtime.is_main:
            print(f"\nStopped at step {loop.step}. Go on with: polytask fit --resume {self._path}", file=sys.stderr)


@contextlib.contextmanager
def display(progress: bool) -> Any:
    """The live display as a list of callbacks, empty without progress; it is closed on the way out."""
    if not progress:
        yield []
        return
    from polytask.training.progress import Progress

    shown = Progress()
    try:
        yield [shown]
    finally:
        shown.close()
