"""Comparing methods on one recipe: the same rows, budget and seeds for all, and the test rows once, at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polytask.analysis import trees
from polytask.analysis.comparison import Comparison
from polytask.analysis.course import Trained
from polytask.analysis.folder import Folder
from polytask.analysis.jobs import Result
from polytask.analysis.method_result import MethodResult, TaskFacts
from polytask.analysis.methods import TUNED_STATIC, Given, Method, choose
from polytask.analysis.plan import Budget, Plan, Work, identity
from polytask.analysis.pool import Job, Pool, cores
from polytask.analysis.rows import digest, write_rows
from polytask.analysis.running import Running, Say
from polytask.errors import RecipeError
from polytask.evaluation import Criterion
from polytask.evaluation.criterion import MEAN_IMPROVEMENT
from polytask.recipes.build import Built, build
from polytask.recipes.load import dump_recipe, load_recipe
from polytask.recipes.schema import Recipe
from polytask.reporting.versions import versions
from polytask.tasks.task import Task
from polytask.training.fit import seeded

SEEDS = 3


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    balancers: Sequence[Given] | str | None = None,
    sharings: Sequence[Given] | str | None = None,
    baselines: Sequence[str] | str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    say: Say | None = None,
) -> Comparison:
    """Train several methods on one recipe and say what the difference is worth, as ``polytask compare`` does.

    Every balancer is trained under every sharing, and beside them single-task networks with the same encoder, rows
    and budget. Settings are chosen on the validation rows. The test rows are scored once, when all are trained.

    Args:
        recipe: A YAML file, plain data, or a Recipe.
        balancers: Names, mappings with options, or text such as ``"equal, cagrad(c=0.4)"``. None takes ``equal`` and
            the recipe's own; in a folder that has a comparison, what is there.
        sharings: The same; None takes the recipe's own.
        baselines: Of ``separate`` (always there), ``tuned_static`` and ``trees``.
        seeds: How many seeds, counted from the recipe's; 3 if left out.
        budget: ``"trials=8"`` or ``"minutes=10"`` for each method's search over its own options and the learning
            rate; ``"trials=1"``, the default, takes the recipe's settings.
        jobs: Worker processes; one a core if left out.
        overrides: Such as ``["training.epochs=3"]``.
        out: Folder; ``comparisons/NAME`` if left out. A comparison that is there goes on, and what is new is added. If
            another process works on it, this one joins in.
        say: Gets a sentence about what goes on, as it does.

    Returns:
        The comparison. Its folder has ``report.html``, ``results.json``, ``table.md`` and ``table.tex``.

    Raises:
        RecipeError: for an unknown name or option, or a folder of another recipe; nothing is trained then.
        DataError: for data that cannot be used.
        MissingExtraError: if a search is asked for and Optuna is not installed.
    """
    loaded = load_recipe(recipe, overrides)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("compare starts its own processes. Run it once, without torchrun.")
    folder = Folder(Path(out) if out is not None else Path("comparisons") / name)
    before = folder.plan()
    asked = balancers is not None or sharings is not None
    methods = (
        choose(loaded, balancers, sharings, baselines) if asked or not before else choose_baselines(loaded, baselines)
    )
    spend = Budget.parse(budget) if budget is not None else before.budget if before else Budget()
    _require_sense(methods, spend, seeds)
    known = len(before.seeds) if before else SEEDS
    numbers = tuple(loaded.training.seed + i for i in range(seeds if seeds is not None else known))
    workers = jobs if jobs is not None else cores()
    with (
        folder.shared() as claims,
        Pool(
            workers,
            context="polytask.analysis.rows:open_rows",
            context_arguments={"folder": str(folder.rows / claims.owner)},
            on_event=say,
        ) as pool,
    ):
        # The workers start up while the data are read.
        with seeded(loaded.training.seed):
            built = build(loaded)
        _require_parts(built)
        base = identity(dump_recipe(built.recipe))
        everything = {m.name: m for m in [*(before.methods if before else ()), *methods]}
        with ThreadPoolExecutor(1) as beside:
            data = beside.submit(digest, built)
            write_rows(built, folder.rows / claims.owner, ("train", "validation"))
            _try_out(tuple(everything.values()), base, built, pool)
            wanted = Plan(base, data.result(), spend, tuple(everything.values()), numbers)
        with claims.locked():
            plan = folder.settle(wanted)
        run = Running(folder, plan, pool, claims, _criterion(built), say or (lambda text: None))
        return _finished(run, built, loaded.report.title or name)


def _finished(run: Running, built: Built, title: str) -> Comparison:
    """Train, score and report until there is nothing to do that is in the plan, by whichever process it came there."""
    while True:
        trained = run.train()
        if run.adopt():
            continue
        comparison = _result(run, trained, run.score(trained, built), built, title)
        with run.claims.locked():
            if not run.adopt():
                comparison.write(run.folder.path)
                return comparison


def choose_baselines(recipe: Recipe, baselines: Sequence[str] | str | None) -> list[Method]:
    """The baselines alone, to add to a comparison that is there."""
    return [method for method in choose(recipe, None, None, baselines) if method.is_baseline]


def _require_sense(methods: Sequence[Method], budget: Budget, seeds: int | None) -> None:
    if seeds is not None and seeds < 1:
        raise RecipeError(f"seeds is {seeds}; at least 1 is needed, and 3 or more to tell a difference from noise.")
    if any(method.name == TUNED_STATIC for method in methods) and not budget.searches:
        raise RecipeError(
            "The baseline 'tuned_static' searches static weights, and the budget is one trial. Give every method "
            "more, such as budget trials=8, or leave 'tuned_static' out."
        )
    if budget.searches:
        from polytask.analysis.space import require_optuna

        require_optuna()


def _require_parts(built: Built) -> None:
    if not built.sources["validation"]:
        raise RecipeError(
            "A comparison chooses on validation rows, and this recipe has none. Set data.split.validation, such as 0.1."
        )


def _try_out(methods: Sequence[Method], base: Mapping[str, Any], built: Built, pool: Pool) -> None:
    """Build what each method needs, so that what cannot work is an error before anything is trained.

    Raises:
        RecipeError: that names the method.
    """
    if any(method.kind == "trees" for method in methods):
        trees.require_support(built.schema)
    jobs = [
        Job(method.name, "polytask.analysis.jobs:try_network", {"recipe": Work(method, {}, 0).recipe(base)})
        for method in methods
        if method.kind != "trees"
    ]
    outcomes = pool.run(jobs)
    for outcome in (outcomes[job.key] for job in jobs):
        outcome.require_success()
        if outcome.value is not None:
            raise RecipeError(f"Method '{outcome.job.key}': {outcome.value}")


def _criterion(built: Built) -> Criterion:
    select = built.recipe.training.select
    return Criterion(MEAN_IMPROVEMENT if select == "last" else select, built.model.tasks, built.index)


def _result(
    run: Running, trained: Sequence[Trained], scores: Mapping[str, Result], built: Built, title: str
) -> Comparison:
    return Comparison(
        title=title,
        tasks=tuple(_facts(task) for task in built.model.tasks.values()),
        methods=tuple(_method_result(of, scores, run.plan) for of in trained),
        seeds=run.plan.seeds,
        budget=str(run.plan.budget),
        part="test" if built.sources["test"] else "validation",
        sizes={part: sum(map(len, sources)) for part, sources in built.sources.items()},
        recipe=run.plan.recipe,
        versions=versions(),
        openings=_openings(run, trained),
        trained=run.done,
        worker_seconds=run.worker_seconds,
        path=run.folder.path,
    )


def _openings(run: Running, trained: Sequence[Trained]) -> tuple[tuple[str, ...], ...]:
    """Names of the methods whose models were scored at each opening of the test rows."""
    return tuple(
        tuple(of.method.name for of in trained if any(work.key in keys for work in of.work))
        for keys in run.folder.openings
    )


def _facts(task: Task) -> TaskFacts:
    directions = {name: metric.higher_is_better for name, metric in task.metrics.items()}
    return TaskFacts(task.name, task.kind, task.primary, directions)


def _method_result(of: Trained, scores: Mapping[str, Result], plan: Plan) -> MethodResult:
    by_seed = dict(zip([work.seed for work in of.work], zip(of.work, of.results, strict=True), strict=True))
    fixed = of.method.kind == "trees"
    pairs = {seed: by_seed[plan.seeds[0] if fixed else seed] for seed in plan.seeds}
    good = {seed: (work, result) for seed, (work, result) in pairs.items() if "failed" not in result}
    first = next((result for _, result in good.values()), {})
    peaks = [result["peak_memory_bytes"] for _, result in good.values() if result["peak_memory_bytes"] is not None]
    return MethodResult(
        name=of.method.name,
        kind=of.method.kind,
        sharing=dict(of.method.sharing),
        balancer=dict(of.method.balancer),
        scores={seed: scores[work.key]["test"] for seed, (work, _) in good.items()},
        validation={seed: result["validation"] for seed, (_, result) in good.items()},
        fixed=fixed,
        failed={seed: result["failed"] for seed, (_, result) in pairs.items() if "failed" in result},
        settings={".".join(path): value for path, value in of.work[0].settings.items()},
        trials=tuple(
            {"settings": {".".join(path): v for path, v in trial.settings.items()}, "value": trial.value}
            for trial in of.trials
        ),
        seconds=tuple(result["seconds"] for _, result in list(good.values())[: 1 if fixed else None]),
        search_seconds=sum(t.seconds for t in of.trials if t.settings != of.work[0].settings),
        peak_memory_bytes=max(peaks, default=None),
        parameters=first.get("parameters"),
    )
