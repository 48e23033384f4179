"""Bargaining solutions: Nash-MTL and FairGrad."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.balancing.functional.barrier import fairgrad, nash_mtl
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.gramian.solver import SolvedWeighting, check_number


class NashMTL(SolvedWeighting):
    r"""The Nash bargaining solution: each task's weight is one over its own progress.

    .. math:: G a = 1 / a \text{ entrywise}, \quad a > 0

    The update has norm ``sqrt(m)`` at any scale of the gradients (m tasks present), and improves every task.

    There is no solution at Pareto stationary points: the weights of the shortest vector in the hull are
    taken, whose update is zero there. A zero gradient leaves the problem with weight zero. Both give a
    BalancerWarning.

    Args:
        normalize: Solve with G divided by its Frobenius norm, as the authors' code does: the same direction,
            ``sqrt(|G|_F)`` times as long, so that the update scales with the gradients.

    Example:
        >>> import torch
        >>> NashMTL().weigh(torch.diag(torch.tensor([4.0, 1.0]).double()), None, ["a", "b"])
        tensor([0.5000, 1.0000], dtype=torch.float64)

    Reference:
        Navon et al. 2022, "Multi-task learning as a bargaining game", claim 3.1.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"non_conflicting", "scale_invariant"}

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, above zero where the gradient is not zero."""
        return nash_mtl(gramian, self.normalize)


class FairGrad(SolvedWeighting):
    r"""The alpha-fair direction: from the plain sum of progress to the worst task's.

    .. math:: G w = w^{-1/\alpha} \text{ entrywise}, \quad w > 0

    alpha = 1 is Nash-MTL. Every task improves. The update is ``s^((1 - alpha) / (1 + alpha))`` times as long
    when all gradients are s times as long. Pareto stationary points and zero gradients as in NashMTL.

    Args:
        alpha: Fairness, above 0; larger values help the task that improves least.

    Raises:
        BalancerError: for an ``alpha`` of 0 or below.

    Example:
        >>> import torch
        >>> FairGrad(alpha=1.0).weigh(torch.diag(torch.tensor([16.0, 1.0]).double()), None, ["a", "b"])
        tensor([0.2500, 1.0000], dtype=torch.float64)

    Reference:
        Ban and Ji 2024, "Fair resource allocation in multi-task learning", equation 4.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"non_conflicting"}

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = check_number("FairGrad", "alpha", alpha, 0.0, strict=True)

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, above zero where the gradient is not zero."""
        return fairgrad(gramian, self.alpha)
