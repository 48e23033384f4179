"""Comparing runs over all tasks: delta_m and mean rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from polytask.errors import DataError, unknown
from polytask.tasks.metrics import mean_defined, ranks
from polytask.tasks.task import Task

Values = Mapping[str, Mapping[str, float | None]] | Mapping[str, Mapping[str, float]]
Directions = Mapping[str, Mapping[str, bool]]
CONVENTIONS = ("maninis", "flat")


def _directions(tasks: Mapping[str, Task] | Directions) -> dict[str, dict[str, bool]]:
    """Directions as given; of tasks, those of their primary metrics."""
    return {
        name: {of.primary: of.metrics[of.primary].higher_is_better} if isinstance(of, Task) else dict(of)
        for name, of in tasks.items()
    }


def _pairs(directions: Directions) -> Iterator[tuple[str, str, bool]]:
    for task, metrics in directions.items():
        for metric, higher in metrics.items():
            yield task, metric, higher


def _value(values: Values, task: str, metric: str, where: str) -> float:
    if task not in values:
        raise DataError(f"{where}: {unknown('task', task, values)}")
    if metric not in values[task]:
        raise DataError(f"{where}, task '{task}': {unknown('metric', metric, values[task])}")
    value = values[task][metric]
    return math.nan if value is None else float(value)


def delta_m(
    scores: Values, baseline: Values, tasks: Mapping[str, Task] | Directions, convention: str = "maninis"
) -> float:
    r"""Mean relative difference to a single-task baseline, in percent.

    With M the metric of the model, S that of the baseline and l = 1 where higher is better, else 0:

    - ``"maninis"``: the mean over tasks of the mean over a task's metrics of
      :math:`100\,(-1)^{1-l} (M - S) / |S|`. Positive is better.
    - ``"flat"``: the mean over all metrics, whatever their task, of :math:`100\,(-1)^{l} (M - S) / |S|`.
      Negative is better. Papers on gradient balancing print this figure.

    A metric that is undefined in either is left out.

    Args:
        scores: Metrics by task and name.
        baseline: The same metrics of single-task models.
        tasks: For each task its metrics and whether higher is better; or tasks, of which the primary metrics
            count.
        convention: ``"maninis"`` or ``"flat"``.

    Returns:
        Percent; NaN if nothing is left.

    Raises:
        DataError: for an unknown convention, a task or metric that the scores lack, or a baseline of 0.

    Example:
        >>> single, multi = {"depth": {"error": 2.0}}, {"depth": {"error": 1.0}}
        >>> delta_m(multi, single, {"depth": {"error": False}})
        50.0
        >>> delta_m(multi, single, {"depth": {"error": False}}, convention="flat")
        -50.0

    Reference:
        Maninis et al., Attentive single-tasking of multiple tasks (2019), equation 4.
    """
    if convention not in CONVENTIONS:
        raise DataError(unknown("convention", convention, CONVENTIONS))
    gains: dict[str, list[float]] = {}
    for task, metric, higher in _pairs(_directions(tasks)):
        now, single = _value(scores, task, metric, "scores"), _value(baseline, task, metric, "baseline")
        if single == 0:
            raise DataError(
                f"delta_m: the baseline's {metric} of task '{task}' is 0, and nothing can be measured relative to 0. "
                "Leave that metric out, or train the baseline for longer."
            )
        gain = 100 * (now - single) / abs(single)
        gains.setdefault(task, []).append(gain if higher else -gain)
    if convention == "flat":
        return -mean_defined([gain for of_task in gains.values() for gain in of_task])
    return mean_defined([mean_defined(of_task) for of_task in gains.values()])


def mean_rank(table: Mapping[str, Values], tasks: Mapping[str, Task] | Directions) -> dict[str, float]:
    """Mean over all metrics of each method's rank; 1 is best, and equal values share the middle of their ranks.

    A metric that is undefined for any method ranks nobody and is left out.

    Args:
        table: For each method its metrics by task and name.
        tasks: For each task its metrics and whether higher is better; or tasks, of which the primary metrics
            count.

    Returns:
        The mean rank of each method; NaN if no metric is left.

    Raises:
        DataError: if the table is empty, or a method lacks a task or metric.

    Example:
        >>> table = {"sum": {"a": {"f1": 0.5}}, "mgda": {"a": {"f1": 0.7}}}
        >>> mean_rank(table, {"a": {"f1": True}})
        {'sum': 2.0, 'mgda': 1.0}
    """
    if not table:
        raise DataError("mean_rank needs at least one method in its table.")
    columns = []
    for task, metric, higher in _pairs(_directions(tasks)):
        values = np.array([_value(of, task, metric, f"method '{method}'") for method, of in table.items()])
        if not np.isnan(values).any():
            # A value alone takes up the place from 0 to 1, and its middle stands for rank 1.
            columns.append(ranks(-values if higher else values, None) + 0.5)
    if not columns:
        return dict.fromkeys(table, math.nan)
    return dict(zip(table, np.mean(columns, 0).tolist(), strict=True))
