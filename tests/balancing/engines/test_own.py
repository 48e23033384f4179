"""The optimizer of a method's learned weights, against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polytask.balancing import build
from polytask.balancing.engines.own import own_optimizer, step
from polytask.balancing.loss.learned import IMTLL
from polytask.balancing.loss.uncertainty import Uncertainty

TASKS = ["a", "b", "c"]


def walk(take, parameter, count, seed):
    random = torch.Generator().manual_seed(seed)
    for number in range(count):
        parameter.grad = None if number == 3 else torch.randn(5, generator=random)
        take()


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3}])
def test_adam_steps_as_pytorchs_to_the_bit(options):
    method, reference = build("uncertainty", tasks=list("abcde")), nn.Parameter(torch.zeros(5))
    made = own_optimizer(method, options)
    torchs = torch.optim.Adam([reference], **{"lr": 0.025, **options}, foreach=False, fused=False)
    (mine,) = method.parameters()
    walk(lambda: step(made), mine, 8, seed=0)
    walk(torchs.step, reference, 8, seed=0)
    assert torch.equal(mine, reference)
    assert not torch.equal(mine, torch.zeros(5))
    # PyTorch goes on from what it left, and it from what PyTorch left.
    left = copy.deepcopy((made.state_dict(), torchs.state_dict()))
    torchs.load_state_dict(left[0])
    made.load_state_dict(left[1])
    walk(lambda: step(made), mine, 5, seed=1)
    walk(torchs.step, reference, 5, seed=1)
    assert torch.equal(mine, reference)


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"name": "rmsprop"}, {"name": "adamw"}])
def test_other_optimizers_and_options_are_pytorchs(options):
    method, reference = build("uncertainty", tasks=list("abcde")), nn.Parameter(torch.zeros(5))
    made = own_optimizer(method, options)
    rest = {key: value for key, value in options.items() if key != "name"}
    kind = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}.get(options.get("name"), torch.optim.Adam)
    torchs = kind([reference], lr=0.025, weight_decay=0.0, **rest)
    (mine,) = method.parameters()
    walk(lambda: step(made), mine, 8, seed=0)
    walk(torchs.step, reference, 8, seed=0)
    torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("make", [Uncertainty, IMTLL])
@pytest.mark.parametrize("present", [TASKS, ["c", "a"]])
def test_closed_gradients_are_those_of_the_objective(make, present):
    method = make()
    method.setup(TASKS, {"a": "regression"})
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.tensor([0.3, -2.0, 1.0]))
    losses = torch.tensor([4.0, -0.5, 0.0])[: len(present)]
    found = method.own_gradients(losses, method.weigh(losses, present), present)
    wanted = torch.autograd.grad(method.objective(losses, present), list(method.parameters()))
    torch.testing.assert_close(found, list(wanted))
