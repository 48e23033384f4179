"""Nash-MTL and FairGrad: closed forms, their equation in extended precision, mpmath and cvxpy."""

from __future__ import annotations

import cvxpy as cp
import mpmath
import numpy as np
import pytest

from polytask.balancing.functional.barrier import fairgrad, nash_mtl
from polytask.balancing.functional.minnorm import mgda

SOLVABLE = ("plain", "mixed_10", "mixed_1000", "conflict", "duplicate", "aligned", "low_rank_positive")


def violation(rows, weights, alpha=1.0, cancelled=1e-6):
    """Relative error of (G w)_i = w_i^(-1/alpha), in extended precision from the rows.

    Where the sum (G w)_i cancels by more than six digits, forming G in float64 has already lost the ninth.
    Small alpha with mixed norms cancels by up to 18: there an error of 1e-13 of the terms is asked.
    """
    rows, weights = rows.astype(np.longdouble), weights.astype(np.longdouble)
    wanted = weights ** np.longdouble(-1 / alpha)
    terms = np.abs(rows @ rows.T) @ weights
    return float((np.abs(rows @ (weights @ rows) - wanted) / (wanted + np.longdouble(cancelled) * terms)).max())


@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("norms", [(1.0, 1.0), (1e-9, 3.0), (1e12, 1e10)])
def test_nash_two_tasks_closed_form(cosine, norms):
    """Navon et al. 2022, claim 3.1 (G a = 1/a): by symmetry a_i = 1 / (|g_i| sqrt(1 + cosine))."""
    norms = np.array(norms)
    gramian = np.array([[1.0, cosine], [cosine, 1.0]]) * norms * norms[:, None]
    assert nash_mtl(gramian).weights == pytest.approx(1 / (norms * np.sqrt(1 + cosine)), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 10.0])
def test_fairgrad_orthogonal_tasks_closed_form(alpha):
    """Ban and Ji 2024, G w = w^(-1/alpha): |g|^2 w = w^(-1/alpha) gives w = |g|^(-2 alpha / (1 + alpha))."""
    norms = np.array([1e-3, 0.5, 1.0, 20.0])
    expected = norms ** (-2 * alpha / (1 + alpha))
    assert fairgrad(np.diag(norms**2), alpha).weights == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize("count", [2, 5, 10, 40, 100])
def test_nash_equation_holds(rows_of, family, count):
    solved = 0
    for seed in range(4):
        rows = rows_of(family, count, seed)
        shortest = np.linalg.norm(mgda(rows @ rows.T).weights @ rows)
        if family == "low_rank_positive" and shortest <= 1e-6 * np.linalg.norm(rows, axis=1).max():
            continue  # by chance its rows reach all around zero, and there is no solution
        for scale in (1e-12, 1.0, 1e12):
            found = nash_mtl((scale * rows) @ (scale * rows).T)
            assert found.status == "solved"
            assert violation(scale * rows, found.weights) <= 1e-9
            assert np.linalg.norm(found.weights @ (scale * rows)) == pytest.approx(np.sqrt(count), rel=1e-9)
        solved += 1
    assert solved >= 1


@pytest.mark.parametrize("family", ["plain", "mixed_10", "mixed_1000", "conflict", "aligned"])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("count", [2, 10, 40])
def test_fairgrad_equation_holds(rows_of, family, alpha, count):
    for scale in (1e-12, 1.0, 1e12):
        rows = scale * rows_of(family, count, 1)
        found = fairgrad(rows @ rows.T, alpha)
        assert found.status == "solved"
        assert violation(rows, found.weights, alpha, 1e-4 if alpha < 1 else 1e-6) <= 1e-9


@pytest.mark.parametrize("alpha", [0.004, 0.05, 20.0, 100.0])
@pytest.mark.parametrize("family", ["plain", "conflict", "aligned"])
def test_extreme_fairness_still_solves(rows_of, family, alpha):
    rows = rows_of(family, 12, 2)
    found = fairgrad(rows @ rows.T, alpha)
    assert found.status == "solved"
    assert violation(rows, found.weights, alpha, 1e-4) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("family", ["plain", "mixed_10", "mixed_1000", "conflict", "duplicate", "aligned"])
@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("count", [2, 3, 8, 20, 60, 100])
def test_equation_holds_on_many(rows_of, family, alpha, count):
    for seed in range(100, 120):
        rows = rows_of(family, count, seed)
        found = fairgrad(rows @ rows.T, alpha)
        assert found.status == "solved"
        assert violation(rows, found.weights, alpha, 1e-4 if alpha < 1 else 1e-6) <= 1e-9


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_equals_forty_digit_root(alpha):
    rows = np.array([[1.0, 0.2, -0.5], [-0.8, 0.4, 0.1], [0.3, -2.0, 1.0]])
    weights = fairgrad(rows @ rows.T, alpha).weights
    with mpmath.workdps(40):
        exact = mpmath.matrix(rows.tolist())
        gram = exact * exact.T

        def equation(*point):
            image = gram * mpmath.matrix(point)
            return [image[i] - point[i] ** (-1 / mpmath.mpf(alpha)) for i in range(3)]

        root = mpmath.findroot(equation, [float(w) * 1.01 for w in weights])
        expected = [float(x) for x in root]
    assert weights == pytest.approx(expected, rel=1e-11)


def test_nash_equals_cvxpy(rows_of):
    """The minimiser of a'Ga/2 - sum log a_i, on unit rows where an interior-point solver is accurate."""
    rows = rows_of("conflict", 12, 3)
    norms = np.linalg.norm(rows, axis=1)
    point = cp.Variable(12)
    objective = 0.5 * cp.sum_squares((rows / norms[:, None]).T @ point) - cp.sum(cp.log(point))
    cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert nash_mtl(rows @ rows.T).weights == pytest.approx(point.value / norms, rel=1e-4)


@pytest.mark.parametrize("method", [nash_mtl, fairgrad])
@pytest.mark.parametrize("family", ["stationary", "opposite", "opposite_scaled"])
@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pareto_stationary_gives_the_shortest_vector(rows_of, method, family, count, scale):
    rows = scale * rows_of(family, count, 0)
    found = method(rows @ rows.T)
    assert found.status == "stationary"
    assert found.weights.sum() == pytest.approx(1.0)
    assert np.linalg.norm(found.weights @ rows) <= 1e-6 * np.linalg.norm(rows, axis=1).max()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.75, 5.0])
@pytest.mark.parametrize("family", ["stationary", "opposite", "opposite_scaled"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_pareto_stationary_is_seen_at_any_fairness(rows_of, alpha, family, count):
    """Below alpha = 1 the weights of rows that cancel grow slowly: round-off could pass for a root."""
    for scale in (1e-4, 1.0, 1e12):
        rows = scale * rows_of(family, count, 3)
        found = fairgrad(rows @ rows.T, alpha)
        assert found.status == "stationary"
        assert np.linalg.norm(found.weights @ rows) <= 1e-6 * np.linalg.norm(rows, axis=1).max()


@pytest.mark.parametrize("method", [nash_mtl, fairgrad])
def test_zero_row_leaves_the_problem(method):
    rows = np.array([[1.0, 0.5], [0.0, 0.0], [-0.2, 1.0]])
    found = method(rows @ rows.T)
    others = rows[[0, 2]]
    assert found.status == "zero_row"
    assert found.weights[1] == 0.0
    assert found.weights[[0, 2]] == pytest.approx(method(others @ others.T).weights, rel=1e-12)
    nothing = method(np.zeros((2, 2)))
    assert (nothing.status, nothing.weights.tolist()) == ("zero_row", [0.0, 0.0])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_nash_normalize_scales_with_the_gradients(rows_of, scale):
    """a solves (G/|G|) a = 1/a, so that a = sqrt(|G|) times the plain solution."""
    rows = rows_of("mixed_10", 6, 2)
    plain = nash_mtl(rows @ rows.T).weights
    factor = np.sqrt(np.linalg.norm(rows @ rows.T))
    found = nash_mtl((scale * rows) @ (scale * rows).T, normalize=True)
    assert found.weights == pytest.approx(factor * plain, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fairgrad_update_follows_its_power_of_the_scale(rows_of, alpha):
    rows = rows_of("plain", 4, 0)
    base = fairgrad(rows @ rows.T, alpha).weights @ rows
    scaled = fairgrad(1e6 * rows @ rows.T, alpha).weights @ (1e3 * rows)
    assert scaled == pytest.approx(1e3 ** ((1 - alpha) / (1 + alpha)) * base, rel=1e-9)
