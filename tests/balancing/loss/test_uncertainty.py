"""Learned, closed-form and posterior uncertainty, against the papers' totals written out."""

import math

import pytest
import torch

from polytask.balancing.loss.uncertainty import UWSO, Bayesian, Uncertainty
from polytask.errors import BalancerError

TASKS = ["price", "kind", "visits"]
KINDS = {"price": "regression", "kind": "multiclass", "visits": "counts"}


def ready(method, tasks=TASKS, kinds=KINDS, seed=0):
    method.setup(tasks, kinds, seed=seed)
    return method.double()


def test_uncertainty_follows_kendalls_total_under_gradient_descent():
    method = ready(Uncertainty())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    s = [0.0, 0.0, 0.0]
    factor = [0.5, 1.0, 1.0]
    for step in range(50):
        losses = torch.tensor([4.0 / (step + 1), 0.7, 2.0 + step], dtype=torch.float64)
        weights = method.weigh(losses, TASKS)
        torch.testing.assert_close(
            weights, torch.tensor([c * math.exp(-x) for c, x in zip(factor, s, strict=True)], dtype=torch.float64)
        )
        optimizer.zero_grad()
        method.objective(losses, TASKS).backward()
        optimizer.step()
        slopes = [-c * math.exp(-x) * value + 0.5 for c, x, value in zip(factor, s, losses.tolist(), strict=True)]
        s = [x - 0.1 * slope for x, slope in zip(s, slopes, strict=True)]


def test_uncertainty_settles_at_half_the_inverse_loss():
    method = ready(Uncertainty())
    losses = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
    optimizer = torch.optim.LBFGS(method.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = method.objective(losses, TASKS)
        total.backward()
        return total

    optimizer.step(closure)
    torch.testing.assert_close(method.weigh(losses, TASKS), 0.5 / losses, rtol=1e-4, atol=0)


def test_uncertainty_forms_can_be_overridden():
    losses = torch.ones(3, dtype=torch.float64)
    assert ready(Uncertainty("regression")).weigh(losses, TASKS).tolist() == [0.5, 0.5, 0.5]
    assert ready(Uncertainty({"price": "classification"})).weigh(losses, TASKS).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(BalancerError, match="Did you mean 'regression'"):
        ready(Uncertainty("regresion"))
    with pytest.raises(BalancerError, match=r"Unknown task 'prise'.*Did you mean 'price'"):
        ready(Uncertainty({"prise": "regression"}))


@pytest.mark.parametrize("method", [Uncertainty(), Bayesian(sample=False)])
def test_an_absent_task_gets_no_gradient(method):
    ready(method)
    method.objective(torch.tensor([2.0], dtype=torch.float64), ["kind"]).backward()
    for parameter in method.parameters():
        assert parameter.grad[1] != 0
        assert parameter.grad[[0, 2]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_loss_of_zero_or_less_cannot_blow_up(value):
    for method in (Uncertainty(), Bayesian(sample=False)):
        method.setup(TASKS, KINDS)
        optimizer = torch.optim.SGD(method.parameters(), lr=50.0)
        losses = torch.tensor([value, 1.0, 1.0])
        for _ in range(20):
            weights = method.weigh(losses, TASKS)
            assert bool(weights.isfinite().all())
            optimizer.zero_grad()
            method.objective(losses[:1], TASKS[:1]).backward()
            optimizer.step()


def test_a_negative_epoch_average_is_an_error():
    with pytest.raises(BalancerError, match=r"'kind' was -0\.5 on average over the epoch") as caught:
        ready(Uncertainty()).epoch_end({"price": 0.0, "kind": -0.5})
    assert "Add a constant" in str(caught.value)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_uw_so_is_the_gradient_of_its_total(temperature):
    losses = torch.tensor([0.5, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    shares = torch.stack([torch.exp(1 / (temperature * loss.detach())) for loss in losses])
    expected = torch.autograd.grad((shares / shares.sum() * losses).sum(), losses)[0]
    torch.testing.assert_close(ready(UWSO(temperature)).weigh(losses.detach(), TASKS), expected)


def test_uw_so_gives_the_weight_to_a_solved_task():
    method = ready(UWSO())
    assert method.weigh(torch.tensor([0.0, 1.0, 2.0]), TASKS).tolist() == [1.0, 0.0, 0.0]
    assert method.weigh(torch.tensor([0.0, 1.0, 0.0]), TASKS).tolist() == [0.5, 0.0, 0.5]
    assert method.weigh(torch.tensor([1e-30, 1e12]), TASKS[:2]).tolist() == [1.0, 0.0]
    with pytest.raises(BalancerError, match="temperature must be positive and finite; got 0"):
        UWSO(0.0)


def test_bayesian_objective_is_the_evidence_bound():
    """Against torch.distributions: Gauss-Hermite expectation of the likelihood, and its KL divergence."""
    import numpy as np

    method = ready(Bayesian(observations=30.0, prior_scale=2.0))
    with torch.no_grad():
        method.mean.copy_(torch.tensor([0.3, -1.0, 0.7]))
        method.log_variance.copy_(torch.tensor([-1.0, -2.0, 0.1]))
    losses = torch.tensor([0.4, 2.0, 1.1], dtype=torch.float64)
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)

    def bound(mean, log_variance):
        q = torch.distributions.Normal(mean, (log_variance / 2).exp())
        t = mean + (log_variance / 2).exp() * torch.from_numpy(nodes)[:, None]
        factors = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
        expected = (torch.from_numpy(masses / masses.sum())[:, None] * (factors * t.exp() * losses - t / 2)).sum()
        prior = torch.distributions.Normal(torch.zeros_like(mean), 2.0)
        return expected + torch.distributions.kl_divergence(q, prior).sum() / 30.0

    copies = [p.detach().clone().requires_grad_() for p in (method.mean, method.log_variance)]
    expected = torch.autograd.grad(bound(*copies), copies)
    found = torch.autograd.grad(method.objective(losses, TASKS), [method.mean, method.log_variance])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=0)


def test_bayesian_draws_have_the_stated_mean():
    method = ready(Bayesian(observations=8.0), seed=2)
    mean = ready(Bayesian(observations=8.0, sample=False)).weigh(torch.ones(3), TASKS)
    draws = torch.stack([method.weigh(torch.ones(3, dtype=torch.float64), TASKS) for _ in range(4000)])
    error = draws.std(0) / math.sqrt(4000)
    assert bool(((draws.mean(0) - mean).abs() < 4 * error).all())
    assert float(draws.std()) > 0.1


def test_bayesian_resumes_with_its_draws():
    first, second = ready(Bayesian(), seed=1), ready(Bayesian(), seed=7)
    first.weigh(torch.ones(3), TASKS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weigh(torch.ones(3), TASKS), second.weigh(torch.ones(3), TASKS))
    other = Bayesian()
    other.setup(["x", "y", "z"])
    with pytest.raises(BalancerError, match="saved state is for tasks"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize("options", [{"observations": 0.0}, {"prior_scale": -1.0}])
def test_bayesian_refuses_what_is_not_positive(options):
    with pytest.raises(BalancerError, match="must be positive and finite"):
        Bayesian(**options)
