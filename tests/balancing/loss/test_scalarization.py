"""Totals that are one function of the losses: their gradient is the weight."""

import pytest
import torch

from polytask.balancing.loss.scalarization import GLS, STCH
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]
LOSSES = [0.5, 1.5, 4.0]


def ready(method, tasks=TASKS):
    method.setup(tasks)
    return method.double()


def gradient(total, values):
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(total(losses), losses)[0]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gls_is_the_gradient_of_the_geometric_mean(scale):
    expected = gradient(lambda x: x.prod() ** (1 / 3), LOSSES)
    found = ready(GLS()).weigh(scale * torch.tensor(LOSSES, dtype=torch.float64), TASKS)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_gls_leaves_out_solved_and_absent_tasks():
    method = ready(GLS())
    expected = gradient(lambda x: x.prod().sqrt(), [0.5, 4.0])
    for value in (0.0, -1.0):
        found = method.weigh(torch.tensor([0.5, value, 4.0], dtype=torch.float64), TASKS)
        torch.testing.assert_close(found[[0, 2]], expected)
        assert found[1] == 0.0
    torch.testing.assert_close(method.weigh(torch.tensor([0.5, 4.0], dtype=torch.float64), ["a", "c"]), expected)
    assert method.weigh(torch.zeros(3), TASKS).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(BalancerError, match="GLS needs losses of at least 0; the loss of 'b' was -1"):
        method.epoch_end({"b": -1.0})


def test_gls_at_extreme_ratios_in_float32():
    found = GLS()
    found.setup(TASKS)
    values = torch.tensor([1e-12, 1.0, 1e12])
    torch.testing.assert_close(found.weigh(values, TASKS) * values, torch.full((3,), 1 / 3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mu", [0.1, 1.0, 20.0])
def test_stch_is_the_gradient_of_the_soft_maximum(mu):
    preference = [1.0, 2.0, 1.0]
    lambdas = torch.tensor(preference, dtype=torch.float64) * 3 / 4
    point = torch.tensor([0.1, -2.0, 0.3], dtype=torch.float64)
    values = [-0.5, 1.5, 0.0]
    expected = gradient(lambda x: mu * (lambdas * (x - point) / mu).exp().sum().log(), values)
    method = ready(STCH(mu, reference=[0.1, -2.0, 0.3], preference=preference))
    found = method.weigh(torch.tensor(values, dtype=torch.float64), TASKS)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_stch_on_logs():
    mu, point = 0.7, {"a": 0.1, "b": 0.2, "c": -0.4}
    z = torch.tensor([0.1, 0.2, -0.4], dtype=torch.float64)
    expected = gradient(lambda x: mu * ((x.log() - z) / mu).exp().sum().log(), LOSSES)
    method = ready(STCH(mu, reference=point, log=True))
    for scale in (1e-12, 1.0, 1e12):
        found = method.weigh(scale * torch.tensor(LOSSES, dtype=torch.float64), TASKS)
        torch.testing.assert_close(scale * found, expected, rtol=1e-6, atol=0)
    found = method.weigh(torch.tensor([0.5, 0.0, 4.0], dtype=torch.float64), TASKS)
    assert found[1] == 0.0
    assert bool((found[[0, 2]] > 0).all())
    assert method.weigh(torch.zeros(3), TASKS).tolist() == [0.0, 0.0, 0.0]


def test_stch_with_a_small_mu_is_the_maximum_and_does_not_overflow():
    method = STCH(mu=1e-6)
    method.setup(TASKS)
    assert method.weigh(torch.tensor([1e12, 1.0, -1e12]), TASKS).tolist() == [1.0, 0.0, 0.0]


def test_one_task_keeps_its_loss():
    assert ready(GLS(), ["a"]).weigh(torch.tensor([3.0]), ["a"]).tolist() == [1.0]
    assert ready(STCH(), ["a"]).weigh(torch.tensor([3.0]), ["a"]).tolist() == [1.0]


def test_stch_refuses():
    with pytest.raises(BalancerError, match="mu must be positive"):
        STCH(mu=0.0)
    with pytest.raises(BalancerError, match="every number must be positive"):
        ready(STCH(preference=[1.0, 0.0, 1.0]))
    with pytest.raises(BalancerError, match="stch reference: Unknown task 'd'"):
        ready(STCH(reference={"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0}))
