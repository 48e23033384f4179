"""Totals that are one smooth function of the losses, without state: geometric mean, smooth Tchebycheff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import LossWeighting
from polytask.balancing.loss.common import (
    NonNegativeWeighting,
    check_positive,
    masked_softmax,
    per_task,
    present,
    safe_log,
    working,
)
from polytask.errors import BalancerError


class GLS(NonNegativeWeighting):
    r"""Geometric loss strategy: the geometric mean of the losses.

    Total :math:`(\prod_k L_k)^{1/p}` over the p present tasks, so the weight is
    :math:`w_k = \exp(\frac{1}{p} \sum_j \log L_j - \log L_k) / p`: a function of ratios of losses only.

    A task whose loss is zero is solved: it leaves the mean, gets weight zero, and p counts the others. A
    negative loss counts as zero within a step, and is an error at the epoch's end if it is so on average.
    Absent tasks are not in the mean. There is no state.

    Example:
        >>> method = GLS()
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([1.0, 4.0]), ["a", "b"])
        tensor([1.0000, 0.2500])

    Reference:
        Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
        Multi-Task Learning", CVPR Workshops 2019, the geometric loss strategy.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "scale_equivariant", "identity_for_one_task"})

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The gradient of the geometric mean, shape ``[p]``."""
        logs, positive = safe_log(working(losses))
        count = positive.sum().clamp_min(1)
        mean = logs.sum() / count
        return torch.where(positive, (mean - logs).exp() / count, torch.zeros_like(logs))


class STCH(LossWeighting):
    r"""Smooth Tchebycheff scalarisation: a soft maximum of the weighted losses.

    Total :math:`\mu \log \sum_k \exp(\lambda_k (f_k - z_k) / \mu)`, so the weight is
    :math:`\lambda_k \, \mathrm{softmax}(\lambda (f - z) / \mu)_k \, df_k / dL_k`. By default
    :math:`f_k = L_k`; with ``log`` it is :math:`f_k = \log L_k`, which does not see the losses' scales (then
    z is on the log scale as well). The preference :math:`\lambda` is scaled to sum to p over the p present
    tasks, so that one task alone has its plain loss.

    Zero and negative losses count like any other. With ``log`` a task whose loss is not positive is left
    out of the maximum and gets weight zero. Absent tasks are not in the maximum. There is no state. Without
    ``log`` the method is not scale-free: mu has the unit of a loss.

    Args:
        mu: Smoothness, positive: a small one approaches the plain maximum.
        reference: The reference point z, by task name or in their order; zeros if None.
        preference: lambda, positive, by task name or in their order; equal if None.
        log: Whether f is the logarithm of the loss.

    Raises:
        BalancerError: if mu is not positive, or at ``setup`` if the reference or the preference does not fit
            the tasks.

    Example:
        >>> method = STCH(mu=0.5)
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([3.0, 3.0]), ["a", "b"])
        tensor([0.5000, 0.5000])

    Reference:
        Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024 (arXiv
        2402.19078), the definition of the STCH scalarisation; the log form is that of the authors'
        multi-task experiments.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "identity_for_one_task"})
    point: Tensor
    lambdas: Tensor

    def __init__(
        self,
        mu: float = 1.0,
        reference: Mapping[str, float] | Sequence[float] | None = None,
        preference: Mapping[str, float] | Sequence[float] | None = None,
        log: bool = False,
    ) -> None:
        super().__init__()
        self.mu = check_positive("stch: mu", mu)
        self.reference = reference
        self.preference = preference
        self.log = log

    def build_state(self, count: int) -> None:
        """Check the reference point and the preference against the tasks and keep them."""
        point = [0.0] * count if self.reference is None else self.reference
        preference = [1.0] * count if self.preference is None else self.preference
        lambdas = per_task("stch preference", preference, self.tasks)
        if not bool((lambdas > 0).all()):
            raise BalancerError(f"stch preference: every number must be positive; got {lambdas.tolist()}.")
        self.register_buffer("point", per_task("stch reference", point, self.tasks))
        self.register_buffer("lambdas", lambdas)

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The gradient of the soft maximum, shape ``[p]``."""
        losses = working(losses)
        lambdas = present(self, self.lambdas, tasks, losses)
        lambdas = lambdas * (len(tasks) / lambdas.sum())
        point = present(self, self.point, tasks, losses)
        if not self.log:
            scaled = lambdas * (losses - point)
            return lambdas * ((scaled - scaled.max()) / self.mu).softmax(0)
        logs, positive = safe_log(losses)
        shares = masked_softmax(lambdas * (logs - point) / self.mu, positive)
        return lambdas * shares / torch.where(positive, losses, torch.ones_like(losses))
