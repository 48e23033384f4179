"""What a grouping found: the splits, what they promise, and what they gave when they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.evaluation import Difference, Interval, mean_interval, paired_difference

TOGETHER = "together"


@dataclass(frozen=True)
class Option:
    """The best split into so many models.

    Args:
        groups: Names of the tasks of each.
        gains: For every seed, the mean over tasks of what the others of their group do for them.
    """

    groups: tuple[tuple[str, ...], ...]
    gains: tuple[float, ...]

    @property
    def interval(self) -> Interval:
        """Mean and 95 % interval of the gain, over seeds."""
        return mean_interval(self.gains)


@dataclass(frozen=True)
class Trained:
    """One way of training the tasks, trained.

    Args:
        scores: By seed, each task's primary metric; None where it is undefined.
        parameters: Trained parameters of all its models.
        seconds: Training time of all its models, by seed.
    """

    scores: Mapping[int, Mapping[str, float | None]]
    parameters: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Grouping:
    """A split of the tasks over models, and how it did.

    Attributes:
        title: What the report is called.
        tasks: Names of the tasks.
        by: The kind of affinity that the split was chosen by.
        options: The best splits into 1, 2, ... models; the last one is the one that was asked for.
        limit: Why there are fewer models than asked for, or empty.
        seeds: The seeds.
        part: Which rows the scores are of.
        metrics: For each task its primary metric, and whether higher is better.
        trained: ``groups``, ``together`` and ``separate`` as they were trained; empty without a check.
        versions: Versions of what decides a result.
        path: Folder, or None.
    """

    title: str
    tasks: tuple[str, ...]
    by: str
    options: tuple[Option, ...]
    seeds: tuple[int, ...]
    part: str
    metrics: Mapping[str, tuple[str, bool]]
    limit: str = ""
    trained: Mapping[str, Trained] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The chosen groups."""
        return self.options[-1].groups

    def values(self, way: str, task: str) -> list[float]:
        """A task's primary metric by seed; NaN where it is undefined."""
        found = [self.trained[way].scores[seed][task] for seed in self.seeds]
        return [math.nan if value is None else value for value in found]

    def gains(self, way: str, baseline: str) -> list[float]:
        """By seed, the mean over tasks of how much better the primary metric is, in percent (delta_m).

        A task whose metric is undefined, or zero under the baseline, is left out in that seed.
        """
        return [self._gain(way, baseline, seed, self.tasks) for seed in self.seeds]

    def task_gains(self, way: str, baseline: str, task: str) -> list[float]:
        """The same for one task."""
        return [self._gain(way, baseline, seed, [task]) for seed in self.seeds]

    def _gain(self, way: str, baseline: str, seed: int, tasks: Sequence[str]) -> float:
        found = []
        for task in tasks:
            value, other = self.trained[way].scores[seed][task], self.trained[baseline].scores[seed][task]
            if value is not None and other:
                better = value - other if self.metrics[task][1] else other - value
                found.append(100 * better / abs(other))
        return sum(found) / len(found) if found else math.nan

    def difference(self, way: str, baseline: str) -> Difference:
        """``gains`` against zero: mean, interval and paired test over seeds."""
        found = self.gains(way, baseline)
        return paired_difference(found, [0.0] * len(found))

    @property
    def conclusion(self) -> list[str]:
        """What came of it, in words."""
        from polytask.analysis.group_report import conclusion

        return conclusion(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        figures = {}
        if self.trained:
            for way, baseline in (("groups", TOGETHER), ("groups", "separate"), (TOGETHER, "separate")):
                of = self.difference(way, baseline)
                numbers = (of.interval.mean, of.interval.low, of.interval.high, of.p)
                named = zip(("mean", "low", "high", "p"), numbers, strict=True)
                figures[f"{way} against {baseline}"] = {name: _finite(value) for name, value in named}
        return {
            "title": self.title,
            "tasks": list(self.tasks),
            "by": self.by,
            "options": [
                {"groups": [list(g) for g in of.groups], "gains": [_finite(gain) for gain in of.gains]}
                for of in self.options
            ],
            "limit": self.limit,
            "seeds": list(self.seeds),
            "part": self.part,
            "metrics": {task: list(of) for task, of in self.metrics.items()},
            "trained": {
                way: {"scores": {str(s): dict(v) for s, v in of.scores.items()}, "parameters": of.parameters,
                      "seconds": list(of.seconds)}
                for way, of in self.trained.items()
            },
            "figures": figures,
            "conclusion": self.conclusion,
            "versions": dict(self.versions),
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``report.html``."""
        from polytask.analysis.group_report import group_page
        from polytask.analysis.jobs import write_json
        from polytask.reporting.page import write_page

        write_json(folder / "results.json", self.to_dict())
        write_page(group_page(self), folder / "report.html")

    def __repr__(self) -> str:
        lines = [f"group {at}: {', '.join(members)}" for at, members in enumerate(self.groups, start=1)]
        return "\n".join([*lines, "", *self.conclusion])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
