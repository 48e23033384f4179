"""IMTL-G, ConFIG and Aligned-MTL against their defining equations, SVDs of the rows, and TorchJD."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torchjd import aggregation as jd

from polytask.balancing.functional.geometry import aligned_mtl_weights, config_weights, imtl_g_weights


def random_rows(count, size=12, seed=0, spread=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) * 10.0 ** rng.uniform(-spread, spread, (count, 1))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def aligned_by_svd(rows, preference, scale):
    """Definition on the rows themselves: singular values replaced by one number."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    kept = values > 1e-7 * values.max()
    squares = values[kept] ** 2
    length = {"min": np.sqrt(squares.min()), "median": np.sqrt(np.median(squares)), "rmse": np.sqrt(squares.mean())}
    return length[scale] * (left[:, kept].T @ preference) @ right[kept]


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("count", [2, 5, 10])
def test_imtl_g_equations(count, scale, spread):
    rows = scale * random_rows(count, seed=count, spread=spread)
    solved = imtl_g_weights(rows @ rows.T)
    assert solved.status == "solved"
    assert solved.weights.sum() == pytest.approx(1.0, rel=1e-9)
    projections = unit(rows) @ (solved.weights @ rows)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-7)


def test_imtl_g_of_two_tasks_weighs_by_the_inverse_norms():
    # With two directions the equal projection is their bisector: a_i proportional to 1 / n_i.
    rows = np.array([[3.0, 4.0], [-1.0, 1.5]])
    inverse = 1 / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(imtl_g_weights(rows @ rows.T).weights, inverse / inverse.sum(), rtol=1e-13)


def test_imtl_g_of_duplicates_is_the_shortest_solution():
    rows = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    b = np.linalg.pinv(unit(rows) @ unit(rows).T, rcond=1e-10) @ np.ones(3) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(imtl_g_weights(rows @ rows.T).weights, b / b.sum(), rtol=1e-12)


def test_a_zero_row_leaves_the_closed_forms():
    rows = random_rows(4, seed=2)
    rows[1] = 0.0
    rest = np.delete(rows, 1, 0)
    for weigh in (imtl_g_weights, config_weights):
        found = weigh(rows @ rows.T).weights
        assert found[1] == 0.0
        np.testing.assert_allclose(np.delete(found, 1), weigh(rest @ rest.T).weights, rtol=1e-12)
    equal = np.full(4, 0.25)
    found = aligned_mtl_weights(rows @ rows.T, equal)
    assert found[1] == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_allclose(found @ rows, aligned_by_svd(rows, equal, "min"), rtol=1e-9)


def test_only_zero_rows():
    zero = np.zeros((3, 3))
    np.testing.assert_allclose(imtl_g_weights(zero).weights, 1 / 3)
    assert not config_weights(zero).weights.any()
    np.testing.assert_array_equal(aligned_mtl_weights(zero, np.array([0.5, 0.3, 0.2])), [0.5, 0.3, 0.2])


@pytest.mark.parametrize("weigh", [imtl_g_weights, config_weights])
def test_opposite_directions_have_no_solution(weigh):
    rows = np.array([[1.0, 2.0], [-2.0, -4.0]])
    solved = weigh(rows @ rows.T)
    assert solved.status == "cancelled"
    assert not solved.weights.any()


def test_imtl_g_without_a_finite_scale_says_so():
    # The third direction lies almost on the arc between the others: some b are negative. The norms are
    # chosen so that the sum of b / n vanishes.
    rows = unit(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.1]]))
    b = np.linalg.solve(rows @ rows.T, np.ones(3))
    assert b.min() < 0 < b.max()
    norms = np.ones(3)
    norms[b < 0] = -b[b < 0].sum() / b[b > 0].sum()
    rows = rows * norms[:, None]
    assert imtl_g_weights(rows @ rows.T).status == "cancelled"


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_config_by_the_pseudo_inverse_of_the_unit_rows(count, spread):
    rows = random_rows(count, seed=count, spread=spread)
    u = np.linalg.pinv(unit(rows)) @ np.ones(count)
    u /= np.linalg.norm(u)
    np.testing.assert_allclose(config_weights(rows @ rows.T).weights @ rows, (rows @ u).sum() * u, rtol=1e-9)


def test_config_of_dependent_rows_by_the_pseudo_inverse():
    rows = random_rows(2, 6, seed=1)
    rows = np.vstack([rows, rows[0] + rows[1], rows[0]])
    u = np.linalg.pinv(unit(rows), rcond=1e-6) @ np.ones(4)
    u /= np.linalg.norm(u)
    np.testing.assert_allclose(config_weights(rows @ rows.T).weights @ rows, (rows @ u).sum() * u, rtol=1e-9)


@pytest.mark.parametrize("choice", ["min", "median", "rmse"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_aligned_mtl_by_the_singular_values_of_the_rows(count, scale, choice):
    rows = scale * random_rows(count, seed=count, spread=0.5)
    preference = np.linspace(1.0, 2.0, count) / np.linspace(1.0, 2.0, count).sum()
    found = aligned_mtl_weights(rows @ rows.T, preference, choice) @ rows
    expected = aligned_by_svd(rows, preference, choice)
    assert np.abs(found - expected).max() <= 1e-8 * np.linalg.norm(expected)


def test_aligned_mtl_drops_dependent_directions():
    rows = random_rows(3, seed=5)
    rows = np.vstack([rows, rows[0], rows[1] - rows[2]])
    equal = np.full(5, 0.2)
    found = aligned_mtl_weights(rows @ rows.T, equal) @ rows
    np.testing.assert_allclose(found, aligned_by_svd(rows, equal, "min"), rtol=1e-8)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (jd.IMTLG(), lambda g: imtl_g_weights(g).weights),
        (jd.ConFIG(), lambda g: config_weights(g).weights),
        (jd.AlignedMTL(), lambda g: aligned_mtl_weights(g, np.full(5, 0.2))),
        (jd.AlignedMTL(scale_mode="rmse"), lambda g: aligned_mtl_weights(g, np.full(5, 0.2), "rmse")),
        (jd.AlignedMTL(scale_mode="median"), lambda g: aligned_mtl_weights(g, np.full(5, 0.2), "median")),
    ],
    ids=["imtl_g", "config", "aligned", "aligned_rmse", "aligned_median"],
)
def test_torchjd_agrees_where_it_is_right(theirs, ours):
    # Gradients of one size, well conditioned, an odd number of them (its median is the lower one).
    rows = random_rows(5, seed=11)
    np.testing.assert_allclose(ours(rows @ rows.T) @ rows, theirs(torch.from_numpy(rows)).numpy(), rtol=1e-7)


def test_imtl_g_against_50_digits_at_mixed_scales():
    rows = random_rows(4, 6, seed=7) * np.array([[1e-12], [1e12], [1.0], [1e-3]])
    with mpmath.workdps(50):
        exact = mpmath.matrix(rows.tolist())
        products = exact * exact.T
        norms = mpmath.matrix([mpmath.sqrt(products[i, i]) for i in range(4)])
        a = mpmath.lu_solve(products, norms)
        total = mpmath.fsum(a)
        expected = np.array([float(x / total) for x in a])
    np.testing.assert_allclose(imtl_g_weights(rows @ rows.T).weights, expected, rtol=1e-11)
