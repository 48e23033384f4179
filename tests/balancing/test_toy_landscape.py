"""Where methods end on the two-objective landscape of CAGrad and Nash-MTL.

The Pareto set is found here by minimising weighted sums with SciPy, not by the code under test. Theory promises
Pareto stationary points. Above the line y = 0 there is one trap: near x = 9 the second loss falls on both sides
towards the kink at y = 0, so methods that follow mostly one gradient there stay, without being on the set.
"""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from polytask.balancing.warn import BalancerWarning

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRAPPED = 2  # the start (9, 9)


@pytest.fixture(scope="module")
def toy():
    path = Path(__file__).parents[2] / "examples" / "toy_landscape.py"
    spec = importlib.util.spec_from_file_location("toy_landscape", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value(toy, point, weight):
    """A weighted sum of the losses, the first of them scaled back to the size of the second."""
    first, second = toy.losses(torch.tensor(point, dtype=torch.float64), scale=1.0).tolist()
    return weight * first + (1 - weight) * second


@pytest.fixture(scope="module")
def front(toy):
    """Points of the Pareto set by minimising weighted sums, sorted by x."""
    found = [
        minimize(
            lambda p, w=w: value(toy, p, w), [3.0, -6.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}
        ).x
        for w in np.linspace(0.01, 0.99, 40)
    ]
    return np.array(sorted(found, key=lambda point: point[0]))


@pytest.fixture(scope="module")
def ends(toy):
    """Ends of a method's ways from the five starts, each walked once."""
    known = {}
    # A wide cone is slow here: it leans towards the worse loss at the length of the mean gradient.
    options = {"conicgrad": {"c": 0.9}}

    def end(method):
        if method not in known:
            with warnings.catch_warnings():
                # At Pareto stationary points the bargaining methods say that there is no solution.
                warnings.simplefilter("ignore", BalancerWarning)
                known[method] = toy.walk(method, 6000, **options.get(method, {}))[-1].numpy()
        return known[method]

    return end


def gap(end, front):
    """Distance of an end from the set: along y inside of it, to the nearest tip outside."""
    x, y = end
    nearest = np.clip(x, front[0, 0], front[-1, 0])
    return np.hypot(x - nearest, y - np.interp(nearest, front[:, 0], front[:, 1]))


def test_the_drawn_pareto_set_is_the_one_that_scipy_finds(toy, front):
    drawn = toy.pareto_set(400).numpy()
    for point in front:
        assert abs(np.interp(point[0], drawn[:, 0], drawn[:, 1]) - point[1]) < 1e-3


@pytest.mark.parametrize("method", ["mgda", "imtl_g", "nash_mtl", "fairgrad"])
def test_ends_on_the_pareto_set_from_every_start(method, ends, front):
    assert max(gap(end, front) for end in ends(method)) < 0.15


@pytest.mark.parametrize("method", ["sum", "pcgrad", "cagrad", "conicgrad", "upgrad", "dualproj"])
def test_ends_on_the_pareto_set_from_all_starts_but_the_trap(method, ends, front):
    found = [gap(end, front) for end in ends(method)]
    assert max(gap for place, gap in enumerate(found) if place != TRAPPED) < 0.15
    assert found[TRAPPED] > 5
    assert abs(ends(method)[TRAPPED][1]) < 0.2


@pytest.mark.parametrize("method", ["sum", "cagrad", "conicgrad"])
def test_ends_at_the_minimum_of_the_mean_loss_where_it_escapes(method, ends, toy):
    # CAGrad's theorem: for c < 1 it converges to minima of the mean loss, as plain descent does. ConicGrad keeps
    # its update within an angle of the mean gradient.
    best = minimize(
        lambda p: float(toy.losses(torch.tensor(p, dtype=torch.float64)).sum()), [0.0, -8.0], method="Nelder-Mead"
    ).x
    for place, end in enumerate(ends(method)):
        if place != TRAPPED:
            assert np.hypot(*(end - best)) < 0.15


def test_the_trap_is_a_kink_where_the_plain_sum_rises_on_both_sides(ends, toy):
    x, _ = ends("sum")[TRAPPED]
    line = torch.tensor([[x, -0.05], [x, 0.0], [x, 0.05]], dtype=torch.float64)
    below, at, above = toy.losses(line).sum(0).tolist()
    assert below > at + 1e-3
    assert above > at + 1e-3


def test_methods_free_of_scale_do_not_follow_the_larger_loss(ends, front):
    # The first loss is scaled by 0.1: the sum goes to one tip of the set, Nash-MTL spreads over it.
    sums, nash = ends("sum")[:, 0], ends("nash_mtl")[:, 0]
    assert all(abs(x - front[0, 0]) < 2 for place, x in enumerate(sums) if place != TRAPPED)
    assert nash.max() - nash.min() > 5
