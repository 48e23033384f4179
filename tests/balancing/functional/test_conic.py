"""ConicGrad: closed forms for two tasks, cvxpy on the primal problem, and the degenerate cases."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import nnls

from polytask.balancing.functional import conic as module
from polytask.balancing.functional.cone import dualproj
from polytask.balancing.functional.conic import conicgrad
from polytask.balancing.functional.minnorm import min_norm


def update(rows, c):
    return conicgrad(rows @ rows.T, c).weights @ rows


def cosine(rows, vector):
    mean = rows.mean(axis=0)
    return float(mean @ vector / np.linalg.norm(mean) / np.linalg.norm(vector))


def longest(rows):
    return float(np.linalg.norm(rows, axis=1).max())


def solve_with_cvxpy(rows, c):
    """The problem as it stands; where its value is not positive, the best worst case per progress along the mean."""
    scale = longest(rows)
    rows = rows / scale
    mean = rows.mean(axis=0)
    size = np.linalg.norm(mean)
    vector, level = cp.Variable(rows.shape[1]), cp.Variable()
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    inside = [rows @ vector >= level, mean @ vector >= c * size * cp.norm(vector)]
    cp.Problem(cp.Maximize(level), [*inside, cp.norm(vector) <= size]).solve(solver=cp.CLARABEL, **tight)
    if level.value > 1e-6:
        return vector.value * scale
    cp.Problem(cp.Maximize(level), [*inside, mean @ vector == size**2]).solve(solver=cp.CLARABEL, **tight)
    return vector.value * scale * size / np.linalg.norm(vector.value)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("rows", [[[1.0, 0.0], [-0.3, 0.8]], [[1.0, 2.0], [0.01, -0.02]], [[3.0, 0.0], [-0.2, 0.1]]])
def test_two_tasks_in_closed_form(rows, c):
    """MGDA's direction if it lies in the cone; else the mean gradient, turned towards the worse task by the angle."""
    rows = np.array(rows)
    mean = rows.mean(axis=0)
    size = np.linalg.norm(mean)
    shortest = min_norm(rows @ rows.T).weights @ rows
    if cosine(rows, shortest) >= c:
        expected = size * shortest / np.linalg.norm(shortest)
    else:
        worse = rows[np.argmin(rows @ mean)]
        across = worse - (worse @ mean) / size**2 * mean
        expected = c * mean + np.sqrt(1 - c * c) * size * across / np.linalg.norm(across)
    assert update(rows, c) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("c", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("family", ["plain", "mixed_10", "conflict", "strong_conflict", "duplicate", "aligned"])
def test_the_update_is_that_of_cvxpy(rows_of, family, count, c):
    rows = rows_of(family, count, 3)
    solved = conicgrad(rows @ rows.T, c)
    vector = solved.weights @ rows
    assert solved.status == "solved"
    assert (solved.weights >= 0).all()
    assert cosine(rows, vector) >= c - 1e-9
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(rows.mean(axis=0)), rel=1e-9)
    expected = solve_with_cvxpy(rows, c)
    assert np.abs(vector - expected).max() <= 1e-4 * longest(rows)
    # cvxpy's value is the less exact of the two.
    assert (rows @ vector).min() >= (rows @ expected).min() - 1e-7 * longest(rows) ** 2


def unexplained(rows, vector, c):
    """What is left of the update after w >= 0 on its worst rows and, on the cone's surface, lambda >= 0 of the mean.

    These are the optimality conditions of the problem; SciPy's non-negative least squares finds w and lambda.
    """
    norms = np.linalg.norm(rows, axis=1)
    slack = (rows @ vector - (rows @ vector).min()) / norms / np.linalg.norm(vector)
    pulls = [row / norm for row, norm, free in zip(rows, norms, slack > 1e-8, strict=True) if not free]
    if cosine(rows, vector) < c + 1e-8:
        mean = rows.mean(axis=0)
        pulls.append(mean / np.linalg.norm(mean))
    weights, rest = nnls(np.array(pulls).T, vector / np.linalg.norm(vector))
    assert weights[: np.count_nonzero(slack <= 1e-8)].max() > 0
    return rest


@pytest.mark.parametrize("count", [2, 5, 20, 60])
@pytest.mark.parametrize("family", ["plain", "mixed_10", "mixed_1000", "conflict", "strong_conflict", "aligned"])
def test_the_optimality_conditions_hold_on_many(rows_of, family, count):
    for seed in range(100, 103):
        for c in (0.05, 0.5, 0.97):
            rows = rows_of(family, count, seed)
            vector = update(rows, c)
            assert cosine(rows, vector) >= c - 1e-9
            assert unexplained(rows, vector, c) <= 1e-7


@pytest.mark.parametrize("family", ["plain", "mixed_10", "strong_conflict", "duplicate"])
def test_root_search_agrees_with_the_exchange(rows_of, family, monkeypatch):
    rows = rows_of(family, 8, 1)
    usual = update(rows, 0.9)
    monkeypatch.setattr(module, "_on_surface", lambda *_: (None, 0.0))
    assert np.abs(update(rows, 0.9) - usual).max() <= 1e-6 * longest(rows)


def test_a_cone_of_no_width_gives_the_mean_and_a_wide_one_the_direction_of_mgda(rows_of):
    rows = rows_of("plain", 5, 0)
    mean = rows.mean(axis=0)
    assert update(rows, 1.0) == pytest.approx(mean)
    shortest = min_norm(rows @ rows.T).weights @ rows
    expected = shortest * np.linalg.norm(mean) / np.linalg.norm(shortest)
    assert update(rows, 0.01) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales(rows_of, scale):
    rows = rows_of("conflict", 6, 2)
    assert update(scale * rows, 0.9) / scale == pytest.approx(update(rows, 0.9), rel=1e-9)


def test_a_zero_row_takes_the_harmless_direction_nearest_to_the_mean():
    rows = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 0.0]])
    vector = update(rows, 0.3)
    nearest = dualproj(rows @ rows.T).weights @ rows
    assert vector == pytest.approx(nearest * np.linalg.norm(rows.mean(axis=0)) / np.linalg.norm(nearest))


def test_opposite_gradients_leave_the_mean():
    rows = np.array([[1.0, 0.0], [-0.4, 0.0]])
    assert update(rows, 0.5) == pytest.approx([0.3, 0.0])
    assert update(np.array([[1.0, 2.0], [-1.0, -2.0]]), 0.5) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_dependent_rows_whose_hull_holds_zero_have_the_best_worst_case(rows_of):
    """Twelve rows of rank four: the least exact case, found by a jump of the root search."""
    for c in (0.5, 0.9):
        rows = rows_of("low_rank", 12, 1)
        vector, expected = update(rows, c), solve_with_cvxpy(rows, c)
        assert cosine(rows, vector) >= c - 1e-9
        size = np.linalg.norm(rows.mean(axis=0))
        found, best = ((rows @ v).min() / (v @ rows.mean(axis=0) / size) for v in (vector, expected))
        assert found >= best - 1e-7 * longest(rows)
