"""How the tasks got on with each other while they were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from polytask.reporting.heat import matrix
from polytask.reporting.plots import Line, lines
from polytask.reporting.record import RunRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.sections.learning import column
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.words import metric_label, percent

MAX_LINES = 8
POINTS = 60
LAYER = "layer_cosine."
LAYER_COLUMNS = 12
# Columns of the history that are about the step itself, not about how tasks were balanced.
_NOT_BALANCING = ("scope", "epoch", "step", "lr")


def conflict(record: RunRecord) -> Section | None:
    """Weights, cosines and further figures of the balancer over the steps, if it left any."""
    names = list(dict.fromkeys(name for row in record.balancing for name in row))
    weights = [name for name in names if name.startswith("weight.")]
    cosines = [name for name in names if name.startswith("cosine.")]
    fixed = _fixed(record, weights)
    layers = [name for name in names if name.startswith(LAYER)]
    known = {*weights, *cosines, *layers, *_NOT_BALANCING}
    others = [name for name in names if name not in known and not name.startswith("loss.")]
    drawn = [
        *([] if fixed else _together(record, weights, "weight of each task")),
        *_together(record, _most_opposed(record, cosines), "cosine between gradients"),
        *(plot for name in others for plot in _together(record, [name], metric_label(name))),
    ]
    by_layer = _by_layer(record, layers)
    if not drawn and not fixed and by_layer is None:
        return None
    table = _cosine_table(record, cosines)
    html = fill("conflict.html.j2", balancer=record.balancer, fixed=fixed, plots=drawn, table=table, by_layer=by_layer)
    return Section("conflict", "Balancing and conflict", html)


def _by_layer(record: RunRecord, names: Sequence[str]) -> Markup | None:
    """Layers down, steps across, and in each cell the mean cosine of the looks that fall into it."""
    looks = [row for row in record.balancing if any(row.get(name) is not None for name in names)]
    if not looks:
        return None
    parts = np.array_split(np.arange(len(looks)), min(len(looks), LAYER_COLUMNS))
    numbers = [[np.nan if row.get(name) is None else float(row[name]) for row in looks] for name in names]
    values = np.array([[_mean(np.array(of)[part]) for part in parts] for of in numbers])
    steps = [f"{looks[part[-1]]['step']:g}" for part in parts]
    layers = [name.removeprefix(LAYER).removeprefix("sharing.") for name in names]
    return matrix(values, layers, steps, title="mean cosine by shared layer", axes=("layer", "step"))


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _fixed(record: RunRecord, weights: Sequence[str]) -> str:
    """The weights in words if none ever changed, since flat lines on top of each other show nothing."""
    values = {name: column(record.balancing, name, "step")[1] for name in weights}
    if not values or any(min(of) != max(of) for of in values.values() if of):
        return ""
    shown = [f"{_label(record, name)} {of[0]:.4g}" for name, of in values.items() if of]
    return f"The weights stayed the same in every step: {', '.join(shown)}." if shown else ""


def _together(record: RunRecord, names: Sequence[str], title: str) -> list[Markup]:
    series = []
    for index, name in enumerate(names[:MAX_LINES]):
        steps, values = smoothed(*column(record.balancing, name, "step"))
        if steps:
            label = _label(record, name) if len(names) > 1 else ""
            series.append(Line(steps, values, label=label, colour=index))
    if not series:
        return []
    more = f" ({MAX_LINES} of {len(names)})" if len(names) > MAX_LINES else ""
    return [lines(series, title=title + more, x_label="step")]


def smoothed(steps: Sequence[float], values: Sequence[float], limit: int = POINTS) -> tuple[list[float], list[float]]:
    """At most ``limit`` points, each the mean of its neighbours, so that single noisy steps do not hide the course.

    Example:
        >>> smoothed([1, 2, 3, 4], [0.0, 2.0, 4.0, 6.0], limit=2)
        ([1.5, 3.5], [1.0, 5.0])
    """
    if len(steps) <= limit:
        return list(steps), list(values)
    parts = np.array_split(np.arange(len(steps)), limit)
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]


def _most_opposed(record: RunRecord, names: Sequence[str]) -> list[str]:
    """Pairs of tasks in the order of their mean cosine, the most opposed first."""
    means = {name: float(np.mean(values)) for name in names if (values := column(record.balancing, name, "step")[1])}
    return sorted(means, key=lambda name: means[name])


def _cosine_table(record: RunRecord, names: Sequence[str]) -> Table | None:
    rows = []
    for name in _most_opposed(record, names):
        values = np.asarray(column(record.balancing, name, "step")[1], dtype=float)
        opposed = float((values < 0).mean())
        cells = (value_cell(float(values.mean())), Cell(percent(opposed), bar=opposed), value_cell(float(values.min())))
        rows.append((Cell(_label(record, name)), *cells))
    if not rows:
        return None
    columns = (
        Column("tasks", numeric=False),
        Column("mean cosine"),
        Column("steps in conflict", help="Share of the steps whose cosine was negative."),
        Column("lowest cosine"),
    )
    return Table(columns, tuple(rows), caption="Pairs of tasks, the most opposed first", folded=len(rows) > 15)


def _label(record: RunRecord, name: str) -> str:
    """The task or the pair of tasks that a history column is about; a task's name may hold dots itself."""
    kind, _, rest = name.partition(".")
    names = [task.name for task in record.tasks]
    if kind != "cosine":
        return rest
    pairs = (f"{a} and {b}" for a in names for b in names if rest == f"{a}.{b}")
    return next(pairs, rest.replace(".", " and ", 1))
