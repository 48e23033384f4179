r"""Conic gradient descent: the best worst case in a circular cone around the mean gradient.

The direction is that of the shortest vector ``g_w + lambda g_0`` in the hull of the rows moved towards the mean,
for the smallest lambda at which it lies in the cone. Write a direction on the cone's surface as
``d = u + t`` with u the unit mean gradient and t orthogonal to it, ``|t| = T``. Then the products are
``<g_i, d> = p_i + <q_i, t>`` with ``p_i = <g_i, u>`` and ``q_i = g_i - p_i u``: the problem of CAGrad with other
offsets, and its exchange of violators finds the support.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq

from polytask.balancing.functional.cagrad import STATIONARY, exchange
from polytask.balancing.functional.cone import dualproj
from polytask.balancing.functional.gramian import EPS, Array, Solved, condition, ended, mean_products, shifted
from polytask.balancing.functional.minnorm import min_norm

CONE_TOLERANCE = 1e-9
"""How far outside of the cone, in its cosine, a direction from a root search still counts as inside."""
NOISY = 1e-4
"""A sum this short beside its terms has lost half of its digits: the cosine jumped there from a sum of zero."""
JUMPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Steps in log lambda behind a jump of the cosine."""


def conicgrad(gramian: Any, c: float = 0.5) -> Solved:
    r"""Weights of the direction in a cone around the mean gradient whose worst task improves most.

    .. math:: d = \arg\max_{\langle g_0, d\rangle \ge c \|g_0\| \|d\|,\ \|d\| = \|g_0\|} \min_i \langle g_i, d \rangle

    Where no direction in the cone improves every task, the one with the best worst case for one unit of progress
    along g_0 is returned. Both are the direction of ``g_w + lambda g_0`` with w from SDMGrad's problem and the
    smallest ``lambda >= 0`` that brings it into the cone.

    Args:
        gramian: Inner products ``[m, m]``.
        c: Cosine of the half angle of the cone, above 0 and at most 1; 1 gives the mean.

    Returns:
        Weights ``[m]``, none negative; the update is as long as the mean gradient.

    Example:
        >>> conicgrad([[1.0, 0.0], [0.0, 1.0]], c=0.5).weights.round(12).tolist()
        [0.5, 0.5]

    Reference:
        Hassanpour et al. 2025, "Fantastic multi-task gradient updates and how to find them in a cone", the
        constrained problem of the method.
    """
    parts = condition(gramian)
    mean = np.full(parts.total, 1.0 / parts.total)
    if not len(parts.kept) or c >= 1.0 or not mean_products(parts)[1] > 0.0:
        return Solved(mean)
    raw = parts.gramian()
    onto_mean = raw.mean(axis=1)
    size = math.sqrt(float(onto_mean.mean()))
    # Nearly always the answer; that it is one can be seen from it, where its worst task improves.
    surface, pull = _on_surface(raw, onto_mean / size, size, c)
    if surface is not None and pull >= 0.0 and _improves(raw, surface.weights):
        return surface
    cosine, found = _cosine(raw, onto_mean, min_norm(raw))
    if cosine >= c:
        return _as_long(found, raw, size)
    if cosine < -1.0:
        # At Pareto stationary points small lambdas project the mean gradient on the harmless directions.
        cosine, projected = _cosine(raw, onto_mean, dualproj(raw))
        if cosine >= c:
            return _as_long(projected, raw, size)
    return surface if surface is not None else _as_long(_by_root(raw, onto_mean, c), raw, size)


def _cosine(raw: Array, onto_mean: Array, found: Solved) -> tuple[float, Solved]:
    """Cosine of a weighted sum and the mean gradient; -2 for a sum that is zero up to round-off."""
    weights = found.weights
    length = math.sqrt(max(float(weights @ raw @ weights), 0.0))
    longest = float(weights @ np.sqrt(raw.diagonal()))
    if length <= STATIONARY * longest:
        return -2.0, found
    return float(weights @ onto_mean) / (length * math.sqrt(float(onto_mean.mean()))), found


def _as_long(found: Solved, raw: Array, size: float) -> Solved:
    """The weights scaled so that their sum of rows has the norm ``size``."""
    length = math.sqrt(max(float(found.weights @ raw @ found.weights), 0.0))
    return found._replace(weights=found.weights * (size / length)) if length > 0.0 else found


def _improves(raw: Array, weights: Array) -> bool:
    """Whether the sum of rows has a positive product with every row, beyond round-off."""
    products, lengths = raw @ weights, np.sqrt(raw.diagonal())
    return bool((products > CONE_TOLERANCE * lengths * float(weights @ lengths)).all())


def _on_surface(raw: Array, along: Array, size: float, c: float) -> tuple[Solved | None, float]:
    """The best direction on the cone's surface, by an exchange of violators, and the weight of g_0 in it.

    None if that fails. Where the weight of g_0 is negative, a direction inside of the cone is better.
    """
    count = len(raw)
    radius = math.sqrt(1.0 - c * c) / c
    across = condition(raw - along * along[:, None])
    # A row that has no part across the axis but round-off would enter with a direction of noise.
    if len(across.kept) < count or float(across.norms.min()) * across.scale < 1e-6 * math.sqrt(float(raw.max())):
        return None, 0.0
    units = across.scale * across.norms
    target = along / units
    for ridge in (0.0, 1e-13):
        solved = exchange(across, target, radius, ridge)
        if solved is None:
            continue
        point, residual = solved
        added = point / units
        pull = (1.0 - float(added @ along)) / size
        weights = size * c * (added + pull / count)
        if float(weights.min()) >= -64 * EPS * float(np.abs(weights).max()):
            return Solved(np.maximum(weights, 0.0), ended(residual), residual), pull
    return None, 0.0


def _by_root(raw: Array, onto_mean: Array, c: float) -> Solved:
    """Search for the smallest lambda that brings the shortest vector into the cone: slower, but always ends."""

    def excess(log_lambda: float) -> float:
        return _cosine(raw, onto_mean, _moved(raw, log_lambda))[0] - c

    low, high = math.log(STATIONARY), 1.0
    while excess(high) < 0.0 and high < 40.0:
        high += 2.0
    bracketed = excess(low) < 0.0 <= excess(high)
    root = brentq(excess, low, high, xtol=1e-14, rtol=4 * EPS) if bracketed else low if excess(low) >= 0.0 else high
    found, outside = _moved(raw, root), max(-excess(root), 0.0)
    square = float(found.weights @ raw @ found.weights)
    if outside > CONE_TOLERANCE or square < (NOISY * float(found.weights @ np.sqrt(raw.diagonal()))) ** 2:
        root = _behind(raw, root)
        found, outside = _moved(raw, root), max(-excess(root), 0.0)
    return found._replace(status=ended(max(found.residual, outside)), residual=max(found.residual, outside))


def _moved(raw: Array, log_lambda: float) -> Solved:
    """Weights of the shortest vector ``g_w + lambda g_0``."""
    amount = math.exp(log_lambda)
    found = min_norm(shifted(raw, amount))
    return found._replace(weights=found.weights + amount / len(raw))


def _behind(raw: Array, jump: float) -> float:
    """A log lambda behind a jump of the cosine from a sum that is zero.

    While the support stays, the sum grows from zero in one direction: the farther, the more digits it has.
    """
    near, least = jump + JUMPS[-1], math.exp(jump) / len(raw)
    support = _moved(raw, near).weights > least * (1.0 + 2.0 * JUMPS[-1])
    for step in JUMPS:
        if np.array_equal(_moved(raw, jump + step).weights > least * math.exp(step) * (1.0 + 1e-12), support):
            return jump + step
    return near
