"""The page of an affinity measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from polytask.reporting.blocks import Facts, Figures, Paragraph, Sentences, section
from polytask.reporting.heat import matrix
from polytask.reporting.page import Page
from polytask.reporting.section import Section
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.trees import dendrogram
from polytask.reporting.words import duration, number, plural

if TYPE_CHECKING:
    from polytask.analysis.estimates import Affinity
    from polytask.evaluation import Interval

TITLES = {
    "tag": "Lookahead (TAG)",
    "cosine": "Gradient cosines",
    "transfer": "Forward transfer",
    "backward": "Backward transfer",
}
MEANING = {
    "tag": "Percent of the column task's loss that a step on the row task's gradient takes away, on the same batch, "
    "averaged over the training of all tasks together. The diagonal is a task's own step.",
    "cosine": "Cosine between the gradients of two tasks in the shared parameters, averaged over the training of all "
    "tasks together. Below zero, a step for one is a step against the other.",
    "transfer": "Percent by which the column task's primary metric is better when it is trained together with the row "
    "task than when it is trained alone, as long and with the same seed, on validation rows.",
    "backward": "Percent by which the column task's primary metric is better when the row task is added after half "
    "of the training than when the column task goes on alone, on validation rows.",
}
SCALE = {"tag": 100.0}
"""What the page multiplies an entry by: results.json holds shares."""
FOLD = 15


def affinity_page(of: Affinity) -> Page:
    """The page: what stands out, then a section for every kind."""
    return Page(
        title=of.title,
        kind="polytask affinity",
        sections=(_answer(of), *(_kind(of, kind) for kind in of.estimates)),
        lead=f"What {plural(len(of.tasks), 'task')} do for each other",
        footer=f"{' '.join(['Drawn by polytask', of.versions.get('polytask', '')]).strip()} from results.json.",
    )


def _answer(of: Affinity) -> Section:
    facts = [
        (str(len(of.tasks)), "tasks"),
        (str(len(of.seeds)), "seed" if len(of.seeds) == 1 else "seeds"),
        (of.budget, "in every training"),
        (duration(of.seconds), "of training in all"),
    ]
    return section(
        "answer", "What it says", Sentences([text for kind in of.estimates for text in told(of, kind)]), Facts(facts)
    )


def told(of: Affinity, kind: str) -> list[str]:
    """What stands out of one kind, in words."""
    pairs = _pairs(of, kind)
    if not pairs:
        return [f"{TITLES[kind]}: no pair of tasks has a number."]
    (best, top), (worst, bottom) = pairs[0], pairs[-1]
    texts = [
        f"{TITLES[kind]}: most from {best[0]} to {best[1]} ({_shown(top, kind)}), least from {worst[0]} to {worst[1]} "
        f"({_shown(bottom, kind)})."
    ]
    known = [interval for _, interval in pairs if interval.known]
    if known:
        up, down = sum(i.low > 0 for i in known), sum(i.high < 0 for i in known)
        chance = 0.05 * len(known)
        texts.append(
            f"{TITLES[kind]}: of {plural(len(known), 'ordered pair')}, {up} lie above zero and {down} below it with "
            f"their whole 95 % interval. By chance about {chance:.1f} would."
        )
    else:
        texts.append(f"{TITLES[kind]}: one seed gives no interval. Run it with seeds=3 or more before you rely on it.")
    return texts


def _pairs(of: Affinity, kind: str) -> list[tuple[tuple[str, str], Interval]]:
    """Ordered pairs of different tasks with their intervals, the highest first."""
    found = [
        ((helper, helped), of[kind].interval(i, j))
        for i, helper in enumerate(of.tasks)
        for j, helped in enumerate(of.tasks)
        if i != j
    ]
    return sorted((p for p in found if not math.isnan(p[1].mean)), key=lambda pair: -pair[1].mean)


def _shown(interval: Interval, kind: str) -> str:
    scale = SCALE.get(kind, 1.0)
    text = number(scale * interval.mean)
    return f"{text}, {number(scale * interval.low)} to {number(scale * interval.high)}" if interval.known else text


def _kind(of: Affinity, kind: str) -> Section:
    order = _order(of, kind)
    names = [of.tasks[at] for at in order]
    values = SCALE.get(kind, 1.0) * of[kind].mean[np.ix_(order, order)]
    if kind == "cosine":
        # Every task has a cosine of 1 with itself, and a colour that says nothing.
        values[np.diag_indices(len(values))] = np.nan
    heat = matrix(values, names, names, title=TITLES[kind], axes=("helps", "is helped"))
    return section(
        kind,
        TITLES[kind],
        Paragraph(MEANING[kind]),
        Figures(
            [heat, *_tree(of, kind)],
            "Tasks are in the order of the tree. The tree joins tasks at the mean of what they do for each other.",
        ),
        _table(of, kind),
        Paragraph(_how(of, kind), hint=True),
    )


def _order(of: Affinity, kind: str) -> list[int]:
    linkage = of.linkage(kind)
    if linkage is None:
        return list(range(len(of.tasks)))
    from scipy.cluster.hierarchy import leaves_list

    return [int(at) for at in leaves_list(linkage)]


def _tree(of: Affinity, kind: str) -> Sequence[Markup]:
    linkage = of.linkage(kind)
    if linkage is None:
        return []
    scale = SCALE.get(kind, 1.0)
    linkage = linkage.copy()
    linkage[:, 2] *= scale
    return [dendrogram(linkage, of.tasks, top=scale * of.highest(kind), title=f"tree of {kind}", x_label=kind)]


def _table(of: Affinity, kind: str) -> Table | None:
    scale, errors = SCALE.get(kind, 1.0), of[kind].step_error
    rows = []
    for (helper, helped), interval in _pairs(of, kind):
        tone = "good" if interval.known and interval.low > 0 else "bad" if interval.known and interval.high < 0 else ""
        cells = [Cell(helper), Cell(helped), Cell(number(scale * interval.mean), tone=tone)]
        cells += [value_cell(scale * interval.low), value_cell(scale * interval.high)]
        if errors is not None:
            cells.append(value_cell(scale * errors[of.tasks.index(helper), of.tasks.index(helped)]))
        rows.append(tuple(cells))
    if not rows:
        return None
    columns = [Column("task", numeric=False), Column("helps", numeric=False), Column("mean")]
    columns += [Column("low", help="lower end of the 95 % interval"), Column("high", help="upper end")]
    if errors is not None:
        columns.append(
            Column("error from steps", help="standard error of the mean that comes from the steps looked at")
        )
    return Table(tuple(columns), tuple(rows), caption=plural(len(rows), "ordered pair"), folded=len(rows) > FOLD)


def _how(of: Affinity, kind: str) -> str:
    if kind in ("transfer", "backward"):
        alone = ", ".join(f"{task} {metric} {number(value)}" for task, (metric, value) in of.alone.items())
        intervals = "Intervals are over seeds (Student's t), of differences between runs with the same seed."
        return f"{intervals} Alone: {alone}." if kind == "transfer" and alone else intervals
    over = "over seeds" if len(of.seeds) > 1 else "over ten stretches of the one run"
    return f"{of.looks} looks in each run. Intervals are {over} (Student's t), not corrected for the number of pairs."
