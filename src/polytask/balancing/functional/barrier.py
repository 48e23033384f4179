r"""Bargaining solutions: Nash-MTL and FairGrad, by damped Newton steps.

Both solve ``G w = w^(-p)`` for w > 0 (p = 1 for Nash-MTL, p = 1/alpha for FairGrad): the gradient of a strictly
convex function with a barrier at zero. In unit rows, w_i = b_i / n_i, the equation is
``C b = n^(p-1) b^(-p)``; with p = 1 the norms leave it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv

from polytask.balancing.functional.gramian import EPS, Array, Solved, Status, condition, ended
from polytask.balancing.functional.minnorm import min_norm

ROUNDS = 200
CANCELLED = 1e-4
"""A sum (C b)_i that is a smaller share of its terms is judged against that share: it holds fewer digits."""
FLAT = 8 * EPS
"""Times m: a quadratic form below this share of its own terms is round-off, the rows are Pareto stationary."""


class _Root(NamedTuple):
    """Solution of the equation on unit rows, and how the search ended."""

    point: Array
    status: Status
    residual: float


def nash_mtl(gramian: Any, normalize: bool = False) -> Solved:
    r"""Weights of the Nash bargaining solution.

    .. math:: G a = 1 / a \text{ entrywise}, \quad a > 0,
              \qquad a = \arg\min_{a > 0} \tfrac12 a^\top G a - \sum_i \log a_i

    The update J'a has norm ``sqrt(m)`` at any scale of the gradients.

    Args:
        gramian: Inner products ``[m, m]``.
        normalize: Solve with G divided by its Frobenius norm, as the authors' code does. The weights are
            then ``sqrt(|G|_F)`` times as large, and the update scales with the gradients.

    Returns:
        Weights ``[m]``. There is no solution at a Pareto stationary point (status ``stationary``): the
        weights of the shortest vector in the hull are returned, whose update is zero there. A zero row
        (status ``zero_row``) leaves the problem with weight 0, and the others are solved without it.

    Example:
        >>> nash_mtl([[4.0, 0.0], [0.0, 1.0]]).weights.tolist()
        [0.5, 1.0]

    Reference:
        Navon et al. 2022, "Multi-task learning as a bargaining game", claim 3.1.
    """
    found = fairgrad(gramian, 1.0)
    if not normalize or found.status == "stationary":
        return found
    raw = np.asarray(gramian, dtype=np.float64)
    largest = float(raw.diagonal().max())
    if not largest > 0.0:
        return found
    return found._replace(weights=found.weights * math.sqrt(largest * float(np.linalg.norm(raw / largest))))


def fairgrad(gramian: Any, alpha: float = 2.0) -> Solved:
    r"""Weights of alpha-fair gradient descent.

    .. math:: G w = w^{-1/\alpha} \text{ entrywise}, \quad w > 0

    This maximises ``sum_i u_i^(1-alpha) / (1-alpha)`` over directions d in a ball, with ``u_i = <g_i, d>``.
    alpha = 1 is Nash-MTL. The update is s^((1-alpha)/(1+alpha)) times as long when all gradients are s times
    as long.

    Args:
        gramian: Inner products ``[m, m]``.
        alpha: Fairness, above 0; larger values help the task that improves least. Above about 20, with
            norms that differ by many orders, weights leave the range of float64 (status ``inexact``).

    Returns:
        Weights ``[m]``. Pareto stationary points and zero rows as in ``nash_mtl``.

    Example:
        >>> fairgrad([[16.0, 0.0], [0.0, 1.0]], alpha=1.0).weights.tolist()
        [0.25, 1.0]

    Reference:
        Ban and Ji 2024, "Fair resource allocation in multi-task learning", equation 4.
    """
    parts = condition(gramian)
    if not len(parts.kept):
        return Solved(np.zeros(parts.total), "zero_row")
    power = 1.0 / alpha
    root = _newton(parts.cosines, (power - 1.0) * np.log(parts.norms), power)
    if root.status == "stationary":
        nearest = min_norm(parts.cosines * parts.norms * parts.norms[:, None])
        return Solved(parts.spread(nearest.weights), "stationary", nearest.residual)
    weights = root.point / parts.norms * parts.scale ** (-2.0 / (1.0 + power))
    status = root.status if root.status != "solved" or len(parts.kept) == parts.total else "zero_row"
    return Solved(parts.spread(weights), status, root.residual)


def _newton(cosines: Array, log_scale: Array, power: float) -> _Root:
    """Solve ``C b = exp(log_scale) b^(-power)`` for b > 0.

    Each round first takes the best multiple of b, which near a Pareto stationary point replaces many steps
    along the flat direction, then a Newton step in relative terms, shortened until it does not overshoot.
    """
    size = len(cosines)
    point = _start(cosines, log_scale, power)
    sizes = np.abs(cosines)
    best = _Root(point, "inexact", math.inf)
    idle, moved = 0, math.inf
    for _ in range(ROUNDS):
        pull = np.exp(log_scale - power * np.log(point))
        image, terms = cosines @ point, sizes @ point
        form = float(point @ image)
        if form <= FLAT * size * float(point @ terms):
            return _Root(point, "stationary", 0.0)
        stretch = (float(point @ pull) / form) ** (1.0 / (1.0 + power))
        point, image, pull = point * stretch, image * stretch, pull * stretch**-power
        residual = float((np.abs(image - pull) / (pull + CANCELLED * stretch * terms)).max())
        idle = 0 if residual < best.residual else idle + 1
        if residual < best.residual:
            best = _Root(point, ended(residual), residual)
        # After a step this small the quadratic convergence has reached round-off.
        if residual <= 4 * size * EPS or (best.residual <= 1e-9 and (moved <= 1e-7 or idle >= 3)):
            break
        step = _step(cosines, point, image, pull, power)
        if step is None:
            break
        moved = float(np.abs(step).max())
        point = point * (1.0 + step)
    # With powers above one, weights of rows that cancel stop growing before the form is flat. Their sums are then
    # round-off, as they may also be at a true root with a high power: the hull of the rows decides.
    cancelled = cosines @ best.point <= FLAT * size * (sizes @ best.point)
    if bool(cancelled.any()):
        shares = min_norm(cosines).weights
        if float(shares @ cosines @ shares) <= FLAT * size:
            return best._replace(status="stationary")
    return best


def _start(cosines: Array, log_scale: Array, power: float) -> Array:
    """The solution for orthogonal rows, corrected once by the sums it gives: saves one or two Newton steps."""
    point: Array = np.exp(log_scale / (1.0 + power))
    # For this point the pull equals the point itself.
    ratio = point / np.maximum(cosines @ point, 0.1 * point)
    corrected: Array = point * np.maximum(ratio, 0.1) ** (1.0 / (1.0 + power))
    return corrected


def _step(cosines: Array, point: Array, image: Array, pull: Array, power: float) -> Array | None:
    """Relative Newton step ``[k]``, damped; None if the matrix is not positive definite to working accuracy."""
    matrix = cosines * point * point[:, None]
    matrix.flat[:: len(point) + 1] += power * pull * point
    _, step, info = dposv(matrix, point * (pull - image))
    if info:
        return None
    # Close to zero the pull must stay finite, which matters for powers in the hundreds.
    nearest = min(0.99, -math.expm1(-300.0 / power))
    length = min(1.0, nearest / max(-float(step.min()), 1e-300))
    change = point * step
    along = cosines @ change
    slope = float(change @ (image - pull))
    for _ in range(60):
        moved = np.exp(-power * np.log1p(length * step))
        later = float(change @ (image + length * along)) - float(change @ (pull * moved))
        if later <= 0.3 * abs(slope):
            break
        length *= 0.5
    damped: Array = length * step
    return damped
