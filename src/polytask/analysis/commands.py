"""The commands over many runs of one recipe; thin, and what they need is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from polytask.errors import RecipeError


def _shared(out: str) -> Callable[[Any], Any]:
    """Options that all of these commands have."""

    def add(command: Any) -> Any:
        options = [
            click.argument("recipe", type=click.Path(path_type=Path)),
            click.option("--jobs", type=int, help="Worker processes; one a core if left out."),
            click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe."),
            click.option("--out", type=click.Path(path_type=Path), help=f"Folder; {out}/NAME if left out."),
            click.option("--quiet", is_flag=True, help="Say nothing until the end."),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _measured(command: Any) -> Any:
    """Options of the measurement of affinities."""
    options = [
        click.option("--seeds", type=int, default=3, show_default=True, help="How many seeds."),
        click.option("--epochs", type=int, help="Length of the trainings; the recipe's if left out."),
        click.option("--steps", type=int, help="The same in steps."),
        click.option("--looks", type=int, default=60, show_default=True, help="Steps looked at in a run."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _say(quiet: bool) -> Callable[[str], None] | None:
    return None if quiet else lambda text: click.echo(text, err=True)


def _finish(found: Any) -> None:
    click.echo(repr(found))
    click.echo(f"\nReport: {found.path / 'report.html'}")


@click.command()
@_shared("affinity")
@click.option("--kind", "kinds", default="tag,cosine,transfer", show_default=True, help="What to measure.")
@_measured
def affinity(recipe: Path, quiet: bool, **options: Any) -> None:
    """Measure what the tasks of RECIPE do for each other.

    \b
    Kinds: tag (what a step for one task does to another's loss), cosine (of gradients), transfer (trained in
    pairs against alone), backward (a task that is added later).

    \b
    Examples:
      polytask affinity recipes/census.yaml --kind tag,cosine --epochs 1
      polytask affinity recipes/census.yaml --kind tag,transfer,backward --steps 300 --seeds 5 --jobs 2
    """
    from polytask.analysis.affinity import affinity as measure

    _finish(measure(recipe, say=_say(quiet), **options))


@click.command()
@_shared("groups")
@click.option("--models", type=int, default=2, show_default=True, help="How many models.")
@click.option("--by", default="tag", show_default=True, help="Kind of affinity: tag, cosine, transfer or backward.")
@click.option("--parameters", type=int, help="The most trained parameters of all models together.")
@click.option("--seconds", type=float, help="The most training time of all models together.")
@click.option("--check/--no-check", default=True, help="Train the groups and compare.  [default: check]")
@_measured
def group(recipe: Path, quiet: bool, **options: Any) -> None:
    """Split the tasks of RECIPE over several models, and check whether that was worth it.

    \b
    Examples:
      polytask group recipes/census.yaml --models 2 --steps 300
      polytask group recipes/census.yaml --models 3 --by transfer --parameters 500000 --jobs 2
    """
    from polytask.analysis.group import group as split

    _finish(split(recipe, say=_say(quiet), **options))


@click.command()
@_shared("tuned")
@click.option("--space", "spaces", multiple=True, metavar="KEY=VALUES", required=True, help="What to try for a key.")
@click.option("--trials", type=int, help="How many settings; 20 if neither this nor --minutes is given.")
@click.option("--minutes", type=float, help="Start no new trial after so long.")
@click.option("--objectives", default="", metavar="A,B", help="Several criteria instead of one, such as TASK.METRIC.")
@click.option("--store", metavar="URL", help="A store that several machines share; a file in the folder if left out.")
def tune(recipe: Path, spaces: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Search settings of RECIPE on its validation rows, and write the best as a recipe.

    \b
    Values: LOW..HIGH, log:LOW..HIGH (equal ratios are equally likely), or A,B,C.

    \b
    Examples:
      polytask tune recipes/census.yaml --space training.lr=log:1e-4..1e-2 --trials 20 --jobs 2
      polytask tune recipes/census.yaml --space balancer.name=equal,uncertainty --space training.batch_size=256,1024
      polytask tune recipes/census.yaml --space training.lr=log:1e-4..1e-2 --objectives income,education --minutes 10
    """
    from polytask.analysis.tune import tune as search

    space = {}
    for text in spaces:
        key, equals, values = text.partition("=")
        if not equals:
            raise RecipeError(f"--space {text}: write KEY=VALUES, such as training.lr=log:1e-4..1e-2.")
        if key in space:
            raise RecipeError(f"--space {text}: {key} is given twice.")
        space[key] = values
    _finish(search(recipe, space=space, say=_say(quiet), **options))


COMMANDS = (affinity, group, tune)
