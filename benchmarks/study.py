"""What the studies of architectures have in common: runs kept in a log, and a table of means with intervals.

A study is a list of recipes with changes. A run is one line of the log, written when it ends, so a study that was
stopped goes on where it was. Every run scores the test rows once, after training; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# 97.5 % points of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Case:
    """One architecture in one form of a benchmark.

    Args:
        form: The form's name.
        name: The architecture's name in the table.
        recipe: File of the recipe.
        changes: Overrides of the recipe.
        rows: For a part the number of its rows that are used, the first ones; all of them for other parts.
    """

    form: str
    name: str
    recipe: str
    changes: tuple[str, ...]
    rows: Mapping[str, int] = field(default_factory=dict)


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """Train one case; validation and test scores of the chosen epoch, and how many numbers were trained."""
    from polytask.evaluation.predict import evaluate
    from polytask.recipes.build import make_model
    from polytask.recipes.load import load_recipe
    from polytask.training.fit import seeded, train

    recipe = load_recipe(case.recipe, [*case.changes, f"training.seed={seed}", "training.device=cpu"])
    built = _read(case.recipe)
    with seeded(seed):
        model = make_model(recipe, built.schema, list(built.model.tasks.values()))
    parts = {part: _first(sources, case.rows.get(part)) for part, sources in built.sources.items()}
    began = time.perf_counter()
    run = train(model, parts["train"], parts["validation"], balancer=recipe.balancer, settings=recipe.training)
    seconds = time.perf_counter() - began
    assert run.scores is not None, "a study has validation rows"
    tested = evaluate(run.model, parts["test"])
    return {
        "form": case.form,
        "name": case.name,
        "changes": list(case.changes),
        "seed": seed,
        "seconds": round(seconds, 1),
        "epoch": run.best_epoch,
        "parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "validation": {task: dict(run.scores[task]) for task in run.scores},
        "test": {task: dict(tested[task]) for task in tested},
    }


@functools.lru_cache(maxsize=1)
def _read(recipe: str) -> Any:
    """The data of a recipe, read once for all cases that follow each other; none of them changes how it is read."""
    from polytask.recipes.build import build
    from polytask.recipes.load import load_recipe

    return build(load_recipe(recipe))


def _first(sources: Sequence[Any], rows: int | None) -> tuple[Any, ...]:
    """The first rows of every source."""
    import torch

    from polytask.data.source import TensorSource

    if rows is None:
        return tuple(sources)
    taken = [source.take(torch.arange(min(rows, len(source)))) for source in sources]
    return tuple(TensorSource(batch.inputs, batch.targets, batch.weights) for batch in taken)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The runs of a log; none if there is no log yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def table(rows: Iterable[dict[str, Any]], form: str, columns: Mapping[str, tuple[str, str, int]]) -> str:
    """A Markdown table of one form, in the order of the log.

    Args:
        rows: Runs.
        form: Which form's.
        columns: From a heading to task, metric and digits.
    """
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["form"] == form:
            grouped[row["name"]].append(row)
    lines = [f"| sharing | parameters | seeds | {' | '.join(columns)} | seconds |", "|---" * (4 + len(columns)) + "|"]
    for name, runs in grouped.items():
        cells = []
        for task, metric, digits in columns.values():
            mean, half = interval([run["test"][task][metric] for run in runs])
            cells.append(f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}"))
        seconds = min(run["seconds"] for run in runs)  # what else ran on the machine can only add to it
        lines.append(f"| `{name}` | {runs[0]['parameters']:,} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def beside(rows: Iterable[dict[str, Any]], form: str, base: str, columns: Mapping[str, tuple[str, str, int]]) -> str:
    """For each architecture the mean difference to ``base``, seed by seed, with its interval."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["form"] == form:
            found[row["name"]][row["seed"]] = row["test"]
    lines = [f"| sharing minus `{base}` | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    against = found.pop(base, {})
    for name, seeds in found.items():
        common = sorted(set(seeds) & set(against))
        if not common:
            continue
        cells = []
        for task, metric, digits in columns.values():
            gaps = [seeds[seed][task][metric] - against[seed][task][metric] for seed in common]
            mean, half = interval(gaps)
            cells.append(f"{mean:+.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}"))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    about: str | None,
    cases: Sequence[Case],
    columns: Mapping[str, Mapping[str, tuple[str, str, int]]],
    log: Path,
) -> None:
    """Run what the log lacks, seed by seed, and print the tables.

    Args:
        about: The study's description.
        cases: What to run.
        columns: For each form the columns of its table.
        log: The log's path if none is asked for.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=log, help="the log")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of architectures (default: all)")
    parser.add_argument("--forms", nargs="+", help="names of forms (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--table", action="store_true", help="print the log's tables and stop")
    asked = parser.parse_args()
    if not asked.table:
        _run_missing(cases, asked)
    rows = read_log(asked.out)
    for form, shown in columns.items():
        print(f"\n{form}\n\n{table(rows, form, shown)}\n\n{beside(rows, form, 'hard', shown)}")


def _run_missing(cases: Sequence[Case], asked: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(asked.threads)
    # A few columns have values that only validation rows have; the report of a run says so, a study need not.
    warnings.simplefilter("ignore", UserWarning)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["form"], row["name"], row["seed"]) for row in read_log(asked.out)}
    began = time.monotonic()
    for seed in asked.seeds:
        for case in cases:
            left_out = (asked.only and case.name not in asked.only) or (asked.forms and case.form not in asked.forms)
            if left_out or (case.form, case.name, seed) in done:
                continue
            if time.monotonic() - began > 60 * asked.minutes:
                return
            row = run_case(case, seed)
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{case.form}, {case.name}, seed {seed}: epoch {row['epoch']}, {row['seconds']:.0f} s", flush=True)
