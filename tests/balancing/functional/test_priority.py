"""Priority-constrained descent: two tasks in closed form, SciPy, cvxpy and TorchJD, and its edge cases."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from torchjd.aggregation import PCDWeighting

from polytask.balancing.functional.priority import pcd


def test_two_tasks_closed_form():
    """arXiv 2606.29521: the primary unit vector moves along the other one until <u_2, d> = tau."""
    rows = np.array([[2.0, 0.0], [-3.0, 4.0]])
    tau = 0.3
    primary, other = rows[0] / 2, rows[1] / 5
    direction = primary + (tau - primary @ other) * other
    expected = 2 * direction / np.linalg.norm(direction)
    assert pcd(rows @ rows.T, tau=tau).weights @ rows == pytest.approx(expected, rel=1e-12)


def test_satisfied_constraints_leave_the_primary_gradient():
    rows = np.array([[1.0, 1.0], [5.0, 1.0]])
    assert pcd(rows @ rows.T, tau=0.1).weights == pytest.approx([1.0, 0.0], abs=1e-15)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("count", [3, 9, 25])
def test_equals_cvxpy(rows_of, count, scale):
    rows = rows_of("mixed_10", count, 0)
    scales = np.random.default_rng(0).uniform(0.5, 2.0, count) / np.linalg.norm(rows, axis=1)
    units = scales[:, None] * rows
    direction = cp.Variable(rows.shape[1])
    others = np.delete(np.arange(count), 1)
    limits = 0.4 * (units[others] ** 2).sum(axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(direction - units[1])), [units[others] @ direction >= limits])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    expected = scale * np.linalg.norm(rows[1]) * direction.value / np.linalg.norm(direction.value)
    moved = scale * rows
    found = pcd(moved @ moved.T, primary=1, tau=0.4, scales=scales / scale).weights @ moved
    assert found == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["plain", "mixed_10", "conflict", "aligned"])
@pytest.mark.parametrize("tau", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("count", [2, 5, 12])
def test_equals_torchjd(rows_of, family, tau, count):
    rows = rows_of(family, count, 1)
    peer = PCDWeighting(tau=tau, eps=0.0)(torch.from_numpy(rows @ rows.T)).numpy()
    bound = 1e-7 * np.linalg.norm(rows[0])
    assert np.abs(pcd(rows @ rows.T, tau=tau).weights @ rows - peer @ rows).max() <= bound


def test_contradicting_constraints_are_dropped():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = pcd(rows @ rows.T, tau=0.1)
    assert (found.status, found.weights.tolist()) == ("infeasible", [1.0, 0.0, 0.0])


def test_opposite_constraints_without_a_share_are_feasible():
    rows = np.array([[1.0, 0.5], [0.0, 1.0], [0.0, -1.0]])
    found = pcd(rows @ rows.T, tau=0.0)
    assert found.status == "solved"
    assert found.weights @ rows == pytest.approx([np.sqrt(1.25), 0.0], abs=1e-12)


def test_zero_rows():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    found = pcd(rows @ rows.T, tau=0.1)
    assert found.weights[1] == 0.0
    assert found.weights @ rows == pytest.approx(pcd((rows @ rows.T)[::2, ::2], tau=0.1).weights @ rows[::2])
    assert pcd(rows @ rows.T, primary=1).weights.tolist() == [0.0, 0.0, 0.0]
    assert pcd(np.zeros((2, 2))).weights.tolist() == [0.0, 0.0]


def test_a_primary_gradient_with_nothing_left_gives_zero():
    rows = np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert np.linalg.norm(pcd(rows @ rows.T, tau=0.0).weights @ rows) == 0.0
