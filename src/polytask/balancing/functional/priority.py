"""Priority-constrained descent: follow one gradient, and grant every other task a share of progress."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.balancing.functional.gramian import EPS, Array, Solved, condition, ended
from polytask.balancing.functional.lcp import solve_lcp
from polytask.balancing.functional.minnorm import min_norm

CONTRADICTION = 1e-7
"""Unit rows whose hull comes this close to zero ask for progress in directions that exclude each other."""


def pcd(gramian: Any, primary: int = 0, tau: float = 0.02, scales: Any = None) -> Solved:
    r"""Weights of priority-constrained descent.

    .. math:: \tilde d = \arg\min_d \| d - s_p g_p \|^2 \ \text{ subject to } \
              \langle s_j g_j, d \rangle \ge \tau \| s_j g_j \|^2 \text{ for } j \ne p,
              \qquad d = \frac{\|g_p\|}{\|\tilde d\|} \tilde d

    The multipliers solve a linear complementarity problem in the cosines of the other gradients.

    Args:
        gramian: Inner products ``[m, m]``.
        primary: Position p of the task that has priority.
        tau: Share of its own normalised progress that each other task is granted, from 0 to 1.
        scales: s, above zero, shape ``[m]``; by default one over the norms.

    Returns:
        Weights ``[m]``, none negative; the update has the norm of the primary gradient. Zero weights if the
        primary gradient, or the constrained direction, is zero. If the constraints contradict each other
        (status ``infeasible``) they are dropped and the update is the primary gradient. Another zero row
        has weight 0 and no constraint.

    Example:
        >>> pcd([[1.0, 0.0], [0.0, 4.0]], tau=1.0).weights.round(4).tolist()
        [0.7071, 0.3536]

    Reference:
        "Not all objectives are born equal: priority-constrained descent for hierarchical multi-objective
        optimization", arXiv 2606.29521.
    """
    parts = condition(gramian)
    place = np.flatnonzero(parts.kept == primary)
    if not len(place):
        return Solved(np.zeros(parts.total))
    first = int(place[0])
    sizes = np.ones(len(parts.kept))
    if scales is not None:
        sizes = np.asarray(scales, dtype=np.float64)[parts.kept] * parts.norms
        sizes = sizes / sizes[first]
    others = np.flatnonzero(np.arange(len(parts.kept)) != first)
    point = np.zeros(len(parts.kept))
    point[first] = 1.0
    solved = _multipliers(parts.cosines[others[:, None], others], parts.cosines[others, first], tau * sizes[others])
    point[others] = solved.weights
    square = float(point @ parts.cosines @ point)
    noise = 16 * EPS * len(point) * float(point.sum()) ** 2
    length = np.sqrt(square) if square > noise else np.inf
    return solved._replace(weights=parts.spread(point * parts.norms[first] / parts.norms / length))


def _multipliers(cosines: Array, onto_first: Array, wanted: Array) -> Solved:
    """Multipliers of the unit rows of the other tasks, for a primary gradient of norm one."""
    slack = onto_first - wanted
    if not (slack < 0.0).any():
        return Solved(np.zeros(len(slack)))
    found = solve_lcp(cosines, slack[None])
    # Contradicting constraints have no solution, or by round-off one with huge multipliers.
    if found.residual > 1e-9 or float(found.points.max()) * CONTRADICTION > 1.0:
        weights = min_norm(cosines).weights
        if (wanted > 0.0).any() and float(weights @ cosines @ weights) <= CONTRADICTION**2:
            return Solved(np.zeros(len(slack)), "infeasible")
    return Solved(found.points[0], ended(found.residual), found.residual)
