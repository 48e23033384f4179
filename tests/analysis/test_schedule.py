"""The order of jobs, played through with known durations."""

import heapq

import numpy as np
import pytest

from polytask.analysis.schedule import next_job


def played(jobs, workers, choose):
    """When the last job ends if every worker that gets free starts what is chosen."""
    free, waiting = [0.0] * workers, sorted(jobs, reverse=True)
    heapq.heapify(free)
    while waiting:
        now = heapq.heappop(free)
        place = choose(waiting, [max(0.0, other - now) for other in free])
        heapq.heappush(free, now + waiting.pop(place))
    return max(free)


def longest(waiting, others):
    return 0


def test_no_worker_is_left_with_nothing_to_do_at_the_end():
    # Separate networks, gradient methods and loss weightings on Census-Income, seconds of an epoch: 42.75 for each of
    # two workers. Longest first, one of them waits for 3.3 s.
    jobs = [8.7] * 3 + [6.3] * 6 + [3.6] * 6
    assert played(jobs, 2, longest) == pytest.approx(44.4)
    assert played(jobs, 2, next_job) == pytest.approx(43.5)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_it_is_never_worse_than_longest_first(workers):
    random = np.random.default_rng(workers)
    better = 0
    for _ in range(60):
        jobs = random.integers(1, 9, random.integers(1, 12)).astype(float).tolist()
        ours, theirs = played(jobs, workers, next_job), played(jobs, workers, longest)
        assert sum(jobs) / workers <= ours <= theirs
        better += ours < theirs
    assert (better > 0) == (workers > 1)
