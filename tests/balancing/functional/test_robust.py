"""Krum, the trimmed mean and GradDrop against loops over explicit vectors, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from polytask.balancing.functional.robust import graddrop, krum_weights, trimmed_mean


def rows_of(count, size=6, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size))


def krum_by_the_paper(rows, f, selected):
    count, scores = len(rows), []
    for i in range(count):
        distances = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(count) if j != i)
        scores.append(sum(distances[: count - f - 2]))
    best = sorted(range(count), key=lambda i: scores[i])[:selected]
    return rows[best].mean(0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("count", "f", "selected"), [(5, 1, 1), (9, 2, 1), (9, 3, 4), (12, 0, 12)])
def test_krum(count, f, selected, scale):
    rows = scale * rows_of(count, seed=count)
    found = krum_weights(rows @ rows.T, f, selected) @ rows
    np.testing.assert_allclose(found, krum_by_the_paper(rows, f, selected), rtol=1e-10, atol=1e-14 * scale)


def test_krum_scores_squared_distances():
    disagreements = 0
    for seed in range(40):
        points = rows_of(6, 2, seed)
        squares = np.sort(((points[:, None] - points[None]) ** 2).sum(-1), 1)[:, 1:5]
        found = int(np.argmax(krum_weights(points @ points.T)))
        assert found == np.argmin(squares.sum(1))
        disagreements += found != np.argmin(np.sqrt(squares).sum(1))
    assert disagreements  # plain distances would have chosen another gradient somewhere


def test_krum_leaves_out_the_wild_gradient():
    rows = 1.0 + 0.1 * rows_of(6)
    rows[2] = 1e6
    assert krum_weights(rows @ rows.T, n_byzantine=1, n_selected=4)[2] == 0.0


def test_krum_ties_are_shared_and_do_not_depend_on_the_order():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    np.testing.assert_allclose(krum_weights(points @ points.T), [0.5, 0.5, 0.0])
    equal = np.ones((4, 4))
    np.testing.assert_allclose(krum_weights(equal, n_selected=3), 0.25)
    np.testing.assert_allclose(krum_weights(np.ones((2, 2)), n_byzantine=1), 0.5)


@pytest.mark.parametrize("trim", [0, 1, 2, 3])
def test_trimmed_mean_is_scipys(trim):
    rows = rows_of(7, 11, seed=trim)
    expected = trim_mean(rows, (trim + 0.5) / 7 if trim else 0.0, axis=0)
    np.testing.assert_allclose(trimmed_mean(torch.from_numpy(rows), trim).numpy(), expected, rtol=1e-13)


def test_trimming_more_than_there_is_gives_the_median():
    rows = rows_of(4, 5)
    np.testing.assert_allclose(trimmed_mean(torch.from_numpy(rows), 9).numpy(), np.median(rows, 0), rtol=1e-13)
    one = torch.from_numpy(rows[:1])
    assert torch.equal(trimmed_mean(one, 1), one[0])


def graddrop_by_the_paper(rows, uniform, leaks):
    result = np.zeros(rows.shape[1])
    for column in range(rows.shape[1]):
        g = rows[:, column]
        if not np.abs(g).sum():
            continue
        p = 0.5 * (1 + g.sum() / np.abs(g).sum())
        for i in range(len(rows)):
            mask = float((g[i] > 0 and p > uniform[column]) or (g[i] < 0 and p < uniform[column]))
            result[column] += (leaks[i] + (1 - leaks[i]) * mask) * g[i]
    return result


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_graddrop_algorithm_1(leak, scale):
    rows = scale * rows_of(4, 40, seed=2)
    rows[:, 7] = 0.0
    uniform = np.random.default_rng(3).random(40)
    found = graddrop(torch.from_numpy(rows), torch.from_numpy(uniform), leak).numpy()
    np.testing.assert_allclose(found, graddrop_by_the_paper(rows, uniform, [leak] * 4), rtol=1e-12, atol=1e-14 * scale)
    assert found[7] == 0.0


def test_graddrop_with_a_leak_for_each_row():
    rows, uniform, leaks = rows_of(3, 30), np.random.default_rng(1).random(30), [0.0, 0.5, 1.0]
    found = graddrop(torch.from_numpy(rows), torch.from_numpy(uniform), torch.tensor(leaks, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), graddrop_by_the_paper(rows, uniform, leaks), rtol=1e-12, atol=1e-14)


def test_half_precision_rows_are_summed_in_float32():
    # 1 + 300 * 0.001: in bfloat16 every addend would be lost.
    rows = torch.full((301, 1), 0.001, dtype=torch.bfloat16)
    rows[0] = 1.0
    exact = rows.double().sum()
    assert graddrop(rows, torch.tensor([0.5])).double().item() == pytest.approx(exact.item(), rel=4e-3)
    assert trimmed_mean(rows, 0).double().item() == pytest.approx(exact.item() / 301, rel=4e-3)
