"""Aggregation that a few wild gradients cannot carry away, and sign agreement per coordinate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polytask.balancing.functional.gramian import Array

# Scores closer than this share of the largest squared norm differ by rounding only.
_TIE = 1e-12


def krum_weights(gramian: Array, n_byzantine: int = 0, n_selected: int = 1) -> Array:
    r"""Weights of (Multi-)Krum: the mean of the gradients that lie nearest to their neighbours.

    The score of gradient i is the sum of SQUARED distances to its :math:`m - f - 2` nearest others, with
    :math:`|g_i - g_j|^2 = G_{ii} + G_{jj} - 2 G_{ij}`. The ``n_selected`` lowest scores are kept.

    Args:
        gramian: Inner products of the gradients, float64, shape ``[m, m]``.
        n_byzantine: f, how many gradients may be wild.
        n_selected: How many to keep; at most m are.

    Returns:
        Weights with sum 1, shape ``[m]``. Rows that tie at the cut share what is left of the sum, so that
        the answer does not depend on the rows' order. Where fewer than f + 3 rows are given, the single
        nearest neighbour is scored; one row has weight 1. A zero row is a gradient like any other.

    Example:
        >>> krum_weights(np.outer([1.0, 1.1, 1.3, 9.0], [1.0, 1.1, 1.3, 9.0]), n_byzantine=1)
        array([0.5, 0.5, 0. , 0. ])

    Reference:
        Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, the Krum function.
    """
    count = len(gramian)
    squares = np.diagonal(gramian)
    distances = np.maximum(squares[:, None] + squares - gramian - gramian.T, 0.0)
    np.fill_diagonal(distances, np.inf)
    neighbours = min(max(count - n_byzantine - 2, 1), count - 1)
    scores = np.sort(distances, axis=1)[:, :neighbours].sum(1)
    selected = min(n_selected, count)
    cut, tolerance = np.sort(scores)[selected - 1], _TIE * float(squares.max(initial=0.0))
    below, level = scores < cut - tolerance, np.abs(scores - cut) <= tolerance
    share = (selected - below.sum()) / level.sum()
    result: Array = (below + share * level) / selected
    return result


def trimmed_mean(jacobian: Tensor, trim: int = 1) -> Tensor:
    r"""The mean of each coordinate without its ``trim`` smallest and ``trim`` largest values.

    Args:
        jacobian: One gradient a row, shape ``[m, n]``.
        trim: How many values to leave out at each end; at most :math:`\lfloor (m - 1) / 2 \rfloor` are,
            which is the median.

    Returns:
        Direction, shape ``[n]``, in the Jacobian's dtype; the sum is formed in float32 or better.

    Example:
        >>> trimmed_mean(torch.tensor([[1.0, -9.0], [2.0, 3.0], [90.0, 4.0]]), trim=1)
        tensor([2., 3.])

    Reference:
        Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, the coordinate-wise trimmed mean.
    """
    count = len(jacobian)
    trim = min(trim, (count - 1) // 2)
    rows = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
    middle = rows.sort(dim=0).values[trim : count - trim] if trim else rows
    return middle.mean(dim=0).to(jacobian.dtype)


def graddrop(jacobian: Tensor, uniform: Tensor, leak: Tensor | float = 0.0) -> Tensor:
    r"""One sign kept per coordinate, drawn by how much of it the gradients agree on.

    .. math::
        P = \tfrac12 \left(1 + \frac{\sum_i g_i}{\sum_i |g_i|}\right), \qquad
        M_i = [g_i > 0][P > U] + [g_i < 0][P < U], \qquad
        d = \sum_i (l_i + (1 - l_i) M_i)\, g_i

    Args:
        jacobian: One gradient a row, shape ``[m, n]``.
        uniform: U in (0, 1), shape ``[n]``.
        leak: l in [0, 1], how much of a row passes undropped: one number, or shape ``[m]``.

    Returns:
        Direction, shape ``[n]``, in the Jacobian's dtype. A coordinate where all gradients are 0 is 0.

    Example:
        >>> rows = torch.tensor([[3.0, 1.0], [-1.0, 2.0]])
        >>> graddrop(rows, torch.tensor([0.5, 0.5])), graddrop(rows, torch.tensor([0.9, 0.5]))
        (tensor([3., 3.]), tensor([-1.,  3.]))

    Reference:
        Chen et al., Just Pick a Sign, NeurIPS 2020, Algorithm 1.
    """
    rows = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
    positive, negative = rows.clamp(min=0.0), rows.clamp(max=0.0)
    above, below = positive.sum(0), negative.sum(0)
    size = above - below
    agreement = above / torch.where(size > 0, size, 1.0)
    passed = torch.as_tensor(leak, dtype=rows.dtype, device=rows.device).expand(len(rows))
    held = 1.0 - passed
    kept = torch.where(agreement > uniform, held @ positive, 0.0) + torch.where(
        agreement < uniform, held @ negative, 0.0
    )
    return (passed @ rows + kept).to(jacobian.dtype)
