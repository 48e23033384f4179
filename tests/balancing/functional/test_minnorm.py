"""MGDA and SDMGrad: closed forms, certificates in extended precision, cvxpy and exact enumeration."""

from __future__ import annotations

import itertools

import cvxpy as cp
import mpmath
import numpy as np
import pytest

from polytask.balancing.functional.minnorm import mgda, min_norm, sdmgrad

SCALES = (1e-12, 1e-3, 1.0, 1e12)


def certificate(rows, weights):
    """A bound on |d - d*| that holds for any point d of the hull: |d|^2 - min <g_i, d>, in extended precision."""
    rows = rows.astype(np.longdouble)
    vector = weights.astype(np.longdouble) @ rows
    gap = max(vector @ vector - (rows @ vector).min(), np.longdouble(0.0))
    return float(np.sqrt(gap)), float(np.sqrt((rows * rows).sum(axis=1)).max()), float(np.sqrt(vector @ vector))


def exact_shortest(rows):
    """The shortest vector of a small hull with 60 digits, by trying every support."""
    with mpmath.workdps(60):
        exact = mpmath.matrix(rows.tolist())
        gram = exact * exact.T
        best = None
        for size in range(1, len(rows) + 1):
            for chosen in itertools.combinations(range(len(rows)), size):
                system = mpmath.ones(size + 1)
                system[size, size] = 0
                for a, b in itertools.product(range(size), repeat=2):
                    system[a, b] = gram[chosen[a], chosen[b]]
                right = mpmath.zeros(size + 1, 1)
                right[size] = 1
                try:
                    solution = mpmath.lu_solve(system, right)
                except ZeroDivisionError:
                    continue
                if min(solution[k] for k in range(size)) < 0:
                    continue
                value = -solution[size]
                if best is None or value < best[0]:
                    best = (value, chosen, solution)
        weights = np.zeros(len(rows))
        for place, k in enumerate(best[1]):
            weights[k] = float(best[2][place])
        return weights


@pytest.mark.parametrize("entries", [(1.0, 0.3, 2.0), (1.0, -0.9, 1.0), (1.0, 1.5, 9.0), (4.0, 0.0, 1e-8)])
def test_two_tasks_closed_form(entries):
    """Sener and Koltun 2018, equation 4: w_1 = clip((g_2 - g_1)'g_2 / |g_1 - g_2|^2, 0, 1)."""
    first, cross, second = entries
    expected = np.clip((second - cross) / (first + second - 2 * cross), 0.0, 1.0)
    found = mgda([[first, cross], [cross, second]])
    assert found.weights == pytest.approx([expected, 1 - expected], rel=1e-12, abs=1e-14)


def test_orthogonal_rows_weigh_by_inverse_squares():
    squares = np.array([1e-6, 0.5, 3.0, 1e6])
    assert mgda(np.diag(squares)).weights == pytest.approx((1 / squares) / (1 / squares).sum(), rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 10, 40, 100])
def test_shortest_vector_is_certified(rows_of, family, count):
    for seed in range(3 if count < 40 else 1):
        rows = rows_of(family, count, seed)
        for scale in SCALES:
            found = min_norm((scale * rows) @ (scale * rows).T)
            assert found.status == "solved"
            assert found.weights.sum() == pytest.approx(1.0, rel=1e-12)
            assert found.weights.min() >= 0.0
            error, largest, _ = certificate(rows, found.weights)
            assert error <= 1e-6 * largest


@pytest.mark.parametrize("family", ["plain", "mixed_10", "mixed_1000", "conflict", "aligned"])
def test_optimality_is_exact_away_from_pareto_stationary_points(rows_of, family):
    """<g_i, d> >= |d|^2 to 1e-9 of |d|^2, with equality where the weight is not zero."""
    rows = rows_of(family, 20, 0).astype(np.longdouble)
    weights = min_norm((rows @ rows.T).astype(float)).weights
    vector = weights.astype(np.longdouble) @ rows
    excess = (rows @ vector) / (vector @ vector) - 1
    assert float(excess.min()) >= -1e-9
    assert float(np.abs(excess[weights > 0]).max()) <= 1e-9


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("family", ["plain", "mixed_10", "conflict", "aligned"])
def test_equals_sixty_digit_enumeration(rows_of, family, scale):
    rows = scale * rows_of(family, 4, 11)
    assert min_norm(rows @ rows.T).weights == pytest.approx(exact_shortest(rows), rel=1e-9, abs=1e-11)


def solve_with_cvxpy(rows, shift):
    weights = cp.Variable(len(rows))
    length = np.linalg.norm(rows, axis=1).max()
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares((rows / length).T @ weights + shift * rows.mean(axis=0) / length)),
        [weights >= 0, cp.sum(weights) == 1],
    )
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return weights.value @ rows + shift * rows.mean(axis=0)


@pytest.mark.parametrize("family", ["plain", "mixed_10", "conflict"])
def test_equals_cvxpy(rows_of, family):
    """Interior points stop at about 1e-6 of the longest row; the certificates above are the sharp test."""
    rows = rows_of(family, 12, 0)
    bound = 2e-5 * np.linalg.norm(rows, axis=1).max()
    assert np.abs(mgda(rows @ rows.T).weights @ rows - solve_with_cvxpy(rows, 0.0)).max() <= bound
    found = sdmgrad(rows @ rows.T, lambda_=0.7).weights @ rows
    assert np.abs(found - solve_with_cvxpy(rows, 0.7)).max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 10, 30, 100])
def test_equals_cvxpy_on_many(rows_of, family, count):
    if family == "mixed_1000":
        pytest.skip("interior points lose the short rows beside the long ones")
    for seed in range(8):
        rows = rows_of(family, count, 100 + seed)
        bound = 1e-4 * np.linalg.norm(rows, axis=1).max()
        assert np.abs(mgda(rows @ rows.T).weights @ rows - solve_with_cvxpy(rows, 0.0)).max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 6, 12, 25, 60, 100])
def test_shortest_vector_is_certified_on_many(rows_of, family, count):
    for seed in range(100, 125):
        rows = rows_of(family, count, seed)
        found = min_norm(rows @ rows.T)
        error, largest, _ = certificate(rows, found.weights)
        assert found.status == "solved"
        assert error <= 1e-6 * largest


def test_duplicate_rows_share_their_weight():
    rows = np.array([[1.0, 0.2], [1.0, 0.2], [-0.5, 1.0]])
    weights = mgda(rows @ rows.T).weights
    assert weights[0] == pytest.approx(weights[1], rel=1e-2)
    assert weights @ rows == pytest.approx(mgda(rows[1:] @ rows[1:].T).weights @ rows[1:], rel=1e-9)


def test_zero_rows_take_the_whole_weight():
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0], [0.0, 0.0]])
    assert mgda(rows @ rows.T).weights.tolist() == [0.0, 0.5, 0.0, 0.5]
    assert mgda(np.zeros((3, 3))).weights == pytest.approx([1 / 3] * 3)


def test_normalize_modes_solve_for_divided_rows(rows_of):
    rows = rows_of("mixed_10", 6, 5)
    losses = np.array([0.1, 2.0, 0.7, 5.0, 1.0, 0.3])
    norms = np.linalg.norm(rows, axis=1)
    for mode, units in {"l2": norms, "loss": losses, "loss_norm": losses * norms}.items():
        divided = rows / units[:, None]
        error, largest, _ = certificate(divided, mgda(rows @ rows.T, losses, mode).weights)
        assert error <= 1e-7 * largest
    assert mgda(np.diag([1.0, 4.0]), [1.0, 2.0], "loss").weights == pytest.approx([0.5, 0.5])


def test_tasks_with_a_loss_of_zero_get_no_weight():
    gramian = np.diag([1.0, 1.0, 4.0])
    assert mgda(gramian, [0.0, 1.0, 2.0], "loss").weights == pytest.approx([0.0, 0.5, 0.5])
    assert mgda(gramian, [0.0, 0.0, 0.0], "loss").weights == pytest.approx(mgda(gramian).weights)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 2.0])
def test_sdmgrad_two_tasks_closed_form(lambda_):
    """Its definition: d = g_w + lambda g_0, with w in [0, 1] minimising |d|^2, a parabola."""
    rows = np.array([[1.0, 0.5, 0.0], [-2.0, 0.3, 1.0]])
    mean, difference = rows.mean(axis=0), rows[0] - rows[1]
    best = np.clip(-(rows[1] + lambda_ * mean) @ difference / (difference @ difference), 0.0, 1.0)
    expected = best * rows[0] + (1 - best) * rows[1] + lambda_ * mean
    assert sdmgrad(rows @ rows.T, lambda_).weights @ rows == pytest.approx(expected, rel=1e-11)
    assert sdmgrad(rows @ rows.T, lambda_, scaled=True).weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("count", [2, 10, 40])
def test_sdmgrad_is_certified(rows_of, family, count):
    rows = rows_of(family, count, 1)
    found = sdmgrad(rows @ rows.T, 0.3)
    moved = rows.astype(np.longdouble) + np.longdouble(0.3) * rows.astype(np.longdouble).mean(axis=0)
    error, largest, _ = certificate(moved, found.weights - 0.3 / count)
    assert error <= 1e-6 * largest


def test_sdmgrad_approaches_the_mean_for_large_lambda(rows_of):
    rows = rows_of("plain", 5, 0)
    assert sdmgrad(rows @ rows.T, 1e6, scaled=True).weights == pytest.approx(np.full(5, 0.2), abs=1e-5)
