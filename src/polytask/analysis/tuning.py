"""What a search over settings found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A setting that was tried.

    Args:
        number: Its place in the search.
        values: By key of the recipe.
        state: ``complete``, ``pruned`` (given up early) or ``fail``.
        scores: One for each objective, higher is better; empty unless complete, the last epoch's if pruned.
        epoch: The epoch that the scores are of.
        epochs: How many were trained.
        seconds: Training time.
        failed: Why it has no score, or empty.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    scores: tuple[float, ...]
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    failed: str = ""


@dataclass(frozen=True)
class Tuning:
    """A search over settings of a recipe.

    Attributes:
        title: What the report is called.
        space: What was tried for each key.
        objectives: What was maximised, in words.
        as_it_stands: The same numbers of the recipe that was not tuned.
        settings: All that was tried, in order.
        importance: For each key the share of the differences that it explains; may be empty.
        versions: Versions of what decides a result.
        path: Folder, or None.
    """

    title: str
    space: Mapping[str, Any]
    objectives: tuple[str, ...]
    as_it_stands: tuple[float, ...]
    settings: tuple[Setting, ...]
    importance: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def best(self) -> tuple[Setting, ...]:
        """The best setting, the earlier of equal ones; with several objectives all that no other dominates."""
        done = [setting for setting in self.settings if setting.state == "complete"]
        if len(self.objectives) == 1:
            return (max(done, key=lambda setting: (setting.scores[0], -setting.number)),)
        front = [one for one in done if not any(_dominates(other.scores, one.scores) for other in done)]
        return tuple(sorted(front, key=lambda setting: setting.scores, reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        plain = asdict(self)
        plain.pop("path")
        return {**plain, "best": [setting.number for setting in self.best]}

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``report.html``."""
        from polytask.analysis.jobs import write_json
        from polytask.analysis.tune_report import tuning_page
        from polytask.reporting.page import write_page

        write_json(folder / "results.json", self.to_dict())
        write_page(tuning_page(self), folder / "report.html")

    def __repr__(self) -> str:
        from polytask.analysis.tune_report import conclusion

        return "\n".join(conclusion(self))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other
