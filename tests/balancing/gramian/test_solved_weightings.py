"""The classes over the solvers: conversion, options, warnings and errors, state, and the registry."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch

from polytask import catalogue, registry
from polytask.balancing.base import GramianWeighting
from polytask.balancing.functional import barrier, cagrad, cone, minnorm
from polytask.balancing.gramian.minnorm import MGDA
from polytask.balancing.warn import BalancerWarning
from polytask.errors import BalancerError, RecipeError

KEYS = ("sum", "mean", "mgda", "cagrad", "nash_mtl", "fairgrad", "upgrad", "dualproj", "sdmgrad", "pcd")


def rows_of(count=5, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    return rows * 10 ** (spread * (2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1))


def build(key, count=5, **options):
    balancer = registry.build("balancers", key, options)
    balancer.setup([f"t{k}" for k in range(count)])
    return balancer


def update(balancer, rows):
    return balancer.weigh(rows @ rows.T, None, balancer.tasks) @ rows


def close(found, expected, tolerance=1e-7):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("key", KEYS)
def test_registry_names_a_gramian_weighting_with_its_own_first_line(key):
    kind = registry.get("balancers", key)
    assert issubclass(kind, GramianWeighting)
    assert catalogue.BALANCERS[key].help == inspect.getdoc(kind).splitlines()[0]


@pytest.mark.parametrize("key", KEYS)
def test_weights_are_float64_one_for_each_task(key):
    weights = build(key).weigh(rows_of() @ rows_of().T, None, ["t0", "t1", "t2", "t3", "t4"])
    assert (weights.dtype, weights.shape, weights.device.type) == (torch.float64, (5,), "cpu")


@pytest.mark.parametrize("key", KEYS)
def test_one_present_task_keeps_its_gradient(key):
    balancer = build(key)
    for scale in (0.0, 1e-24, 1.0, 1e24):
        assert balancer.weigh(torch.full((1, 1), scale, dtype=torch.float64), None, ["t3"]).tolist() == [1.0]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "pcd"])
def test_order_of_tasks_does_not_matter(key):
    rows = rows_of()
    order = torch.tensor([3, 0, 4, 2, 1])
    assert close(update(build(key), rows[order]), update(build(key), rows))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_declared_behaviour_under_scaling(key, scale):
    kind = registry.get("balancers", key)
    base, scaled = update(build(key), rows_of()), update(build(key), scale * rows_of())
    if "scale_equivariant" in kind.traits:
        assert close(scaled, scale * base)
    if "scale_invariant" in kind.traits:
        assert close(scaled, base)
    assert torch.isfinite(scaled).all()


@pytest.mark.parametrize("key", [key for key in KEYS if "non_conflicting" in registry.get("balancers", key).traits])
@pytest.mark.parametrize("seed", range(5))
def test_declared_absence_of_conflict(key, seed):
    rows = rows_of(seed=seed)
    rows = rows - 0.8 * rows.mean(dim=0)
    direction = update(build(key), rows)
    cosines = (rows @ direction) / rows.norm(dim=1) / direction.norm()
    assert float(cosines.min()) >= -1e-9


def test_absent_tasks_leave_the_problem():
    rows = rows_of(4)
    kept = [0, 2, 3]
    for key in ("mgda", "cagrad", "nash_mtl", "fairgrad", "upgrad", "dualproj", "sdmgrad"):
        found = build(key, 4).weigh(rows[kept] @ rows[kept].T, None, ["t0", "t2", "t3"])
        alone = build(key, 3).weigh(rows[kept] @ rows[kept].T, None, ["t0", "t1", "t2"])
        assert torch.equal(found, alone)


def test_options_reach_the_solvers():
    rows = rows_of()
    gramian = rows @ rows.T
    raw = gramian.numpy()
    losses = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    cases = {
        ("mgda", "normalize", "l2"): minnorm.mgda(raw, None, "l2"),
        ("mgda", "normalize", "loss_norm"): minnorm.mgda(raw, losses.numpy(), "loss_norm"),
        ("cagrad", "c", 0.7): cagrad.cagrad(raw, 0.7),
        ("cagrad", "rescale", 2): cagrad.cagrad(raw, rescale=2),
        ("fairgrad", "alpha", 0.5): barrier.fairgrad(raw, 0.5),
        ("nash_mtl", "normalize", True): barrier.nash_mtl(raw, normalize=True),
        ("sdmgrad", "lambda", 1.5): minnorm.sdmgrad(raw, 1.5),
        ("sdmgrad", "scaled", True): minnorm.sdmgrad(raw, scaled=True),
        ("dualproj", None, None): cone.dualproj(raw),
        ("upgrad", None, None): cone.upgrad(raw),
    }
    for (key, option, value), expected in cases.items():
        balancer = build(key, **({option: value} if option else {}))
        default = build(key).weigh(gramian, losses, balancer.tasks).numpy()
        found = balancer.weigh(gramian, losses, balancer.tasks).numpy()
        assert np.array_equal(found, expected.weights)
        assert option is None or not np.allclose(found, default)


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        (
            "mgda",
            {"normalize": "l3"},
            "MGDA: Unknown normalize 'l3'. Known: none, l2, loss, loss_norm. Did you mean 'l2'?",
        ),
        ("cagrad", {"c": -0.1}, "CAGrad: c must be a number of at least 0; got -0.1."),
        ("cagrad", {"c": "0.4"}, "CAGrad: c must be a number of at least 0; got '0.4'."),
        ("cagrad", {"rescale": 3}, "CAGrad: Unknown rescale '3'. Known: 0, 1, 2."),
        ("fairgrad", {"alpha": 0}, "FairGrad: alpha must be a number above 0; got 0."),
        ("sdmgrad", {"lambda": float("nan")}, "SDMGrad: lambda must be a number of at least 0; got nan."),
        ("pcd", {"tau": 1.5}, "PCD: tau must be at most 1 and beta below 1; got tau=1.5, beta=0.999."),
    ],
)
def test_bad_options_say_what_is_wrong(key, options, message):
    with pytest.raises(BalancerError) as caught:
        registry.build("balancers", key, options)
    assert str(caught.value) == message


def test_unknown_option_is_an_error():
    with pytest.raises(RecipeError, match=r"Unknown option 'alhpa'.*Did you mean 'alpha'"):
        registry.build("balancers", "fairgrad", {"alhpa": 1.0})


def test_losses_that_cannot_be_divided_by_are_named():
    balancer = MGDA(normalize="loss")
    gramian = torch.eye(2, dtype=torch.float64)
    with pytest.raises(BalancerError, match=r"normalize='loss' needs the losses. Use 'none' or 'l2'"):
        balancer.weigh(gramian, None, ["a", "b"])
    with pytest.raises(BalancerError, match=r"that of 'b' is -2. Use 'none' or 'l2'"):
        balancer.weigh(gramian, torch.tensor([1.0, -2.0]), ["a", "b"])


@pytest.mark.parametrize("key", ["mgda", "cagrad", "nash_mtl", "upgrad", "pcd"])
def test_products_that_are_not_finite_are_an_error_that_names_the_task(key):
    gramian = torch.eye(3, dtype=torch.float64)
    gramian[1, :] = gramian[:, 1] = float("nan")
    balancer = build(key, 3)
    with pytest.raises(BalancerError, match=r"not finite \(tasks: t1\). Lower the learning rate"):
        balancer.weigh(gramian, None, balancer.tasks)


@pytest.mark.parametrize("key", ["nash_mtl", "fairgrad"])
def test_fallbacks_warn_once_and_say_what_was_done(key):
    balancer = build(key, 2)
    stationary = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    with pytest.warns(BalancerWarning, match="Pareto stationary gradients; took the shortest vector"):
        assert balancer.weigh(stationary, None, balancer.tasks).tolist() == pytest.approx([0.5, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.weigh(stationary, None, balancer.tasks)
    zero = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.warns(BalancerWarning, match="a gradient of zero; solved it for the other tasks"):
        weights = balancer.weigh(zero, None, balancer.tasks)
    assert weights[1] == 0.0
    assert weights[0] > 0.0


@pytest.mark.parametrize("key", ["sum", "mean", "mgda", "cagrad", "upgrad", "dualproj", "sdmgrad", "pcd"])
def test_zero_rows_and_zero_gramians_need_no_warning(key):
    rows = rows_of(3)
    rows[1] = 0.0
    balancer = build(key, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(balancer.weigh(rows @ rows.T, None, balancer.tasks)).all()
        assert torch.isfinite(balancer.weigh(torch.zeros(3, 3, dtype=torch.float64), None, balancer.tasks)).all()


def test_mgda_stops_at_pareto_stationary_points_only():
    rows = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.9]], dtype=torch.float64)
    assert float(update(build("mgda", 3), rows).norm()) <= 1e-7
    assert float(update(build("mgda", 3), rows + torch.tensor([0.0, 0.85])).norm()) > 1e-3


def test_pcd_keeps_running_averages_of_squared_norms():
    """v = beta v + (1 - beta) |g|^2, divided by 1 - beta^t."""
    first, second = rows_of(3, 1), rows_of(3, 2)
    balancer = build("pcd", 3, beta=0.5, tau=0.9)
    update(balancer, first)
    squares = (0.5 * 0.5 * (first**2).sum(1) + 0.5 * (second**2).sum(1)) / (1 - 0.25)
    found = update(balancer, second)
    fresh = build("pcd", 3, beta=0.5, tau=0.9)
    fresh.squares.copy_(squares)
    fresh.steps.fill_(1e9)
    expected = fresh.solve((second @ second.T).numpy(), None, fresh.tasks)
    assert close(found, torch.from_numpy(expected.weights) @ second)


def test_pcd_state_survives_saving():
    rows = rows_of(3, 1)
    used, restored = build("pcd", 3), build("pcd", 3)
    update(used, rows)
    restored.load_state_dict(used.state_dict())
    assert torch.equal(update(restored, 2 * rows + 1), update(used, 2 * rows + 1))


def test_pcd_follows_the_named_task_and_its_stand_in():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    balancer = build("pcd", 3, primary="t1", tau=0.0)
    assert close(update(balancer, rows), rows[1])
    without = balancer.weigh(rows[[0, 2]] @ rows[[0, 2]].T, None, ["t2", "t0"])
    assert without.tolist() == pytest.approx([0.0, 1.0])
    with pytest.raises(BalancerError, match=r"PCD: Unknown task 't9'. Known: t0, t1, t2"):
        build("pcd", 3, primary="t9")


def test_pcd_warns_when_constraints_contradict():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    with pytest.warns(BalancerWarning, match="constraints contradict each other; dropped them"):
        assert close(update(build("pcd", 3, tau=0.1), rows), rows[0])


@pytest.mark.parametrize("key", KEYS)
def test_float32_gradients_on_any_device_are_accepted(key):
    rows = rows_of().float()
    weights = build(key).weigh(rows @ rows.T, None, [f"t{k}" for k in range(5)])
    exact = build(key).weigh(rows_of() @ rows_of().T, None, [f"t{k}" for k in range(5)])
    assert weights.dtype == torch.float64
    assert close(weights @ rows_of(), exact @ rows_of(), 1e-4)
