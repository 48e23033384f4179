"""The shortest vector in the hull of the gradients: MGDA and SDMGrad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.functional.minnorm import mgda, sdmgrad
from polytask.balancing.functional.simplex_projection import project_onto_simplex
from polytask.balancing.gramian.sampling import need_cross, step_known
from polytask.balancing.gramian.solver import SolvedWeighting, check_choice, check_number
from polytask.balancing.loss.common import present, store
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
        Koltun 2018, "Multi-task learning as multi-objective optimization", the minimum-norm problem.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {
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

    The inner problem is solved exactly, from one batch. With ``sampled`` it is the paper's stochastic form: the
    w are kept from step to step and take ``n_steps`` projected gradient steps

    .. math:: w \leftarrow \Pi_\Delta\Big(w - \frac{\gamma}{s^2} J_1 J_2^T (w + \lambda / m)\Big)

    with :math:`J_1`, :math:`J_2` from two independent halves of the step's rows, both the same in all inner steps.
    s is the mean norm of the gradients of all rows; it frees :math:`\gamma` of their scale, as in the authors'
    programs (whose steps have momentum as well). The update takes the gradients of all rows.

    A zero row counts in the mean gradient. Absent tasks keep their w, and so does, in the steps, a task whose labels
    all lie in one half; the update uses the present ones' scaled to sum 1.

    Args:
        lambda_: Weight of the mean gradient; 0 is MGDA, and large values approach a multiple of the mean.
        scaled: Divide the update by ``1 + lambda``, so that the weights sum to one.
        sampled: Whether to take the stochastic form.
        gamma: Step size of its inner steps.
        n_steps: How many of them a step takes, at least 1.

    Raises:
        BalancerError: for options out of range, or ``sampled`` without a second half.

    Example:
        >>> import torch
        >>> SDMGrad(lambda_=1.0, scaled=True).weigh(torch.eye(2, dtype=torch.float64), None, ["a", "b"])
        tensor([0.5000, 0.5000], dtype=torch.float64)

    Reference:
        Xiao et al. 2023, "Direction-oriented multi-objective learning: simple and provable stochastic
        algorithms", the direction-oriented subproblem and the SDMGrad algorithm.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}
    weights: Tensor

    def __init__(
        self,
        lambda_: float = 0.3,
        scaled: bool = False,
        sampled: bool = False,
        gamma: float = 0.1,
        n_steps: int = 20,
    ) -> None:
        super().__init__()
        self.lambda_ = check_number("SDMGrad", "lambda", lambda_, 0.0)
        self.scaled = scaled
        self.gamma = check_number("SDMGrad", "gamma", gamma, 0.0)
        if not isinstance(n_steps, int) or n_steps < 1:
            raise BalancerError(f"SDMGrad: n_steps must be a whole number of at least 1; got {n_steps!r}.")
        self.n_steps = n_steps
        self.sampled = sampled
        # Its nature depends on the form, so it belongs to the instance.
        self.halves = bool(sampled)
        if sampled:
            self.traits = type(self).traits | {"stateful"}

    def build_state(self, count: int) -> None:
        """Equal weights, where they are kept."""
        if self.sampled:
            self.register_buffer("weights", torch.full((count,), 1.0 / count, dtype=torch.float64))

    def weigh(
        self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str], *, cross: Tensor | None = None
    ) -> Tensor:
        """The weight of each present task's gradient.

        Args:
            gramian: Inner products of the present tasks' gradients, float64 on the CPU, ``[p, p]``.
            losses: Not used.
            tasks: Names of the present tasks.
            cross: With ``sampled``, products of the first half's gradients with the second's, ``[p, p]``.

        Returns:
            Weights ``[p]``, sum ``1 + lambda``, or one if scaled; one for a single task.
        """
        if not self.sampled:
            return super().weigh(gramian, losses, tasks)
        crossed = need_cross("SDMGrad", cross)
        size = gramian.detach().diagonal().clamp_min(0.0).sqrt().mean().to(crossed)
        unit = crossed / torch.where(size > 0, size, 1.0) / torch.where(size > 0, size, 1.0)
        moved = step_known(present(self, self.weights, tasks, crossed), unit, self._descend)
        store(self, self.weights, tasks, moved)
        if len(tasks) == 1:
            return torch.ones(1, dtype=torch.float64)
        total = moved.sum()
        shares = moved / total if float(total) > 0.0 else torch.full_like(moved, 1.0 / len(tasks))
        weights = shares + self.lambda_ / len(tasks)
        return weights / (1.0 + self.lambda_) if self.scaled else weights

    def _descend(self, shares: Tensor, cross: Tensor) -> Tensor:
        """The inner steps on weights that sum to one, with products of gradients of norm one on average."""
        onto_mean = self.lambda_ * cross.mean(1)
        for _ in range(self.n_steps):
            shares = project_onto_simplex(shares - self.gamma * (cross @ shares + onto_mean))
        return shares

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, sum ``1 + lambda``, or one if scaled."""
        return sdmgrad(gramian, self.lambda_, self.scaled)
