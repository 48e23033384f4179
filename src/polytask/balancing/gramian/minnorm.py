"""The shortest vector in the hull of the gradients: MGDA and SDMGrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.functional.minnorm import mgda, sdmgrad
from polytask.balancing.gramian.solver import SolvedWeighting, check_choice, check_number
from polytask.errors import BalancerError

NORMALIZE = ("none", "l2", "loss", "loss_norm")


class MGDA(SolvedWeighting):
    r"""Multiple-gradient descent: the shortest vector in the hull of the gradients.

    .. math:: w^* = \arg\min_{w \ge 0,\ \sum w = 1} \Big\| \sum_i \frac{w_i}{n_i} g_i \Big\|^2,
              \qquad d = \sum_i w_i^* g_i

    With ``normalize="none"`` the update is zero exactly at Pareto stationary points and otherwise lowers
    every loss: ``<g_i, d> >= |d|^2``. The weights are unique only if the gradients are affinely
    independent; the update always is. The other modes divide the gradients by n_i for the weights only, as
    the authors' code does, and lose these promises.

    A zero gradient is itself Pareto stationary: zero rows share the whole weight and the update is zero.

    Args:
        normalize: n_i is 1 (``none``), the norm of g_i (``l2``), the loss L_i (``loss``) or ``L_i |g_i|``
            (``loss_norm``). A task whose loss is zero gets weight zero in the last two.

    Raises:
        BalancerError: for an unknown mode, and in a step whose losses are unknown or negative in a mode
            that divides by them.

    Example:
        >>> import torch
        >>> MGDA().weigh(torch.diag(torch.tensor([1.0, 4.0]).double()), None, ["a", "b"])
        tensor([0.8000, 0.2000], dtype=torch.float64)

    Reference:
        Desideri 2012, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization"; Sener and
        Koltun 2018, "Multi-task learning as multi-objective optimization", equation 3.
    """

    traits: ClassVar[frozenset[str]] = SolvedWeighting.traits | {
        "non_conflicting",
        "scale_equivariant",
        "pareto_fixed_points",
    }

    def __init__(self, normalize: str = "none") -> None:
        super().__init__()
        check_choice("MGDA", "normalize", normalize, NORMALIZE)
        self.normalize = normalize

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights on the simplex, ``[p]``."""
        if self.normalize in ("loss", "loss_norm"):
            self._check(losses, tasks)
        return mgda(gramian, losses, self.normalize)

    def _check(self, losses: Array | None, tasks: Sequence[str]) -> None:
        if losses is None:
            raise BalancerError(f"MGDA with normalize='{self.normalize}' needs the losses. Use 'none' or 'l2'.")
        for task, loss in zip(tasks, losses, strict=True):
            if not (loss >= 0.0 and np.isfinite(loss)):
                raise BalancerError(
                    f"MGDA with normalize='{self.normalize}' divides by the losses, but that of '{task}' is "
                    f"{loss:g}. Use 'none' or 'l2' for losses that can be negative."
                )


class SDMGrad(SolvedWeighting):
    r"""Direction-oriented descent: the shortest vector in a hull moved towards the mean gradient.

    .. math:: w^* = \arg\min_{w \ge 0,\ \sum w = 1} \| g_w + \lambda g_0 \|^2, \qquad d = g_{w^*} + \lambda g_0

    The inner problem is solved exactly, from one batch. The paper's stochastic form instead takes
    projected gradient steps on w with two independent batches. A zero row counts in the mean gradient.

    Args:
        lambda_: Weight of the mean gradient; 0 is MGDA, and large values approach a multiple of the mean.
        scaled: Divide the update by ``1 + lambda``, so that the weights sum to one.

    Raises:
        BalancerError: for a negative ``lambda_``.

    Example:
        >>> import torch
        >>> SDMGrad(lambda_=1.0, scaled=True).weigh(torch.eye(2, dtype=torch.float64), None, ["a", "b"])
        tensor([0.5000, 0.5000], dtype=torch.float64)

    Reference:
        Xiao et al. 2023, "Direction-oriented multi-objective learning: simple and provable stochastic
        algorithms", the direction-oriented subproblem of algorithm 1.
    """

    traits: ClassVar[frozenset[str]] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, lambda_: float = 0.3, scaled: bool = False) -> None:
        super().__init__()
        self.lambda_ = check_number("SDMGrad", "lambda", lambda_, 0.0)
        self.scaled = scaled

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, sum ``1 + lambda``, or one if scaled."""
        return sdmgrad(gramian, self.lambda_, self.scaled)
