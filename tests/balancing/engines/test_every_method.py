"""Every registered method trains a small model wherever it can be run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask import registry
from polytask.balancing import JacobianAggregator, Losses, LossWeighting, MicroBatch, build, engine

TASKS = ("a", "b", "c")
OPTIONS = {
    "static": {"weights": {"a": 1.0, "b": 2.0, "c": 0.5}},
    "krum": {"n_byzantine": 0},
    "trimmed_mean": {"trim": 1},
}

# Weights fall with the loss by definition, so that the largest loss waits until the others are solved.
EASIEST_FIRST = {"uw_so"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


def micro_batches(model, pieces=1):
    everything = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    made = []
    for half, x in enumerate(everything.chunk(pieces)):

        def forward(tap, x=x):
            features = tap({"z": model.trunk(x)})
            errors = {t: model.heads[t](features[t]["z"])[:, 0] - x[:, k] for k, t in enumerate(TASKS)}
            return Losses({t: error.square().sum() / 16 for t, error in errors.items()})

        made.append(MicroBatch(TASKS, forward, half, dict.fromkeys(TASKS, 1 / pieces)))
    return made


def places(name):
    kind = registry.resolve(registry.entries("balancers")[name].path)
    if isinstance(kind, type) and issubclass(kind, LossWeighting):
        return [None]
    if isinstance(kind, type) and issubclass(kind, JacobianAggregator):
        return ["parameters"]
    if kind.halves:
        return ["parameters", "last"]
    return ["parameters", "last", "features"]


CASES = [(name, at) for name in registry.entries("balancers") for at in places(name)]


@pytest.mark.filterwarnings("ignore::polytask.balancing.warn.BalancerWarning")
@pytest.mark.parametrize(("name", "at"), CASES)
def test_the_losses_fall(name, at):
    model = Model()
    runner = engine(build(name, tasks=TASKS, **OPTIONS.get(name, {})), model, at=at)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        micro = micro_batches(model, 1 + runner.balancer.halves)
        report = runner.backward(micro)
        losses.append(torch.stack([loss.float() for loss in report.losses.values()]))
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        runner.after_step(micro)
    if name in EASIEST_FIRST:
        assert (losses[-1] / losses[0]).min() < 0.7
    else:
        assert losses[-1].sum() < 0.7 * losses[0].sum()
