"""UPGrad and DualProj: closed forms, SciPy's non-negative least squares, cvxpy, and the promise of no conflict."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import nnls

from polytask.balancing.functional.cone import dualproj, upgrad

SCALES = (1e-12, 1.0, 1e12)


def projection(rows, vector):
    """The point of {d : J d >= 0} nearest to a vector, by least squares on unit rows."""
    norms = np.linalg.norm(rows, axis=1)
    units = rows[norms > 0] / norms[norms > 0, None]
    size = np.linalg.norm(vector)
    if size == 0.0 or not len(units):
        return vector
    return vector + size * nnls(units.T, -vector / size)[0] @ units


def conflicts(rows, vector):
    """Largest <g_i, d> below zero, in units of |g_i| max |g_j|, in extended precision."""
    rows = rows.astype(np.longdouble)
    norms = np.sqrt((rows * rows).sum(axis=1))
    products = (rows @ vector) / np.where(norms > 0, norms, 1)
    return float(-products.min() / norms.max())


def test_two_conflicting_tasks_closed_form():
    """Proposition 1 of Quinton and Rey 2024: each gradient loses its part against the other one."""
    rows = np.array([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0]])
    cross, squares = rows[0] @ rows[1], (rows * rows).sum(axis=1)
    assert cross < 0
    first = rows[0] - cross / squares[1] * rows[1]
    second = rows[1] - cross / squares[0] * rows[0]
    assert upgrad(rows @ rows.T).weights @ rows == pytest.approx((first + second) / 2, rel=1e-12)


def test_mean_projection_two_tasks_closed_form():
    """Lopez-Paz and Ranzato 2017, equation 11: only a violated constraint is subtracted."""
    rows = np.array([[1.0, 0.0], [-3.0, 1.0]])
    mean = rows.mean(axis=0)
    expected = mean - (mean @ rows[0]) / (rows[0] @ rows[0]) * rows[0]
    assert dualproj(rows @ rows.T).weights @ rows == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", [upgrad, dualproj])
def test_no_conflict_gives_the_mean_exactly(method):
    rows = np.abs(np.random.default_rng(0).standard_normal((6, 8)))
    assert method(rows @ rows.T).weights.tolist() == [1 / 6] * 6


def compare(rows):
    count = len(rows)
    mean = rows.mean(axis=0)
    bound = 1e-6 * np.linalg.norm(rows, axis=1).max()
    expected = sum(projection(rows, row) for row in rows) / count
    for method, reference in ((upgrad, expected), (dualproj, projection(rows, mean))):
        found = method(rows @ rows.T)
        vector = found.weights @ rows
        assert found.status == "solved"
        assert found.weights.min() >= 1 / count - 1e-12
        assert np.abs(vector - reference).max() <= bound
        assert conflicts(rows, vector) <= 1e-9


@pytest.mark.parametrize("count", [2, 5, 17, 40])
def test_equals_projection_by_least_squares(rows_of, family, count):
    for scale in SCALES:
        compare(scale * rows_of(family, count, 0))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 8, 20, 45])
def test_equals_projection_by_least_squares_on_many(rows_of, family, count):
    for seed in range(100, 115):
        compare(rows_of(family, count, seed))


@pytest.mark.parametrize("family", ["plain", "mixed_1000", "conflict", "strong_conflict"])
def test_hundred_tasks_do_not_conflict(rows_of, family):
    rows = rows_of(family, 100, 0)
    for method in (upgrad, dualproj):
        found = method(rows @ rows.T)
        assert found.residual <= 1e-9
        assert conflicts(rows, found.weights @ rows) <= 1e-12


def test_equals_cvxpy(rows_of):
    """v = argmin over v >= u of v'Gv, for u the unit vectors and for the mean."""
    rows = rows_of("conflict", 8, 2)
    rows = rows / np.linalg.norm(rows, axis=1).max()
    total = np.zeros(rows.shape[1])
    for lower in [*np.eye(8), np.full(8, 1 / 8)]:
        weights = cp.Variable(8)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(rows.T @ weights)), [weights >= lower])
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        if lower.max() == 1.0:
            total += weights.value @ rows / 8
        else:
            assert dualproj(rows @ rows.T).weights @ rows == pytest.approx(weights.value @ rows, abs=1e-5)
    assert upgrad(rows @ rows.T).weights @ rows == pytest.approx(total, abs=1e-5)


def test_each_projection_scales_with_its_own_gradient(rows_of):
    rows = rows_of("conflict", 7, 3)
    factors = 10.0 ** np.random.default_rng(0).uniform(-3, 3, 7)
    expected = sum(factor * projection(rows, row) for factor, row in zip(factors, rows, strict=True)) / 7
    scaled = factors[:, None] * rows
    assert upgrad(scaled @ scaled.T).weights @ scaled == pytest.approx(expected, rel=1e-9, abs=1e-9 * factors.max())


@pytest.mark.parametrize("method", [upgrad, dualproj])
def test_zero_rows_keep_the_weight_of_the_mean(method):
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-2.0, 1.0]])
    weights = method(rows @ rows.T).weights
    assert weights[1] == 1 / 3
    reference = sum(projection(rows, row) for row in rows) / 3 if method is upgrad else projection(rows, rows.mean(0))
    assert weights @ rows == pytest.approx(reference, abs=1e-12)
    assert method(np.zeros((2, 2))).weights.tolist() == [0.5, 0.5]


def test_mean_of_zero_stays_zero(rows_of):
    rows = rows_of("stationary", 10, 0)
    assert np.linalg.norm(dualproj(rows @ rows.T).weights @ rows) <= 1e-12 * np.linalg.norm(rows)
