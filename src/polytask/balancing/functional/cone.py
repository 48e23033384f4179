r"""Projections on the cone of directions that conflict with no gradient: UPGrad and DualProj.

The projection of a vector J'u on ``{d : J d >= 0}`` is ``J'(u + z)`` with z >= 0 the multipliers of the
constraints: a linear complementarity problem with matrix G and offset G u.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.balancing.functional.gramian import Solved, condition, ended, mean_products
from polytask.balancing.functional.lcp import solve_lcp


def dualproj(gramian: Any) -> Solved:
    r"""Weights of the mean gradient projected on the cone of non-conflicting directions.

    .. math:: d = \arg\min_{J d \ge 0} \| d - g_0 \|^2 = J^\top v, \quad v = \arg\min_{v \ge 1/m} v^\top G v

    Args:
        gramian: Inner products ``[m, m]``.

    Returns:
        Weights ``[m]``, each at least ``1/m``; a zero row keeps ``1/m``.

    Example:
        >>> dualproj([[1.0, -2.0], [-2.0, 4.5]]).weights.tolist()
        [1.0, 0.5]

    Reference:
        Lopez-Paz and Ranzato 2017, "Gradient episodic memory", the dual quadratic program, with the
        mean gradient as the vector that is projected.
    """
    parts = condition(gramian)
    mean = np.full(parts.total, 1.0 / parts.total)
    if not len(parts.kept):
        return Solved(mean)
    target, _ = mean_products(parts)
    found = solve_lcp(parts.cosines, target[None])
    added = found.points[0] / parts.norms
    return Solved(mean + parts.spread(added), ended(found.residual), found.residual)


def upgrad(gramian: Any) -> Solved:
    r"""Weights of the mean of all gradients, each first projected on the cone of non-conflicting directions.

    .. math:: d = \frac1m \sum_i \pi_J(g_i), \qquad \pi_J(x) = \arg\min_{J d \ge 0} \| d - x \|^2

    All m problems share G and are solved together, on unit rows: the projection of g_i is its norm times
    that of its unit vector. A projection that is not zero has a positive product with its own gradient,
    so the multiplier of that gradient is zero and stays out of its problem.

    Args:
        gramian: Inner products ``[m, m]``.

    Returns:
        Weights ``[m]``, each at least ``1/m``; a zero row keeps ``1/m``.

    Example:
        >>> upgrad([[1.0, -0.5], [-0.5, 1.0]]).weights.tolist()
        [0.75, 0.75]

    Reference:
        Quinton and Rey 2024, "Jacobian descent for multi-objective optimization", the
        definition of A_UPGrad.
    """
    parts = condition(gramian)
    mean = np.full(parts.total, 1.0 / parts.total)
    if not len(parts.kept):
        return Solved(mean)
    own = np.eye(len(parts.kept), dtype=bool)
    found = solve_lcp(parts.cosines, parts.cosines, frozen=own)
    added = (parts.norms @ found.points) / parts.norms / parts.total
    return Solved(mean + parts.spread(added), ended(found.residual), found.residual)
