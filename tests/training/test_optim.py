"""Learning-rate schedules, optimizers and penalties."""

import math

import pytest
import torch
from torch import nn

from polytask.errors import RecipeError
from polytask.training.optim import build_optimizer, parameter_penalty, rate_factor
from polytask.training.settings import OptimizerSettings, PenaltySettings, ScheduleSettings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ScheduleSettings("constant"), {0: 1, 99: 1}),
        (ScheduleSettings("cosine"), {0: 1, 50: 0.5, 25: (1 + math.cos(math.pi / 4)) / 2}),
        (ScheduleSettings("cosine", end=0.1), {50: 0.55}),
        (ScheduleSettings("linear", end=0.5), {0: 1, 50: 0.75}),
        (ScheduleSettings("step", at=(0.3, 0.6), factor=0.5), {0: 1, 30: 0.5, 99: 0.25}),
        (ScheduleSettings("exponential", end=0.01), {50: 0.1}),
        (ScheduleSettings("linear", warmup=10), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5}),
        (ScheduleSettings("constant", warmup=0.2), {0: 1 / 20, 19: 1, 50: 1}),
    ],
)
def test_rate_over_a_run_of_100_steps(settings, expected):
    factor = rate_factor(settings, 100)
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="warmup is 200, but the run has 100 steps"):
        rate_factor(ScheduleSettings("linear", warmup=200), 100)
    with pytest.raises(RecipeError, match="has to be above 0 for the exponential"):
        rate_factor(ScheduleSettings("exponential"), 100)(50)


def test_weight_decay_leaves_vectors_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(OptimizerSettings("adamw"), model.parameters(), 0.1, 0.01)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[0].weight)}


def test_optimizers_by_name_and_by_path_with_options():
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    sgd = build_optimizer(OptimizerSettings("sgd", {"momentum": 0.9}), parameters, 0.1, 0.0)
    assert (type(sgd), sgd.param_groups[0]["momentum"]) == (torch.optim.SGD, 0.9)
    assert isinstance(build_optimizer(OptimizerSettings("torch.optim:NAdam"), parameters, 0.1, 0.0), torch.optim.NAdam)
    with pytest.raises(RecipeError, match=r"Unknown optimizer 'sgdd'.*Did you mean 'sgd'"):
        build_optimizer(OptimizerSettings("sgdd"), parameters, 0.1, 0.0)
    with pytest.raises(RecipeError, match=r"Optimizer 'sgd': Unknown option 'momentun'.*Did you mean 'momentum'"):
        build_optimizer(OptimizerSettings("sgd", {"momentun": 0.9}), parameters, 0.1, 0.0)
    parameters[0].requires_grad_(False)
    with pytest.raises(RecipeError, match="No parameter is trainable"):
        build_optimizer(OptimizerSettings("sgd"), parameters, 0.1, 0.0)


def test_penalty_and_its_gradient_follow_the_formula():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.ones(2, dtype=torch.float64))
    settings = PenaltySettings(l1=0.3, l2=0.7, elastic_net=0.2, ratio=0.25)
    penalty = parameter_penalty(settings, [weight, bias])
    first, second = 0.3 + 0.2 * 0.25, 0.7 + 0.2 * 0.75
    assert penalty.item() == pytest.approx(first * 3.5 + second / 2 * 5.25)
    penalty.backward()
    assert torch.allclose(weight.grad, first * weight.sign() + second * weight)
    assert bias.grad is None
    assert parameter_penalty(PenaltySettings(), [weight]) is None
