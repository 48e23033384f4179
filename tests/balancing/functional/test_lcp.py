"""The complementarity kernel against SciPy's non-negative least squares, and its routes against each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from polytask.balancing.functional import lcp
from polytask.balancing.functional.gramian import condition


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def projections(rows, points, targets):
    return targets + points @ rows


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 40])
def test_projection_equals_nonnegative_least_squares(rows_of, family, count):
    """min |t + J'x| over x >= 0 is a complementarity problem with M = J J' and q = J t."""
    if family.startswith("opposite") and count == 1:
        pytest.skip("one row has no opposite")
    rows = unit(rows_of(family, count, 0) + (1e-3 if family == "stationary" and count == 1 else 0.0))
    targets = np.random.default_rng(count).standard_normal((5, rows.shape[1]))
    found = lcp.solve_lcp(condition(rows @ rows.T).cosines, targets @ rows.T)
    assert found.residual <= 1e-9
    reference = np.stack([target + nnls(rows.T, -target)[0] @ rows for target in targets])
    error = np.abs(projections(rows, found.points, targets) - reference).max()
    assert error <= 1e-6 * np.abs(targets).max()


def test_frozen_variables_stay_at_zero_and_the_rest_is_optimal(rows_of):
    rows = unit(rows_of("conflict", 9, 1))
    matrix = rows @ rows.T
    frozen = np.eye(9, dtype=bool)
    points = lcp.solve_lcp(matrix, matrix, frozen=frozen).points
    assert (points[frozen] == 0.0).all()
    for i in range(9):
        others = np.delete(np.arange(9), i)
        best, _ = nnls(rows[others].T, -rows[i])
        assert points[i, others] == pytest.approx(best, abs=1e-10)


@pytest.mark.parametrize("family", ["plain", "conflict", "low_rank_positive", "duplicate"])
@pytest.mark.parametrize("count", [2, 8, 30])
def test_active_set_alone_solves_the_problem(rows_of, family, count):
    rows = unit(rows_of(family, count, 2))
    matrix = rows @ rows.T
    target = np.random.default_rng(count).standard_normal(rows.shape[1])
    point = lcp._active_set(matrix, rows @ target, np.zeros(count, dtype=bool))
    assert (point >= 0.0).all()
    reference = target + nnls(rows.T, -target)[0] @ rows
    assert np.abs(target + point @ rows - reference).max() <= 1e-9 * np.abs(target).max()


@pytest.mark.parametrize("start", ["none", "all", "random"])
def test_any_first_guess_leads_to_the_same_solution(rows_of, start):
    rows = unit(rows_of("mixed_10", 25, 3))
    matrix = rows @ rows.T
    offsets = np.random.default_rng(0).standard_normal((6, rows.shape[1])) @ rows.T
    guesses = {
        "none": np.zeros(offsets.shape, dtype=bool),
        "all": np.ones(offsets.shape, dtype=bool),
        "random": np.random.default_rng(1).random(offsets.shape) < 0.5,
    }
    found = lcp.solve_lcp(matrix, offsets, start=guesses[start])
    assert found.points == pytest.approx(lcp.solve_lcp(matrix, offsets).points, abs=1e-12)


def test_single_exchanges_alone_end(rows_of, monkeypatch):
    """Murty's rule, which takes over when block exchanges stall, needs no block exchange to succeed."""
    monkeypatch.setattr(lcp, "PATIENCE", -1)
    monkeypatch.setattr(lcp, "ROUNDS", 2000)
    rows = unit(rows_of("conflict", 8, 4))
    matrix = rows @ rows.T
    offsets = np.random.default_rng(2).standard_normal((3, rows.shape[1])) @ rows.T
    points, done = lcp._pivot(matrix, offsets, np.zeros((3, 8), dtype=bool), offsets < 0.0, 0.0)
    assert done.all()
    slack = points @ matrix + offsets
    assert np.abs(np.minimum(points, slack)).max() <= 1e-12


def test_complement_route_equals_direct_solution(rows_of):
    rows = unit(rows_of("conflict", 30, 5))
    matrix = rows @ rows.T
    offsets = np.random.default_rng(3).standard_normal((7, rows.shape[1])) @ rows.T
    support = np.random.default_rng(4).random(offsets.shape) < 0.8
    support[0] = True
    direct = lcp._on_supports(matrix, offsets, support)
    other = lcp._on_complements(matrix, np.linalg.inv(matrix), offsets, support)
    assert other == pytest.approx(direct, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("count", [10, 25, 50])
def test_batched_and_single_solutions_agree(rows_of, count):
    """10, 25 and 50 variables take the whole-matrix, the gathered and the one-by-one path."""
    rows = unit(rows_of("plain", count, 6))
    matrix = rows @ rows.T
    offsets = np.random.default_rng(5).standard_normal((4, rows.shape[1])) @ rows.T
    together = lcp.solve_lcp(matrix, offsets).points
    alone = np.concatenate([lcp.solve_lcp(matrix, offset[None]).points for offset in offsets])
    assert together == pytest.approx(alone, abs=1e-12)


def test_offsets_of_zero_have_the_solution_zero():
    assert (lcp.solve_lcp(np.eye(3), np.zeros((2, 3))).points == 0.0).all()


def test_scale_of_the_offsets_passes_through(rows_of):
    rows = unit(rows_of("plain", 6, 7))
    matrix = rows @ rows.T
    offset = (np.random.default_rng(6).standard_normal(rows.shape[1]) @ rows.T)[None]
    base = lcp.solve_lcp(matrix, offset).points
    for scale in (1e-200, 1e-12, 1e12, 1e200):
        assert lcp.solve_lcp(matrix, scale * offset).points / scale == pytest.approx(base, rel=1e-12)
