"""Projection on the simplex, and the projected gradient step on task weights built on it."""

from __future__ import annotations

import torch
from torch import Tensor


def project_onto_simplex(point: Tensor) -> Tensor:
    r"""The nearest point of :math:`\{w \ge 0, \sum_i w_i = 1\}`, exactly.

    The projection is :math:`\max(x - \theta, 0)` with the one :math:`\theta` that makes the sum 1. It is
    found from the sorted entries: the largest k with :math:`x_{(k)} > (\sum_{i \le k} x_{(i)} - 1) / k`.

    Args:
        point: Shape ``[m]``.

    Returns:
        Weights, shape ``[m]``, same dtype.

    Example:
        >>> project_onto_simplex(torch.tensor([0.9, 0.5, -3.0]))
        tensor([0.7000, 0.3000, 0.0000])

    Reference:
        Held, Wolfe and Crowder, Validation of subgradient optimization, 1974, projection on the simplex.
    """
    # Adding a number to all entries changes nothing; with the largest at 0 the sums do not cancel.
    shifted = point - point.max()
    ordered = shifted.sort(descending=True).values
    places = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    thresholds = (ordered.cumsum(0) - 1.0) / places
    support = (ordered > thresholds).sum()
    return (shifted - thresholds[support - 1]).clamp(min=0.0)


def simplex_step(weights: Tensor, matrix: Tensor, rate: Tensor | float, rho: float = 0.0) -> Tensor:
    r"""One projected gradient step: :math:`\Pi(w - \gamma (M + \rho I) w)`.

    With the Gramian of the gradients as M this is MoCo's step; with the product
    :math:`J_1 J_2^T` of the Jacobians of two independent batches it is MoDo's.

    Args:
        weights: On the simplex, shape ``[m]``.
        matrix: M, shape ``[m, m]``.
        rate: Step size gamma, in units of 1 / |g|^2.
        rho: Weight of the penalty rho |w|^2 / 2.

    Returns:
        New weights on the simplex, shape ``[m]``.

    Example:
        >>> simplex_step(torch.tensor([0.5, 0.5]), torch.diag(torch.tensor([1.0, 3.0])), rate=0.1)
        tensor([0.5500, 0.4500])

    Reference:
        Fernando et al., Mitigating Gradient Bias in Multi-objective Learning, ICLR 2023, the weights' step of MoCo;
        Chen et al., Three-Way Trade-Off in Multi-Objective Learning, JMLR 2024, the MoDo algorithm.
    """
    return project_onto_simplex(weights - rate * (matrix @ weights + rho * weights))
