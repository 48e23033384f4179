"""Methods that take two independent samples of the gradients in every step: MoDo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balancing.base import GramianWeighting
from polytask.balancing.functional.simplex_projection import simplex_step
from polytask.balancing.gramian.sampling import need_cross, step_known
from polytask.balancing.gramian.solver import check_number
from polytask.balancing.loss.common import present, store


class MoDo(GramianWeighting):
    r"""Double sampling: weights that descend on the simplex by the gradients of two independent half batches.

    With :math:`J_1` and :math:`J_2` from the two halves of the step's rows and :math:`\lambda = 1/m` at the start,

    .. math::
        \lambda \leftarrow \Pi_\Delta\big(\lambda - \gamma (J_1 J_2^T + \rho I) \lambda\big), \qquad
        d = \sum_i \lambda_i g_i

    The product of two independent samples is right on average, where a Gramian of one sample is too large by its
    noise. The update takes the gradients :math:`g_i` of all rows of the step, the two halves together. The
    projection is exact.

    :math:`\gamma` has the units of one over a squared gradient: the method is not free of scale, and with large
    gradients the weights jump between corners. A zero gradient draws weight, as in MGDA. Absent tasks keep their
    weight; the update uses the others' scaled to sum 1. So does, in the weights' step, a task whose labels all
    lie in one half.

    Args:
        gamma: Step size of the weights.
        rho: Weight of the penalty on :math:`|\lambda|^2 / 2`.

    Raises:
        BalancerError: for a negative option, or without a second half.

    Example:
        >>> method = MoDo(gamma=0.1)
        >>> method.setup(["a", "b"])
        >>> cross = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> method.weigh(torch.eye(2, dtype=torch.float64), None, ["a", "b"], cross=cross)
        tensor([0.5500, 0.4500], dtype=torch.float64)

    Reference:
        Chen et al. 2024, "Three-way trade-off in multi-objective learning: optimization, generalization and
        conflict-avoidance", JMLR, the MoDo algorithm; with two samples a step as in the authors' programs.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "permutation_equivariant", "stateful"})
    halves: bool = True
    weights: Tensor

    def __init__(self, gamma: float = 0.1, rho: float = 0.0) -> None:
        super().__init__()
        self.gamma = check_number("MoDo", "gamma", gamma, 0.0)
        self.rho = check_number("MoDo", "rho", rho, 0.0)

    def build_state(self, count: int) -> None:
        """Equal weights."""
        self.register_buffer("weights", torch.full((count,), 1.0 / count, dtype=torch.float64))

    def weigh(
        self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str], *, cross: Tensor | None = None
    ) -> Tensor:
        """The weight of each present task's gradient; takes one step of the weights.

        Args:
            gramian: Its numbers are not used.
            losses: Not used.
            tasks: Names of the present tasks.
            cross: Products of the first half's gradients with the second's, ``[p, p]``.

        Returns:
            Weights ``[p]`` with sum 1, float64.
        """
        crossed = need_cross("MoDo", cross)
        old = present(self, self.weights, tasks, crossed)
        moved = step_known(old, crossed, lambda shares, matrix: simplex_step(shares, matrix, self.gamma, self.rho))
        store(self, self.weights, tasks, moved)
        total = moved.sum()
        return moved / total if float(total) > 0.0 else torch.full_like(moved, 1.0 / len(tasks))
