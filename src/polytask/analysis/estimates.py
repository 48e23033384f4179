"""What tasks do for each other, as measured in several runs: matrices with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.errors import DataError, unknown
from polytask.evaluation import Interval, mean_interval

Matrix = NDArray[np.float64]
KINDS = ("tag", "cosine", "transfer", "backward")


@dataclass(frozen=True)
class Estimate:
    """One matrix, measured in runs with several seeds.

    Args:
        values: ``[seeds, m, m]``: row i is the task that helps, column j the one that is helped.
        parts: ``[seeds, parts, m, m]``: means over stretches of each run, of which ``values`` are the means; None
            where a run gives one number.
    """

    values: Matrix
    parts: NDArray[np.float64] | None = None

    @cached_property
    def mean(self) -> Matrix:
        """Means over seeds ``[m, m]``; NaN where no seed has a number."""
        return self._over_pairs(lambda of: of.mean)

    def interval(self, i: int, j: int) -> Interval:
        """Mean and 95 % interval of one entry: over seeds, or over stretches of the run if there is one seed."""
        if len(self.values) == 1 and self.parts is not None:
            return mean_interval(self.parts[0, :, i, j].tolist())
        return mean_interval(self.values[:, i, j].tolist())

    @cached_property
    def low(self) -> Matrix:
        """Lower ends of the intervals."""
        return self._over_pairs(lambda of: of.low)

    @cached_property
    def high(self) -> Matrix:
        """Upper ends of the intervals."""
        return self._over_pairs(lambda of: of.high)

    @property
    def step_error(self) -> Matrix | None:
        """Standard error of the mean that comes from the steps looked at, ``[m, m]``; None without looks.

        From the deviation of means over stretches of a run: single looks resemble their neighbours, which would make
        the error look too small.
        """
        if self.parts is None:
            return None
        count = self.parts.shape[1]
        if count < 2:
            return np.full(self.values.shape[1:], np.nan)
        variance = self.parts.var(1, ddof=1) / count
        return np.asarray(np.sqrt(variance.mean(0) / len(self.values)))

    def _over_pairs(self, number: Any) -> Matrix:
        size = self.values.shape[1]
        return np.array([[number(self.interval(i, j)) for j in range(size)] for i in range(size)])


@dataclass(frozen=True)
class Affinity:
    """What tasks do for each other.

    Attributes:
        title: What the report is called.
        tasks: Names of the tasks, in the order of rows and columns.
        estimates: By kind, of ``tag``, ``cosine``, ``transfer`` and ``backward``.
        seeds: The seeds.
        budget: Length of every training, in words.
        looks: At how many steps each run was looked at.
        seconds: Training time, added up over the workers.
        alone: For each task its primary metric, and its mean over seeds when it was trained alone.
        versions: Versions of what decides a result.
        path: Folder, or None.
    """

    title: str
    tasks: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    seeds: tuple[int, ...]
    budget: str
    looks: int = 0
    seconds: float = 0.0
    alone: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def __getitem__(self, kind: str) -> Estimate:
        if kind not in self.estimates:
            raise DataError(unknown("kind", kind, self.estimates))
        return self.estimates[kind]

    def linkage(self, kind: str) -> NDArray[np.float64] | None:
        """Average-linkage tree over the tasks, as ``scipy.cluster.hierarchy`` writes it.

        The distance of two tasks is how far the mean of what they do for each other lies below the highest of all.

        Returns:
            ``[m - 1, 4]``; None with fewer than two tasks or an undefined entry.
        """
        from scipy.cluster.hierarchy import average
        from scipy.spatial.distance import squareform

        mean = self[kind].mean
        mutual = (mean + mean.T) / 2
        off = ~np.eye(len(mutual), dtype=bool)
        if len(mutual) < 2 or not np.isfinite(mutual[off]).all():
            return None
        distance = np.where(off, mutual[off].max() - mutual, 0.0)
        return np.asarray(average(squareform(distance, checks=False)))

    def highest(self, kind: str) -> float:
        """The highest mean of what two tasks do for each other: where distances of ``linkage`` start."""
        mean = self[kind].mean
        mutual = (mean + mean.T) / 2
        return float(mutual[~np.eye(len(mutual), dtype=bool)].max())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; None where a number is undefined."""
        kinds = {}
        for kind, of in self.estimates.items():
            found: dict[str, Any] = {"by_seed": of.values, "mean": of.mean, "low": of.low, "high": of.high}
            if of.parts is not None:
                found |= {"parts": of.parts, "step_error": of.step_error}
            kinds[kind] = {name: plain(array) for name, array in found.items()}
        return {
            "title": self.title,
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
            "budget": self.budget,
            "looks": self.looks,
            "seconds": self.seconds,
            "alone": {task: list(of) for task, of in self.alone.items()},
            "kinds": kinds,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: Path | None = None) -> Affinity:
        """What ``to_dict`` described."""
        estimates = {
            kind: Estimate(_array(of["by_seed"]), _array(of["parts"]) if "parts" in of else None)
            for kind, of in data["kinds"].items()
        }
        alone = {task: (metric, value) for task, (metric, value) in data["alone"].items()}
        rest = {key: data[key] for key in ("title", "budget", "looks", "seconds", "versions")}
        return cls(
            **rest, tasks=tuple(data["tasks"]), seeds=tuple(data["seeds"]), estimates=estimates, alone=alone, path=path
        )

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``report.html``."""
        from polytask.analysis.affinity_report import affinity_page
        from polytask.analysis.jobs import write_json
        from polytask.reporting.page import write_page

        write_json(folder / "results.json", self.to_dict())
        write_page(affinity_page(self), folder / "report.html")

    def __repr__(self) -> str:
        parts = []
        width = max(map(len, self.tasks))
        for kind, of in self.estimates.items():
            rows = ["  ".join(f"{v:>{max(width, 8)}.4g}" for v in row) for row in of.mean]
            head = "  ".join(f"{name:>{max(width, 8)}}" for name in self.tasks)
            lines = [f"{name:{width}}  {row}" for name, row in zip(self.tasks, rows, strict=True)]
            parts.append("\n".join([f"{kind} (row helps column)", f"{'':{width}}  {head}", *lines]))
        return "\n\n".join(parts)


def plain(array: NDArray[Any] | None) -> Any:
    """Nested lists with None for what is undefined."""
    if array is None:
        return None
    if array.ndim > 1:
        return [plain(row) for row in array]
    return [float(value) if math.isfinite(value) else None for value in array]


def _array(nested: Sequence[Any]) -> NDArray[np.float64]:
    return np.array(nested, dtype=np.float64)
