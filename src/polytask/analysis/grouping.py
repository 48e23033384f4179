"""Which tasks to put into which model, given what each task does for each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polytask.errors import DataError

Matrix = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]

MOST_EXACT = 12
"""Tasks up to which all splits are searched: 3^12 pairs of a set and a part of it take about a second."""
BEAM = 64


def group_gain(affinity: Matrix, group: Sequence[int]) -> float:
    r"""Sum over the group's tasks of what the others do for it on average.

    :math:`\sum_{j \in S} \frac{1}{|S| - 1} \sum_{i \in S, i \ne j} A_{ij}`; 0 for a task that is alone.

    Args:
        affinity: ``[m, m]``; row i is the task that helps, column j the one that is helped.
        group: Numbers of the tasks.

    Example:
        >>> group_gain(np.array([[0.0, 2.0], [4.0, 0.0]]), [0, 1])
        6.0
    """
    if len(group) < 2:
        return 0.0
    part = affinity[np.ix_(group, group)]
    return float(part[~np.eye(len(group), dtype=bool)].sum() / (len(group) - 1))


def split_gain(affinity: Matrix, groups: Groups) -> float:
    """Mean over all tasks of what the others of their group do for them on average."""
    return sum(group_gain(affinity, group) for group in groups) / sum(map(len, groups))


def best_split(affinity: Matrix, models: int, *, exactly: bool = False) -> Groups:
    """The split of the tasks into at most so many groups that has the largest ``split_gain``.

    Up to twelve tasks all splits are compared. Beyond that a beam search adds task by task, and then tasks are moved
    and exchanged as long as that helps: it may miss the best split.

    Args:
        affinity: ``[m, m]``; row i is the task that helps, column j the one that is helped. The diagonal is not read.
        models: The most groups.
        exactly: Whether there have to be that many.

    Returns:
        Groups of task numbers, each in ascending order, ordered by their first task.

    Raises:
        DataError: for a number of models that does not fit, or a matrix with undefined entries.

    Example:
        >>> friends = np.array([[0, 1, -1, -1], [1, 0, -1, -1], [-1, -1, 0, 2], [-1, -1, 2, 0.0]])
        >>> best_split(friends, 2)
        ((0, 1), (2, 3))

    Reference:
        Standley et al., Which tasks should be learned together in multi-task learning? (2020); Fifty et al.,
        Efficiently identifying task groupings for multi-task learning (2021).
    """
    count = len(affinity)
    if affinity.shape != (count, count) or count == 0:
        raise DataError(f"An affinity matrix is square; found {list(affinity.shape)}.")
    if not 1 <= models <= count:
        raise DataError(f"models is {models}; {count} tasks go into 1 to {count} models.")
    if not np.isfinite(affinity[~np.eye(count, dtype=bool)]).all():
        raise DataError(
            "Some affinities are undefined: two tasks had no label or no gradient in common, or a metric was "
            "undefined. Measure for longer, or leave those tasks out."
        )
    search = _exact if count <= MOST_EXACT else _beam
    return search(affinity, models, exactly)


def _exact(affinity: Matrix, models: int, exactly: bool) -> Groups:
    """Dynamic programming over sets of tasks: the best split of a set into k groups, from those of its parts."""
    count = len(affinity)
    gains = [group_gain(affinity, _members(mask)) for mask in range(1 << count)]
    best = [-math.inf] * (1 << count)
    best[0] = 0.0
    # For each number of groups: the first group of the best split of every set.
    firsts: list[list[int]] = []
    totals: list[float] = []
    for _ in range(models):
        now, first = [-math.inf] * (1 << count), [0] * (1 << count)
        for mask in range(1, 1 << count):
            lowest = mask & -mask
            rest = part = mask ^ lowest
            # All groups that hold the lowest task of the set: each split is met once.
            while True:
                value = gains[part | lowest] + best[rest ^ part]
                if value > now[mask]:
                    now[mask], first[mask] = value, part | lowest
                if part == 0:
                    break
                part = (part - 1) & rest
        best = now
        firsts.append(first)
        totals.append(now[-1])
    chosen = models if exactly else 1 + max(range(models), key=lambda k: (totals[k], -k))
    groups, mask = [], (1 << count) - 1
    for first in reversed(firsts[:chosen]):
        groups.append(_members(first[mask]))
        mask ^= first[mask]
    return tuple(sorted(groups))


def _members(mask: int) -> tuple[int, ...]:
    return tuple(at for at in range(mask.bit_length()) if mask >> at & 1)


def _beam(affinity: Matrix, models: int, exactly: bool) -> Groups:
    count = len(affinity)
    # Tasks with much at stake are placed first.
    stakes = np.where(np.eye(count, dtype=bool), 0.0, np.abs(affinity))
    order = np.argsort(-(stakes.sum(0) + stakes.sum(1)), kind="stable").tolist()
    beam: list[Groups] = [()]
    for placed, task in enumerate(order, start=1):
        grown = {_canonical(option) for groups in beam for option in _placements(groups, task, models)}
        if exactly:
            # As many tasks have to be left as groups are still to be opened.
            grown = {groups for groups in grown if models - len(groups) <= count - placed}
        ranked = sorted(grown, key=lambda groups: (-sum(group_gain(affinity, g) for g in groups), groups))
        beam = ranked[:BEAM]
    return max(
        (_improved(affinity, groups, models, exactly) for groups in beam[:8]), key=lambda g: split_gain(affinity, g)
    )


def _placements(groups: Groups, task: int, models: int) -> list[list[tuple[int, ...]]]:
    options = [[*groups[:at], (*group, task), *groups[at + 1 :]] for at, group in enumerate(groups)]
    return [*options, [*groups, (task,)]] if len(groups) < models else options


def _canonical(groups: Sequence[Sequence[int]]) -> Groups:
    return tuple(sorted(tuple(sorted(group)) for group in groups if group))


def _improved(affinity: Matrix, groups: Groups, models: int, exactly: bool) -> Groups:
    """Move and exchange tasks as long as that helps."""
    while True:
        options = [option for option in _neighbours(groups, models) if not exactly or len(option) == models]
        best = max(options, key=lambda option: split_gain(affinity, option), default=groups)
        if split_gain(affinity, best) <= split_gain(affinity, groups) + 1e-12:
            return groups
        groups = best


def _neighbours(groups: Groups, models: int) -> list[Groups]:
    place = {task: at for at, group in enumerate(groups) for task in group}
    found = []
    for task, at in place.items():
        for goal in range(min(len(groups) + 1, models)):
            if goal != at:
                changed = [[t for t in group if t != task] for group in groups] + [[]]
                changed[goal].append(task)
                found.append(_canonical(changed))
    for (one, at), (other, goal) in itertools.combinations(place.items(), 2):
        if at != goal:
            swapped = {one: other, other: one}
            found.append(_canonical([[swapped.get(t, t) for t in group] for group in groups]))
    return found
