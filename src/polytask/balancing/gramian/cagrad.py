"""Conflict-averse gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.balancing.functional.cagrad import cagrad
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.gramian.solver import SolvedWeighting, check_choice, check_number


class CAGrad(SolvedWeighting):
    r"""The direction near the mean gradient whose worst task improves most.

    .. math:: d = \arg\max_{\|d - g_0\| \le c \|g_0\|} \min_i \langle g_i, d \rangle

    For ``c < 1`` the update is zero only where the mean gradient is. Near Pareto stationary points, and
    with a zero gradient, several directions can be equally good; the one nearest to the mean is taken,
    which is the limit of the formula.

    Args:
        c: Radius of the ball in units of the mean gradient's norm. 0 gives the mean; at 1 and above the
            update can vanish at Pareto stationary points, as that of MGDA.
        rescale: 0 keeps the update, as the paper; 1 divides it by ``1 + c^2`` and 2 by ``1 + c``, two
            variants of the authors' code.

    Raises:
        BalancerError: for a negative ``c`` or another ``rescale``.

    Example:
        >>> import torch
        >>> CAGrad(c=0.5).weigh(torch.eye(2, dtype=torch.float64), None, ["a", "b"])
        tensor([0.7500, 0.7500], dtype=torch.float64)

    Reference:
        Liu et al. 2021, "Conflict-averse gradient descent for multi-task learning", algorithm 1.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, c: float = 0.4, rescale: int = 0) -> None:
        super().__init__()
        self.c = check_number("CAGrad", "c", c, 0.0)
        check_choice("CAGrad", "rescale", rescale, (0, 1, 2))
        self.rescale = rescale

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, none negative."""
        return cagrad(gramian, self.c, self.rescale)
