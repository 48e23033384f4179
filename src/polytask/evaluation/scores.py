"""Scores: metrics by task, as plain numbers that print as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from polytask.errors import DataError, unknown

DASH = "–"


class Scores(Mapping[str, Mapping[str, float]]):
    """Metrics by task; NaN where a metric is undefined, shown as a dash.

    Args:
        values: Metrics by task and name. None means undefined, as NaN does.
        counts: Labelled rows by task.
        left_out: By task and metric, how many classes or labels an average left out because it is undefined
            for them.
        index: The composite index of these scores, where one is defined.

    Example:
        >>> scores = Scores({"income": {"auroc": 0.91, "f1": None}}, {"income": 200})
        >>> scores["income"]["auroc"], scores.counts["income"]
        (0.91, 200)
        >>> scores
        task    rows  metric   value
        income   200  auroc   0.9100
                      f1           –
    """

    def __init__(
        self,
        values: Mapping[str, Mapping[str, float | None]],
        counts: Mapping[str, int] | None = None,
        left_out: Mapping[str, Mapping[str, int]] | None = None,
        index: float | None = None,
    ):
        self._values = {
            task: {name: math.nan if value is None else float(value) for name, value in metrics.items()}
            for task, metrics in values.items()
        }
        self.counts: dict[str, int] = dict(counts or {})
        self.left_out: dict[str, dict[str, int]] = {task: dict(of) for task, of in (left_out or {}).items()}
        self.index = index

    def __getitem__(self, task: str) -> Mapping[str, float]:
        return self._values[task]

    def __contains__(self, task: object) -> bool:
        return task in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def value(self, task: str, metric: str) -> float:
        """One metric, with an error that helps where there is none.

        Raises:
            DataError: for an unknown task or metric.
        """
        if task not in self._values:
            raise DataError(unknown("task", task, self._values))
        if metric not in self._values[task]:
            raise DataError(f"Task '{task}': {unknown('metric', metric, self._values[task])}")
        return self._values[task][metric]

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Metrics by task as plain data: None where undefined, since JSON has no NaN. Counts and index are apart.

        Example:
            >>> Scores({"a": {"f1": float("nan")}}).to_dict()
            {'a': {'f1': None}}
        """
        return {
            task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for task, metrics in self._values.items()
        }

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Mapping[str, float | None]],
        counts: Mapping[str, int] | None = None,
        left_out: Mapping[str, Mapping[str, int]] | None = None,
    ) -> Scores:
        """The scores that ``to_dict`` described, with counts if they are given."""
        return cls(values, counts, left_out)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table's cells: task, labelled rows, metric, value; a task's name stands in its first row only."""
        cells = []
        for task, metrics in self._values.items():
            first = (task, str(self.counts.get(task, "")))
            for name, value in metrics.items():
                lost = self.left_out.get(task, {}).get(name, 0)
                cells.append((*first, name, shown(value) + (f" ({lost} left out)" if lost else "")))
                first = ("", "")
        return cells if self.index is None else [*cells, ("index", "", "", shown(self.index))]

    def table(self) -> str:
        """A plain text table, one metric a line."""
        rows: list[tuple[str, str, str, str]] = [("task", "rows", "metric", "value"), *self.rows()]
        # The value is aligned by its number; what is left out follows it.
        split = [(task, count, name, *_number_and_note(value)) for task, count, name, value in rows]
        widths = [max(len(row[at]) for row in split) for at in range(4)]
        lines = [
            f"{task:<{widths[0]}}  {count:>{widths[1]}}  {name:<{widths[2]}}  {value:>{widths[3]}}{note}".rstrip()
            for task, count, name, value, note in split
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        # As plain data, since NaN is not equal to itself.
        same_index = self.index == other.index or (self.index != self.index and other.index != other.index)
        rest = (self.to_dict(), self.counts, self.left_out) == (other.to_dict(), other.counts, other.left_out)
        return same_index and rest

    __hash__ = None  # type: ignore[assignment]


def shown(value: float) -> str:
    """A number with the digits that matter; a dash where it is undefined.

    Example:
        >>> shown(0.91), shown(1234.5), shown(2e-7), shown(float("nan"))
        ('0.9100', '1234', '2e-07', '–')
    """
    if not math.isfinite(value):
        return DASH
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}"
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:.0f}"


def _number_and_note(value: str) -> tuple[str, str]:
    number, space, note = value.partition(" ")
    return number, space + note
