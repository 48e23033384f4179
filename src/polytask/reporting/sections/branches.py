"""Trees of tasks from the chances of their branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from polytask.reporting.record import SharingRecord
from polytask.reporting.tables import Cell, Column, Table
from polytask.reporting.trees import tree
from polytask.reporting.words import percent

MAX_TASKS = 12
MAX_STAGES = 8


def is_branch(entry: SharingRecord) -> bool:
    """Whether a matrix holds chances of parents: of nodes, or of tasks, which come last."""
    return entry.axes in (("node", "node"), ("task", "node"))


def paths_of(branches: Sequence[SharingRecord], at: int) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """Each task's node in every stage, and the chance of each choice on the way, at one look.

    Args:
        branches: Chances ``[nodes, parents]`` of the stages from the second on, then ``[tasks, nodes]``.
        at: Which look.
    """
    *stages, leaves = (np.array(entry.values[at], dtype=float) for entry in branches)
    paths: dict[str, list[int]] = {}
    chances: dict[str, list[float]] = {}
    for task, row in zip(branches[-1].rows, leaves, strict=True):
        path, sure = [int(row.argmax())], [float(row.max())]
        for parents in reversed(stages):
            chosen = parents[path[-1]]
            path.append(int(chosen.argmax()))
            sure.append(float(chosen.max()))
        paths[task], chances[task] = path[::-1], sure[::-1]
    return paths, chances


def sureness(branches: Sequence[SharingRecord]) -> NDArray[np.float64]:
    """The product of the chances along each task's path, ``[looks, tasks]``."""
    looks = (paths_of(branches, at)[1] for at in range(len(branches[-1].epochs)))
    return np.array([[np.prod(sure) for sure in chances.values()] for chances in looks])


def tree_or_table(
    paths: Mapping[str, Sequence[int]], chances: Mapping[str, Sequence[float]]
) -> tuple[Markup | None, Table | None]:
    """A drawing, or a table of paths where a drawing would be too large to read."""
    if len(paths) <= MAX_TASKS and all(len(path) <= MAX_STAGES for path in paths.values()):
        return tree(paths, chances, title="which copy of each stage a task reads"), None
    columns = (
        Column("task", numeric=False),
        Column("copies, from the first stage on", numeric=False),
        Column("chance"),
    )
    rows = tuple(
        (Cell(task), Cell(" → ".join(str(node + 1) for node in path)), Cell(percent(float(np.prod(chances[task])))))
        for task, path in paths.items()
    )
    return None, Table(columns, rows, folded=len(rows) > 30, caption=f"Paths of {len(rows)} tasks")
