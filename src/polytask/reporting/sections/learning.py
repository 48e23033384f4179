"""Training loss and validation metric of every task, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from polytask.reporting.plots import Line, lines
from polytask.reporting.record import RunRecord, TaskRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.words import metric_label


def learning(record: RunRecord) -> Section | None:
    """Learning curves, if the run left a history."""
    rows = [(task.name, drawn) for task in record.tasks if (drawn := _drawings(task, record))]
    epochs, values = column(record.epochs, "index", "epoch")
    if epochs:
        line = Line(epochs, values)
        rows.insert(0, ("index", [lines([line], title="validation index", x_label="epoch", mark=record.best_epoch)]))
    if not rows:
        return None
    html = fill("learning.html.j2", rows=rows, best_epoch=record.best_epoch, stop_reason=record.stop_reason)
    return Section("learning", "Learning curves", html)


def _drawings(task: TaskRecord, record: RunRecord) -> list[Markup]:
    wanted = (
        (f"loss.{task.name}", "training loss", 1),
        (f"{task.name}.{task.primary}", f"validation {metric_label(task.primary)}", 0),
    )
    drawn = []
    for key, title, colour in wanted:
        epochs, values = column(record.epochs, key, "epoch")
        if epochs:
            mark = record.best_epoch
            drawn.append(lines([Line(epochs, values, colour=colour)], title=title, x_label="epoch", mark=mark))
    return drawn


def column(rows: tuple[Mapping[str, Any], ...], key: str, along: str) -> tuple[list[float], list[float]]:
    """Positions and values of the rows that have a value under ``key``.

    Example:
        >>> column(({"epoch": 1, "a": 0.5}, {"epoch": 2}, {"epoch": 3, "a": None}), "a", "epoch")
        ([1], [0.5])
    """
    found = [(row[along], row[key]) for row in rows if row.get(key) is not None and row.get(along) is not None]
    return [position for position, _ in found], [value for _, value in found]
