"""LDC-MTL: learned weights, and a penalty on the differences between the weighted losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.base import LossWeighting
from polytask.balancing.gramian.solver import check_choice, check_number
from polytask.balancing.loss.common import present, store, working

COMPARE = ("weighted", "plain")
NORMALIZE = ("none", "first")


class LDCMTL(LossWeighting):
    r"""Loss discrepancy control: learned weights, and a penalty on the differences of neighbouring losses.

    The paper's bilevel problem asks for weights W that make the losses alike (upper level) while the model minimises
    their weighted sum (lower level). Its single-loop form minimises both in one total, over the model and W,

    .. math::
        \frac{\sum_k \sigma_k \tilde L_k}{\sum_k \sigma_k}
        + \lambda \sum_{k < p} \big| \tau_k \tilde L_k - \tau_{k+1} \tilde L_{k+1} \big|, \qquad
        \sigma = \mathrm{sigmoid}(W)

    over the p present tasks in their order, with :math:`\tau = \sigma` (``compare="weighted"``) or
    :math:`\tau = 1` (``plain``). :math:`\tilde L_k` is the loss, or with ``normalize="first"`` the loss times
    :math:`\min_j L_j(0) / L_k(0)`, where :math:`L(0)` is the first positive loss seen. W is one number a task. The
    authors' other programs compute it from the features by a router; a loss weighting sees no features.

    The weight of a task is the total's derivative by its loss. It can be NEGATIVE: a loss that is smaller than its
    neighbours is held back. At a tie the difference has the derivative zero. Zero and negative losses are taken as
    they are. An absent task leaves the chain of differences, and its W gets no gradient.

    Args:
        penalty: :math:`\lambda`, zero or more.
        compare: ``weighted`` or ``plain``.
        normalize: ``none`` or ``first``.

    Raises:
        BalancerError: for options out of range.

    Example:
        >>> method = LDCMTL(penalty=0.1)
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([3.0, 1.0]), ["a", "b"])
        tensor([0.5731, 0.4269])

    Reference:
        Xiao, Dong, Zou and Ji 2025, "LDC-MTL: balancing multi-task learning through scalable loss discrepancy
        control", arXiv 2502.08585, the single-loop algorithm as in the authors' published programs.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "stateful"})
    initial: Tensor

    def __init__(self, penalty: float = 0.1, compare: str = "weighted", normalize: str = "none") -> None:
        super().__init__()
        self.penalty = check_number("ldc_mtl", "penalty", penalty, 0.0)
        check_choice("ldc_mtl", "compare", compare, COMPARE)
        check_choice("ldc_mtl", "normalize", normalize, NORMALIZE)
        self.compare, self.normalize = compare, normalize

    def build_state(self, count: int) -> None:
        """W of one, as in the authors' programs, and no first losses yet: NaN."""
        self.raw = nn.Parameter(torch.ones(count))
        self.register_buffer("initial", torch.full((count,), torch.nan))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The total's derivatives by the losses, shape ``[p]``. Keeps the first losses."""
        losses = working(losses)
        if self.normalize == "first":
            initial = present(self, self.initial, tasks, losses)
            store(self, self.initial, tasks, torch.where(initial.isnan() & (losses > 0), losses, initial))
        variable = losses.clone().requires_grad_()
        with torch.enable_grad():
            total = self._total(variable, present(self, self.raw.detach(), tasks, losses), tasks)
        return torch.autograd.grad(total, variable)[0]

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The total, as a function of W; a scalar."""
        losses = working(losses)
        return self._total(losses, present(self, self.raw, tasks, losses), tasks)

    def _total(self, losses: Tensor, raw: Tensor, tasks: Sequence[str]) -> Tensor:
        shares = raw.sigmoid()
        if self.normalize == "first":
            initial = present(self, self.initial, tasks, losses)
            known = initial > 0
            least = torch.where(self.initial > 0, self.initial, torch.inf).min().to(losses)
            losses = torch.where(known, least / torch.where(known, initial, 1.0), 1.0) * losses
        compared = shares * losses if self.compare == "weighted" else losses
        differences = (compared[:-1] - compared[1:]).abs().sum()
        return (shares * losses).sum() / shares.sum() + self.penalty * differences
