"""The order of jobs, played through with known durations."""

import heapq
from itertools import chain, product
from types import SimpleNamespace

import numpy as np
import pytest

from polytask.analysis.folder import Folder
from polytask.analysis.methods import choose
from polytask.analysis.plan import Budget, Plan, Work
from polytask.analysis.running import Running
from polytask.analysis.schedule import next_job, shared_out
from polytask.recipes.load import load_recipe


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
    # Separate networks, gradient methods and loss weightings on Census-Income, seconds of an epoch: 36.5 for each of
    # two workers. Longest first, one of them waits for 2.9 s.
    jobs = [7.7] * 3 + [5.35] * 6 + [2.97] * 6
    assert played(jobs, 2, longest) == pytest.approx(37.98)
    assert played(jobs, 2, next_job) == pytest.approx(36.77)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_it_is_hardly_ever_worse_than_longest_first(workers):
    random = np.random.default_rng(workers)
    better = worse = 0
    for _ in range(60):
        jobs = random.integers(1, 9, random.integers(1, 12)).astype(float).tolist()
        ours, theirs = played(jobs, workers, next_job), played(jobs, workers, longest)
        assert sum(jobs) / workers <= ours
        better, worse = better + (ours < theirs), worse + (ours > theirs)
    assert worse <= better // 10
    assert (better > 0) == (workers > 1)


def test_two_workers_get_the_best_halves_there_are():
    random = np.random.default_rng(0)
    for _ in range(40):
        jobs = random.integers(1, 60, random.integers(1, 10)).astype(float)
        free = [0.0, float(random.integers(0, 90))]
        shares = shared_out(jobs.tolist(), free)
        assert sorted(chain(*shares)) == list(range(len(jobs)))
        here = [np.array(of) @ jobs for of in product([0, 1], repeat=len(jobs))]
        best = min(max(seconds, free[1] + jobs.sum() - seconds) for seconds in here)
        # As near as steps of time come.
        assert max(seconds + jobs[share].sum() for seconds, share in zip(free, shares, strict=True)) <= best * 1.005


def test_many_jobs_are_shared_out_in_no_time():
    random = np.random.default_rng(0)
    jobs = random.uniform(1, 100, 400).tolist()
    shares = shared_out(jobs, [0.0] * 16)
    assert sorted(chain(*shares)) == list(range(400))
    ends = [sum(jobs[at] for at in share) for share in shares]
    assert max(ends) < 1.001 * sum(jobs) / 16


def test_each_method_is_measured_before_the_rest_is_shared_out(recipe, tmp_path):
    methods = tuple(choose(load_recipe(recipe), "equal,pcgrad,uncertainty", None, "trees"))
    plan = Plan({}, "", Budget(), methods, (0, 1, 2))
    pool, criterion = SimpleNamespace(workers=1), SimpleNamespace(tasks=recipe["tasks"])
    run = Running(Folder(tmp_path), plan, pool, None, criterion, print)
    # Trees stand for all seeds with one training, so that measuring it tells nothing about others.
    missing = [Work(m, {}, seed) for m in methods for seed in (plan.seeds if m.kind != "trees" else (0,))]
    seconds = {"separate": 7.0, "trees": 20.0, "hard + equal": 3.0, "hard + pcgrad": 5.0, "hard + uncertainty": 3.1}
    order = []
    while missing:
        work = run._in_order(missing)[0]
        missing.remove(work)
        order.append(work.method.name)
        run._seconds.setdefault(work.method.name, []).append(seconds[work.method.name])
    assert order[:2] == ["separate", "hard + pcgrad"]
    assert set(order[2:4]) == {"hard + equal", "hard + uncertainty"}
    # Then the longest that is left.
    assert order[4:7] == ["trees", "separate", "separate"]
