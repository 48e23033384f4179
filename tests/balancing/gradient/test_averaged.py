"""DB-MTL, MoCo, ExcessMTL and CR-MOGM against the papers' recursions, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polytask import registry
from polytask.balancing.gradient.averaged import DBMTL, ExcessMTL, MoCo
from polytask.balancing.gradient.smoothed import CRMOGM
from polytask.balancing.gramian.minnorm import MGDA
from polytask.errors import BalancerError

TASKS = ["a", "b", "c"]


def steps(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * (rng.standard_normal((3, 8)) + 0.3), rng.uniform(0.2, 3.0, 3)) for _ in range(count)]


def ready(method, tasks=TASKS):
    method.setup(tasks)
    return method


def run(method, jacobian, losses, tasks=TASKS):
    return method.aggregate(torch.from_numpy(jacobian), torch.from_numpy(losses), tasks).numpy()


def on_simplex(point):
    ordered = np.sort(point)[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - thresholds[np.flatnonzero(ordered > thresholds)[-1]], 0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("beta", "sigma", "eps"), [(0.9, 0.0, 0.0), (0.5, 0.5, 1e-8), (0.0, 0.0, 0.0)])
def test_db_mtl(beta, sigma, eps, scale):
    method, average = ready(DBMTL(beta, sigma, eps)), np.zeros((3, 8))
    for t, (jacobian, losses) in enumerate(steps(5, scale=scale), start=1):
        share = beta / t**sigma
        average = share * average + (1 - share) * jacobian / (losses + eps)[:, None]
        norms = np.linalg.norm(average, axis=1)
        expected = norms.max() * sum(row / norm for row, norm in zip(average, norms, strict=True))
        np.testing.assert_allclose(run(method, jacobian, losses), expected, rtol=1e-10)


def test_db_mtl_does_not_see_the_units_of_a_loss():
    one, other = ready(DBMTL()), ready(DBMTL())
    units = np.array([1e-9, 1.0, 1e9])
    for jacobian, losses in steps(3):
        found = run(other, jacobian * units[:, None], losses * units)
        np.testing.assert_allclose(found, run(one, jacobian, losses), rtol=1e-9)


def test_db_mtl_counts_each_tasks_own_steps_and_leaves_absent_tasks_out():
    (j1, l1), (j2, l2) = steps(2)
    method = ready(DBMTL(beta=0.8, sigma=1.0))
    run(method, j1[[0, 2]], l1[[0, 2]], ["a", "c"])
    found = run(method, j2[[1, 2]], l2[[1, 2]], ["b", "c"])
    b = (1 - 0.8) * j2[1] / l2[1]  # the first step of b
    c = 0.4 * (1 - 0.8) * j1[2] / l1[2] + 0.6 * j2[2] / l2[2]  # the second of c
    top = max(np.linalg.norm(b), np.linalg.norm(c))
    np.testing.assert_allclose(found, top * (b / np.linalg.norm(b) + c / np.linalg.norm(c)), rtol=1e-12)


def test_db_mtl_without_a_logarithm():
    jacobian, losses = steps(1)[0]
    losses[1] = 0.0
    found = run(ready(DBMTL(beta=0.0)), jacobian, losses)
    rest = run(ready(DBMTL(beta=0.0)), jacobian[[0, 2]], losses[[0, 2]], ["a", "c"])
    np.testing.assert_allclose(found, rest, rtol=1e-12)
    with pytest.raises(BalancerError, match=r"the loss of 'b' was -0\.5 on average over the epoch"):
        ready(DBMTL()).epoch_end({"a": 1.0, "b": -0.5})
    with pytest.raises(BalancerError, match="needs the losses"):
        ready(DBMTL()).aggregate(torch.ones(3, 2), None, TASKS)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_moco(rho):
    method, y, w = ready(MoCo(0.5, 0.5, 0.1, 0.25, rho)), np.zeros((3, 8)), np.full(3, 1 / 3)
    for t, (jacobian, losses) in enumerate(steps(6), start=1):
        y = y - 0.5 / t**0.5 * (y - jacobian)
        w = on_simplex(w - 0.1 / t**0.25 * (y @ y.T + rho * np.eye(3)) @ w)
        np.testing.assert_allclose(run(method, jacobian, losses), w @ y, rtol=2e-6)  # weights are float32


def test_moco_with_exact_tracking_finds_the_shortest_vector_of_the_hull():
    jacobian, losses = steps(1, seed=2)[0]
    method = ready(MoCo(beta=1.0, beta_sigma=0.0, gamma=0.02, gamma_sigma=0.0))
    for _ in range(1500):
        found = run(method, jacobian, losses)
    best = ready(MGDA()).weigh(torch.from_numpy(jacobian @ jacobian.T), None, TASKS).numpy() @ jacobian
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)


def test_moco_keeps_the_weight_and_the_gradient_of_an_absent_task():
    method = ready(MoCo())
    (j1, l1), (j2, l2) = steps(2)
    run(method, j1, l1)
    weight, tracked = method.weights[1].clone(), method.tracked.rows[1].clone()
    run(method, j2[[0, 2]], l2[[0, 2]], ["a", "c"])
    assert method.weights[1] == weight
    assert torch.equal(method.tracked.rows[1], tracked)
    assert float(method.weights.sum()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_excess_mtl(scale):
    method, squares, w, first = ready(ExcessMTL(eta=0.7)), np.zeros((3, 8)), np.full(3, 1 / 3), None
    for jacobian, losses in steps(6, scale=scale):
        squares = squares + jacobian**2
        excess = (jacobian**2 / np.sqrt(squares)).sum(1)
        if first is None:
            first = excess
        else:
            w = w * np.exp(0.7 * excess / first)
            w = w / w.sum()
        np.testing.assert_allclose(run(method, jacobian, losses), w @ jacobian, rtol=1e-5, atol=1e-6 * scale)


def test_excess_mtl_waits_for_a_gradient_and_keeps_absent_tasks():
    method = ready(ExcessMTL())
    (j1, l1), (j2, l2) = steps(2)
    j1[1] = 0.0
    np.testing.assert_allclose(run(method, j1, l1), j1.mean(0), rtol=1e-12)
    assert method.first[1] == 0
    method.setup(TASKS)
    run(method, j2, l2)
    roots = method.roots.rows[1].clone()
    run(method, j1[[0, 2]], l1[[0, 2]], ["a", "c"])
    assert torch.equal(method.roots.rows[1], roots)


def test_other_parameters_are_refused():
    for method in (ready(DBMTL()), ready(MoCo()), ready(ExcessMTL())):
        run(method, *steps(1)[0])
        with pytest.raises(BalancerError, match="averages of gradients with 8 entries, but was given gradients with 5"):
            method.aggregate(torch.ones(3, 5), torch.ones(3), TASKS)


@pytest.mark.parametrize("key", ["db_mtl", "moco", "excess_mtl"])
def test_a_resume_before_the_first_step_takes_over_the_gradients(key):
    first, second = (ready(registry.build("balancers", key)) for _ in range(2))
    data = steps(4)
    for jacobian, losses in data[:2]:
        run(first, jacobian, losses)
    second.load_state_dict(first.state_dict())
    for jacobian, losses in data[2:]:
        assert np.array_equal(run(second, jacobian, losses), run(first, jacobian, losses))
    with pytest.raises((RuntimeError, BalancerError)):
        ready(registry.build("balancers", key), ["a", "b"]).load_state_dict(first.state_dict())


def test_a_reused_gradient_buffer_does_not_change_what_is_kept():
    data, buffer = steps(3), torch.zeros(3, 8, dtype=torch.float64)
    plain, reused = ready(DBMTL()), ready(DBMTL())
    for jacobian, losses in data:
        buffer.copy_(torch.from_numpy(jacobian))
        found = reused.aggregate(buffer, torch.from_numpy(losses), TASKS).numpy()
        np.testing.assert_array_equal(found, run(plain, jacobian, losses))


@pytest.mark.parametrize("inner", ["mgda", {"name": "mgda", "normalize": "l2"}, MGDA("l2")])
def test_cr_mogm_smooths_the_inner_weights(inner):
    method = ready(CRMOGM(inner, alpha=0.6))
    alone = ready(MGDA("none" if inner == "mgda" else "l2"))
    expected = None
    for jacobian, _ in steps(5):
        gramian = torch.from_numpy(jacobian @ jacobian.T)
        new = alone.weigh(gramian, None, TASKS)
        expected = new if expected is None else 0.6 * expected + 0.4 * new
        torch.testing.assert_close(method.weigh(gramian, None, TASKS), expected, rtol=1e-6, atol=1e-7)


def test_cr_mogm_of_a_task_that_comes_later():
    method = ready(CRMOGM("mgda", alpha=0.5))
    gramian = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    method.weigh(gramian, None, ["a", "b"])  # 3/4, 1/4
    found = method.weigh(gramian, None, ["c", "a"])  # inner again 3/4 for c, 1/4 for a
    torch.testing.assert_close(found, torch.tensor([0.75, 0.5], dtype=torch.float64))
    assert method.link.average.values.tolist() == [0.5, 0.25, 0.75]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DBMTL(beta=2.0), "DBMTL: beta must be a number between 0 and 1; got 2.0"),
        (lambda: DBMTL(eps=-1.0), "DBMTL: eps must be a number of at least 0"),
        (lambda: MoCo(gamma=float("nan")), "MoCo: gamma must be a number of at least 0"),
        (lambda: ExcessMTL(eta=0.0), "ExcessMTL: eta must be a number above 0"),
        (lambda: CRMOGM("equal"), "'Equal' is another kind of method. Use one such as 'mgda'"),
        (lambda: CRMOGM(3), "the inner method is a name, a mapping with a 'name', or a balancer; got 3"),
        (lambda: CRMOGM(alpha=-0.1), "CRMOGM: alpha must be a number"),
        (lambda: CRMOGM("mgdda"), "Unknown balancer 'mgdda'.* Did you mean 'mgda'?"),
    ],
)
def test_wrong_options_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
