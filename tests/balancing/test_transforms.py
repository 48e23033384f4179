"""Chains: each transform against what it means on explicit gradients, for every kind of method."""

from __future__ import annotations

import pytest
import torch

from polytask import registry
from polytask.balancing import GramianWeighting, JacobianAggregator, LossWeighting, aggregate
from polytask.balancing.gradient.averaged import MoCo
from polytask.balancing.gradient.robust import TrimmedMean
from polytask.balancing.gramian.cagrad import CAGrad
from polytask.balancing.loss.learned import Learned
from polytask.balancing.transforms import (
    chain,
    ema_gradients,
    ema_weights,
    log_losses,
    normalize_rows,
    preference,
    rescale_to,
)
from polytask.errors import BalancerError
from polytask.testing.balancers import check_absent, check_one_task, check_precision, check_scales, check_state

TASKS = ["a", "b", "c"]
LOSSES = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)


def rows(seed=0):
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(method, tasks=TASKS):
    method.setup(tasks)
    return method


def direction(method, jacobian, losses=LOSSES, tasks=TASKS):
    if isinstance(method, JacobianAggregator):
        return method.aggregate(jacobian, losses, tasks)
    return method.weigh(jacobian @ jacobian.T, losses, tasks) @ jacobian


@pytest.mark.parametrize("method", [lambda: CAGrad(c=0.4), lambda: TrimmedMean(trim=1)], ids=["gramian", "jacobian"])
@pytest.mark.parametrize(
    ("link", "factors"),
    [
        (log_losses, lambda j: 1 / LOSSES),
        (lambda: log_losses(eps=0.5), lambda j: 1 / (LOSSES + 0.5)),
        (normalize_rows, lambda j: 1 / j.norm(dim=1)),
        (lambda: normalize_rows("loss"), lambda j: LOSSES / j.norm(dim=1)),
        (lambda: preference({"c": 3.0, "a": 1.0, "b": 0.5}), lambda j: torch.tensor([1.0, 0.5, 3.0]).double()),
    ],
    ids=["log", "log_eps", "unit", "loss_norm", "preference"],
)
def test_row_transforms_scale_the_gradients_that_the_method_sees(link, factors, method):
    jacobian = rows()
    found = direction(ready(chain(link(), method())), jacobian)
    torch.testing.assert_close(found, direction(ready(method()), factors(jacobian)[:, None] * jacobian))


def test_transforms_act_in_order():
    jacobian = rows(1)
    made = ready(chain(normalize_rows(), preference([1.0, 2.0, 3.0]), CAGrad()))
    scaled = torch.tensor([[1.0], [2.0], [3.0]]) * jacobian / jacobian.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction(made, jacobian), direction(ready(CAGrad()), scaled))
    other = ready(chain(preference([1.0, 2.0, 3.0]), normalize_rows(), CAGrad()))
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction(other, jacobian), direction(ready(CAGrad()), unit))


@pytest.mark.parametrize("what", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("key", ["nash_mtl", "mgda", "trimmed_mean"])
def test_rescaling_keeps_the_direction_and_sets_the_norm(key, scale, what):
    jacobian = scale * rows(2)
    found = direction(ready(chain(rescale_to(what), key)), jacobian)
    plain = direction(ready(registry.build("balancers", key)), jacobian)
    wanted = getattr(jacobian, what)(0).norm()
    torch.testing.assert_close(found, wanted * plain / plain.norm(), rtol=1e-9, atol=0)


def test_rescaling_leaves_an_update_of_zero():
    opposite = torch.tensor([[1.0, 2.0], [-2.0, -4.0]], dtype=torch.float64)
    found = direction(ready(chain(rescale_to("sum"), "mgda"), ["a", "b"]), opposite, LOSSES[:2], ["a", "b"])
    assert found.norm() < 1e-12


@pytest.mark.parametrize("key", ["mgda", "trimmed_mean"])
def test_averaged_gradients_reach_the_method(key):
    made, plain = ready(chain(ema_gradients(0.7), key)), ready(registry.build("balancers", key))
    average = None
    for seed in range(4):
        jacobian = rows(seed)
        average = jacobian if average is None else 0.7 * average + 0.3 * jacobian
        torch.testing.assert_close(made.aggregate(jacobian, LOSSES, TASKS), direction(plain, average))


def test_averaged_gradients_of_absent_tasks_stay():
    made = ready(chain(ema_gradients(0.5), "sum"))
    first, second = rows(0), rows(1)
    made.aggregate(first[:2], LOSSES[:2], ["a", "b"])
    found = made.aggregate(second[1:], LOSSES[1:], ["b", "c"])
    torch.testing.assert_close(found, 0.5 * (first[1] + second[1]) + second[2])


def test_averaged_weights_of_losses_and_gradients():
    made = ready(chain(ema_weights(0.5), log_losses(), "equal"))
    torch.testing.assert_close(made.weigh(LOSSES, TASKS), 1 / LOSSES)
    torch.testing.assert_close(made.weigh(2 * LOSSES, TASKS), 0.75 / LOSSES, rtol=1e-6, atol=0)
    gramian = ready(chain(ema_weights(0.5), "mgda"))
    one, two = torch.diag(torch.tensor([1.0, 3.0]).double()), torch.diag(torch.tensor([3.0, 1.0]).double())
    gramian.weigh(one, None, ["a", "b"])
    torch.testing.assert_close(gramian.weigh(two, None, ["a", "b"]), torch.tensor([0.5, 0.5]).double())


def test_log_losses_before_a_loss_weighting_give_the_gradient_of_the_chain():
    # The total of the chain is T(log L); its gradient by autograd is the weights.
    losses = LOSSES.clone().requires_grad_()
    shares = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    (shares * losses.log()).sum().backward()
    made = ready(chain(log_losses(), {"name": "static", "weights": {"a": 1.0, "b": 2.0, "c": 4.0}}))
    torch.testing.assert_close(made.weigh(LOSSES, TASKS), losses.grad)


def test_the_second_look_of_a_method_sees_what_its_first_look_saw():
    factors = [2.0, 0.5, 3.0]
    chained, plain = ready(chain(preference(factors), "famo")), ready(registry.build("balancers", "famo"))
    p = torch.tensor(factors, dtype=torch.float64)
    later = LOSSES * torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    assert chained.looks_again
    for _ in range(3):
        torch.testing.assert_close(chained.weigh(LOSSES, TASKS), p * plain.weigh(p * LOSSES, TASKS))
        chained.after_step(lambda: dict(zip(TASKS, later, strict=True)))
        plain.after_step(lambda: dict(zip(TASKS, p * later, strict=True)))


def test_learned_weights_train_through_a_chain():
    chained, plain = ready(chain(preference([2.0, 0.5, 3.0]), Learned())), ready(Learned())
    p = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)
    found = torch.autograd.grad(chained.objective(LOSSES, TASKS), list(chained.parameters()))
    expected = torch.autograd.grad(plain.objective(p * LOSSES, TASKS), list(plain.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("links", "kind", "stateful"),
    [
        ((log_losses(), "cagrad"), GramianWeighting, False),
        ((ema_weights(), "cagrad"), GramianWeighting, True),
        ((ema_gradients(), "cagrad"), JacobianAggregator, True),
        ((rescale_to(), "graddrop"), JacobianAggregator, False),
        ((log_losses(), "equal"), LossWeighting, False),
        ((rescale_to(), ema_gradients(), "db_mtl"), JacobianAggregator, True),
    ],
)
def test_a_chain_is_of_one_of_the_three_kinds(links, kind, stateful):
    made = chain(*links)
    assert isinstance(made, kind)
    assert ("stateful" in made.traits) == stateful


@pytest.mark.parametrize(
    "make",
    [
        lambda _: chain(log_losses(), normalize_rows(), "cagrad"),
        lambda _: chain(rescale_to("sum"), ema_weights(), "upgrad"),
        lambda _: chain(ema_gradients(), preference([1.0] * len(_)), "imtl_g"),
        lambda _: chain(normalize_rows("loss"), MoCo()),
        lambda _: chain(ema_weights(), log_losses(), "dwa"),
    ],
)
def test_chains_keep_the_rules_for_balancers(make):
    for check in (check_scales, check_one_task, check_precision, check_absent, check_state):
        check(make)


def test_a_chain_works_where_a_method_does():
    jacobian = rows(5)
    found = aggregate(jacobian, chain(normalize_rows(), "mean"))
    torch.testing.assert_close(found, (jacobian / jacobian.norm(dim=1, keepdim=True)).mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain(), "A chain ends with a method"),
        (lambda: chain(log_losses()), "A chain ends with a method"),
        (lambda: chain("mgda", "cagrad"), "Before its last link a chain has transforms only; got str"),
        (lambda: chain(rescale_to(), "equal"), "RescaleTo cannot stand before 'Equal': it weighs losses"),
        (lambda: chain(ema_weights(), "graddrop"), "EmaWeights cannot stand before 'GradDrop': it has no weights"),
        (lambda: ready(chain(ema_gradients(), "gradnorm")), "learned weights would never be trained"),
        (lambda: normalize_rows("l1"), "Unknown to 'l1'"),
        (lambda: rescale_to("max"), "Unknown what 'max'"),
        (lambda: ema_gradients(1.5), "beta must be a number between 0 and 1"),
        (lambda: log_losses(eps=-1), "eps must be a number of at least 0"),
        (lambda: ready(chain(preference([1, -1, 1]), "sum")), "no number may be negative"),
        (lambda: ready(chain(log_losses(), "sum")).epoch_end({"a": -1.0}), "the loss of 'a' was -1 on average"),
        (lambda: ready(chain(log_losses(), "sum")).weigh(torch.eye(3), None, TASKS), "log_losses needs the losses"),
    ],
)
def test_wrong_chains_say_what_is_wrong(make, message):
    with pytest.raises(BalancerError, match=message):
        make()
