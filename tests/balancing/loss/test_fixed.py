"""Equal, static and random weights."""

import math

import pytest
import torch

from polytask.balancing.loss.fixed import DISTRIBUTIONS, RLW, Equal, Static
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def ready(method, tasks=TASKS, seed=0):
    method.setup(tasks, seed=seed)
    return method


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.0, -1.0, 1e12]])
def test_equal_is_the_plain_sum(values):
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(losses.sum(), losses)[0]
    torch.testing.assert_close(ready(Equal()).weigh(losses.detach(), TASKS), expected)


def test_static_by_name_and_by_order_agree_and_ignore_who_is_absent():
    by_name, by_order = ready(Static({"c": 3.0, "a": 0.5, "b": 0.0})), ready(Static([0.5, 0.0, 3.0]))
    losses = torch.ones(3)
    assert by_name.weigh(losses, TASKS).tolist() == by_order.weigh(losses, TASKS).tolist() == [0.5, 0.0, 3.0]
    assert by_name.weigh(losses[:2], ["c", "a"]).tolist() == [3.0, 0.5]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 1.0, "bb": 1.0, "c": 1.0}, "Did you mean 'b'"),
        ({"a": 1.0, "b": 1.0}, "no number for ['c']"),
        ([1.0, 2.0], "2 numbers for 3 tasks"),
        ([1.0, -2.0, 1.0], "must not be negative"),
        ([0.0, 0.0, 0.0], "one at least must be positive"),
        ([1.0, math.inf, 1.0], "must be finite"),
    ],
)
def test_static_says_what_is_wrong_with_the_weights(weights, words):
    with pytest.raises(BalancerError) as caught:
        ready(Static(weights))
    assert words in str(caught.value)


def test_rlw_moments():
    """Means are 1/m by symmetry; variances are those of the distribution."""
    draws = 20_000
    variance = {
        "dirichlet": 2 / (9 * 4),  # Dirichlet(1, 1, 1): (1/3)(2/3)/4
        "constrained_bernoulli": 2 / 9,
        # Uniform over the 7 non-empty subsets of three: E w^2 = (1 + 2/4 + 1/9) / 7 for one task.
        "bernoulli": (1 + 2 / 4 + 1 / 9) / 7 - 1 / 9,
    }
    for name in DISTRIBUTIONS:
        method = ready(RLW(name), seed=3)
        sample = torch.stack([method.weigh(torch.ones(3, dtype=torch.float64), TASKS) for _ in range(draws // 10)])
        assert torch.allclose(sample.sum(1), torch.ones(len(sample), dtype=torch.float64))
        # Four standard errors of a mean whose deviation is at most 0.5.
        assert float((sample.mean(0) - 1 / 3).abs().max()) < 4 * 0.5 / math.sqrt(len(sample))
        if name in variance:
            assert float(sample.var(0).mean()) == pytest.approx(variance[name], rel=0.1)


def test_rlw_normal_and_uniform_are_a_softmax_of_their_generator():
    for name, draw in (("normal", torch.randn), ("uniform", torch.rand)):
        method = ready(RLW(name), seed=11)
        twin = torch.Generator().manual_seed(11)
        for tasks in (TASKS, ["b", "c"]):
            expected = draw(len(tasks), generator=twin, dtype=torch.float64).exp()
            found = method.weigh(torch.ones(len(tasks), dtype=torch.float64), tasks)
            torch.testing.assert_close(found, expected / expected.sum())


def test_rlw_resumes_and_leaves_the_global_generator_alone():
    first = ready(RLW(), seed=5)
    before = torch.random.get_rng_state()
    first.weigh(torch.ones(3), TASKS)
    saved = first.state_dict()
    expected = first.weigh(torch.ones(3), TASKS)
    second = ready(RLW(), seed=99)
    second.load_state_dict(saved)
    assert torch.equal(second.weigh(torch.ones(3), TASKS), expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rlw_names_the_nearest_distribution():
    with pytest.raises(BalancerError, match="Did you mean 'dirichlet'"):
        RLW("dirichelt")


def test_one_task():
    for method in (Equal(), RLW(), RLW("bernoulli"), RLW("constrained_bernoulli"), RLW("dirichlet")):
        assert ready(method, ["only"]).weigh(torch.tensor([7.0]), ["only"]).tolist() == [1.0]
