"""The point of smallest norm in the hull of the gradients: MGDA and SDMGrad."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.balancing.functional.gramian import TINY, Array, Solved, ended, shifted
from polytask.balancing.functional.lcp import solve_lcp, solve_whole


def min_norm(gramian: Any) -> Solved:
    r"""Weights of the shortest vector in the convex hull of the rows.

    Adding a constant t to every entry of G changes ``w'Gw`` on the simplex by t alone, so that
    ``min w'Gw`` there equals the complementarity problem ``(G + t) v >= 1, v >= 0`` with w = v / sum(v).
    With t = min G_ii this stays well scaled even where the shortest vector is zero.

    Args:
        gramian: Inner products ``[m, m]``.

    Returns:
        Weights ``[m]``, not negative, with sum one. If rows are zero they share the weight equally:
        the shortest vector is zero then.

    Example:
        >>> min_norm([[1.0, 0.0], [0.0, 3.0]]).weights.round(12).tolist()
        [0.75, 0.25]

    Reference:
        Desideri 2012, "Multiple-gradient descent algorithm (MGDA)", definition of omega.
    """
    raw = np.asarray(gramian, dtype=np.float64)
    squares = raw.diagonal().tolist()
    largest, smallest = max(squares), min(squares)
    if not smallest > TINY * largest:
        zero = raw.diagonal() <= TINY * largest
        return Solved(zero / zero.sum())
    lifted = (0.5 / largest) * (raw + raw.T) + smallest / largest
    sizes = np.sqrt(lifted.diagonal())
    matrix = lifted / sizes / sizes[:, None]
    offset = -1.0 / sizes
    found = solve_whole(matrix, offset)
    if found is None:
        found = solve_lcp(matrix, offset[None], start=np.ones((1, len(offset)), dtype=bool))
    values = found.points[0] / sizes
    return Solved(values / values.sum(), ended(found.residual), found.residual)


def mgda(gramian: Any, losses: Any = None, normalize: str = "none") -> Solved:
    r"""Weights of the multiple-gradient descent algorithm.

    .. math:: w^* = \arg\min_{w \ge 0,\ \sum w = 1} \Big\| \sum_i \frac{w_i}{n_i} g_i \Big\|^2

    where n_i is 1 (``none``), the norm of g_i (``l2``), the loss L_i (``loss``) or their product
    (``loss_norm``). The weights then apply to the gradients as they are, as the authors' code does.

    Args:
        gramian: Inner products ``[m, m]``.
        losses: Losses ``[m]``, not negative; read by ``loss`` and ``loss_norm`` only.
        normalize: One of ``none``, ``l2``, ``loss``, ``loss_norm``.

    Returns:
        Weights ``[m]`` on the simplex. A zero row makes every point with all its weight on zero rows
        a solution, and they share it equally. A loss of zero stands for an infinitely long row: its
        weight is zero, unless all are zero, which counts as ``none``.

    Example:
        >>> mgda([[1.0, 0.0], [0.0, 4.0]], normalize="l2").weights.round(12).tolist()
        [0.5, 0.5]

    Reference:
        Sener and Koltun 2018, "Multi-task learning as multi-objective optimization", the minimum-norm problem.
    """
    raw = np.asarray(gramian, dtype=np.float64)
    units = np.ones(len(raw))
    if normalize in ("l2", "loss_norm"):
        norms = np.sqrt(np.maximum(raw.diagonal(), 0.0))
        units = np.where(norms > 0.0, norms, 1.0)
    if normalize in ("loss", "loss_norm"):
        given = np.asarray(losses, dtype=np.float64)
        positive = given > 0.0
        if positive.any():
            units = units[positive] * (given[positive] / given.max())
            found = min_norm(_divided(raw[np.ix_(positive, positive)], units))
            weights = np.zeros(len(raw))
            weights[positive] = found.weights
            return found._replace(weights=weights)
    return min_norm(_divided(raw, units))


def _divided(gramian: Array, units: Array) -> Array:
    """Gramian of the rows divided by ``units``."""
    return gramian / units / units[:, None]


def sdmgrad(gramian: Any, lambda_: float = 0.3, scaled: bool = False) -> Solved:
    r"""Weights of direction-oriented multi-objective descent, with the inner problem solved exactly.

    .. math:: w^* = \arg\min_{w \ge 0,\ \sum w = 1} \| g_w + \lambda g_0 \|^2, \qquad d = g_{w^*} + \lambda g_0

    Since the w_i sum to one, ``g_w + lambda g_0`` is a point in the hull of the rows
    ``g_i + lambda g_0``: the shortest one.

    Args:
        gramian: Inner products ``[m, m]``.
        lambda_: Weight of the mean gradient, at least 0; 0 is MGDA.
        scaled: Divide by ``1 + lambda``, so that the weights sum to one.

    Returns:
        Weights ``[m]``, sum ``1 + lambda`` (one if ``scaled``). A zero row needs no special answer: it
        counts in the mean, and its shifted row is ``lambda g_0``.

    Example:
        >>> sdmgrad([[1.0, 0.0], [0.0, 1.0]], lambda_=1.0).weights.round(12).tolist()
        [1.0, 1.0]

    Reference:
        Xiao et al. 2023, "Direction-oriented multi-objective learning", the direction-oriented subproblem.
    """
    raw = np.asarray(gramian, dtype=np.float64)
    largest = float(raw.diagonal().max())
    found = min_norm(shifted(raw / (largest if largest > 0.0 else 1.0), lambda_))
    weights = found.weights + lambda_ / len(raw)
    return found._replace(weights=weights / (1.0 + lambda_) if scaled else weights)
