"""Jacobians of the shapes that break solvers, and what every exact solver must be held to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

FAMILIES = (
    "plain",
    "mixed_10",
    "mixed_1000",
    "conflict",
    "strong_conflict",
    "stationary",
    "low_rank",
    "low_rank_positive",
    "duplicate",
    "opposite",
    "opposite_scaled",
    "aligned",
)


def make_rows(family: str, count: int, seed: int) -> np.ndarray:
    """Gradients [count, 2 count + 2] of a named kind."""
    rng = np.random.default_rng([count, seed, FAMILIES.index(family)])
    rows = rng.standard_normal((count, 2 * count + 2))
    rank = max(count // 3, 1)
    if family == "mixed_10":
        rows *= 10.0 ** rng.uniform(-1, 1, (count, 1))
    elif family == "mixed_1000":
        rows *= 10.0 ** rng.uniform(-3, 3, (count, 1))
    elif family == "conflict":
        rows -= 0.95 * rows.mean(axis=0)
    elif family == "strong_conflict":
        rows += 0.02 * rng.standard_normal(rows.shape) / np.sqrt(count) - rows.mean(axis=0)
    elif family == "stationary":
        rows -= rows.mean(axis=0)
    elif family == "low_rank":
        rows = rng.standard_normal((count, rank)) @ rows[:rank]
    elif family == "low_rank_positive":
        rows = (rng.standard_normal((count, rank)) + 1.0) @ rows[:rank]
    elif family == "duplicate":
        rows[count // 2 :] = rows[: count - count // 2]
    elif family == "opposite":
        rows[-1] = -rows[0]
    elif family == "opposite_scaled":
        rows[-1] = -3.0 * rows[0]
    elif family == "aligned":
        rows = 0.1 * rows + rng.standard_normal(rows.shape[1])
    return rows


@pytest.fixture
def rows_of() -> Callable[[str, int, int], np.ndarray]:
    return make_rows


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
