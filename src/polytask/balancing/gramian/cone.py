"""Projections on the cone of directions that conflict with no gradient: UPGrad and DualProj."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.balancing.functional.cone import dualproj, upgrad
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.gramian.solver import SolvedWeighting


class UPGrad(SolvedWeighting):
    r"""The mean of the gradients, each first projected so that it conflicts with none.

    .. math:: d = \frac1m \sum_i \pi_J(g_i), \qquad \pi_J(x) = \arg\min_{J d \ge 0} \| d - x \|^2

    ``<g_i, d> >= 0`` for every task. Multiplying one gradient by a constant multiplies its own projection
    alone. A zero gradient adds nothing and restricts nothing; it counts in m.

    Example:
        >>> import torch
        >>> UPGrad().weigh(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]).double(), None, ["a", "b"])
        tensor([0.7500, 0.7500], dtype=torch.float64)

    Reference:
        Quinton and Rey 2024, "Jacobian descent for multi-objective optimization", the
        definition of A_UPGrad.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"non_conflicting", "scale_equivariant"}

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, each at least ``1/p``."""
        return upgrad(gramian)


class DualProj(SolvedWeighting):
    r"""The mean gradient, projected so that it conflicts with none.

    .. math:: d = \arg\min_{J d \ge 0} \| d - g_0 \|^2

    Where the mean already conflicts with no task it is the update. A zero gradient counts in the mean and
    restricts nothing.

    Example:
        >>> import torch
        >>> DualProj().weigh(torch.tensor([[1.0, -2.0], [-2.0, 4.5]]).double(), None, ["a", "b"])
        tensor([1.0000, 0.5000], dtype=torch.float64)

    Reference:
        Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning", the dual
        quadratic program of the projection.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"non_conflicting", "scale_equivariant"}

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, each at least ``1/p``."""
        return dualproj(gramian)
