"""Which job a free worker starts, so that all workers end at about the same time."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from itertools import count

LEVELS = 1 << 12
"""How many steps of time the jobs of two workers are counted in, when these are shared out between the two."""


def next_job(waiting: Sequence[float], others: Sequence[float]) -> int:
    """The job to start now, if the last one is to end early.

    All jobs are shared out among all workers, and the longest of this worker's is the next one. Longest first alone
    may leave half of the workers without anything to do at the end, for as long as the shortest job takes.

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
    own = shared_out(waiting, [0.0, *others])[0]
    # Another worker that is free as well may have got all there is.
    return max(own or range(len(waiting)), key=waiting.__getitem__)


def shared_out(jobs: Sequence[float], free: Sequence[float]) -> list[list[int]]:
    """Jobs for each worker, so that the last job ends early.

    Longest first to whichever worker is free first, as a start. Then the worker that ends last and another one put
    their jobs together and share them out anew, as evenly as these can be, as long as that helps.

    Args:
        jobs: Seconds of each job.
        free: Seconds until each worker is free.

    Returns:
        For each worker the places of its jobs.

    Example:
        >>> shared_out([5.0, 4.0, 3.0, 3.0, 3.0], [0.0, 0.0])  # longest first would take 10
        [[2, 3, 4], [0, 1]]
    """
    shares = _longest_first(jobs, free)

    def end(worker: int) -> float:
        return free[worker] + sum(jobs[place] for place in shares[worker])

    improved = True
    while improved:
        last = max(range(len(free)), key=end)
        improved = False
        for other in range(len(free)):
            both = sorted([*shares[last], *shares[other]], key=lambda place: -jobs[place]) if other != last else []
            chosen = _half([jobs[place] for place in both], free[other] - free[last])
            new = [both[at] for at in chosen], [both[at] for at in range(len(both)) if at not in chosen]
            ends = [free[of] + sum(jobs[at] for at in share) for of, share in zip((last, other), new, strict=True)]
            # Sums in another order differ by rounding.
            if both and max(ends) < end(last) * (1 - 1e-9):
                shares[last], shares[other] = new
                improved = True
                break
    return [sorted(share) for share in shares]


def _longest_first(jobs: Sequence[float], free: Sequence[float]) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in free]
    ends = [(seconds, worker) for worker, seconds in enumerate(free)]
    heapq.heapify(ends)
    for place in sorted(range(len(jobs)), key=lambda place: -jobs[place]):
        seconds, worker = heapq.heappop(ends)
        shares[worker].append(place)
        heapq.heappush(ends, (seconds + jobs[place], worker))
    return shares


def _half(jobs: Sequence[float], more: float) -> set[int]:
    """Places of jobs that take as near as can be to half of all, and half of ``more``, in whole steps of time."""
    total = sum(jobs)
    if total <= 0:
        return set()
    steps = [round(seconds / total * LEVELS) for seconds in jobs]
    # Bit s of reached[i] says whether some of the first i jobs take s steps.
    reached = [1]
    for size in steps:
        reached.append(reached[-1] | reached[-1] << size)
    wanted = min(max(round((1 + more / total) / 2 * LEVELS), 0), sum(steps))
    left = next(s for off in count() for s in (wanted - off, wanted + off) if s >= 0 and reached[-1] >> s & 1)
    chosen = set()
    for at in reversed(range(len(jobs))):
        if not reached[at] >> left & 1:
            chosen.add(at)
            left -= steps[at]
    return chosen


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
