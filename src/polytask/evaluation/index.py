"""A composite index: one number over the metrics of several tasks, defined by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from polytask.errors import RecipeError, unknown
from polytask.evaluation.improvement import relative_improvement
from polytask.evaluation.scores import Scores
from polytask.expressions import Expression
from polytask.tasks.task import Task

KINDS = ("weighted", "geometric", "worst", "expression")
_PROBES = 24
"""Points at which an expression's slopes are looked at."""


@dataclass(frozen=True)
class IndexSettings:
    """One number over the metrics of several tasks.

    Args:
        kind: ``weighted`` (weighted mean), ``geometric`` (weighted geometric mean), ``worst`` (the task that does
            worst) or ``expression``.
        expression: Over metrics, such as ``0.7*income.auroc + 0.3*education.accuracy``. A task's name alone is its
            primary metric; a name that is no plain word stands in backticks.
        metrics: For each task the metric that counts, if it is not its primary one. With ``weights`` or
            ``reference``, tasks that none of the three names still count.
        weights: For each task its weight in the mean; 1 if left out, and 0 leaves the task out.
        reference: For each task the value that its metric is compared with, such as that of a single-task model.
            What counts then is the relative improvement over it.
        higher_is_better: Whether a higher value of ``expression`` is better. The others know their direction.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    kind: Literal["weighted", "geometric", "worst", "expression"] = "weighted"
    expression: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if (self.kind == "expression") != (self.expression is not None):
            raise RecipeError(
                f"index.kind is '{self.kind}' and index.expression is {self.expression!r}. Give an expression with "
                "kind: expression, and only there; index: '0.7*income.auroc + ...' is the short form."
            )
        others = [name for name in ("metrics", "weights", "reference") if getattr(self, name)]
        if self.kind == "expression" and others:
            raise RecipeError(f"index.{others[0]} does nothing beside an expression. Write it into the expression.")
        if self.kind == "worst" and self.weights:
            raise RecipeError("index.weights do nothing for kind: worst. Leave them out.")
        if self.kind != "expression" and not self.higher_is_better:
            raise RecipeError(f"index.higher_is_better goes with an expression; '{self.kind}' knows its directions.")
        for task, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise RecipeError(f"index.weights.{task} is {weight}; a weight is at least 0.")


def index_settings(given: str | Mapping[str, Any] | IndexSettings) -> IndexSettings:
    """The settings, also where only an expression or plain data were given."""
    if isinstance(given, IndexSettings):
        return given
    return IndexSettings("expression", given) if isinstance(given, str) else IndexSettings(**given)


class CompositeIndex:
    r"""One number for scores, from metrics of several tasks.

    With the goodness :math:`g_t` of task t's metric (its value, with the sign turned where lower is better; or its
    relative improvement over ``reference``) and weights :math:`w_t`:

    - ``weighted``: :math:`\sum_t w_t g_t / \sum_t w_t`;
    - ``geometric``: :math:`\exp(\sum_t w_t \log v_t / \sum_t w_t)` with :math:`v_t` the metric's value (over its
      reference, if there is one), inverted where lower is better;
    - ``worst``: :math:`\min_t g_t`;
    - ``expression``: what it says.

    Args:
        given: An expression, or settings.
        tasks: The tasks by name.

    Attributes:
        higher_is_better: Its direction.

    Raises:
        RecipeError: for an unknown task or metric, an expression that gets better as a metric gets worse, or metrics
            that cannot be compared.

    Example:
        >>> from polytask.tasks import binary, regression
        >>> tasks = {"up": binary("up"), "size": regression("size")}
        >>> index = CompositeIndex("up.auroc - 0.1 * size.rmse", tasks)
        >>> round(index(Scores({"up": {"auroc": 0.9}, "size": {"rmse": 2.0}})), 3)
        0.7
        >>> worst = CompositeIndex({"kind": "worst", "reference": {"up": 0.8, "size": 2.0}}, tasks)
        >>> round(worst(Scores({"up": {"auroc": 0.9}, "size": {"rmse": 1.9}})), 3)
        0.05
    """

    def __init__(self, given: str | Mapping[str, Any] | IndexSettings, tasks: Mapping[str, Task]):
        self.settings = index_settings(given)
        self._tasks = dict(tasks)
        self.higher_is_better = self.settings.higher_is_better
        self._expression: Expression | None = None
        if self.settings.expression is not None:
            known = {name: (name, task.primary) for name, task in tasks.items()}
            known |= {f"{name}.{metric}": (name, metric) for name, task in tasks.items() for metric in task.metrics}
            self._expression = Expression(self.settings.expression, known, "index")
            self._used = {name: known[name] for name in self._expression.names}
            self._check_directions()
        else:
            self._used = {name: (name, self._metric(name)) for name in self._chosen()}
            self._check_comparable()

    def __call__(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """The index of these scores; NaN if a metric that it uses is undefined."""
        values = {
            name: float(scores.get(task, {}).get(metric, math.nan)) for name, (task, metric) in self._used.items()
        }
        if any(math.isnan(value) for value in values.values()):
            return math.nan
        found = self._combined(values)
        return found if math.isfinite(found) else math.nan

    def goodness(self, scores: Scores) -> float:
        """The index with the sign turned where lower is better: what selection maximises."""
        return self(scores) if self.higher_is_better else -self(scores)

    def describe(self) -> str:
        """What it is, in one line.

        Example:
            >>> from polytask.tasks import binary
            >>> CompositeIndex({"weights": {"a": 2}}, {"a": binary("a"), "b": binary("b")}).describe()
            'weighted mean of a.auroc (2), b.auroc (1)'
        """
        if self._expression is not None:
            return self._expression.text
        kind = {"weighted": "weighted mean", "geometric": "geometric mean", "worst": "worst"}[self.settings.kind]
        weighted = bool(self.settings.weights)
        parts = [
            f"{task}.{metric}" + (f" ({self._weight(task):g})" if weighted else "")
            for task, metric in self._used.values()
        ]
        over = " over the reference" if self.settings.reference else ""
        return f"{kind} of {', '.join(parts)}{over}"

    def _combined(self, values: Mapping[str, float]) -> float:
        if self._expression is not None:
            return float(self._expression(values))
        kind = self.settings.kind
        if kind == "worst":
            return min(self._good(task, value) for task, value in values.items())
        weights = [self._weight(task) for task in values]
        good = [self._log(t, v) if kind == "geometric" else self._good(t, v) for t, v in values.items()]
        mean = sum(w * g for w, g in zip(weights, good, strict=True)) / sum(weights)
        return math.exp(mean) if kind == "geometric" and mean < 700 else mean if kind != "geometric" else math.nan

    def _good(self, task: str, value: float) -> float:
        higher = self._is_higher(task)
        if task in self.settings.reference:
            return relative_improvement(self.settings.reference[task], value, higher)
        return value if higher else -value

    def _log(self, task: str, value: float) -> float:
        ratio = value / self.settings.reference.get(task, 1.0)
        if ratio <= 0:
            # A perfect error makes the mean infinite, and a negative value has no logarithm.
            return math.nan
        return math.log(ratio) if self._is_higher(task) else -math.log(ratio)

    def _weight(self, task: str) -> float:
        return float(self.settings.weights.get(task, 1.0))

    def _metric(self, task: str) -> str:
        return self.settings.metrics.get(task, self._tasks[task].primary)

    def _is_higher(self, task: str) -> bool:
        return self._tasks[task].metrics[self._metric(task)].higher_is_better

    def _chosen(self) -> list[str]:
        """The tasks that count, their options checked."""
        for option in ("metrics", "weights", "reference"):
            for name in getattr(self.settings, option):
                if name not in self._tasks:
                    raise RecipeError(f"index.{option}: {unknown('task', name, self._tasks)}")
        for name, metric in self.settings.metrics.items():
            known = self._tasks[name].metrics
            if metric not in known:
                raise RecipeError(f"index.metrics.{name}: {unknown('metric', metric, known)}")
        chosen = [name for name in self._tasks if self._weight(name) > 0]
        if not chosen:
            raise RecipeError("index.weights are all 0. Give at least one task a weight above 0.")
        return chosen

    def _check_comparable(self) -> None:
        reference = self.settings.reference
        missing = [name for name in self._used if name not in reference]
        if reference and missing:
            raise RecipeError(
                f"index.reference has no value for: {', '.join(missing)}. Give one to every task that counts."
            )
        for name, value in reference.items():
            if not math.isfinite(value) or value == 0 or (self.settings.kind == "geometric" and value < 0):
                raise RecipeError(f"index.reference.{name} is {value}; nothing can be relative to that.")
        directions = {self._is_higher(name) for name in self._used}
        if self.settings.kind == "worst" and not reference and len(directions) > 1:
            higher = [f"{n}.{self._metric(n)}" for n in self._used if self._is_higher(n)]
            lower = [f"{n}.{self._metric(n)}" for n in self._used if not self._is_higher(n)]
            raise RecipeError(
                f"index: higher is better for {', '.join(higher)} and lower for {', '.join(lower)}, so the worst of "
                "them means nothing. Give index.reference a value for each task, such as a single-task model's."
            )

    def _check_directions(self) -> None:
        """Refuse an expression that gets better wherever a metric gets worse: a sign was forgotten."""
        assert self._expression is not None
        random = np.random.default_rng(0)
        points = {name: random.uniform(0.05, 0.95, _PROBES) for name in self._used}
        for name, (task, metric) in self._used.items():
            up, down = ({**points, name: points[name] + step} for step in (1e-4, -1e-4))
            slope = np.asarray(self._expression(up) - self._expression(down), dtype=float)
            slope = slope[np.isfinite(slope)] * (1 if self.higher_is_better else -1)
            if not self._tasks[task].metrics[metric].higher_is_better:
                slope = -slope
            if slope.size and slope.max() <= 0 and slope.min() < 0:
                better = "higher" if self._tasks[task].metrics[metric].higher_is_better else "lower"
                raise RecipeError(
                    f"index: '{self._expression.text}' gets worse as '{name}' gets better, of which {better} is "
                    "better. Turn its sign, or say {expression: ..., kind: expression, higher_is_better: false}."
                )
