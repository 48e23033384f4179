"""What a comparison found: scores over seeds, differences, delta_m, ranks, the Pareto front."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from polytask.analysis.method_result import MethodResult, TaskFacts, finite
from polytask.analysis.methods import BASELINES, SEPARATE
from polytask.errors import DataError, listed, unknown
from polytask.evaluation import (
    Difference,
    Interval,
    corrected,
    delta_m,
    mean_interval,
    mean_rank,
    paired_difference,
)


@dataclass(frozen=True)
class Comparison:
    """Several methods on the same rows, with the same budget and seeds.

    Attributes:
        title: What the report is called.
        tasks: The tasks.
        methods: Baselines first.
        seeds: The seeds.
        budget: Of every method's search.
        part: Which rows the scores are of.
        sizes: Rows by part.
        recipe: The recipe that all methods change.
        versions: Versions of what decides a result.
        openings: For each time the test rows were opened, the methods that had further models scored.
        trained: How many trainings this sitting did.
        worker_seconds: How long they took, added up over the workers.
        path: Folder, or None.
    """

    title: str
    tasks: tuple[TaskFacts, ...]
    methods: tuple[MethodResult, ...]
    seeds: tuple[int, ...]
    budget: str
    part: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    openings: tuple[tuple[str, ...], ...] = ()
    trained: int = 0
    worker_seconds: float = 0.0
    path: Path | None = None

    def __post_init__(self) -> None:
        wanted = {task.name: set(task.directions) for task in self.tasks}
        for method in self.methods:
            for seed, scores in method.scores.items():
                found = {task: set(metrics) for task, metrics in scores.items()}
                if found != wanted:
                    _raise_metrics(method.name, seed, found, wanted)

    def __getitem__(self, name: str) -> MethodResult:
        for method in self.methods:
            if method.name == name:
                return method
        raise DataError(unknown("method", name, [method.name for method in self.methods]))

    def names(self, *, baselines: bool = True) -> list[str]:
        """Names of the methods; without baselines those that were asked for."""
        return [m.name for m in self.methods if baselines or m.name not in BASELINES]

    def interval(self, method: str, task: str, metric: str) -> Interval:
        """Mean of a metric over seeds, with its 95 % interval."""
        of = self[method]
        values = of.values(task, metric, self.seeds)
        return mean_interval(values[:1] if of.fixed else values)

    def differences(self, against: str = SEPARATE) -> dict[tuple[str, str], Difference]:
        """How every method differs from another in each task's primary metric, seed by seed.

        Args:
            against: The other method.

        Returns:
            By method and task: the mean of method minus other and the paired t test, corrected by Holm's method over
            all methods and tasks of this table.
        """
        other = self[against]
        found = {}
        for method in self.methods:
            for task in self.tasks if method.name != against else ():
                ours, theirs = (of.values(task.name, task.primary, self.seeds) for of in (method, other))
                found[method.name, task.name] = paired_difference(ours, theirs)
        return corrected(found)

    def delta_m(
        self,
        against: str = SEPARATE,
        *,
        metrics: Mapping[str, Sequence[str]] | None = None,
        convention: str = "maninis",
    ) -> dict[str, list[float]]:
        """Delta_m of every method by seed, in percent, relative to the same seed of another method.

        Args:
            against: The other method.
            metrics: For each task the metrics that count, averaged within the task first; None takes the primary one
                of every task.
            convention: ``"maninis"`` (positive is better) or ``"flat"``; see ``polytask.delta_m``.

        Returns:
            Numbers in the order of the seeds; NaN where a training failed. A task that a method cannot do is left
            out of its mean.

        Raises:
            DataError: for an unknown task or metric, or where the other method's metric is 0.
        """
        chosen = self._chosen(metrics)
        other, found = self[against], {}
        for method in self.methods:
            found[method.name] = [
                delta_m(method.scores[seed], other.scores[seed], chosen, convention)
                if seed in method.scores and seed in other.scores
                else math.nan
                for seed in self.seeds
            ]
        return found

    def _chosen(self, metrics: Mapping[str, Sequence[str]] | None) -> dict[str, dict[str, bool]]:
        known = {task.name: task.directions for task in self.tasks}
        if metrics is None:
            return {task.name: {task.primary: task.directions[task.primary]} for task in self.tasks}
        for task, names in metrics.items():
            if task not in known:
                raise DataError(f"metrics: {unknown('task', task, known)}")
            for name in names:
                if name not in known[task]:
                    raise DataError(f"metrics of '{task}': {unknown('metric', name, known[task])}")
        return {task: {name: known[task][name] for name in names} for task, names in metrics.items()}

    def gains(self, against: str = SEPARATE) -> dict[str, Difference]:
        """Mean delta_m of every other method against one, with interval and the test of whether it is zero.

        The tests are corrected by Holm's method over the methods. All is NaN where ``why_no_delta`` says why.
        """
        zeros = [0.0] * len(self.seeds)
        try:
            found = self.delta_m(against)
        except DataError:
            found = dict.fromkeys(self.names(), [math.nan] * len(self.seeds))
        return corrected({name: paired_difference(d, zeros) for name, d in found.items() if name != against})

    @cached_property
    def why_no_delta(self) -> str:
        """Why delta_m against separate networks is undefined, or nothing."""
        try:
            self.delta_m()
        except DataError as error:
            return str(error)
        return ""

    @cached_property
    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means over seeds by method, task and primary metric."""
        return {
            method.name: {
                task.name: {task.primary: self.interval(method.name, task.name, task.primary).mean}
                for task in self.tasks
            }
            for method in self.methods
        }

    def mean_ranks(self) -> dict[str, float]:
        """Mean rank over the tasks' primary metrics, of the methods that can do all tasks; 1 is best."""
        whole = {name: of for name, of in self.means.items() if self._is_whole(name)}
        ranks = mean_rank(whole, self._chosen(None)) if whole else {}
        return {method.name: ranks.get(method.name, math.nan) for method in self.methods}

    def _is_whole(self, name: str) -> bool:
        return not any(math.isnan(value) for of in self.means[name].values() for value in of.values())

    def pareto_front(self) -> list[str]:
        """Methods that no other is at least as good as in every task's mean and better in one.

        Noise counts here as any difference does, so a method may be off the front by chance.
        """
        points = {}
        for method in self.methods:
            if self._is_whole(method.name):
                of = self.means[method.name]
                points[method.name] = [
                    of[t.name][t.primary] * (1 if t.directions[t.primary] else -1) for t in self.tasks
                ]
        return [name for name, point in points.items() if not any(_dominates(q, point) for q in points.values())]

    @cached_property
    def conclusion(self) -> list[str]:
        """What the numbers say, in plain words, by the rules that ``polytask.analysis.conclusion`` states."""
        from polytask.analysis.conclusion import conclusion

        return conclusion(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data: what was measured, and the figures that follow from it."""
        plain = {**asdict(self), "methods": [method.to_dict() for method in self.methods]}
        plain.pop("path")
        plain["figures"] = {
            "delta_m": {} if self.why_no_delta else {name: _plain(of) for name, of in self.delta_m().items()},
            "gains": {name: _plain_difference(d) for name, d in self.gains().items()},
            "differences": [
                {"method": method, "task": task, **_plain_difference(difference)}
                for (method, task), difference in self.differences().items()
            ],
            "mean_ranks": {name: finite(rank) for name, rank in self.mean_ranks().items()},
            "pareto_front": self.pareto_front(),
            "conclusion": self.conclusion,
        }
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], path: Path | None = None) -> Comparison:
        """What ``to_dict`` described; the figures are reckoned anew."""
        kept = {key: value for key, value in plain.items() if key != "figures"}
        methods = tuple(MethodResult.from_dict(method) for method in kept.pop("methods"))
        tasks = tuple(TaskFacts(**task) for task in kept.pop("tasks"))
        seeds = tuple(kept.pop("seeds"))
        openings = tuple(tuple(names) for names in kept.pop("openings", ()))
        return cls(**kept, methods=methods, tasks=tasks, seeds=seeds, openings=openings, path=path)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """The comparison of a folder.

        Raises:
            DataError: if there is none that has come to its end.
        """
        path = Path(folder) / RESULTS
        if not path.exists():
            raise DataError(f"'{folder}' has no {RESULTS}. It is no comparison, or one that has not come to its end.")
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")), Path(folder))

    def write(self, folder: Path) -> None:
        """Write ``results.json``, ``report.html``, ``table.md`` and ``table.tex``."""
        from polytask.analysis.jobs import write_json
        from polytask.analysis.report import comparison_page
        from polytask.analysis.tables import latex, markdown
        from polytask.files import replacing
        from polytask.reporting.page import write_page

        write_json(folder / RESULTS, self.to_dict())
        for name, text in (("table.md", markdown(self)), ("table.tex", latex(self))):
            with replacing(folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        write_page(comparison_page(self), folder / "report.html")

    def __repr__(self) -> str:
        from polytask.analysis.tables import text

        return text(self)


RESULTS = "results.json"
WRITERS = ("polytask.analysis.report", "scipy.special", "matplotlib.figure", "matplotlib.backends.backend_svg")


def load_writers() -> None:
    """Import what ``Comparison.write`` imports, which takes a while."""
    from polytask.reporting.plots import uncollected

    with uncollected():
        for name in WRITERS:
            importlib.import_module(name)


def _raise_metrics(method: str, seed: int, found: Mapping[str, set[str]], wanted: Mapping[str, set[str]]) -> None:
    for task in sorted({*found, *wanted}):
        if found.get(task) != wanted.get(task):
            have, need = (listed(sorted(of.get(task, ()))) or "none" for of in (found, wanted))
            raise DataError(
                f"The metrics differ between runs, so they cannot be compared: task '{task}' of '{method}', seed "
                f"{seed}, has {have}; expected {need}. Were they made by another version? Start in a new folder."
            )


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(first, second, strict=True)) and any(
        a > b for a, b in zip(first, second, strict=True)
    )


def _plain(values: Sequence[float]) -> list[float | None]:
    return [finite(value) for value in values]


def _plain_difference(difference: Difference) -> dict[str, float | None]:
    of = difference.interval
    numbers = {"mean": of.mean, "low": of.low, "high": of.high, "p": difference.p, "p_holm": difference.adjusted}
    return {name: finite(value) for name, value in numbers.items()}
