"""Which job a free worker starts, so that all workers end at about the same time."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence


def next_job(waiting: Sequence[float], others: Sequence[float]) -> int:
    """The job to start now, if the last one is to end early.

    Each job is tried in thought: it starts here, and the rest go longest first to whichever worker is free. The best
    one is taken, the longest of equally good ones. Longest first alone may leave half of the workers without anything
    to do at the end, for as long as the shortest job takes.

    Args:
        waiting: Expected seconds of the jobs that nobody does.
        others: Seconds until each of the other workers is free, 0 if it is.

    Returns:
        The place of the job in ``waiting``.

    Example:
        >>> next_job([3.0, 2.0, 2.0], [0.0])  # 3 here, and 2 + 2 there
        0
        >>> next_job([3.0, 2.0, 2.0], [1.0])  # 2 + 2 here, and 3 there, which is busy for one more
        1
    """
    order = sorted(range(len(waiting)), key=lambda place: -waiting[place])
    best, least = order[0], float("inf")
    tried: set[float] = set()
    for at, place in enumerate(order):
        if waiting[place] in tried:
            continue
        tried.add(waiting[place])
        rest = [waiting[other] for other in order[:at] + order[at + 1 :]]
        end = _end([waiting[place], *others], rest)
        # Sums in another order differ by rounding.
        if end < least * (1 - 1e-9):
            best, least = place, end
    return best


def _end(free: list[float], jobs: Sequence[float]) -> float:
    """When the last job ends if they go, in this order, to whichever worker is free first."""
    heapq.heapify(free)
    for seconds in jobs:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


def expected(lengths: Mapping[str, float], measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Expected seconds of a training of each method: the mean of those that were measured, or its length's share.

    Args:
        lengths: Rough lengths by method, in any unit.
        measured: Seconds of the trainings that are done, as far as there are any.

    Example:
        >>> expected({"a": 6, "b": 1, "c": 1}, {"a": [9.0], "b": [2.0, 2.2]})
        {'a': 9.0, 'b': 2.1, 'c': 1.8}
    """
    known = {name: statistics.fmean(seconds) for name, seconds in measured.items() if seconds}
    unit = statistics.fmean(known[name] / lengths[name] for name in known) if known else 1.0
    return {name: known.get(name, unit * length) for name, length in lengths.items()}
