"""GradNorm against Algorithm 1 written out on a small network."""

import pytest
import torch

from polytask.balancing.loss.gradnorm import GradNorm
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def ready(alpha=1.5, tasks=TASKS):
    method = GradNorm(alpha)
    method.setup(tasks)
    return method.double()


def quadratic_losses(weight):
    inputs = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
    out = torch.tanh(inputs @ weight)
    scales = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    return scales * ((out - torch.tensor([0.5, -1.0, 2.0])) ** 2).mean(0)


def test_sequence_against_algorithm_1():
    """The literal algorithm: norms of w_i L_i by autograd, L1 distance to a constant target, renormalised."""
    alpha, lr = 0.7, 0.02
    method = ready(alpha)
    ours = torch.optim.SGD(method.parameters(), lr=lr)
    shared = torch.full((3, 3), 0.1, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    initial = None
    for _ in range(10):
        losses = quadratic_losses(shared)
        rows = torch.stack([torch.autograd.grad(loss, shared, retain_graph=True)[0].flatten() for loss in losses])
        initial = losses.detach() if initial is None else initial
        norms = torch.stack(
            [
                torch.autograd.grad(w * loss, shared, create_graph=True)[0].norm()
                for w, loss in zip(weights, losses, strict=True)
            ]
        )
        ratio = losses.detach() / initial
        mean = norms.detach().mean()
        distance = (norms - mean * (ratio / ratio.mean()) ** alpha).abs().sum() / mean
        found = method.weigh(rows @ rows.T, losses.detach(), TASKS)
        torch.testing.assert_close(found, weights.detach(), rtol=1e-6, atol=0)
        ours.zero_grad()
        method.objective(rows @ rows.T, losses.detach(), TASKS).backward()
        ours.step()
        slope = torch.autograd.grad(distance, weights)[0]
        with torch.no_grad():
            shared -= 0.05 * (found @ rows).reshape(3, 3)
            weights -= lr * slope
            weights *= 3 / weights.sum()
        assert float(weights.detach().min()) > 0.1  # where the literal algorithm keeps its weights positive


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_step_of_the_weights_does_not_see_the_scale(scale):
    gramian = torch.diag(torch.tensor([4.0, 1.0, 9.0], dtype=torch.float64))
    found = []
    for factor in (1.0, scale):
        method = ready()
        method.weigh(factor**2 * gramian, factor * torch.tensor([1.0, 2.0, 3.0]), TASKS)
        method.objective(factor**2 * gramian, factor * torch.tensor([0.5, 1.9, 1.0]), TASKS).backward()
        found.append(method.weights.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


def test_equal_norms_and_rates_are_a_minimum():
    method = ready()
    gramian = torch.eye(3, dtype=torch.float64) * 7
    method.weigh(gramian, torch.ones(3), TASKS)
    total = method.objective(gramian, torch.full((3,), 0.5), TASKS)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


def test_absent_tasks_and_the_sum():
    method = ready()
    with torch.no_grad():
        method.weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    gramian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    found = method.weigh(gramian, torch.tensor([2.0, 3.0]), ["c", "a"])
    torch.testing.assert_close(found, torch.tensor([1.5, 0.5], dtype=torch.float64))
    assert method.initial.isnan().tolist() == [False, True, False]
    method.objective(gramian, torch.tensor([1.0, 3.0]), ["c", "a"]).backward()
    assert method.weights.grad[1] == 0.0


def test_zero_losses_and_zero_gradients_stay_finite():
    for losses in ([0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]):
        for rows in (torch.zeros(3, 3), torch.diag(torch.tensor([0.0, 1.0, 2.0]))):
            method = ready()
            gramian = rows.double() @ rows.double().T
            for values in (losses, [0.0, 0.5, 0.0]):
                assert bool(method.weigh(gramian, torch.tensor(values), TASKS).isfinite().all())
                method.zero_grad()
                total = method.objective(gramian, torch.tensor(values), TASKS)
                total.backward()
                assert bool(total.isfinite())
                assert bool(method.weights.grad.isfinite().all())


def test_weights_stay_positive():
    method = ready()
    with torch.no_grad():
        method.weights.copy_(torch.tensor([-5.0, 1.0, 2.0]))
    weights = method.weigh(torch.eye(3, dtype=torch.float64), torch.ones(3), TASKS)
    assert float(weights.min()) > 0
    assert float(weights.sum()) == pytest.approx(3.0)


def test_resume_default_place_and_errors():
    assert GradNorm.default_at == "last"
    first, second = ready(), ready()
    first.weigh(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]), TASKS)
    second.load_state_dict(first.state_dict())
    later = (torch.eye(3, dtype=torch.float64), torch.tensor([0.5, 0.5, 0.5]), TASKS)
    assert torch.equal(first.objective(*later), second.objective(*later))
    with pytest.raises(BalancerError, match="needs the losses"):
        first.weigh(torch.eye(3, dtype=torch.float64), None, TASKS)
    with pytest.raises(BalancerError, match="alpha must be zero or more"):
        GradNorm(alpha=-1.0)


def test_one_task():
    method = ready(tasks=["a"])
    gramian = torch.full((1, 1), 4.0, dtype=torch.float64)
    assert method.weigh(gramian, torch.ones(1), ["a"]).tolist() == [1.0]
    method.objective(gramian, torch.ones(1), ["a"]).backward()
    assert method.weights.grad.isfinite().all()
