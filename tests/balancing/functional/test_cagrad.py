"""CAGrad: a scalar oracle for two tasks, certificates in extended precision, cvxpy, and the degenerate cases."""

from __future__ import annotations

import cvxpy as cp
import mpmath
import numpy as np
import pytest

from polytask.balancing.functional import cagrad as module
from polytask.balancing.functional.cagrad import cagrad
from polytask.balancing.functional.cone import dualproj
from polytask.balancing.functional.gramian import condition, mean_products

SCALES = (1e-12, 1.0, 1e12)


def certificate(rows, weights, c):
    """How far d is from optimal: the ball's radius, and the worst product against a bound from the weights.

    For every w on the simplex <g_w, g_0> + c |g_0| |g_w| is at least the best worst case.
    """
    rows = rows.astype(np.longdouble)
    mean = rows.mean(axis=0)
    radius = np.longdouble(c) * np.sqrt(mean @ mean)
    vector = weights.astype(np.longdouble) @ rows
    moved = weights.astype(np.longdouble) - np.longdouble(1) / len(rows)
    moved = moved / moved.sum()
    pull = moved @ rows
    bound = pull @ mean + radius * np.sqrt(pull @ pull)
    longest = np.sqrt((rows * rows).sum(axis=1)).max()
    outside = np.sqrt(((vector - mean) ** 2).sum()) / radius - 1
    return float(abs(outside)), float((bound - (rows @ vector).min()) / (radius * longest))


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("rows", [[[1.0, 0.0], [-0.3, 0.8]], [[1.0, 2.0], [0.01, -0.02]], [[3.0, 0.0], [0.2, 0.1]]])
def test_two_tasks_by_a_scalar_minimum(rows, c):
    """Liu et al. 2021, algorithm 1: w = argmin <g_w, g_0> + c |g_0| |g_w|, with 40 digits by golden section."""
    with mpmath.workdps(40):
        first, second = (mpmath.matrix(row) for row in rows)
        mean = (first + second) / 2
        radius = c * mpmath.norm(mean)

        def value(w):
            pull = w * first + (1 - w) * second
            return (pull.T * mean)[0] + radius * mpmath.norm(pull)

        low, high = mpmath.mpf(0), mpmath.mpf(1)
        shrink = (mpmath.sqrt(5) - 1) / 2
        for _ in range(120):
            left, right = high - shrink * (high - low), low + shrink * (high - low)
            if value(left) < value(right):
                high = right
            else:
                low = left
        pull = (low + high) / 2 * first + (1 - (low + high) / 2) * second
        expected = mean + radius / mpmath.norm(pull) * pull
        expected = np.array([float(x) for x in expected])
    rows = np.array(rows)
    assert cagrad(rows @ rows.T, c).weights @ rows == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("count", [2, 5, 10, 40, 100])
@pytest.mark.parametrize(
    "family", ["plain", "mixed_10", "mixed_1000", "conflict", "strong_conflict", "duplicate", "aligned"]
)
def test_direction_is_certified(rows_of, family, count):
    for seed in range(3 if count < 40 else 1):
        rows = rows_of(family, count, seed)
        for scale, c in zip(SCALES, (0.4, 0.9, 0.1), strict=True):
            found = cagrad((scale * rows) @ (scale * rows).T, c)
            outside, gap = certificate(scale * rows, found.weights, c)
            assert found.status == "solved"
            assert outside <= 1e-9
            assert gap <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 7, 15, 30, 70])
@pytest.mark.parametrize("c", [0.05, 0.5, 0.99, 2.0])
@pytest.mark.parametrize("family", ["plain", "mixed_10", "mixed_1000", "conflict", "duplicate", "aligned"])
def test_direction_is_certified_on_many(rows_of, family, c, count):
    for seed in range(100, 120):
        rows = rows_of(family, count, seed)
        outside, gap = certificate(rows, cagrad(rows @ rows.T, c).weights, c)
        assert max(outside, gap) <= 1e-9


def solve_with_cvxpy(rows, c, tolerance=1e-9):
    rows = rows / np.linalg.norm(rows, axis=1).max()
    mean = rows.mean(axis=0)
    vector, level = cp.Variable(rows.shape[1]), cp.Variable()
    problem = cp.Problem(
        cp.Maximize(level), [rows @ vector >= level, cp.norm(vector - mean) <= c * np.linalg.norm(mean)]
    )
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
    return level.value, vector.value


@pytest.mark.parametrize("family", ["plain", "mixed_10", "conflict", "low_rank", "opposite"])
def test_worst_case_equals_cvxpy(rows_of, family):
    """The primal problem: max over the ball of the worst product. Its value is unique even where d is not."""
    rows = rows_of(family, 9, 3)
    longest = np.linalg.norm(rows, axis=1).max()
    level, vector = solve_with_cvxpy(rows, 0.5)
    found = cagrad(rows @ rows.T, 0.5).weights @ rows / longest
    assert (rows @ found).min() / longest == pytest.approx(level, abs=1e-7)
    if family in ("plain", "mixed_10", "conflict"):
        assert found == pytest.approx(vector, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 6, 20, 60])
def test_worst_case_equals_cvxpy_on_many(rows_of, family, count):
    if family == "stationary":
        pytest.skip("its mean is zero up to round-off")
    for seed in range(100, 106):
        rows = rows_of(family, count, seed)
        longest = np.linalg.norm(rows, axis=1).max()
        level, _ = solve_with_cvxpy(rows, 0.5, 1e-7)
        found = cagrad(rows @ rows.T, 0.5).weights @ rows / longest
        assert (rows @ found).min() / longest == pytest.approx(level, abs=1e-5)


@pytest.mark.parametrize("family", ["plain", "mixed_1000", "conflict", "duplicate", "low_rank"])
@pytest.mark.parametrize("count", [2, 6, 25])
def test_root_search_agrees_with_the_exchange(rows_of, family, count):
    rows = rows_of(family, count, 4)
    parts = condition(rows @ rows.T)
    target, size = mean_products(parts)
    usual, _ = module._multipliers(parts, target, 0.4 * size)
    slow, residual = module._by_root(parts, target, 0.4 * size)
    bound = 1e-6 * np.abs(rows).max()
    assert residual <= 1e-6
    assert np.abs((usual - slow) / parts.norms @ rows).max() <= bound


def test_pareto_stationary_takes_the_direction_nearest_to_the_mean():
    """With opposite rows every worst case is at most zero; the harmless direction nearest to g_0 reaches it."""
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 2.0]])
    vector = cagrad(rows @ rows.T, 0.5).weights @ rows
    assert vector == pytest.approx(dualproj(rows @ rows.T).weights @ rows, abs=1e-12)
    assert vector == pytest.approx([0.0, 0.25, 0.5], abs=1e-12)


def test_root_search_falls_back_to_the_nearest_harmless_direction():
    """Where no lambda above zero solves the problem, the search ends at its limit."""
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 2.0]])
    parts = condition(rows @ rows.T)
    target, size = mean_products(parts)
    point, _ = module._by_root(parts, target, 0.5 * size)
    raw = point / parts.norms
    assert (raw + 0.25) @ rows == pytest.approx([0.0, 0.25, 0.5], abs=1e-9)
    unopposed = np.eye(3)
    parts = condition(unopposed)
    target, size = mean_products(parts)
    point, residual = module._by_root(parts, target, 0.5 * size)
    assert residual <= 1e-9
    assert point == pytest.approx(np.full(3, 1 / 6), rel=1e-9)


def test_nearly_opposite_rows_come_close_to_the_limit():
    """The answer at the stationary point is the limit of the formula beside it."""
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 2.0]])
    near = rows + 1e-5 * np.array([[0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    there = cagrad(rows @ rows.T, 0.02).weights @ rows
    beside = cagrad(near @ near.T, 0.02).weights @ near
    assert beside == pytest.approx(there, abs=1e-3)


def test_zero_row_bounds_the_worst_case_by_zero():
    rows = np.array([[1.0, 0.2], [0.0, 0.0], [-0.2, 1.0]])
    inside = cagrad(rows @ rows.T, 0.5).weights
    assert inside == pytest.approx([1 / 3] * 3)
    conflict = np.array([[1.0, 0.2], [0.0, 0.0], [-9.0, 1.0]])
    found = cagrad(conflict @ conflict.T, 0.1)
    outside, gap = certificate(conflict, found.weights, 0.1)
    assert found.weights[1] == pytest.approx(1 / 3)
    assert max(outside, gap) <= 1e-9


@pytest.mark.parametrize("scale", SCALES)
def test_never_zero_below_one(rows_of, family, scale):
    """|d| >= (1 - c) |g_0|."""
    if family == "stationary":
        pytest.skip("its mean is zero")
    rows = scale * rows_of(family, 8, 5)
    vector = cagrad(rows @ rows.T, 0.8).weights @ rows
    assert np.linalg.norm(vector) >= (1 - 1e-9) * 0.2 * np.linalg.norm(rows.mean(axis=0))


def test_large_radius_can_reach_zero_at_a_stationary_point():
    rows = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.9]])
    vector = cagrad(rows @ rows.T, 2.0).weights @ rows
    assert np.linalg.norm(vector) <= 1e-7


def test_radius_of_zero_and_mean_of_zero_give_the_mean():
    rows = np.array([[1.0, 2.0], [0.5, -3.0]])
    assert cagrad(rows @ rows.T, 0.0).weights.tolist() == [0.5, 0.5]
    opposite = np.array([[1.0, 2.0], [-1.0, -2.0]])
    assert cagrad(opposite @ opposite.T, 0.4).weights.tolist() == [0.5, 0.5]
    assert cagrad(np.zeros((2, 2))).weights.tolist() == [0.5, 0.5]


def test_rescale_divides_the_update(rows_of):
    rows = rows_of("conflict", 5, 6)
    plain = cagrad(rows @ rows.T, 0.3).weights
    assert cagrad(rows @ rows.T, 0.3, 1).weights == pytest.approx(plain / 1.09)
    assert cagrad(rows @ rows.T, 0.3, 2).weights == pytest.approx(plain / 1.3)
