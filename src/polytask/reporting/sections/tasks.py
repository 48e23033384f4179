"""Every task on its own: all its metrics, its figures, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from polytask.reporting.heat import heat_map
from polytask.reporting.plots import Line, bars, lines, scatter
from polytask.reporting.record import RunRecord, TaskRecord
from polytask.reporting.section import Section, fill, task_anchor
from polytask.reporting.sections.classes import classes_view
from polytask.reporting.sections.pictures import pictures_view
from polytask.reporting.tables import Cell, Column, Table, mapping_table, value_cell
from polytask.reporting.words import metric_label, number, shown_split, summary

LONG = 20
PARTS = {"labels": "Labels", "entities": "Entities", "tags": "Tags"}
"""Figures that are tables of a task's parts, and their headings."""


def tasks(record: RunRecord) -> Section | None:
    """One part per task."""
    if not record.tasks:
        return None
    anchors = [task_anchor(index) for index in range(len(record.tasks))]
    views = [_view(task, anchor) for task, anchor in zip(record.tasks, anchors, strict=True)]
    entries = tuple((anchor, task.name) for task, anchor in zip(record.tasks, anchors, strict=True))
    return Section("tasks", "Tasks", fill("tasks.html.j2", tasks=views), entries)


def _view(task: TaskRecord, anchor: str) -> dict[str, Any]:
    plots = [plot for key, draw in _DRAWN.items() if (found := task.figures.get(key)) and (plot := draw(found))]
    confusion = task.figures.get("confusion")
    classes = classes_view(np.asarray(confusion["matrix"], dtype=float), task.classes) if confusion else None
    wide = classes is not None and len(classes.names) > 4
    if classes is not None and not wide:
        plots.append(_heat(classes.shares, classes.names))
    return {
        "anchor": anchor,
        "name": task.name,
        "kind": task.kind,
        "split": shown_split(task),
        "sentence": summary(task),
        "metrics": metrics_table(task),
        "plots": plots,
        "classes": classes,
        "heat": _heat(classes.shares, classes.names) if classes is not None and wide else None,
        "parts": [(heading, table) for key, heading in PARTS.items() if (table := parts_table(task, key))],
        "pictures": pictures_view(task.figures.get("pictures") or ()),
    }


def _heat(shares: Any, names: tuple[str, ...]) -> Markup:
    return heat_map(shares, names, title="Confusion, in percent of each true class")


def metrics_table(task: TaskRecord) -> Table:
    """Every metric of a task on every split, with the reference values; what counts most comes first."""
    known = list(dict.fromkeys(name for values in task.scores.values() for name in values))
    names = [task.primary] + [name for name in known if name != task.primary]
    splits = sorted(task.scores, key=lambda split: split != shown_split(task))
    columns = (Column("metric", numeric=False), *map(Column, splits), *map(Column, task.reference))
    rows = []
    for name in names:
        arrow = {True: " ↑", False: " ↓"}.get(task.directions.get(name), "")  # type: ignore[arg-type]
        values = [of.get(name) for of in (*map(task.scores.__getitem__, splits), *task.reference.values())]
        rows.append((Cell(metric_label(name) + arrow), *map(value_cell, values)))
    return Table(columns, tuple(rows), folded=len(rows) > LONG, caption=f"{len(rows)} metrics")


def parts_table(task: TaskRecord, key: str) -> Table | None:
    """The rates of every label, entity type or tag of a task, from its figures under ``key``."""
    rows = task.figures.get(key)
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    shares = [name for name in names if name not in (names[0], "support")]
    return mapping_table(rows, names, shares=shares, caption=f"{len(rows)} rows", folded=len(rows) > LONG)


def _roc(found: Mapping[str, Any]) -> Markup | None:
    if len(found["x"]) == 0:
        return None
    guess = Line([0, 1], [0, 1], label="guessing", dashed=True)
    curve = Line(found["x"], found["y"], label=f"area {number(found['area'])}")
    x_label, y_label = "false positive rate", "true positive rate"
    return lines([guess, curve], title="ROC", x_label=x_label, y_label=y_label, limits=(0, 1), square=True)


def _precision_recall(found: Mapping[str, Any]) -> Markup | None:
    if len(found["x"]) == 0:
        return None
    series = [Line(found["x"], found["y"], label=f"average precision {number(found['area'])}")]
    if found.get("base") is not None:
        series.insert(0, Line([0, 1], [found["base"]] * 2, label="guessing", dashed=True))
    title = "Precision and recall"
    return lines(series, title=title, x_label="recall", y_label="precision", limits=(0, 1), square=True)


def _calibration(found: Mapping[str, Any]) -> Markup | None:
    if len(found["predicted"]) == 0:
        return None
    perfect = Line([0, 1], [0, 1], label="perfect", dashed=True)
    curve = Line(found["predicted"], found["observed"], label=f"calibration error {number(found['error'])}")
    x_label, y_label = "predicted probability", "observed frequency"
    return lines([perfect, curve], title="Calibration", x_label=x_label, y_label=y_label, limits=(0, 1), square=True)


def _errors(found: Mapping[str, Any]) -> Markup | None:
    if len(found["counts"]) == 0:
        return None
    return bars(found["edges"], found["counts"], title="Errors", x_label="predicted minus true")


def _predicted_true(found: Mapping[str, Any]) -> Markup | None:
    known = [(t, p) for t, p in zip(found["true"], found["predicted"], strict=True) if t is not None and p is not None]
    if not known:
        return None
    return scatter([t for t, _ in known], [p for _, p in known], title="Predicted and true")


_DRAWN: dict[str, Callable[[Mapping[str, Any]], Markup | None]] = {
    "roc": _roc,
    "precision_recall": _precision_recall,
    "calibration": _calibration,
    "predicted_true": _predicted_true,
    "errors": _errors,
}
