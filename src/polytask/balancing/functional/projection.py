"""Pairwise corrections of conflicting gradients, from inner products alone.

A corrected gradient stays in the span of the rows: v_i = sum_k C_ik u_k with u_k = g_k / |g_k|. One
matrix of coefficients C and the cosines of the rows are all that is needed. Working with unit rows
keeps every comparison free of the gradients' scales. All corrections of one place in the visiting
order are made together: the tasks do not see each other's corrected gradients.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask.balancing.functional.gramian import Array, condition

Order: TypeAlias = NDArray[np.int64]

# A corrected gradient below this share of the original's squared norm is rounding: it has no cosine.
_VANISHED = 1e-14
# A target cosine is held this far within -1 and 1, where the correction would grow without bound.
_LARGEST_TARGET = 1.0 - 1e-12


def _without_zero_rows(order: Order, kept: NDArray[np.intp]) -> Order:
    """The visiting orders of the kept rows among themselves."""
    count = len(order)
    if len(kept) == count:
        return order
    place = np.full(count, -1)
    place[kept] = np.arange(len(kept))
    moved = place[order[kept]]
    return moved[moved >= 0].reshape(len(kept), len(kept))


def pcgrad_weights(gramian: Array, order: Order) -> Array:
    r"""Weights of PCGrad's summed update.

    Each gradient starts as :math:`v_i = g_i`. For every other task j in the order of row i,
    :math:`v_i \leftarrow v_i - \min(0, \langle v_i, g_j\rangle) g_j / |g_j|^2`, always with the original
    :math:`g_j`. The update is :math:`\sum_i v_i`.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        order: Row i is a permutation of the tasks: the order in which task i visits them, shape ``[m, m]``.
            Task i itself stands somewhere in its row and is skipped.

    Returns:
        Weights, shape ``[m]``. A zero row has weight 1 and changes nothing.

    Example:
        >>> pcgrad_weights(np.array([[1.0, -0.5], [-0.5, 1.0]]), np.array([[0, 1], [1, 0]]))
        array([1.5, 1.5])

    Reference:
        Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, Algorithm 1.
    """
    parts = condition(gramian)
    count = len(parts.kept)
    coefficients, rows = np.eye(count), np.arange(count)
    for visited in _without_zero_rows(order, parts.kept).T:
        dots = np.einsum("ij,ij->i", coefficients, parts.cosines[visited])
        coefficients[rows, visited] -= np.where(visited != rows, np.minimum(dots, 0.0), 0.0)
    return parts.spread((parts.norms @ coefficients) / parts.norms, fill=1.0)


def gradvac_weights(gramian: Array, targets: Array, order: Order, beta: float) -> tuple[Array, Array]:
    r"""Weights of GradVac's summed update, and the new target cosines.

    With :math:`\phi = \cos(v_i, g_j)` and the target :math:`\rho_{ij}`: where :math:`\phi < \rho_{ij}`,

    .. math::
        v_i \leftarrow v_i + \frac{|v_i| (\rho_{ij}\sqrt{1-\phi^2} - \phi\sqrt{1-\rho_{ij}^2})}
        {|g_j| \sqrt{1-\rho_{ij}^2}} g_j,

    which makes the cosine equal to :math:`\rho_{ij}`; then, always,
    :math:`\rho_{ij} \leftarrow (1-\beta)\rho_{ij} + \beta\phi`.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        targets: Target cosines, shape ``[m, m]``, row i for the corrections of task i.
        order: As in :func:`pcgrad_weights`, shape ``[m, m]``.
        beta: Rate of the targets' moving average, in [0, 1].

    Returns:
        Weights ``[m]`` and new targets ``[m, m]``. Where a cosine is undefined (a zero row, or a v_i that
        has been cancelled entirely) nothing is corrected and the target stays.

    Example:
        >>> weights, targets = gradvac_weights(
        ...     np.array([[1.0, -0.5], [-0.5, 1.0]]), np.zeros((2, 2)), np.array([[0, 1], [1, 0]]), beta=0.1
        ... )
        >>> weights, float(targets[0, 1])
        (array([1.5, 1.5]), -0.05)

    Reference:
        Wang et al., Gradient Vaccine, ICLR 2021, the GradVac algorithm.
    """
    parts = condition(gramian)
    count, kept = len(parts.kept), np.ix_(parts.kept, parts.kept)
    visits = _without_zero_rows(order, parts.kept)
    coefficients, rows, squares = np.eye(count), np.arange(count), np.ones(count)
    # A pair is visited once a step: all that depends on the old targets alone is worked out before.
    aims = targets[kept]
    rho = np.take_along_axis(aims, visits, 1).T
    rho_sines = np.sqrt(1.0 - np.minimum(np.abs(rho), _LARGEST_TARGET) ** 2)
    ratios, shrinkage = rho / rho_sines, 1.0 / rho_sines**2
    renewed = rho.copy()
    for place, visited in enumerate(visits.T):
        known = (visited != rows) & (squares > _VANISHED)
        lengths = np.sqrt(squares)
        dots = np.einsum("ij,ij->i", coefficients, parts.cosines[visited])
        phi = np.minimum(np.maximum(np.divide(dots, lengths, out=np.zeros(count), where=known), -1.0), 1.0)
        low = known & (phi < rho[place])
        sine_squared = (1.0 - phi) * (1.0 + phi)
        step = lengths * (ratios[place] * np.sqrt(sine_squared) - phi)
        coefficients[rows, visited] += step * low
        # The part of v across u_j stays, and is |new v| times the sine of the target: no cancellation.
        squares = np.where(low, squares * sine_squared * shrinkage[place], squares)
        np.copyto(renewed[place], (1.0 - beta) * rho[place] + beta * phi, where=known)
    np.put_along_axis(aims, visits, renewed.T, 1)
    result = targets.copy()
    result[kept] = aims
    return parts.spread((parts.norms @ coefficients) / parts.norms, fill=1.0), result
