"""One number for the scores of all tasks, by which epochs are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from polytask.errors import RecipeError, listed, suggestion
from polytask.evaluation.improvement import relative_improvement
from polytask.evaluation.index import CompositeIndex
from polytask.evaluation.scores import Scores
from polytask.tasks.metrics import mean_defined
from polytask.tasks.task import Task

MEAN_IMPROVEMENT = "mean_improvement"
INDEX = "index"


class Criterion:
    """One number for scores; higher is better.

    ``mean_improvement`` is the mean over tasks of ``relative_improvement`` of each task's primary metric since
    the first validation. A task whose primary metric was undefined at first is left out. A task whose primary
    metric was defined at first and is undefined now makes the whole undefined: its model has diverged.

    ``TASK`` is the primary metric of one task and ``TASK.METRIC`` any of its metrics, with the sign turned where
    lower is better. ``index`` is the composite index, unless a task has that name.

    Args:
        spec: ``"mean_improvement"``, ``"index"``, ``"TASK"`` or ``"TASK.METRIC"``.
        tasks: The tasks by name.
        index: The composite index, if there is one.

    Raises:
        RecipeError: for an unknown task or metric, or ``"index"`` without an index.

    Example:
        >>> from polytask.tasks import regression
        >>> criterion = Criterion("size.mae", {"size": regression("size")})
        >>> criterion(Scores({"size": {"mae": 2.0}}), Scores({"size": {"mae": 3.0}}))
        -2.0
    """

    def __init__(self, spec: str, tasks: Mapping[str, Task], index: CompositeIndex | None = None):
        self.spec = spec
        self._tasks = dict(tasks)
        self._index = index if spec == INDEX and INDEX not in tasks else None
        if spec == INDEX and index is None and INDEX not in tasks:
            raise RecipeError(
                "training.select is 'index', but no index is defined. Add for example index: "
                f"'{' + '.join(f'{name}.{task.primary}' for name, task in list(tasks.items())[:2])}'."
            )
        self._chosen = None if spec == MEAN_IMPROVEMENT or self._index else _chosen(spec, self._tasks)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return self._tasks

    def __call__(self, scores: Scores, first: Scores) -> float:
        """The criterion's value.

        Args:
            scores: Of this validation.
            first: Of the first validation.

        Returns:
            A number, higher is better; NaN if it is undefined.
        """
        if self._index is not None:
            return self._index.goodness(scores)
        if self._chosen is not None:
            task, metric = self._chosen
            value = scores[task][metric] if metric in scores.get(task, {}) else math.nan
            return value if self._tasks[task].metrics[metric].higher_is_better else -value
        gains = list(self._gains(scores, first))
        return math.nan if any(math.isnan(gain) for gain in gains) else mean_defined(gains)

    def _gains(self, scores: Scores, first: Scores) -> Iterable[float]:
        for name, task in self._tasks.items():
            start = first.get(name, {}).get(task.primary, math.nan)
            if not math.isnan(start):
                now = scores.get(name, {}).get(task.primary, math.nan)
                yield relative_improvement(start, now, task.metrics[task.primary].higher_is_better)


def _chosen(spec: str, tasks: Mapping[str, Task]) -> tuple[str, str]:
    if spec in tasks:
        return spec, tasks[spec].primary
    # A task's name may hold dots itself, so the longest name that fits is tried first.
    for name in sorted(tasks, key=len, reverse=True):
        metric = spec.removeprefix(f"{name}.")
        if metric != spec:
            known = tasks[name].metrics
            if metric not in known:
                raise RecipeError(
                    f"The criterion '{spec}' names no metric of '{name}', which has: {listed(known)}."
                    f"{suggestion(metric, known)}"
                )
            return name, metric
    choices = [MEAN_IMPROVEMENT, *tasks, *(f"{name}.{metric}" for name in tasks for metric in tasks[name].metrics)]
    raise RecipeError(
        f"Unknown criterion '{spec}'. Use {MEAN_IMPROVEMENT}, or TASK.METRIC with one of the tasks: {listed(tasks)}."
        f"{suggestion(spec, choices)}"
    )
