"""GradNorm: trained weights that bring the tasks' gradient norms to a common scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytask.balancing.base import GramianWeighting
from polytask.balancing.loss.common import present, store
from polytask.errors import BalancerError

LEAST_SHARE = 1e-3
"""A weight is held above this share of the mean weight: a gradient step could make it negative."""


class GradNorm(GramianWeighting):
    r"""GradNorm: equal gradient norms, larger where training lags.

    With learned weights w, gradient norms :math:`n_k = w_k \sqrt{G_{kk}}` with mean :math:`\bar n`, and relative
    inverse training rates :math:`r_k = (L_k / L_k(0)) / \mathrm{mean}_j (L_j / L_j(0))`, the weights minimise

    .. math:: \frac{1}{\bar n} \sum_k | n_k - \bar n \, r_k^\alpha |

    where :math:`\bar n`, r and the target are constants. The division by :math:`\bar n` is polytask's: it
    makes the step of w independent of the gradients' scale, as an Adam step nearly is. After each step the weights
    are scaled to sum to m over all tasks; those of the p present tasks are scaled to sum to p when used. The
    optimizer is the weights' own, with its own learning rate.

    The gradients are by default those of the last shared layer, as in the paper. :math:`L_k(0)` is the
    first positive loss seen. A zero loss has rate zero: its target norm is zero. A negative loss counts as
    zero. A task whose first losses are not positive has the mean rate until one is. With gradients that are
    all zero, w gets no gradient. No weight falls below 1/1000 of the mean weight. An absent task is not
    in the means, and its w changes only by the common scaling.

    Args:
        alpha: Strength of the pull towards a common training rate; zero gives equal norms.

    Raises:
        BalancerError: if alpha is negative, or losses are not given.

    Example:
        >>> method = GradNorm()
        >>> method.setup(["a", "b"])
        >>> gramian = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> method.weigh(gramian, torch.tensor([1.0, 1.0]), ["a", "b"])
        tensor([1., 1.], dtype=torch.float64)

    Reference:
        Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss
        Balancing in Deep Multitask Networks", ICML 2018, the gradient loss and the training algorithm.
    """

    traits: frozenset[str] = frozenset(
        {"permutation_equivariant", "scale_equivariant", "identity_for_one_task", "stateful"}
    )
    needs_losses: bool = True
    default_at: ClassVar[str] = "last"
    initial: Tensor

    def __init__(self, alpha: float = 1.5) -> None:
        super().__init__()
        if not 0.0 <= alpha < float("inf"):
            raise BalancerError(f"gradnorm: alpha must be zero or more and finite; got {alpha}.")
        self.alpha = alpha

    def build_state(self, count: int) -> None:
        """Weights of one, and no initial losses yet: NaN."""
        self.weights = nn.Parameter(torch.ones(count))
        self.register_buffer("initial", torch.full((count,), torch.nan))

    def _losses(self, losses: Tensor | None) -> Tensor:
        if losses is None:
            raise BalancerError("gradnorm needs the losses as well as the gradients. Pass the step's losses.")
        return losses.detach().clamp_min(0.0)

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The weights of the present tasks, float64 ``[p]``; they sum to p. Keeps the first losses."""
        values = self._losses(losses)
        initial = present(self, self.initial, tasks, values)
        store(self, self.initial, tasks, torch.where(initial.isnan() & (values > 0), values, initial))
        with torch.no_grad():
            self.weights.clamp_(min=LEAST_SHARE)
            self.weights.mul_(len(self.weights) / self.weights.sum())
        weights = present(self, self.weights.detach(), tasks, gramian)
        return weights * (len(tasks) / weights.sum())

    def objective(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The distance of the norms to their targets over the mean norm; a scalar."""
        values = self._losses(losses).to(gramian)
        initial = present(self, self.initial, tasks, gramian)
        known = initial > 0
        one = torch.ones_like(values)
        progress = torch.where(known, values, one) / torch.where(known, initial, one)
        count = known.sum().clamp_min(1)
        mean_progress = torch.where(known, progress, torch.zeros_like(progress)).sum() / count
        usable = known & (mean_progress > 0)
        rate = torch.where(usable, progress / torch.where(mean_progress > 0, mean_progress, one), one)
        norms = present(self, self.weights, tasks, gramian) * gramian.diagonal().clamp_min(0.0).sqrt()
        mean = norms.detach().mean()
        target = (mean * rate**self.alpha).detach()
        distance = (norms - target).abs().sum()
        return distance / torch.where(mean > 0, mean, torch.ones_like(mean))
