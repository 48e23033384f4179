"""The command line: thin, and quick to answer; heavy things are imported by the commands that need them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from polytask import __version__
from polytask.analysis.commands import COMMANDS
from polytask.errors import PolytaskError, suggestion

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(click.Group):
    """Shows an error of polytask as its text alone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PolytaskError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="polytask")
def main() -> None:
    """Train one model on many tasks, and know whether it was worth it.

    \b
    Examples:
      polytask fit recipes/census.yaml
      polytask evaluate runs/census-1
      polytask predict runs/census-1 new_people.csv --out predictions.csv
      polytask compare recipes/census.yaml --balancers equal,nash_mtl
      polytask list balancers
    """


@main.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; must not exist yet.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run; no recipe needed.")
@click.option("--seed", type=int, help="The same as --set training.seed=SEED.")
@click.option("--quiet", is_flag=True, help="No progress display.")
def fit(
    recipe: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    seed: int | None,
    quiet: bool,
) -> None:
    """Train what RECIPE describes; leave weights, scores and a report in a folder.

    \b
    Examples:
      polytask fit recipes/census.yaml
      polytask fit recipes/census.yaml --set training.epochs=3 --set balancer=static --seed 1
      polytask fit recipes/census.yaml --out runs/first
      polytask fit --resume runs/first
    """
    from polytask.api import resume_run, run

    if (recipe is None) == (resume is None):
        raise click.UsageError("Give a RECIPE, or --resume RUN to go on with a run.")
    if resume is not None:
        if overrides or out is not None or seed is not None:
            raise click.UsageError("--resume takes everything from the run; leave out --set, --out and --seed.")
        done = _guarded(lambda: resume_run(resume, progress=not quiet))
    else:
        assert recipe is not None
        changes = [*overrides, *([f"training.seed={seed}"] if seed is not None else [])]
        done = _guarded(lambda: run(recipe, overrides=changes, out=out, progress=not quiet))
    if done.path is not None and done.is_main:
        from polytask.api import summary

        click.echo(summary(done.path))


def _guarded(work: Any) -> Any:
    try:
        return work()
    except KeyboardInterrupt:
        # The loop has written its checkpoint and printed the command that goes on.
        sys.exit(130)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(run: Path, table: Path | None, as_json: bool) -> None:
    """Score the model of RUN on its test rows, or on the labelled rows of TABLE.

    \b
    Examples:
      polytask evaluate runs/census-1
      polytask evaluate runs/census-1 more_people.csv --json
    """
    import json

    from polytask.api import evaluate_run

    scores = evaluate_run(run, table)
    click.echo(json.dumps(scores.to_dict(), indent=1) if as_json else scores.table())


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .csv, .parquet or .arrow file.")
@click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy this column of TABLE beside the predictions.")
def predict(run: Path, table: Path, out: Path, tasks: tuple[str, ...], keep: tuple[str, ...]) -> None:
    """Predict every task for the rows of TABLE with the model of RUN (or of a bundle).

    \b
    Examples:
      polytask predict runs/census-1 new_people.csv --out predictions.csv
      polytask predict runs/census-1/bundle new_people.parquet --out p.parquet --task income --keep id
    """
    from polytask.api import predict_file

    rows = predict_file(run, table, out, tasks=tasks or None, keep=keep)
    click.echo(f"{rows} rows -> {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Draw the report of RUN again, from RUN/report.json.

    \b
    Example:
      polytask report runs/census-1
    """
    from polytask.reporting import RunRecord
    from polytask.reporting.report import write_report

    write_report(RunRecord.load(run / "report.json"), run / "report.html")
    click.echo(str(run / "report.html"))


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--balancers", metavar="NAMES", help="Such as equal,nash_mtl,'cagrad(c=0.4)'; see: polytask list.")
@click.option("--sharings", metavar="NAMES", help="Such as hard,'mmoe(experts=4)'; the recipe's own if left out.")
@click.option("--baselines", metavar="NAMES", help="tuned_static, trees; separate networks are always there.")
@click.option("--seeds", type=int, help="How many seeds; 3 if left out.")
@click.option("--budget", help="trials=NUMBER or minutes=NUMBER of search for every method; trials=1 if left out.")
@click.option("--jobs", type=int, help="Worker processes; one a core if left out.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; a comparison that is there goes on.")
@click.option("--quiet", is_flag=True, help="Only the table at the end.")
def compare(recipe: Path, overrides: tuple[str, ...], out: Path | None, quiet: bool, **asked: Any) -> None:
    """Train several methods on RECIPE and say whether they differ beyond noise.

    Every balancer is trained under every sharing, and separate networks beside them. Settings are chosen on the
    validation rows; the test rows are scored once, at the end. The folder gets report.html, results.json and tables.
    The same command again goes on after an interrupt, and joins in while another process works, on this machine or on
    one that shares the folder. With further names it adds them.

    \b
    Examples:
      polytask compare recipes/census.yaml --balancers equal,uncertainty,nash_mtl --seeds 5
      polytask compare recipes/census.yaml --balancers "equal,cagrad(c=0.4)" --sharings hard,mmoe
      polytask compare recipes/census.yaml --baselines tuned_static,trees --budget trials=8 --jobs 2
      polytask compare recipes/census.yaml --set training.epochs=2 --out comparisons/quick
    """
    from polytask.analysis.compare import compare as run_comparison

    folder = out or Path("comparisons") / recipe.stem
    say = None if quiet else lambda text: click.echo(text, err=True)
    try:
        found = run_comparison(recipe, overrides=overrides, out=folder, say=say, **asked)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. What was finished is kept; the same command goes on in {folder}.", err=True)
        sys.exit(130)
    click.echo(found)
    click.echo(f"\nReport: {folder / 'report.html'}")


@main.command("list")
@click.argument("group", required=False)
def list_(group: str | None) -> None:
    """List what has a name: tasks, encoders, sharings, balancers, samplers, strategies, datasets.

    \b
    Examples:
      polytask list
      polytask list balancers
    """
    from polytask import catalogue, registry

    if group is not None and group not in catalogue.GROUPS:
        raise click.UsageError(
            f"Unknown group '{group}'. Known: {', '.join(catalogue.GROUPS)}.{suggestion(group, catalogue.GROUPS)}"
        )
    for name in [group] if group else catalogue.GROUPS:
        entries = registry.entries(name)
        if group is None:
            click.secho(name, bold=True)
        width = max((len(key) for key in entries), default=0)
        for key, entry in entries.items():
            click.echo(f"  {key:{width}}  {entry.help}")


for _command in COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
