"""Trees: from the input to the tasks, and of tasks that are joined by what they have in common."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from polytask.reporting.plots import MUTED, SERIES, shortened, svg
from polytask.reporting.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOX: Any = {"boxstyle": "round,pad=0.35", "facecolor": SERIES[0], "edgecolor": "none", "alpha": 0.35}
Place = tuple[int, int]
"""A node: its column from the input on, which is column 0, and its number in it."""


def tree(paths: Mapping[str, Sequence[int]], chances: Mapping[str, Sequence[float]], *, title: str) -> Markup:
    """The nodes that tasks read, one column a stage. Nodes that no task reads are left out.

    Args:
        paths: For each task the number of its node in every stage, from the first on.
        chances: For each task how sure each step is: into every stage after the first, then to the task.
        title: Heading.

    Example:
        >>> drawn = tree({"a": [0, 1], "b": [0, 0]}, {"a": [0.9, 0.8], "b": [0.6, 0.7]}, title="tree")
        >>> "80.0 %" in drawn, "stage 2" in drawn
        (True, True)
    """
    # In the order of their paths, tasks of one branch stand side by side, and no two lines cross.
    order = sorted(paths, key=lambda task: list(paths[task]))
    stages = len(next(iter(paths.values())))
    heights = _heights(paths, order)

    def draw(axes: Axes) -> None:
        for (start, end), chance in _steps(paths, chances, order).items():
            _step(axes, start, heights[start], end, heights[end], chance)
        for (column, number), height in heights.items():
            if column > stages:
                axes.text(column - 0.12, height, shortened(order[number]), ha="left", va="center")
            else:
                text = str(number + 1) if column else "input"
                axes.text(column, height, text, ha="center", va="center", bbox=_BOX if column else None)
        axes.set_xticks(range(1, stages + 1), [f"stage {number + 1}" for number in range(stages)])
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set(title=title, xlim=(-0.4, stages + 1.6), ylim=(len(order) - 0.4, -0.6))

    return svg(draw, (1.5 + 1.15 * (stages + 1), max(1.2, 0.55 * len(order) + 0.4)), title)


def _places(path: Sequence[int], leaf: int) -> list[Place]:
    """A task's places from the input on; the last one is its own."""
    return [(0, 0), *((column, number) for column, number in enumerate(path, start=1)), (len(path) + 1, leaf)]


def _heights(paths: Mapping[str, Sequence[int]], order: Sequence[str]) -> dict[Place, float]:
    """Where nodes stand: in the middle of the tasks that read them."""
    read: dict[Place, list[int]] = {}
    for height, task in enumerate(order):
        for place in _places(paths[task], height):
            read.setdefault(place, []).append(height)
    return {place: sum(of) / len(of) for place, of in read.items()}


def _steps(
    paths: Mapping[str, Sequence[int]], chances: Mapping[str, Sequence[float]], order: Sequence[str]
) -> dict[tuple[Place, Place], float | None]:
    """Every line once, with its chance; all nodes of the first stage read the input, so that one has none."""
    found: dict[tuple[Place, Place], float | None] = {}
    for leaf, task in enumerate(order):
        known = [None, *chances[task]]
        found |= dict(zip(itertools.pairwise(_places(paths[task], leaf)), known, strict=True))
    return found


def _step(axes: Axes, start: Place, y0: float, end: Place, y1: float, chance: float | None) -> None:
    # A gap beside the names, so that no line runs through one.
    x0, x1 = start[0] + (0.17 if start[0] else 0.3), end[0] - 0.17
    axes.plot([x0, x1], [y0, y1], color=MUTED, linewidth=1.2)
    if chance is not None:
        middle = (x0 + x1) / 2, (y0 + y1) / 2 - 0.06
        axes.text(*middle, percent(chance), ha="center", va="bottom", fontsize=7, color=MUTED)


def dendrogram(linkage: NDArray[np.float64], names: Sequence[str], *, top: float, title: str, x_label: str) -> Markup:
    """Which things are joined at which value, names on the left and the whole on the right.

    Args:
        linkage: As ``scipy.cluster.hierarchy`` writes it: joins with their distances, ``[n - 1, 4]``.
        names: Names of the things.
        top: The value at distance 0; values fall as distances grow.
        title: Heading.
        x_label: What the values are.

    Example:
        >>> joins = np.array([[0, 1, 0.5, 2], [2, 3, 1.5, 3]])
        >>> drawn = dendrogram(joins, ["a", "b", "c"], top=2, title="tree", x_label="cosine")
        >>> all(f">{name}<" in drawn for name in "abc")
        True
    """
    from scipy.cluster.hierarchy import dendrogram as lay_out

    found = lay_out(linkage, no_plot=True, color_threshold=0)
    leaves = [shortened(names[at]) for at in found["leaves"] or ()]

    def draw(axes: Axes) -> None:
        for across, along in zip(found["icoord"], found["dcoord"], strict=True):
            axes.plot([top - value for value in along], across, color=SERIES[0], linewidth=1.5)
        # SciPy puts leaves at 5, 15, 25, ...
        axes.set_yticks([5 + 10 * at for at in range(len(leaves))], leaves)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.invert_xaxis()
        axes.set(title=title, xlabel=x_label, ylim=(10 * len(leaves), 0))

    return svg(draw, (3.6, max(1.4, 0.28 * len(leaves) + 0.6)), title)
