"""A comparison while it runs: which training comes next, who does it, and what became of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask import registry
from polytask.analysis.claims import Claims
from polytask.analysis.comparison import load_writers
from polytask.analysis.course import Course, Steps, Trained
from polytask.analysis.folder import Folder, search_name
from polytask.analysis.jobs import Result, write_json
from polytask.analysis.methods import SEPARATE, TREE_DEFAULTS, Method
from polytask.analysis.plan import Plan, Work
from polytask.analysis.pool import Job, Outcome, Pool
from polytask.analysis.rows import remove_part, write_rows
from polytask.analysis.schedule import expected, next_job
from polytask.analysis.search import Trial, best, search
from polytask.balancing.base import LossWeighting
from polytask.errors import BalancerError, RecipeError, ShapeError, TrainingError
from polytask.evaluation import Criterion
from polytask.recipes.build import Built

Say = Callable[[str], None]
FAILURES = tuple(kind.__name__ for kind in (TrainingError, RecipeError, ShapeError, BalancerError))
TEST = "test"
LOOK = 0.5
"""Seconds between two looks at what other processes have finished."""


@dataclass
class Running:
    """A comparison while it runs, here and perhaps in other processes."""

    folder: Folder
    plan: Plan
    pool: Pool
    claims: Claims
    criterion: Criterion
    say: Say
    done: int = 0
    worker_seconds: float = 0.0
    _mine: dict[str, tuple[Work, float]] = field(default_factory=dict)
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    _waited: bool = False
    _loading: bool = False

    @property
    def rows(self) -> Path:
        """Where the workers of this process find their rows."""
        return self.folder.rows / self.claims.owner

    def adopt(self) -> bool:
        """Take up what other processes added to the plan; whether there was anything."""
        plan = self.folder.plan()
        if plan is None or plan.to_dict() == self.plan.to_dict():
            return False
        self.plan = plan
        return True

    def train(self) -> list[Trained]:
        """Search and train every method; methods go on side by side, each in its own order.

        What other processes do of it is read from the folder, and what they leave undone is done here.
        """
        waiting = list(self.plan.methods)
        courses: dict[str, Course] = {}
        if not self.plan.budget.searches:
            courses, waiting = {method.name: Course(self._steps(method)) for method in waiting}, []
        while waiting or any(course.end is None for course in courses.values()):
            self._read(courses)
            while self.pool.unfinished < self.pool.workers and self._start_one(waiting, courses):
                pass
            if not waiting and self.pool.unfinished < self.pool.workers:
                self._use_free_core()
            outcome = self._next()
            if outcome is not None:
                work, _ = self._mine.pop(outcome.job.key)
                self._give(courses, work, self._settled(work, outcome))
                self.claims.drop(work.key)
        ends = [courses[method.name].end for method in self.plan.methods]
        return [end for end in ends if end is not None]

    def _use_free_core(self) -> None:
        """While the last trainings run, load what the report needs, once."""
        if not self._loading:
            self._loading = True
            threading.Thread(target=load_writers, daemon=True).start()

    def _give(self, courses: Mapping[str, Course], work: Work, result: Result) -> None:
        self._seconds.setdefault(work.method.name, []).append(result["seconds"])
        courses[work.method.name].give(work, result)

    def _read(self, courses: Mapping[str, Course]) -> None:
        """Take results that lie in the folder."""
        for course in courses.values():
            while there := [w for w in course.missing if w.key not in self._mine and self.folder.result(w).exists()]:
                for work in there:
                    self._give(courses, work, _read_json(self.folder.result(work)))

    def _start_one(self, waiting: list[Method], courses: dict[str, Course]) -> bool:
        """Start a training that nobody does, or a method; False if there is none."""
        for work in self._in_order([work for course in courses.values() for work in course.missing]):
            if self._claim(work.key, self.folder.result(work)):
                self._mine[work.key] = work, time.monotonic()
                self.pool.submit(self._training(work))
                return True
        for method in waiting:
            # One process at a time asks for the trials of a method, since each depends on those before.
            if self.folder.search_result(method).exists() or self.claims.take(search_name(method)):
                waiting.remove(method)
                courses[method.name] = Course(self._steps(method))
                self._read({method.name: courses[method.name]})
                return True
        return False

    def _in_order(self, missing: Sequence[Work]) -> list[Work]:
        """The trainings that are not done here, the one to start first, and then the longest first."""
        seconds = expected({method.name: self._length(method) for method in self.plan.methods}, self._seconds)
        now, free = time.monotonic(), self.pool.workers - len(self._mine) - 1
        busy = [max(0.0, seconds[work.method.name] - (now - began)) for work, began in self._mine.values()]
        order = [work for work in missing if work.key not in self._mine]
        order.sort(key=lambda work: -seconds[work.method.name])
        if order:
            lengths = [seconds[work.method.name] for work in order]
            place = self._unmeasured(order)
            order.insert(0, order.pop(next_job(lengths, [0.0] * free + busy) if place is None else place))
        return order

    def _unmeasured(self, order: Sequence[Work]) -> int | None:
        """The place of the first training that tells how long others take which are shared out later."""
        names = [work.method.name for work in order]
        known = {*self._seconds, *(work.method.name for work, _ in self._mine.values())}
        return next((at for at, name in enumerate(names) if name not in known and names.count(name) > 1), None)

    def _claim(self, key: str, result: Path) -> bool:
        """Claim a piece of work, unless it is done or somebody else does it."""
        if result.exists() or not self.claims.take(key):
            return False
        if result.exists():  # done between the two looks
            self.claims.drop(key)
            return False
        return True

    def _next(self) -> Outcome | None:
        """The next job of this process to end, or None when it is time to look what others have done."""
        if self.pool.unfinished:
            return self.pool.wait_for(LOOK)
        if not self._waited:
            self._waited = True
            self.say("Waiting for what another process does.")
        time.sleep(LOOK)
        return None

    def _length(self, method: Method) -> float:
        """Roughly how long a training takes, in trainings of one network by the sum of its losses."""
        tasks = len(self.criterion.tasks)
        if method.kind == "trees" or method.sharing["name"] == SEPARATE:
            return tasks
        made = registry.get("balancers", method.balancer["name"])
        plain = isinstance(made, type) and issubclass(made, LossWeighting)
        # A backward, for each task's gradient, takes twice as long as the forward.
        return 1 if plain else (1 + 2 * tasks) / 3

    def _steps(self, method: Method) -> Steps:
        trials: list[Trial] = []
        settings: Mapping[tuple[str, ...], Any] = {}
        if self.plan.budget.searches:
            trials = yield from self._trials(method)
            settings = best(trials).settings
        # Trees draw nothing at random where there are few rows, so that one seed stands for all.
        seeds = self.plan.seeds[:1] if method.kind == "trees" else self.plan.seeds
        work = [Work(method, settings, seed) for seed in seeds]
        results = yield work
        return Trained(method, trials, work, results)

    def _trials(self, method: Method) -> Generator[list[Work], list[Result], list[Trial]]:
        """The trials of a method's search: those of a search that is over, or a search."""
        path = self.folder.search_result(method)
        if path.exists():
            return [Trial.from_dict(trial) for trial in _read_json(path)["trials"]]
        store = self.folder.store(method)
        store.parent.mkdir(exist_ok=True)
        asking = search(method, self.plan.recipe["training"]["lr"], self.plan.budget, self.criterion, store)
        try:
            tried = next(asking)
            while True:
                (result,) = yield [Work(method, tried, self.plan.seeds[0])]
                tried = asking.send(result)
        except StopIteration as stop:
            trials: list[Trial] = stop.value
        write_json(path, {"trials": [trial.to_dict() for trial in trials]})
        self.claims.drop(search_name(method))
        return trials

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
            outcome.require_success()
        failed = {"failed": outcome.error, "seconds": outcome.seconds}
        write_json(self.folder.result(work), failed)
        self.say(f"{self.done}: {work.method.name}, seed {work.seed} failed: {outcome.error}")
        return failed

    def score(self, trained: Sequence[Trained], built: Built) -> dict[str, Result]:
        """Scores of all final trainings on the test rows, by key; on the validation rows if there are no others.

        Only here are test rows written where a worker can read them, and only what has no score yet is scored.
        """
        final = {
            work.key: (work, result) for of in trained for work, result in zip(of.work, of.results, strict=True)
            if "failed" not in result
        }  # fmt: skip
        self._delete_weights(trained, final)
        if not built.sources[TEST]:
            return {key: {"test": result["validation"], "counts": {}} for key, (_, result) in final.items()}
        with self.claims.locked():
            self.folder.note_opening([work for work, _ in final.values()])
        missing = [pair for pair in final.values() if not self.folder.test_result(pair[0]).exists()]
        if missing:
            self.say(f"Scoring {len(missing)} trained models on the test rows.")
            write_rows(built, self.rows, (TEST,))
        while missing or self.pool.unfinished:
            for work, result in missing:
                free = self.pool.unfinished < self.pool.workers and work.key not in self._mine
                if free and self._claim(f"{work.key}.{TEST}", self.folder.test_result(work)):
                    self._mine[work.key] = work, time.monotonic()
                    self.pool.submit(self._scoring(work, result))
            outcome = self._next()
            if outcome is not None:
                outcome.require_success()
                self.claims.drop(f"{self._mine.pop(outcome.job.key)[0].key}.{TEST}")
            missing = [pair for pair in missing if not self.folder.test_result(pair[0]).exists()]
        remove_part(self.rows, TEST)
        return {key: _read_json(self.folder.test_result(work)) for key, (work, _) in final.items()}

    def _delete_weights(self, trained: Sequence[Trained], final: Mapping[str, Any]) -> None:
        """Delete the weights of settings that were tried and not chosen."""
        for of in trained:
            for trial in of.trials:
                work = Work(of.method, trial.settings, self.plan.seeds[0])
                if work.key not in final:
                    self.folder.weights(work).unlink(missing_ok=True)

    def _scoring(self, work: Work, result: Result) -> Job:
        goal = str(self.folder.test_result(work))
        if work.method.kind == "trees":
            arguments = {
                "options": _tree_options(work), "seed": work.seed, "rounds": result["rounds"], "result": goal,
            }  # fmt: skip
            return Job(work.key, "polytask.analysis.trees:score_trees", arguments)
        arguments = {"recipe": work.recipe(self.plan.recipe), "weights": str(self.folder.weights(work)), "result": goal}
        return Job(work.key, "polytask.analysis.jobs:score_network", arguments)


def _read_json(path: Path) -> Result:
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def _tree_options(work: Work) -> dict[str, Any]:
    return {**TREE_DEFAULTS, **{path[-1]: value for path, value in work.settings.items()}}


def _primary(result: Result, criterion: Criterion) -> str:
    shown = []
    for name, task in list(criterion.tasks.items())[:3]:
        value = result["validation"][name][task.primary]
        shown.append(f"{name} {task.primary} " + ("–" if value is None else f"{value:.4f}"))
    more = ", ..." if len(criterion.tasks) > 3 else ""
    return f"{', '.join(shown)}{more} (validation), {result['seconds']:.1f} s"
