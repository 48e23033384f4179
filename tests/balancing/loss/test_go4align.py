"""Groups against scikit-learn and exhaustive search; the sequence against the formula by hand."""

import itertools
import math

import pytest
import torch
from sklearn.cluster import KMeans

from polytask.balancing.loss.go4align import GO4Align, group_means
from polytask.errors import BalancerError

TASKS = ["a", "b", "c", "d"]


def spread(values, means):
    return float((values - means).square().sum())


def best_by_search(values, groups):
    """Least within-group sum of squares over all assignments."""
    least = math.inf
    for labels in itertools.product(range(groups), repeat=len(values)):
        cost = 0.0
        for group in set(labels):
            members = values[torch.tensor([label == group for label in labels])]
            cost += spread(members, members.mean())
        least = min(least, cost)
    return least


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_group_means_are_the_best_of_all_assignments(groups):
    generator = torch.Generator().manual_seed(groups)
    for _ in range(5):
        values = torch.rand(6, generator=generator, dtype=torch.float64) ** 4
        means = group_means(values, values >= 0, groups)
        least = best_by_search(values, min(groups, 4)) if groups < 4 else 0.0
        assert spread(values, means) == pytest.approx(least, rel=1e-9, abs=1e-15)
        assert len(set(means.tolist())) <= groups


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_group_means_agree_with_scikit_learn_on_separated_values(groups):
    generator = torch.Generator().manual_seed(0)
    centres = torch.arange(1, groups + 1, dtype=torch.float64).repeat(6) * 10
    values = centres + torch.rand(len(centres), generator=generator, dtype=torch.float64)
    fit = KMeans(groups, n_init=20, random_state=0).fit(values[:, None].numpy())
    expected = torch.from_numpy(fit.cluster_centers_[fit.labels_, 0])
    torch.testing.assert_close(group_means(values, values > 0, groups), expected)


def test_group_means_leave_out_the_masked():
    values = torch.tensor([1.0, 1e9, 3.0, 10.0])
    mask = torch.tensor([True, False, True, True])
    assert group_means(values, mask, 2)[mask].tolist() == [2.0, 2.0, 10.0]


def by_hand(losses, logs, step_size):
    logs = [x - step_size * value for x, value in zip(logs, losses, strict=True)]
    shares = [math.exp(x - max(logs)) for x in logs]
    single = [s / sum(shares) * sum(losses) / value for s, value in zip(shares, losses, strict=True)]
    return logs, torch.tensor(single, dtype=torch.float64)


def test_sequence():
    method = GO4Align(groups=2, step_size=0.05)
    method.setup(TASKS)
    method.double()
    logs = [0.0] * 4
    for step in range(6):
        losses = [0.5, 0.6 + step, 3.0, 3.5]
        logs, single = by_hand(losses, logs, 0.05)
        expected = group_means(single, single > 0, 2)
        found = method.weigh(torch.tensor(losses, dtype=torch.float64), TASKS)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_absent_tasks_keep_their_indicator_and_solved_tasks_get_no_weight():
    method = GO4Align(groups=1, step_size=0.1)
    method.setup(TASKS)
    method.double()
    method.weigh(torch.tensor([1.0, 2.0, 3.0, 4.0]), TASKS)
    old = method.log_indicator.clone()
    found = method.weigh(torch.tensor([2.0, 0.0], dtype=torch.float64), ["d", "b"])
    assert method.log_indicator[[0, 2]].tolist() == old[[0, 2]].tolist()
    assert found[1] == 0.0
    assert found[0] > 0.0
    torch.testing.assert_close(method.log_indicator.logsumexp(0), old.logsumexp(0))
    assert method.weigh(torch.zeros(4), TASKS).tolist() == [0.0] * 4
    with pytest.raises(BalancerError, match="GO4Align needs losses"):
        method.epoch_end({"d": -1.0})


def test_large_losses_do_not_vanish():
    method = GO4Align()
    method.setup(TASKS)
    for _ in range(3):
        found = method.weigh(torch.tensor([1e12, 2e12, 1.0, 5.0]), TASKS)
    assert bool(found.isfinite().all())
    assert float(found.max()) > 0


def test_resume_and_errors():
    first, second = GO4Align(step_size=0.1), GO4Align(step_size=0.1)
    for method in (first, second):
        method.setup(TASKS)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    first.weigh(losses, TASKS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weigh(losses, TASKS), second.weigh(losses, TASKS))
    with pytest.raises(BalancerError, match="whole number from 1 up; got 0"):
        GO4Align(groups=0)
    with pytest.raises(BalancerError, match="step_size must be positive"):
        GO4Align(step_size=0.0)


def test_one_task():
    method = GO4Align()
    method.setup(["a"])
    assert method.weigh(torch.tensor([3.0]), ["a"]).tolist() == pytest.approx([1.0], rel=1e-6)
