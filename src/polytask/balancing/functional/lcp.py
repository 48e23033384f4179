r"""Linear complementarity problems with one positive semidefinite matrix and many right-hand sides.

For each offset q: find x >= 0 with M x + q >= 0 and x'(M x + q) = 0, which is the optimality condition of
``min x'Mx/2 + q'x`` over ``x >= 0``. Three routes, each tried only where the one before it failed:

1. block principal pivoting: exchange all wrong variables at once, and one at a time when that stalls;
2. the same with a ridge of 1e-11 on the unit diagonal, then refined: it makes dependent rows harmless;
3. an active-set method that keeps its support independent and always ends.

A solution counts only once its optimality conditions were checked on M itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from polytask.balancing.functional.gramian import EPS, Array, Mask

RIDGE = 1e-11
PATIENCE = 3
"""Block exchanges without progress before single exchanges (Judice and Pires use 10, Kim and Park 3)."""
ROUNDS = 40
SMALL = 16
"""Up to this many variables a whole matrix a row is cheaper than picking its support out."""
BATCHED = 32
"""Supports up to this size are solved as one batch."""
WIDE = 0.6
"""Share of the variables above which a support is handled through its complement."""
ENERGY = 1e-14
"""Accepted error of the energy x'(M x + q), in units of its terms: an error of 1e-7 in the projected vector."""


class Complementary(NamedTuple):
    """Solutions of several linear complementarity problems.

    Attributes:
        points: x, shape ``[k, m]``.
        residual: Largest violation of the optimality conditions, for offsets scaled to ``max |q| = 1``.
    """

    points: Array
    residual: float


def solve_lcp(matrix: Array, offsets: Array, frozen: Mask | None = None, start: Mask | None = None) -> Complementary:
    """Solve k problems that share one matrix.

    Args:
        matrix: Positive semidefinite with a unit diagonal, ``[m, m]``.
        offsets: One q a row, ``[k, m]``; each must lie in the range of a square root of ``matrix``, which
            is so whenever the problem is a projection.
        frozen: Variables held at zero whose slack is free, ``[k, m]``.
        start: First guess of the support, ``[k, m]``; by default where q is negative.

    Returns:
        Points ``[k, m]`` and the largest residual.

    Example:
        >>> matrix = np.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> solve_lcp(matrix, np.array([[1.0, -0.5]])).points.tolist()
        [[0.0, 0.5]]

    Reference:
        Kim and Park 2011, "Fast nonnegative matrix factorization", SIAM J. Sci. Comput. 33, block principal pivoting.
    """
    frozen = np.zeros(offsets.shape, dtype=bool) if frozen is None else frozen
    sizes = np.abs(np.where(frozen, 0.0, offsets)).max(axis=1)
    sizes = np.where(sizes > 0.0, sizes, 1.0)
    scaled = offsets / sizes[:, None]
    points = np.zeros(offsets.shape)
    left = np.arange(len(offsets))
    first = (scaled < 0.0) if start is None else start
    for ridge in (0.0, RIDGE):
        found, done = _pivot(matrix, scaled[left], frozen[left], first[left] & ~frozen[left], ridge)
        points[left[done]] = found[done]
        left = left[~done]
        if not len(left):
            break
    for one in left:
        points[one] = _active_set(matrix, scaled[one], frozen[one])
    slack = points @ matrix + scaled
    violation = np.abs(np.where(frozen, 0.0, np.minimum(points, slack))).max(initial=0.0)
    return Complementary(points * sizes[:, None], float(violation))


def solve_whole(matrix: Array, offset: Array) -> Complementary | None:
    """The solution of one problem in which no variable is zero; None if there is none.

    The first guess of ``solve_lcp`` for the shortest vector in a hull, and often right: this takes a fifth of its
    calls, and every training step waits for them.

    Args:
        matrix: As for ``solve_lcp``.
        offset: q, ``[m]``, not all zero.

    Returns:
        The point ``[1, m]`` and its residual.

    Example:
        >>> matrix = np.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> solve_whole(matrix, np.array([-1.0, -1.0])).points.round(9).tolist()
        [[2.0, 2.0]]
        >>> solve_whole(matrix, np.array([1.0, -0.5])) is None
        True
    """
    _, point, info = dposv(matrix, -offset)
    if info or not point.min() > 0.0:
        return None
    size, total = np.abs(offset).max(), point.sum()
    residual = float(np.abs(matrix @ point + offset).max() / size)
    # The bounds of ``_optimal``, with the sum of products at its largest.
    if residual > (32 * len(matrix) * EPS) * (1.0 + total / size) or residual * total / size > ENERGY * len(matrix):
        return None
    return Complementary(point[None], residual)


def _pivot(matrix: Array, offsets: Array, frozen: Mask, support: Mask, ridge: float) -> tuple[Array, Mask]:
    """Block principal pivoting; points ``[k, m]`` and which of them passed the check ``[k]``."""
    count, size = offsets.shape
    ridged = matrix + ridge * np.eye(size) if ridge else matrix
    inverse = _inverse(matrix) if count > 1 and size > SMALL and not ridge else None
    points = np.zeros((count, size))
    left, offset, free, support = np.arange(count), offsets, ~frozen, support.copy()
    fewest, patience = np.full(count, size + 1), np.full(count, PATIENCE)
    for _ in range(ROUNDS):
        if inverse is not None and support.mean() > WIDE:
            point = _on_complements(matrix, inverse, offset, support)
        else:
            point = _on_supports(ridged, offset, support)
        if point is None:
            break
        slack = point @ ridged + offset
        noise = (8 * size * EPS) * (1.0 + np.abs(point).sum(axis=1, keepdims=True))
        wrong = (np.where(support, point, slack) < -noise) & free
        going = wrong.any(axis=1)
        if not going.all():
            points[left[~going]] = np.maximum(point[~going], 0.0)
            left, offset, free, support, wrong = left[going], offset[going], free[going], support[going], wrong[going]
            fewest, patience = fewest[going], patience[going]
        if not len(left):
            break
        support ^= exchanged(wrong, fewest, patience)
    done = np.ones(count, dtype=bool)
    done[left] = False
    if ridge and done.any():
        points[done] = _refined(matrix, ridged, offsets[done], points[done])
    done &= _optimal(matrix, offsets, points, frozen)
    return points, done


def exchanged(wrong: Mask, fewest: NDArray[np.intp], patience: NDArray[np.intp]) -> Mask:
    """Which variables change sides: all wrong ones, or the last alone in a problem that has stalled.

    A single exchange by a fixed order is Murty's rule, which cannot cycle. Counts the progress in place.
    """
    errors = wrong.sum(axis=1)
    patience -= 1
    patience[errors < fewest] = PATIENCE
    np.minimum(fewest, errors, out=fewest)
    stalled = np.flatnonzero(patience < 0)
    if len(stalled):
        last = wrong.shape[1] - 1 - np.argmax(wrong[stalled, ::-1], axis=1)
        wrong[stalled] = False
        wrong[stalled, last] = True
    return wrong


def _on_supports(matrix: Array, offsets: Array, support: Mask) -> Array | None:
    """Solve ``M_SS x_S = -q_S`` for each row's support S, zero elsewhere; None if some M_SS is singular."""
    lengths = support.sum(axis=1)
    width = int(lengths.max())
    if width == 0:
        return np.zeros(offsets.shape)
    if len(offsets) == 1 or width > BATCHED:
        return _one_by_one(matrix, offsets, support)
    # Supports of different sizes share one batch: the identity fills what a row does not use.
    points, chosen, used, blocks = np.zeros(offsets.shape), None, support, matrix
    right = -offsets
    if matrix.shape[1] > SMALL:
        chosen = np.argsort(~support, axis=1, kind="stable")[:, :width]
        used = np.arange(width) < lengths[:, None]
        blocks = matrix[chosen[:, :, None], chosen[:, None, :]]
        right = np.take_along_axis(right, chosen, axis=1)
    blocks = np.where(used[:, :, None] & used[:, None, :], blocks, np.eye(used.shape[1]))
    try:
        values = np.linalg.solve(blocks, np.where(used, right, 0.0)[:, :, None])[:, :, 0].astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    if chosen is None:
        return values
    np.put_along_axis(points, chosen, values, axis=1)
    return points


def _one_by_one(matrix: Array, offsets: Array, support: Mask) -> Array | None:
    """As ``_on_supports``, by one Cholesky factorisation a row: cheaper than a batch for wide supports."""
    points = np.zeros(offsets.shape)
    for point, offset, row in zip(points, offsets, support, strict=True):
        chosen = np.flatnonzero(row)
        if len(chosen):
            _, values, info = dposv(matrix[chosen][:, chosen], -offset[chosen])
            if info:
                return None
            point[chosen] = values
    return points


def _inverse(matrix: Array) -> Array | None:
    """The inverse, or None where round-off would show in it."""
    try:
        inverse = np.linalg.inv(matrix).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    return inverse if float(np.abs(inverse).max()) * len(matrix) < 1e6 else None


def _on_complements(matrix: Array, inverse: Array, offsets: Array, support: Mask) -> Array | None:
    """As ``_on_supports``, for wide supports: solve for the slack on the few variables outside.

    With H = M^-1 the slack y on the complement T obeys ``H_TT y_T = (H q)_T``, and x = H (y - q). One step of
    refinement takes out the error of H.
    """
    points = np.zeros(offsets.shape)
    for _ in range(2):
        rest = np.where(support, points @ matrix + offsets, offsets if not points.any() else 0.0)
        pulled = rest @ inverse
        slack = _on_supports(inverse, -pulled, ~support)
        if slack is None:
            return None
        points = points + np.where(support, slack @ inverse - pulled, 0.0)
    return points


def _refined(matrix: Array, ridged: Array, offsets: Array, points: Array) -> Array:
    """Take the ridge's effect out of the points: two steps of iterative refinement on their supports."""
    support = points > 0.0
    for _ in range(2):
        change = _on_supports(ridged, points @ matrix + offsets, support)
        if change is None or not np.isfinite(change).all():
            return points
        points = np.maximum(points + change, 0.0)
    return points


def _optimal(matrix: Array, offsets: Array, points: Array, frozen: Mask) -> Mask:
    """Which points satisfy the optimality conditions to working accuracy."""
    slack = np.where(frozen, 0.0, points @ matrix + offsets)
    noise = (32 * len(matrix) * EPS) * (1.0 + points.sum(axis=1))
    feasible = slack.min(axis=1, initial=0.0) >= -noise
    moved = np.abs((points * offsets).sum(axis=1))
    accurate = np.abs(points * slack).sum(axis=1) <= ENERGY * len(matrix) * np.maximum(moved, 1.0)
    passed: Mask = feasible & accurate
    return passed


def _active_set(matrix: Array, offset: Array, frozen: Mask) -> Array:
    """Lawson and Hanson's method on normal equations; a variable that depends on the support stays out."""
    size = len(offset)
    point = np.zeros(size)
    support: list[int] = []
    barred = frozen.copy()
    for _ in range(10 * size):
        slack = matrix @ point + offset
        slack[support] = np.inf
        slack[barred] = np.inf
        entering = int(np.argmin(slack))
        if slack[entering] >= -(8 * size * EPS) * (1.0 + point.sum()):
            break
        values = _independent(matrix, offset, [*support, entering])
        if values is None or values[-1] <= 0.0:
            barred[entering] = True
            continue
        barred = frozen.copy()
        support.append(entering)
        _descend(matrix, offset, point, support, values)
    return point


def _descend(matrix: Array, offset: Array, point: Array, support: list[int], values: Array) -> None:
    """Move ``point`` to the minimiser on its support, dropping variables that reach zero on the way."""
    while values.min(initial=1.0) <= 0.0:
        current = point[support]
        blocking = values <= 0.0
        steps = np.where(blocking, current / np.where(blocking, current - values, 1.0), np.inf)
        leaving = int(np.argmin(steps))
        point[support] = np.maximum(current + steps[leaving] * (values - current), 0.0)
        point[support.pop(leaving)] = 0.0
        smaller = _independent(matrix, offset, support)
        if smaller is None:
            return
        values = smaller
    point[support] = values


def _independent(matrix: Array, offset: Array, support: list[int]) -> Array | None:
    """The minimiser on a support, or None if its rows depend on each other to working accuracy."""
    if not support:
        return np.zeros(0)
    factor, values, info = dposv(matrix[np.ix_(support, support)], -offset[support])
    if info or float(factor.diagonal().min()) ** 2 < 64 * len(support) * EPS:
        return None
    solution: Array = values
    return solution
