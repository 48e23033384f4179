"""A comparison while it runs: which training comes next, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask import registry
from polytask.analysis.folder import Folder, Plan, Work
from polytask.analysis.jobs import Result, write_json
from polytask.analysis.methods import SEPARATE, TREE_DEFAULTS, Method
from polytask.analysis.pool import Job, Outcome, Pool, PoolError
from polytask.analysis.rows import write_rows
from polytask.analysis.search import Trial, best, search
from polytask.balancing.base import LossWeighting
from polytask.errors import BalancerError, RecipeError, ShapeError, TrainingError
from polytask.evaluation import Criterion
from polytask.recipes.build import Built

Say = Callable[[str], None]
FAILURES = tuple(kind.__name__ for kind in (TrainingError, RecipeError, ShapeError, BalancerError))
Steps = Generator[list[Work], list[Result], "Trained"]


@dataclass(frozen=True)
class Trained:
    """What became of a method before the test rows were opened.

    Args:
        method: The method.
        trials: What its search tried; empty without a search.
        work: Its final trainings, one a seed.
        results: Their results.
    """

    method: Method
    trials: list[Trial]
    work: list[Work]
    results: list[Result]


@dataclass
class Running:
    """A comparison while it runs."""

    folder: Folder
    plan: Plan
    pool: Pool
    criterion: Criterion
    say: Say
    done: int = 0
    worker_seconds: float = 0.0
    _waiting: dict[str, tuple[str, Work]] = field(default_factory=dict)

    def train(self) -> list[Trained]:
        """Search and train every method; methods go on side by side, each in its own order."""
        running = {method.name: self._steps(method) for method in self.plan.methods}
        asked: dict[str, list[Work]] = {}
        found: dict[str, dict[str, Result]] = {}
        finished: dict[str, Trained] = {}

        def advance(name: str, results: list[Result] | None) -> None:
            try:
                asked[name] = running[name].send(results) if results is not None else next(running[name])
            except StopIteration as stop:
                finished[name] = stop.value
                return
            found[name] = {}
            for work in asked[name]:
                if self.folder.result(work).exists():
                    found[name][work.key] = json.loads(self.folder.result(work).read_text(encoding="utf-8"))
                else:
                    self._waiting[work.key] = (name, work)
                    self.pool.submit(self._training(work))
            if len(found[name]) == len(asked[name]):
                advance(name, [found[name][work.key] for work in asked[name]])

        # Long trainings first, so that no worker is left alone with one at the end.
        for method in sorted(self.plan.methods, key=lambda method: -self._length(method)):
            advance(method.name, None)
        while self.pool.unfinished:
            outcome = self.pool.wait()
            name, work = self._waiting.pop(outcome.job.key)
            found[name][work.key] = self._settled(work, outcome)
            if len(found[name]) == len(asked[name]):
                advance(name, [found[name][work.key] for work in asked[name]])
        return [finished[method.name] for method in self.plan.methods]

    def _length(self, method: Method) -> int:
        """Roughly how long a training takes, in trunks that a step goes through."""
        if method.kind == "trees" or method.sharing["name"] == SEPARATE:
            return 2 * len(self.criterion.tasks)
        made = registry.get("balancers", method.balancer["name"])
        plain = isinstance(made, type) and issubclass(made, LossWeighting)
        return 1 if plain else len(self.criterion.tasks)

    def _steps(self, method: Method) -> Steps:
        trials: list[Trial] = []
        settings: Mapping[tuple[str, ...], Any] = {}
        if self.plan.budget.searches:
            rate = self.plan.recipe["training"]["lr"]
            asking = search(method, rate, self.plan.budget, self.criterion, self.folder.store)
            try:
                tried = next(asking)
                while True:
                    (result,) = yield [Work(method, tried, self.plan.seeds[0])]
                    tried = asking.send(result)
            except StopIteration as stop:
                trials = stop.value
            settings = best(trials).settings
        # Trees draw nothing at random where there are few rows, so that one seed stands for all.
        seeds = self.plan.seeds[:1] if method.kind == "trees" else self.plan.seeds
        work = [Work(method, settings, seed) for seed in seeds]
        results = yield work
        return Trained(method, trials, work, results)

    def _training(self, work: Work) -> Job:
        result = str(self.folder.result(work))
        if work.method.kind == "trees":
            arguments = {"options": _tree_options(work), "seed": work.seed, "result": result}
            return Job(work.key, "polytask.analysis.trees:fit_trees", arguments)
        arguments = {
            "recipe": work.recipe(self.plan.recipe),
            "result": result,
            "weights": str(self.folder.weights(work)),
        }
        return Job(work.key, "polytask.analysis.jobs:train_network", arguments)

    def _settled(self, work: Work, outcome: Outcome) -> Result:
        """The result of a training; one that diverged is a result as well.

        Raises:
            PolytaskError: for any other failure.
        """
        self.done += 1
        if outcome.error is None:
            result: Result = outcome.value
            self.worker_seconds += result["seconds"]
            self.say(f"{self.done}: {work.method.name}, seed {work.seed}: {_primary(result, self.criterion)}")
            return result
        # A search may draw a setting that the method refuses, such as a rank above a layer's width.
        expected = FAILURES if work.settings else FAILURES[:1]
        if outcome.kind not in expected:
            raise PoolError(f"'{work.key}' failed: {outcome.kind}: {outcome.error}\n{outcome.trace}")
        failed = {"failed": outcome.error, "seconds": outcome.seconds}
        write_json(self.folder.result(work), failed)
        self.say(f"{self.done}: {work.method.name}, seed {work.seed} failed: {outcome.error}")
        return failed

    def score(self, trained: Sequence[Trained], built: Built) -> dict[str, Result]:
        """Scores of all final trainings on the test rows, by key; on the validation rows if there are no others.

        Only here are test rows written where a worker can read them, and only what has no score yet is scored.
        """
        final = [
            (work, result) for of in trained for work, result in zip(of.work, of.results, strict=True)
            if "failed" not in result
        ]  # fmt: skip
        self.folder.keep_weights([work for work, _ in final])
        if not built.sources["test"]:
            return {work.key: {"test": result["validation"], "counts": {}} for work, result in final}
        missing = [pair for pair in final if not self.folder.test_result(pair[0]).exists()]
        if missing:
            self.say(f"Scoring {len(missing)} trained models on the test rows.")
            write_rows(built, self.folder.rows, ("test",))
            outcomes = self.pool.run([self._scoring(work, result) for work, result in missing])
            for outcome in outcomes.values():
                if outcome.error is not None:
                    raise PoolError(f"'{outcome.job.key}' failed: {outcome.kind}: {outcome.error}\n{outcome.trace}")
        return {work.key: json.loads(self.folder.test_result(work).read_text(encoding="utf-8")) for work, _ in final}

    def _scoring(self, work: Work, result: Result) -> Job:
        goal = str(self.folder.test_result(work))
        if work.method.kind == "trees":
            arguments = {
                "options": _tree_options(work), "seed": work.seed, "rounds": result["rounds"], "result": goal,
            }  # fmt: skip
            return Job(work.key, "polytask.analysis.trees:score_trees", arguments)
        arguments = {"recipe": work.recipe(self.plan.recipe), "weights": str(self.folder.weights(work)), "result": goal}
        return Job(work.key, "polytask.analysis.jobs:score_network", arguments)


def _tree_options(work: Work) -> dict[str, Any]:
    return {**TREE_DEFAULTS, **{path[-1]: value for path, value in work.settings.items()}}


def _primary(result: Result, criterion: Criterion) -> str:
    shown = []
    for name, task in list(criterion.tasks.items())[:3]:
        value = result["validation"][name][task.primary]
        shown.append(f"{name} {task.primary} " + ("–" if value is None else f"{value:.4f}"))
    more = ", ..." if len(criterion.tasks) > 3 else ""
    return f"{', '.join(shown)}{more} (validation), {result['seconds']:.1f} s"
