"""What one method of a comparison gave, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Values = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class TaskFacts:
    """What a comparison knows about a task.

    Args:
        name: Its name.
        kind: Its type.
        primary: The metric that stands for it.
        directions: For each metric whether higher is better.
    """

    name: str
    kind: str
    primary: str
    directions: Mapping[str, bool]


@dataclass(frozen=True)
class MethodResult:
    """What one method gave.

    Args:
        name: Its name.
        kind: ``"network"`` or ``"trees"``.
        sharing: Of a network, with options.
        balancer: Of a network, with options.
        scores: Metrics by seed and task, on the rows that the comparison reports.
        validation: The same on the validation rows.
        fixed: Whether one training stands for all seeds, since the method draws nothing at random.
        failed: Why a seed's training failed, by seed.
        settings: What the search chose, by key of the recipe.
        trials: All settings that were tried, with the criterion's value.
        seconds: Training time of every seed.
        search_seconds: Training time of all trials but the chosen one, which is the first seed's training.
        peak_memory_bytes: Most memory of a worker while it trained; None where that is not known.
        parameters: How many numbers are trained.
    """

    name: str
    kind: str
    sharing: Mapping[str, Any]
    balancer: Mapping[str, Any]
    scores: Mapping[int, Values]
    validation: Mapping[int, Values]
    fixed: bool = False
    failed: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ()
    seconds: tuple[float, ...] = ()
    search_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    parameters: int | None = None

    def values(self, task: str, metric: str, seeds: Sequence[int]) -> list[float]:
        """A metric by seed; NaN where it is undefined or the training failed."""
        found = [self.scores[seed][task][metric] if seed in self.scores else None for seed in seeds]
        return [math.nan if value is None else value for value in found]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        trials = [{**trial, "value": finite(trial["value"])} for trial in self.trials]
        return {**asdict(self), "trials": trials}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MethodResult:
        """What ``to_dict`` described, also after it was in a file: JSON has text keys only."""
        by_seed = {key: {int(s): v for s, v in plain[key].items()} for key in ("scores", "validation", "failed")}
        trials = tuple({**t, "value": math.nan if t["value"] is None else t["value"]} for t in plain["trials"])
        return cls(**{**plain, **by_seed, "trials": trials, "seconds": tuple(plain["seconds"])})


def finite(value: float) -> float | None:
    """The number, or None if it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None
