"""Weights that have a closed form in the geometry of the rows: angles, norms and principal axes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.linalg import lapack

from polytask.balancing.functional.gramian import Array, Solved, condition

Scale = Literal["min", "median", "rmse"]

RANK_TOLERANCE = 1e-12
"""Eigenvalues below this share of the largest one count as zero. It lies above the rounding of inner
products formed in float64; for products formed in float32 use about 1e-6."""


def _equal_projections(cosines: Array, rtol: float) -> Array:
    """pinv(C) 1: the shortest least-squares solution of C b = 1.

    Cholesky where the reciprocal condition number clears the cut-off (by an order of magnitude, as it is an
    estimate), which is then the same vector; the eigenvectors above the cut-off elsewhere.
    """
    ones = np.ones(len(cosines))
    factor, failed = lapack.dpotrf(cosines, lower=1)
    if not failed:
        reciprocal, _ = lapack.dpocon(factor, float(np.abs(cosines).sum(0).max()), uplo="L")
        if reciprocal > 10.0 * rtol:
            solution: Array = lapack.dpotrs(factor, ones, lower=1)[0]
            return solution
    values, axes = np.linalg.eigh(cosines)
    kept = values > rtol * values[-1]
    axes = axes[:, kept]
    result: Array = axes @ ((axes.T @ ones) / values[kept])
    return result


def imtl_g_weights(gramian: Array, rtol: float = RANK_TOLERANCE) -> Solved:
    r"""Weights of IMTL-G: the update has the same projection on every gradient's direction.

    With unit rows :math:`u_i = g_i / n_i` and :math:`b_i = a_i n_i`, equal projections mean
    :math:`C b = \kappa 1` for the cosines C. The weights are :math:`b_i / n_i` for :math:`b = C^+ 1`,
    divided by their sum. Where the rows are dependent this is the shortest least-squares solution: its
    direction is the one solution where equal projections are possible, and the nearest to it where not.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        rtol: Eigenvalues of C below this share of the largest count as zero.

    Returns:
        Weights with sum 1, shape ``[m]``; they may be negative, and their sum before the division too: then
        the update climbs all losses, as the formula has it. A zero row has no direction, leaves the problem
        and gets weight 0; if all rows are zero, 1/m each. Status ``"cancelled"`` with weights of zero if
        there is no finite solution: the rows' directions cancel, or the sum to divide by does.

    Example:
        >>> imtl_g_weights(np.diag([1.0, 4.0])).weights.round(4)
        array([0.6667, 0.3333])

    Reference:
        Liu et al., Towards Impartial Multi-task Learning, ICLR 2021, gradient balance (IMTL-G).
    """
    parts = condition(gramian)
    if not len(parts.kept):
        return Solved(np.full(parts.total, 1.0 / parts.total))
    solution = _equal_projections(parts.cosines, rtol)
    weights = solution / parts.norms
    total = weights.sum()
    # sum(b) = |U^T b|^2: at zero, the common projection is zero too.
    if solution.sum() <= rtol * len(solution) or abs(total) <= rtol * np.abs(weights).sum():
        return Solved(np.zeros(parts.total), "cancelled")
    return Solved(parts.spread(weights / total))


def config_weights(gramian: Array, rtol: float = RANK_TOLERANCE) -> Solved:
    r"""Weights of ConFIG: a direction at equal angles to all gradients, as long as all projections on it.

    :math:`u = \mathrm{unit}(U^+ 1)` with the unit rows U, and :math:`d = (\sum_i \langle g_i, u\rangle) u`.
    From :math:`U^+ = U^T C^+` follows :math:`u = U^T b / |U^T b|` with :math:`b = C^+ 1`.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        rtol: Eigenvalues of C below this share of the largest count as zero (for the singular values of
            U this is its square root).

    Returns:
        Weights, shape ``[m]``. A zero row gets weight 0. Status ``"cancelled"`` with weights of zero if the
        rows' directions cancel.

    Example:
        >>> config_weights(np.diag([1.0, 4.0])).weights.round(4)
        array([1.5 , 0.75])

    Reference:
        Liu et al., ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025,
        equation (2).
    """
    parts = condition(gramian)
    if not len(parts.kept):
        return Solved(np.zeros(parts.total))
    solution = _equal_projections(parts.cosines, rtol)
    projections = parts.cosines @ solution
    square = float(solution @ projections)
    if square <= rtol * len(solution):
        return Solved(np.zeros(parts.total), "cancelled")
    return Solved(parts.spread(solution / parts.norms * (parts.norms @ projections / square)))


def aligned_mtl_weights(gramian: Array, preference: Array, scale: Scale = "min", rtol: float = RANK_TOLERANCE) -> Array:
    r"""Weights of Aligned-MTL: the principal axes of the rows brought to one length.

    With :math:`G = V \Lambda V^T` over the eigenvalues that are not zero, the weights are
    :math:`s V \Lambda^{-1/2} V^T p`.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        preference: What p is, shape ``[m]``; the paper's default is 1/m each.
        scale: The common length s: ``"min"`` the smallest kept singular value of the rows (the paper),
            ``"median"`` the square root of the median kept eigenvalue (the mean of the middle two for an
            even number), ``"rmse"`` the square root of the mean kept eigenvalue.
        rtol: Eigenvalues below this share of the largest count as zero and leave.

    Returns:
        Weights, shape ``[m]``. A zero row gets weight 0; if all rows are zero, the preference.

    Example:
        >>> aligned_mtl_weights(np.diag([1.0, 4.0]), np.array([0.5, 0.5]))
        array([0.5 , 0.25])

    Reference:
        Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023,
        Algorithm 1.
    """
    values, axes = np.linalg.eigh(gramian)
    kept = values > rtol * values[-1]
    if not (kept.any() and values[-1] > 0):
        return preference.copy()
    values, axes = values[kept], axes[:, kept]
    chosen = {"min": values[0], "median": np.median(values), "rmse": values.mean()}[scale]
    result: Array = axes @ (np.sqrt(chosen / values) * (axes.T @ preference))
    return result
