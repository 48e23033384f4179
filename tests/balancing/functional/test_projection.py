"""PCGrad and GradVac against the papers' loops on explicit vectors."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from polytask.balancing.functional.projection import gradvac_weights, pcgrad_weights


def random_rows(count, size=9, seed=0, spread=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) * 10.0 ** rng.uniform(-spread, spread, (count, 1))


def random_order(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(count) for _ in range(count)])


def pcgrad_by_the_paper(rows, order):
    """Algorithm 1: projections off the original gradients, one after the other."""
    corrected = []
    for i, visits in enumerate(order):
        v = rows[i].copy()
        for j in visits:
            if j != i and v @ rows[j] < 0:
                v = v - (v @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        corrected.append(v)
    return np.sum(corrected, axis=0)


def gradvac_by_the_paper(rows, order, rho, beta):
    """Algorithm 1 with equation 3, in vectors."""
    rho, corrected = rho.copy(), []
    for i, visits in enumerate(order):
        v = rows[i].copy()
        for j in visits:
            if j == i:
                continue
            g = rows[j]
            phi = v @ g / np.linalg.norm(v) / np.linalg.norm(g)
            if phi < rho[i, j]:
                up = rho[i, j] * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - rho[i, j] ** 2)
                v = v + np.linalg.norm(v) * up / (np.linalg.norm(g) * np.sqrt(1 - rho[i, j] ** 2)) * g
            rho[i, j] = (1 - beta) * rho[i, j] + beta * phi
        corrected.append(v)
    return np.sum(corrected, axis=0), rho


def close(found, expected, rows, tolerance=1e-12):
    # Relative to the largest gradient: where the sum cancels, its own size says nothing about rounding.
    assert np.abs(found - expected).max() <= tolerance * np.linalg.norm(rows, axis=1).max()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("count", [2, 3, 7, 30])
def test_pcgrad_algorithm_1(count, spread):
    rows, order = random_rows(count, seed=count, spread=spread), random_order(count, seed=count)
    close(pcgrad_weights(rows @ rows.T, order) @ rows, pcgrad_by_the_paper(rows, order), rows, 1e-10)


def test_pcgrad_of_two_tasks_has_a_closed_form():
    # In conflict: d = (1 - a.b/|a|^2) a + (1 - a.b/|b|^2) b.
    a, b = np.array([1.0, 0.0, 2.0]), np.array([-3.0, 1.0, 0.5])
    rows = np.stack([a, b])
    weights = pcgrad_weights(rows @ rows.T, random_order(2))
    np.testing.assert_allclose(weights, [1 - a @ b / (a @ a), 1 - a @ b / (b @ b)], rtol=1e-14)


def test_pcgrad_projects_off_the_original_gradients_and_depends_on_the_order():
    rows = np.array([[1.0, 0.0], [-1.0, 0.5], [-1.0, -1.0]])
    one, two = np.array([[0, 1, 2]] * 3), np.array([[2, 1, 0]] * 3)
    found = [pcgrad_weights(rows @ rows.T, order) @ rows for order in (one, two)]
    assert np.abs(found[0] - found[1]).max() > 0.1
    close(found[1], pcgrad_by_the_paper(rows, two), rows)


def test_pcgrad_equals_torchjd_for_two_tasks():
    # With two tasks the order is empty of choice, so two implementations must agree.
    from torchjd.aggregation import PCGrad

    rows = np.array([[1.0, -2.0, 0.3], [-1.0, 0.5, 0.7]])
    theirs = PCGrad()(torch.from_numpy(rows)).numpy()
    close(pcgrad_weights(rows @ rows.T, random_order(2)) @ rows, theirs, rows)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_mixed_scales_against_40_digits(scale):
    rows = random_rows(4, 5, seed=3) * np.array([[1.0], [scale], [1.0], [1e-3]])
    order = random_order(4, 5)
    with mpmath.workdps(40):
        exact = [mpmath.matrix([mpmath.mpf(float(x)) for x in row]) for row in rows]
        total = mpmath.zeros(5, 1)
        for i, visits in enumerate(order):
            v = exact[i].copy()
            for j in visits:
                dot = mpmath.fdot(v, exact[int(j)])
                if j != i and dot < 0:
                    v -= dot / mpmath.fdot(exact[int(j)], exact[int(j)]) * exact[int(j)]
            total += v
        expected = np.array([float(x) for x in total])
    np.testing.assert_allclose(pcgrad_weights(rows @ rows.T, order) @ rows, expected, rtol=1e-9)


def test_a_zero_row_and_a_cancelled_gradient():
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]])
    for order in (random_order(3, 0), random_order(3, 1)):
        assert np.abs(pcgrad_weights(rows @ rows.T, order) @ rows).max() < 1e-15
        weights, rho = gradvac_weights(rows @ rows.T, np.full((3, 3), 0.3), order, 0.1)
        assert np.isfinite(weights).all()
        assert (rho[1] == 0.3).all()
        assert (rho[:, 1] == 0.3).all()


@pytest.mark.parametrize("count", [2, 3, 8])
def test_gradvac_algorithm_1_over_several_steps(count):
    rho, expected_rho = np.zeros((count, count)), np.zeros((count, count))
    for step in range(6):
        rows, order = random_rows(count, seed=step, spread=1.0) + 0.5, random_order(count, step)
        weights, rho = gradvac_weights(rows @ rows.T, rho, order, 0.3)
        expected, expected_rho = gradvac_by_the_paper(rows, order, expected_rho, 0.3)
        close(weights @ rows, expected, rows, 1e-11)
        np.testing.assert_allclose(rho, expected_rho, atol=1e-12)


def test_gradvac_reaches_its_target_cosine():
    rows, target = random_rows(2, seed=4), 0.6
    order, aims = np.array([[1, 0], [0, 1]]), np.array([[0.0, target], [-1.0, 0.0]])
    weights, _ = gradvac_weights(rows @ rows.T, aims, order, 0.5)
    corrected = weights @ rows - rows[1]  # the second task's target lies below any cosine
    cosine = corrected @ rows[1] / np.linalg.norm(corrected) / np.linalg.norm(rows[1])
    assert cosine == pytest.approx(target, rel=1e-12)


def test_the_first_gradvac_step_is_pcgrad():
    rows, order = random_rows(6, seed=8), random_order(6, 8)
    weights, _ = gradvac_weights(rows @ rows.T, np.zeros((6, 6)), order, 0.01)
    np.testing.assert_allclose(weights, pcgrad_weights(rows @ rows.T, order), rtol=1e-10)


def test_gradvac_stays_finite_when_a_target_reaches_one():
    same = np.array([[1.0, 2.0], [1.0, 2.0]])
    rho = np.zeros((2, 2))
    for _ in range(3):
        _, rho = gradvac_weights(same @ same.T, rho, random_order(2), 1.0)
    assert rho[0, 1] == pytest.approx(1.0)
    turned = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(gradvac_weights(turned @ turned.T, rho, random_order(2), 1.0)[0]).all()
