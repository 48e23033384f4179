"""Weights trained on the total."""

import pytest
import torch

from polytask.balancing.loss.learned import IMTLL, Learned
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def train(method, losses, tasks=TASKS, steps=200, lr=0.1):
    optimizer = torch.optim.Adam(method.parameters(), lr=lr)
    for _ in range(steps):
        method.weigh(losses, tasks)
        optimizer.zero_grad()
        method.objective(losses, tasks).backward()
        optimizer.step()
    return method.weigh(losses, tasks)


@pytest.mark.parametrize(("prefer", "winner"), [("easy", 0), ("hard", 2)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_learned_moves_to_one_task_but_never_below_the_floor(prefer, winner, scale):
    method = Learned(floor=0.2, prefer=prefer)
    method.setup(TASKS)
    weights = train(method, scale * torch.tensor([1.0, 2.0, 5.0]))
    assert int(weights.argmax()) == winner
    assert float(weights.min()) >= 0.2
    assert float(weights.max()) > 2.0
    assert float(weights.sum()) == pytest.approx(3.0, rel=1e-5)


def test_learned_without_losses_stays():
    method = Learned()
    method.setup(TASKS)
    assert torch.equal(train(method, torch.zeros(3), steps=3), torch.ones(3))


def test_learned_weights_over_the_present_sum_to_their_number():
    method = Learned()
    method.setup(TASKS)
    train(method, torch.tensor([1.0, 3.0]), ["c", "a"], steps=5)
    assert method.logits[1] == 0.0
    assert float(method.weigh(torch.ones(2), ["b", "c"]).sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("options", [{"floor": 0.0}, {"floor": 1.0}, {"prefer": "big"}])
def test_learned_refuses(options):
    with pytest.raises(BalancerError, match=r"must (lie between 0 and 1|be 'easy' or 'hard')"):
        Learned(**options)


def test_imtl_l_sequence_against_its_total():
    method = IMTLL()
    method.setup(TASKS)
    method.double()
    twin = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ours, theirs = torch.optim.SGD(method.parameters(), lr=0.2), torch.optim.SGD([twin], lr=0.2)
    for step in range(20):
        losses = torch.tensor([0.5, 2.0, 1.0 + step], dtype=torch.float64)
        model = losses.clone().requires_grad_()
        total = (torch.exp(twin) * model - twin).sum()
        expected = torch.autograd.grad(total, model, retain_graph=True)[0]
        torch.testing.assert_close(method.weigh(losses, TASKS), expected)
        for optimizer, value in ((ours, method.objective(losses, TASKS)), (theirs, total)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def test_imtl_l_settles_at_the_inverse_loss_and_stays_finite_at_zero():
    method = IMTLL()
    method.setup(TASKS)
    losses = torch.tensor([0.5, 2.0, 0.0])
    weights = train(method, losses, steps=1500, lr=0.05)
    torch.testing.assert_close(weights[:2] * losses[:2], torch.ones(2), rtol=1e-3, atol=0)
    weights = train(method, torch.tensor([0.5, 2.0, -1.0]), steps=10, lr=50.0)
    assert bool(weights.isfinite().all())
    with pytest.raises(BalancerError, match="IMTLL needs losses of at least 0"):
        method.epoch_end({"a": -1e-3})


def test_imtl_l_absent_task():
    method = IMTLL()
    method.setup(TASKS)
    train(method, torch.tensor([2.0, 3.0]), ["c", "b"], steps=3)
    assert method.log_scale[0] == 0.0
    assert method.log_scale[1] != 0.0
