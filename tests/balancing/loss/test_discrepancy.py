"""LDC-MTL against its total, written out and differentiated by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polytask.balancing import build
from polytask.errors import BalancerError

TASKS = ("a", "b", "c")


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("compare", ["weighted", "plain"])
def test_weights_are_the_derivatives_of_the_total(compare):
    method = build("ldc_mtl", tasks=TASKS, penalty=2.0, compare=compare)
    with torch.no_grad():
        method.raw.copy_(torch.tensor([0.0, 1.0, -2.0]))
    shares = [sigmoid(0.0), sigmoid(1.0), sigmoid(-2.0)]
    factors = shares if compare == "weighted" else [1.0, 1.0, 1.0]
    losses = [4.0, 1.0, 2.5]
    compared = [f * loss for f, loss in zip(factors, losses, strict=True)]
    first, second = (math.copysign(1, compared[k] - compared[k + 1]) for k in (0, 1))
    signs = [first, second - first, -second]
    expected = [s / sum(shares) + 2.0 * f * sign for s, f, sign in zip(shares, factors, signs, strict=True)]
    found = method.weigh(torch.tensor(losses), TASKS)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0, "a small loss among large ones is held back"
    total = sum(s * loss for s, loss in zip(shares, losses, strict=True)) / sum(shares)
    total += 2.0 * (abs(compared[0] - compared[1]) + abs(compared[1] - compared[2]))
    assert method.objective(torch.tensor(losses), TASKS).item() == pytest.approx(total, rel=1e-6)


def test_the_learned_numbers_follow_the_total():
    """For two tasks with compare=plain the penalty does not see W, and the total moves weight to the small loss."""
    method = build("ldc_mtl", tasks=("a", "b"), penalty=5.0, compare="plain")
    method.objective(torch.tensor([4.0, 1.0]), ("a", "b")).backward()
    share = sigmoid(1.0)
    slope = share * (1 - share) * (4.0 - 1.0) / (4 * share)
    assert method.raw.grad.tolist() == pytest.approx([slope, -slope], rel=1e-5)


def test_first_losses_bring_the_losses_to_the_smallest_of_them():
    method = build("ldc_mtl", tasks=TASKS, normalize="first", penalty=0.1)
    plain = build("ldc_mtl", tasks=TASKS, penalty=0.1)
    first = torch.tensor([8.0, 2.0, 0.0])
    method.weigh(first, TASKS)
    assert method.initial[:2].tolist() == [8.0, 2.0]
    assert method.initial[2].isnan(), "a zero loss is no unit; the first positive one is"
    later = torch.tensor([4.0, 1.5, 3.0])
    factors = torch.tensor([0.25, 1.0, 2.0 / 3.0])
    found = method.weigh(later, TASKS)
    torch.testing.assert_close(found, factors * plain.weigh(factors * later, TASKS))


def test_absent_tasks_leave_the_chain_and_ties_have_no_pull():
    method = build("ldc_mtl", tasks=TASKS, penalty=10.0)
    some = method.weigh(torch.tensor([2.0, 2.0]), ("a", "c"))
    assert some.tolist() == pytest.approx([0.5, 0.5])
    method.objective(torch.tensor([2.0, 1.0]), ("a", "c")).backward()
    assert method.raw.grad[1] == 0


def test_bad_options():
    with pytest.raises(BalancerError, match="Did you mean 'weighted'"):
        build("ldc_mtl", tasks=TASKS, compare="weight")
    with pytest.raises(BalancerError, match="penalty must be a number of at least 0"):
        build("ldc_mtl", tasks=TASKS, penalty=-1.0)
