r"""Conflict-averse gradient descent: the best worst case in a ball around the mean gradient.

Write the direction as ``d = g_0 + sum_i x_i g_i`` with x >= 0. On the support S of x all products
``<g_i, d>`` equal one number mu, so that ``G_SS x_S = mu 1 - G_S 1/m``, and the ball ``|d - g_0| = c |g_0|``
leaves a quadratic equation for mu. Finding the support is then an exchange of violators.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.linalg.lapack import dposv
from scipy.optimize import brentq

from polytask.balancing.functional.gramian import (
    EPS,
    Array,
    Conditioned,
    Mask,
    Solved,
    condition,
    ended,
    mean_products,
    shifted,
)
from polytask.balancing.functional.lcp import PATIENCE, exchanged, solve_lcp
from polytask.balancing.functional.minnorm import min_norm

ROUNDS = 40
RIDGE = 1e-13
"""Added to the unit diagonal where rows depend on each other; its effect stays below the residual asked for."""
STATIONARY = 1e-7
"""Rows whose hull comes this close to zero, in units of the largest row, count as Pareto stationary."""


def cagrad(gramian: Any, c: float = 0.4, rescale: int = 0) -> Solved:
    r"""Weights of conflict-averse gradient descent.

    .. math:: d = \arg\max_{\|d - g_0\| \le c \|g_0\|} \min_i \langle g_i, d \rangle
              = g_0 + \frac{c \|g_0\|}{\|g_{w^*}\|} g_{w^*}, \quad
              w^* = \arg\min_{w \ge 0,\ \sum w = 1} \langle g_w, g_0 \rangle + c \|g_0\| \|g_w\|

    Where g_{w*} is zero (Pareto stationary points, zero rows) the worst case is at best zero and many
    directions reach it; the one nearest to g_0 is returned: its projection on ``{d : J d >= 0}``. That
    is also the limit of the formula.

    Args:
        gramian: Inner products ``[m, m]``.
        c: Radius of the ball in units of the mean gradient's norm, at least 0.
        rescale: 0 keeps d; 1 divides it by ``1 + c^2``; 2 divides it by ``1 + c``.

    Returns:
        Weights ``[m]`` (a zero row has the weight of the mean).

    Example:
        >>> cagrad([[1.0, 0.0], [0.0, 1.0]], c=0.5).weights.tolist()
        [0.75, 0.75]

    Reference:
        Liu et al. 2021, "Conflict-averse gradient descent for multi-task learning", algorithm 1.
    """
    parts = condition(gramian)
    divisor = (1.0, 1.0 + c * c, 1.0 + c)[rescale]
    mean = np.full(parts.total, 1.0 / parts.total)
    if len(parts.kept):
        target, size = mean_products(parts)
        if c > 0.0 and size > 0.0:
            added, residual = _multipliers(parts, target, c * size)
            weights = mean + parts.spread(added / parts.norms)
            return Solved(weights / divisor, ended(residual), residual)
    return Solved(mean / divisor)


def _multipliers(parts: Conditioned, target: Array, radius: float) -> tuple[Array, float]:
    """Multipliers of the unit rows ``[k]`` and the residual of the optimality conditions."""
    whole = len(parts.kept) == parts.total
    if not whole:
        # A zero row bounds the worst case by zero, which the nearest harmless direction reaches if it is in the ball.
        nearest = _nearest(parts, target, radius)
        if nearest is not None:
            return nearest
    for ridge in (0.0, RIDGE):
        found = exchange(parts, target, radius, ridge)
        if found is not None:
            return found
    nearest = _nearest(parts, target, radius) if whole and _stationary(parts) else None
    return nearest or _by_root(parts, target, radius)


def _nearest(parts: Conditioned, target: Array, radius: float) -> tuple[Array, float] | None:
    """Multipliers of the projection of g_0 on the cone without conflict; None if it lies outside of the ball."""
    found = solve_lcp(parts.cosines, target[None])
    point = found.points[0]
    inside = float(point @ parts.cosines @ point) <= radius * radius
    return (point, found.residual) if inside else None


def _stationary(parts: Conditioned) -> bool:
    """Whether the hull of the rows touches zero to working accuracy."""
    raw = parts.gramian()
    weights = min_norm(raw).weights
    return float(weights @ raw @ weights) <= (STATIONARY * float(parts.norms.min())) ** 2


def exchange(parts: Conditioned, target: Array, radius: float, ridge: float) -> tuple[Array, float] | None:
    """Exchange violators from a first guess; None if that stalls or fails the check."""
    ridged = parts if not ridge else parts._replace(cosines=parts.cosines + ridge * np.eye(len(target)))
    support = target / parts.norms <= np.median(target / parts.norms)
    fewest, patience = np.array([len(support) + 1]), np.array([PATIENCE])
    for _ in range(ROUNDS):
        solved = _on_support(ridged, target, radius, support)
        if solved is None:
            return None
        point, level = solved
        slack = parts.cosines @ point + target - level / parts.norms
        noise = _noise(point, target, level / parts.norms)
        wrong = np.where(support, point < -noise, slack < -noise)
        if not wrong.any():
            return _checked(parts, target, radius, np.maximum(point, 0.0), level)
        support = support ^ exchanged(wrong[None], fewest, patience)[0]
    return None


def _noise(point: Array, target: Array, level: Array) -> Array:
    """Round-off to expect in the slack of each row."""
    noise: Array = (16 * len(point) * EPS) * (np.abs(point).sum() + np.abs(target) + np.abs(level))
    return noise


def _on_support(parts: Conditioned, target: Array, radius: float, support: Mask) -> tuple[Array, float] | None:
    """Multipliers and level mu for a given support; None if its rows depend on each other.

    With p = C_S^-1 (1/n) and q = C_S^-1 b the multipliers are mu p - q, and mu is the larger root of
    ``mu^2 p'/n - 2 mu q'/n + q'b = radius^2``.
    """
    chosen = np.flatnonzero(support)
    if not len(chosen):
        return None
    inverse = 1.0 / parts.norms[chosen]
    local = target[chosen]
    _, both, info = dposv(parts.cosines.take(chosen, 0).take(chosen, 1), np.stack([inverse, local], axis=1))
    if info:
        return None
    ones, base = both[:, 0], both[:, 1]
    square = float(inverse @ ones)
    if not square > 0.0:
        return None
    centre = float(inverse @ base) / square
    # Written about the vertex, so that close roots lose no digits.
    rest = base - centre * ones
    spare = (radius * radius - float(rest @ local)) / square
    level = centre + math.sqrt(max(spare, 0.0))
    point = np.zeros(len(target))
    point[chosen] = (level - centre) * ones - rest
    return point, level


def _checked(
    parts: Conditioned, target: Array, radius: float, point: Array, level: float
) -> tuple[Array, float] | None:
    """The point and its residual, or None where it does not satisfy the optimality conditions."""
    image = parts.cosines @ point
    outside = abs(math.sqrt(max(float(point @ image), 0.0)) / radius - 1.0)
    gap = float(np.abs(np.minimum(image + target - level / parts.norms, point)).max()) / radius
    residual = max(outside, gap)
    return (point, residual) if residual <= 1e-10 else None


def _by_root(parts: Conditioned, target: Array, radius: float) -> tuple[Array, float]:
    """Find the point as a shortest vector: always ends, at the cost of a root search.

    With ``lambda = |g_w*| / radius`` the weights w* minimise ``|g_w + lambda g_0|`` on the simplex, and
    ``|g_w| / lambda`` falls as lambda grows.
    """
    count, raw = parts.total, parts.gramian()

    def excess(log_lambda: float) -> float:
        weights = min_norm(shifted(raw, math.exp(log_lambda))).weights
        length = math.sqrt(max(float(weights @ raw @ weights), 1e-300))
        return math.log(length / radius) - log_lambda

    high = math.log(1.0 / radius) + 1.0
    floor = high - 24.0
    low = high - 3.0
    # From above, since for the smallest lambda the length of g_w is round-off.
    while low > floor and excess(low) <= 0.0:
        high, low = low, low - 3.0
    if low <= floor:
        point = solve_lcp(parts.cosines, target[None]).points[0]
        length = math.sqrt(max(float(point @ parts.cosines @ point), 0.0))
        point = point * (radius / length) if length > radius else point
        return point, _root_residual(parts, target, radius, point)
    root = brentq(excess, low, high, xtol=1e-14, rtol=4 * EPS)
    weights = min_norm(shifted(raw, math.exp(root))).weights[parts.kept]
    point = weights * parts.norms / math.exp(root)
    exact = _on_support(parts, target, radius, point > 0.0) if len(parts.kept) == count else None
    polished = _checked(parts, target, radius, *exact) if exact is not None else None
    return polished or (point, _root_residual(parts, target, radius, point))


def _root_residual(parts: Conditioned, target: Array, radius: float, point: Array) -> float:
    """Duality gap of a direction: its worst product against the bound from its weights."""
    weights = point / parts.norms
    product = parts.norms * (parts.cosines @ point + target)
    length = math.sqrt(max(float(point @ parts.cosines @ point), 0.0))
    worst = min(float(product.min()), 0.0) if len(parts.kept) < parts.total else float(product.min())
    total = float(weights.sum())
    bound = (float(point @ target) + radius * length) / total if total > 0.0 else worst
    return max(abs(length / radius - 1.0), abs(bound - worst) / radius)
