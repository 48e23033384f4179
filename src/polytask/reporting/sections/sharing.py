"""What the tasks share, as the architecture shows it: gates, stitches, relations, attention and trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from polytask.reporting.heat import matrix, short
from polytask.reporting.plots import Line, lines
from polytask.reporting.record import RunRecord, SharingRecord
from polytask.reporting.section import Section, fill
from polytask.reporting.sections.branches import is_branch, paths_of, sureness, tree_or_table
from polytask.reporting.tables import Table
from polytask.reporting.words import plural

MAX_LINES = 8
MAX_ROWS = 6
MAX_PLOTS = 8
MAX_MATRICES = 16

MEANING = {
    "gates": "How much a task takes of each expert, on average over one batch. Shared experts come before own ones.",
    "stitch": "How much of the column's tower the row's tower goes on with, on average over the channels.",
    "relation": "How strongly the penalty draws the row's network to the column's. A row adds up to 1.",
    "alpha": "How much of the column's subspace the row's subspace goes on with.",
    "beta": "How much a task reads of each layer of its tower.",
    "attention": "Where a task looks: its weight on each token, on average over one batch. A row adds up to 1.",
    "transfer": "What a step of the funnel goes on with, on average over one batch. A row adds up to 1.",
    "mask": "How much of each channel a task lets through, from 0 to 1, on average over one batch.",
    "scales": "What a task multiplies each channel by: blue is above 1, orange is below 1.",
    "routes": "Which channels a task uses.",
}
"""What a matrix says, by the first word of its name."""
CENTRES = {"scales": 1.0}


@dataclass(frozen=True)
class Figures:
    """Drawings that belong together.

    Args:
        drawn: The drawings.
        caption: What they say, in a sentence.
        over_time: Whether they go over the epochs.
    """

    drawn: tuple[Markup, ...]
    caption: str
    over_time: bool = False


@dataclass(frozen=True)
class Part:
    """What the page shows of one matrix, or of a tree.

    Args:
        title: Its heading.
        groups: Its drawings.
        table: What stands in the place of a drawing that would be too large.
        note: A last sentence, or empty.
    """

    title: str
    groups: tuple[Figures, ...]
    table: Table | None = None
    note: str = ""


def sharing(record: RunRecord) -> Section | None:
    """The state of the chosen weights and how it came about, if the sharing has anything to show."""
    if not record.sharing:
        return None
    plain = [entry for entry in record.sharing if not is_branch(entry)]
    branches = [entry for entry in record.sharing if is_branch(entry)]
    shown = plain[:MAX_MATRICES]
    detailed = sum(min(len(entry.rows), MAX_ROWS) for entry in shown if _is_narrow(entry)) <= MAX_PLOTS
    parts = [*([_tree(branches, record)] if branches else []), *(_part(entry, record, detailed) for entry in shown)]
    left = len(plain) - len(shown)
    left_out = f"{left} further {'matrix is' if left == 1 else 'matrices are'} in report.json only." if left else ""
    html = fill("sharing.html.j2", intro=_intro(record), parts=parts, left_out=left_out)
    return Section("sharing", "What the tasks share", html)


def _intro(record: RunRecord) -> str:
    epochs = record.sharing[0].epochs
    at = epochs[chosen(record.sharing[0], record)]
    kept = ", whose weights were kept" if at == record.best_epoch else ", the last one looked at"
    looks = f"The architecture was looked at after {plural(len(epochs), 'epoch')}. "
    return f"{looks if len(epochs) > 1 else ''}Matrices are those after epoch {at}{kept}."


def chosen(entry: SharingRecord, record: RunRecord) -> int:
    """Which look is of the weights that were kept: that of the best epoch, else the last."""
    return entry.epochs.index(record.best_epoch) if record.best_epoch in entry.epochs else len(entry.epochs) - 1


def _values(entry: SharingRecord) -> NDArray[np.float64]:
    """``[epochs, rows, columns]``, NaN where there is no number."""
    return np.array(entry.values, dtype=float)


def _part(entry: SharingRecord, record: RunRecord, detailed: bool) -> Part:
    values, word = _values(entry), entry.name.partition(" ")[0]
    title = entry.name[:1].upper() + entry.name[1:]
    at = chosen(entry, record)
    now = values[at]
    drawn = matrix(
        now,
        entry.rows,
        entry.columns,
        title=f"{entry.name} after epoch {entry.epochs[at]}",
        axes=entry.axes,
        centre=CENTRES.get(word, 0.0),
    )
    meaning = MEANING.get(word, f"One row a {entry.axes[0]}, one column a {entry.axes[1]}.")
    groups = [Figures((drawn,), f"{meaning} {_strongest(entry, now)}".strip())]
    note = ""
    if _moved(values):
        groups.append(_over_time(entry, values, detailed))
    elif len(values) > 1:
        note = f"These numbers stayed the same from epoch {entry.epochs[0]} to {entry.epochs[-1]}."
    if len(entry.columns) < entry.size[1] or len(entry.rows) < entry.size[0]:
        note += f" Shown are {plural(len(entry.columns), 'column')} of {entry.size[1]:,}, evenly chosen."
    return Part(title, tuple(groups), note=note.strip())


def _strongest(entry: SharingRecord, now: NDArray[np.float64]) -> str:
    """The largest number of each task in words, where a column is something to name."""
    if entry.axes[0] != "task" or entry.axes[1] == "channel" or len(entry.rows) > MAX_ROWS:
        return ""
    among, said = _others(entry, now[None])[0], []
    largest = float(np.nan_to_num(np.abs(now)).max())
    for task, row in zip(entry.rows, among, strict=True):
        if np.isfinite(row).any():
            best = int(np.nanargmax(row))
            said.append(f"{task}: {_named(entry.axes[1], entry.columns[best])} ({short(row[best], largest)})")
    besides = " besides its own" if _is_mutual(entry) else ""
    return f"The largest of each task{besides}: {', '.join(said)}." if said else ""


def _is_mutual(entry: SharingRecord) -> bool:
    """Whether the diagonal is what a task has to do with itself."""
    return entry.axes == ("task", "task") and len(entry.rows) == len(entry.columns)


def _others(entry: SharingRecord, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[epochs, rows, columns]`` without what a task has to do with itself, which would hide the rest."""
    return np.where(np.eye(len(entry.rows), dtype=bool), np.nan, values) if _is_mutual(entry) else values


def _named(axis: str, label: str) -> str:
    return label if axis in ("task", "subspace") else f"{axis} {label}"


def _moved(values: NDArray[np.float64]) -> bool:
    """Whether anything changed between two looks, beyond rounding."""
    if len(values) < 2:
        return False
    change = np.nan_to_num(np.abs(values - values[0]))
    return float(change.max()) > 1e-5 * float(np.nan_to_num(np.abs(values)).max())


def _is_narrow(entry: SharingRecord) -> bool:
    return len(entry.columns) <= MAX_LINES


def _over_time(entry: SharingRecord, values: NDArray[np.float64], detailed: bool) -> Figures:
    if _is_narrow(entry) and detailed:
        keep = _most_moved(values, MAX_ROWS)
        others = _others(entry, values)
        drawn = [_row_over_time(entry, others[:, row], row) for row in keep]
        own = _own(entry, values) if _is_mutual(entry) else None
        said = f"The same numbers over the epochs{_those(entry, keep)}."
        return Figures(tuple([own, *drawn] if own is not None else drawn), said, over_time=True)
    if _is_mutual(entry) and (own := _own(entry, values)) is not None:
        return Figures((own,), "How much of its own tower each task goes on with, over the epochs.", over_time=True)
    courses = _spread(values)
    keep = _most_moved(courses[:, :, None], MAX_LINES)
    drawn = [_courses(entry, courses, keep, f"differences between {entry.axes[1]}s")]
    said = f"How far apart a row's numbers are, over the epochs: their standard deviation over {entry.axes[1]}s"
    return Figures(tuple(drawn), f"{said}{_those(entry, keep)}.", over_time=True)


def _own(entry: SharingRecord, values: NDArray[np.float64]) -> Markup | None:
    """What each task has to do with itself over the epochs; None if that is nothing or stays the same."""
    own = np.diagonal(values, axis1=1, axis2=2)
    return _courses(entry, own, _most_moved(own[:, :, None], MAX_LINES), "its own") if _moved(own) else None


def _courses(entry: SharingRecord, courses: NDArray[np.float64], keep: Sequence[int], title: str) -> Markup:
    """One line a row, from numbers ``[epochs, rows]``."""
    series = [
        Line(entry.epochs, _gaps(courses[:, row]), _named(entry.axes[0], entry.rows[row]), colour)
        for colour, row in enumerate(keep)
    ]
    return lines(series, title=title, x_label="epoch")


def _row_over_time(entry: SharingRecord, courses: NDArray[np.float64], row: int) -> Markup:
    series = [
        Line(entry.epochs, _gaps(courses[:, column]), _named(entry.axes[1], label), column)
        for column, label in enumerate(entry.columns)
        if np.isfinite(courses[:, column]).any()
    ]
    named = _named(entry.axes[0], entry.rows[row])
    return lines(series, title=f"{named} from the others" if _is_mutual(entry) else named, x_label="epoch")


def _those(entry: SharingRecord, keep: Sequence[int]) -> str:
    """Says so if rows are left out."""
    left = len(entry.rows) - len(keep)
    return f"; the {len(keep)} of {len(entry.rows)} {entry.axes[0]}s that changed the most" if left else ""


def _most_moved(values: NDArray[np.float64], limit: int) -> list[int]:
    """The rows of ``[epochs, rows, columns]`` that changed the most, in their order."""
    low, high = np.nan_to_num(values, nan=np.inf).min(0), np.nan_to_num(values, nan=-np.inf).max(0)
    ranges = np.where(np.isfinite(high - low), high - low, -1.0).max(-1)
    return sorted(np.argsort(-ranges, kind="stable")[:limit].tolist())


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the columns, ``[epochs, rows]``; NaN for a row without numbers."""
    known = np.isfinite(values)
    count = known.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(-1) / count
        away = np.where(known, values - mean[..., None], 0.0)
        return np.asarray(np.sqrt((away**2).sum(-1) / count))


def _gaps(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _tree(branches: Sequence[SharingRecord], record: RunRecord) -> Part:
    at = chosen(branches[-1], record)
    paths, chances = paths_of(branches, at)
    drawn, table = tree_or_table(paths, chances)
    caption = "Which copy of each stage a task reads after training. A percentage is the chance of that choice."
    groups = [Figures((drawn,), caption)] if drawn is not None else []
    courses = sureness(branches)
    if len(courses) > 1:
        keep = _most_moved(courses[:, :, None], MAX_LINES)
        line = _courses(branches[-1], courses, keep, "how sure the path is")
        said = f"How sure each task's path is: the product of its chances{_those(branches[-1], keep)}."
        groups.append(Figures((line,), said, over_time=True))
    return Part("Tree of the tasks", tuple(groups), table, "" if drawn is not None else caption)
