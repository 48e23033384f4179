"""Conic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.balancing.functional.conic import conicgrad
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.gramian.solver import SolvedWeighting, check_number
from polytask.errors import BalancerError


class ConicGrad(SolvedWeighting):
    r"""The direction in a cone around the mean gradient whose worst task improves most.

    .. math:: d = \arg\max_d \min_i \langle g_i, d \rangle \ \text{ subject to } \
              \langle g_0, d \rangle \ge c\, \|g_0\| \|d\|, \quad \|d\| = \|g_0\|

    The paper bounds the angle and leaves the length open; here the update is as long as the mean gradient. Inside of
    the cone it is MGDA's direction. On its surface it is that of :math:`g_w + \lambda g_0`, with w from SDMGrad's
    problem and the smallest :math:`\lambda` that brings it into the cone. The problem is solved exactly in every step.

    Where no direction in the cone improves every task, the same formula goes on: the direction with the best worst
    case for one unit of progress along the mean gradient. So the update is zero only where the mean gradient is. With
    a zero gradient, and at Pareto stationary points where several directions are equally good, the one nearest to
    the mean gradient is taken.

    Args:
        c: Cosine of the half angle of the cone, above 0 and at most 1. 1 gives the mean gradient.

    Raises:
        BalancerError: for a ``c`` out of range.

    Example:
        >>> import torch
        >>> gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        >>> ConicGrad(c=0.9).weigh(gramian, None, ["a", "b"])
        tensor([0.4500, 0.8275], dtype=torch.float64)

    Reference:
        Hassanpour et al. 2025, "Fantastic multi-task gradient updates and how to find them in a cone", arXiv
        2502.00217, the constrained problem of the method.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        self.c = check_number("ConicGrad", "c", c, 0.0, strict=True)
        if self.c > 1.0:
            raise BalancerError(f"ConicGrad: c is a cosine, so at most 1; got {c!r}.")

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, none negative."""
        return conicgrad(gramian, self.c)
