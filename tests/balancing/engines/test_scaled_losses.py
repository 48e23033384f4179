"""IMTL: its learned scales reach heads and trunk alike, wherever gradients are taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask import balancing as B
from polytask.balancing import Losses, MicroBatch, build, engine
from polytask.balancing.transforms import chain, rescale_to
from polytask.errors import BalancerError

TASKS = ("a", "b")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def losses_of(model, features):
    return {t: (model.heads[t](features[t])[:, 0] - X[:, k]).square().mean() for k, t in enumerate(TASKS)}


def micro_batches(model, pieces=1):
    def forward(tap, rows):
        features = tap({"z": model.trunk(X[rows])})
        errors = {t: model.heads[t](features[t]["z"])[:, 0] - X[rows, k] for k, t in enumerate(TASKS)}
        return Losses({t: (1.0 + 4.0 * k) * errors[t].square().sum() / 8 for k, t in enumerate(TASKS)})

    return [MicroBatch(TASKS, lambda tap, rows=rows: forward(tap, rows)) for rows in torch.arange(8).chunk(pieces)]


def plain_losses(model):
    z = model.trunk(X)
    found = losses_of(model, dict.fromkeys(TASKS, z))
    return {"a": found["a"], "b": 5.0 * found["b"]}, z


def rows_of(losses, parameters):
    found = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses.values()]
    return torch.stack([torch.cat([g.reshape(-1) for g in grads]) for grads in found])


def equal_projections(rows):
    """IMTL-G for two rows by its definition: sum one, and <d, u_1 - u_2> = 0."""
    apart = rows[0] / rows[0].norm() - rows[1] / rows[1].norm()
    first = -(rows[1] @ apart) / ((rows[0] - rows[1]) @ apart)
    return torch.stack([first, 1 - first])


def grads_of(parameters):
    return torch.cat([p.grad.reshape(-1) for p in parameters])


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("at", ["parameters", "last", "features"])
def test_imtl_by_its_definition(at, pieces):
    model, rate = Model(), 0.5
    runner = engine(build("imtl", tasks=TASKS), model, at=at, optimizer={"name": "sgd", "lr": rate})
    logs = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        losses, z = plain_losses(model)
        scales = logs.exp()
        places = {"parameters": model.shared_parameters(), "last": list(model.trunk[2].parameters()), "features": [z]}
        alpha = equal_projections(scales[:, None] * rows_of(losses, places[at]))
        whole = (alpha * scales) @ rows_of(losses, model.shared_parameters())
        heads = [s * rows_of({t: losses[t]}, model.task_parameters(t))[0] for t, s in zip(TASKS, scales, strict=True)]
        model.zero_grad()
        micro = micro_batches(model, pieces)
        report = runner.backward(micro)
        close = {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(grads_of(model.shared_parameters()), whole, **close)
        for task, expected in zip(TASKS, heads, strict=True):
            torch.testing.assert_close(grads_of(model.task_parameters(task)), expected, **close)
            assert report.losses[task].item() == pytest.approx(losses[task].item())
        torch.testing.assert_close(torch.stack(list(report.weights.values())), alpha * scales, **close)
        runner.after_step(micro)
        logs = logs - rate * (scales * torch.stack([loss.detach() for loss in losses.values()]) - 1)
    assert (scales - 1).abs().min() > 0.05


def test_weights_that_are_reused_keep_their_scales():
    model = Model()
    runner = engine(build("imtl", tasks=TASKS), model, every=2, optimizer={"name": "sgd", "lr": 0.5})
    found = []
    for _ in range(3):
        model.zero_grad()
        micro = micro_batches(model)
        report = runner.backward(micro)
        runner.after_step(micro)
        losses, _ = plain_losses(model)
        weights = torch.stack(list(report.weights.values()))
        whole = weights @ rows_of(losses, model.shared_parameters())
        torch.testing.assert_close(grads_of(model.shared_parameters()), whole, rtol=1e-5, atol=1e-7)
        found.append(weights)
    # The second step takes the solve of the first with the scales that the first step learned.
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("door", ["parameters", "features", "node"])
def test_doors_scale_the_losses_too(door):
    model = Model()
    method = build("imtl", tasks=TASKS)
    with torch.no_grad():
        method.log_scale.copy_(torch.tensor([0.7, -0.4]))
    scales = torch.tensor([0.7, -0.4], dtype=torch.float64).exp()
    losses, z = plain_losses(model)
    if door == "node":
        node = B.Node(method)
        losses = losses_of(model, node(z))
        losses["b"] = 5.0 * losses["b"]
        node.backward(losses)
    elif door == "features":
        B.backward(losses, model.shared_parameters(), balancer=method, features=z, at="features")
    else:
        B.backward(losses, model.shared_parameters(), balancer=method)
    losses, z = plain_losses(model)
    place = model.shared_parameters() if door == "parameters" else [z]
    rows = rows_of(losses, place)
    alpha = equal_projections(scales[:, None] * rows)
    whole = (alpha * scales) @ rows_of(losses, model.shared_parameters())
    torch.testing.assert_close(grads_of(model.shared_parameters()), whole, rtol=1e-5, atol=1e-7)
    for task, scale in zip(TASKS, scales, strict=True):
        own = rows_of({task: losses[task]}, model.task_parameters(task))[0]
        torch.testing.assert_close(grads_of(model.task_parameters(task)), scale * own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        B.weights(rows @ rows.T, method, losses=torch.ones(2)), alpha * scales, rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        B.aggregate(rows, method, losses=torch.ones(2)), (alpha * scales) @ rows, rtol=1e-5, atol=1e-7
    )


def test_a_chain_passes_the_scales_on():
    method = build(chain(rescale_to("mean"), "imtl"), tasks=TASKS)
    with torch.no_grad():
        method.method.log_scale.fill_(1.0)
    torch.testing.assert_close(method.loss_scales(("b",)), torch.tensor([1.0]).exp())


def test_scales_stay_bounded_and_negative_losses_are_refused():
    method = build("imtl", tasks=TASKS)
    with torch.no_grad():
        method.log_scale.fill_(1e4)
    assert method.loss_scales(TASKS).isfinite().all()
    method.epoch_end({"a": 0.0})
    with pytest.raises(BalancerError, match="the loss of 'b' was -1 on average"):
        method.epoch_end({"b": -1.0})
