"""The projection on the simplex against its optimality conditions and bisection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polytask.balancing.functional.simplex_projection import project_onto_simplex, simplex_step


def by_bisection(point):
    low, high = point.min() - 1.0, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - high, 0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 100.0])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_projection_by_bisection(count, scale):
    for seed in range(5):
        point = scale * np.random.default_rng(seed).standard_normal(count)
        found = project_onto_simplex(torch.from_numpy(point)).numpy()
        np.testing.assert_allclose(found, by_bisection(point), atol=1e-12)
        assert found.sum() == pytest.approx(1.0, rel=1e-12)
        assert (found >= 0).all()


@pytest.mark.parametrize("shift", [1e3, -1e3])
def test_a_common_shift_changes_nothing_and_points_of_the_simplex_stay(shift):
    inside = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(project_onto_simplex(inside), inside)
    torch.testing.assert_close(project_onto_simplex(inside + shift), inside, rtol=0, atol=1e-12)


def test_huge_entries_end_in_a_corner():
    found = project_onto_simplex(torch.tensor([1e30, -1e30, 3.0]))
    assert torch.equal(found, torch.tensor([1.0, 0.0, 0.0]))


def test_steps_descend_to_the_shortest_vector_of_the_hull():
    rows = torch.tensor([[1.0, 0.2], [0.1, 2.0], [3.0, 3.0]], dtype=torch.float64)
    gramian, weights = rows @ rows.T, torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(2000):
        weights = simplex_step(weights, gramian, 0.02)
    d = weights @ rows
    assert ((rows @ d) >= (d @ d) * (1 - 1e-9)).all()  # optimality of the min-norm point
