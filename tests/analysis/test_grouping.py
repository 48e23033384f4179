"""The best split is the best of all splits."""

import numpy as np
import pytest

from polytask.analysis.grouping import best_split, group_gain, split_gain
from polytask.errors import DataError


def all_splits(tasks):
    """Every partition of the tasks."""
    if not tasks:
        yield ()
        return
    first, rest = tasks[0], tasks[1:]
    for groups in all_splits(rest):
        yield ((first,), *groups)
        for at, group in enumerate(groups):
            yield (*groups[:at], (first, *group), *groups[at + 1 :])


def by_hand(affinity, groups):
    """Mean over tasks of the mean of what the others of its group do for it."""
    total = 0.0
    for group in groups:
        for j in group:
            others = [affinity[i, j] for i in group if i != j]
            total += np.mean(others) if others else 0.0
    return total / len(affinity)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "models"), [(1, 1), (2, 2), (5, 2), (6, 3), (7, 7)])
def test_exact_search_equals_brute_force(count, models, seed):
    affinity = np.random.default_rng(seed).normal(-0.1, 1, (count, count))
    found = best_split(affinity, models)
    assert sorted(task for group in found for task in group) == list(range(count))
    assert len(found) <= models
    best = max(by_hand(affinity, s) for s in all_splits(list(range(count))) if len(s) <= models)
    assert split_gain(affinity, found) == pytest.approx(best, abs=1e-12)
    assert by_hand(affinity, found) == pytest.approx(best, abs=1e-12)
    exactly = best_split(affinity, models, exactly=True)
    assert len(exactly) == models
    wanted = max(by_hand(affinity, s) for s in all_splits(list(range(count))) if len(s) == models)
    assert split_gain(affinity, exactly) == pytest.approx(wanted, abs=1e-12)


def planted(groups, seed=0, noise=0.3):
    count = sum(map(len, groups))
    affinity = np.full((count, count), -1.0)
    for group in groups:
        affinity[np.ix_(group, group)] = 1.0
    return affinity + np.random.default_rng(seed).normal(0, noise, (count, count))


@pytest.mark.parametrize("exactly", [False, True])
def test_beam_search_finds_planted_groups_of_many_tasks(exactly):
    random = np.random.default_rng(1)
    names = random.permutation(30)
    groups = [names[:9], names[9:20], names[20:]]
    wanted = tuple(sorted(tuple(sorted(int(i) for i in group)) for group in groups))
    assert best_split(planted(groups), 3, exactly=exactly) == wanted
    assert len(best_split(planted(groups), 5, exactly=True)) == 5


@pytest.mark.parametrize("seed", range(5))
def test_beam_search_is_as_good_as_exact_search_on_thirteen_random_tasks(seed, monkeypatch):
    affinity = np.random.default_rng(seed).normal(0, 1, (13, 13))
    beam = split_gain(affinity, best_split(affinity, 2))
    # Two groups of thirteen tasks: 4,096 splits.
    exact = max(
        split_gain(affinity, tuple(g for g in halves if g))
        for mask in range(4096)
        for halves in [(tuple(t for t in range(13) if mask >> t & 1), tuple(t for t in range(13) if not mask >> t & 1))]
    )
    assert beam == pytest.approx(exact, abs=1e-9)


def test_tasks_that_harm_all_others_stay_alone():
    affinity = np.full((4, 4), -0.5)
    assert best_split(affinity, 4) == ((0,), (1,), (2,), (3,))
    assert split_gain(affinity, ((0,), (1,), (2,), (3,))) == 0.0
    assert best_split(-affinity, 4) == ((0, 1, 2, 3),)


def test_a_task_does_nothing_for_itself():
    affinity = np.diag([5.0, np.nan])
    assert group_gain(affinity, [0, 1]) == 0.0
    assert group_gain(affinity, [0]) == 0.0
    assert best_split(affinity, 1) == ((0, 1),)


@pytest.mark.parametrize(
    ("affinity", "models", "message"),
    [
        (np.zeros((2, 3)), 1, r"An affinity matrix is square; found \[2, 3\]"),
        (np.zeros((2, 2)), 3, "models is 3; 2 tasks go into 1 to 2 models"),
        (np.zeros((2, 2)), 0, "models is 0"),
        (np.array([[0, np.nan], [1, 0]]), 1, "Some affinities are undefined"),
    ],
)
def test_what_cannot_be_split_is_refused(affinity, models, message):
    with pytest.raises(DataError, match=message):
        best_split(affinity, models)
