"""Weights trained by backpropagation of the total itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.base import LossWeighting
from polytask.balancing.loss.common import NonNegativeWeighting, bounded, present, scattered, working
from polytask.errors import BalancerError


class Learned(LossWeighting):
    r"""Weights trained on the total, on a simplex with a floor.

    With logits :math:`\xi_k` learned, the weights of the p present tasks are
    :math:`w_k = f + (1 - f) p \, \mathrm{softmax}(\xi)_k`: they sum to p, and none falls below the floor f.
    Without a floor, training the weights on :math:`\sum_k w_k L_k` drives all of them but one to zero.

    The logits minimise :math:`\pm \sum_k w_k L_k / \sum_k |L_k|`: the division makes the step independent of
    the losses' common scale. Plus (``prefer="easy"``) moves weight to the small losses, minus
    (``prefer="hard"``) to the large ones. Zero and negative losses are taken as they are: a negative loss is
    a small one. If all losses are zero the logits stay. An absent task's logit gets no gradient.

    Args:
        floor: f, between 0 and 1, neither included.
        prefer: ``easy`` or ``hard``.

    Raises:
        BalancerError: if the floor or the preference is not one of those.

    Example:
        >>> method = Learned()
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([2.0, 5.0]), ["a", "b"])
        tensor([1., 1.])

    Reference:
        A definition of polytask's own: linear scalarisation with trained weights. The collapse that the
        floor prevents is described by Kendall et al. 2018.
    """

    traits: frozenset[str] = frozenset(
        {"permutation_equivariant", "scale_equivariant", "identity_for_one_task", "stateful"}
    )
    needs_losses: bool = False

    def __init__(self, floor: float = 0.1, prefer: str = "easy") -> None:
        super().__init__()
        if not 0.0 < floor < 1.0:
            raise BalancerError(f"learned: floor must lie between 0 and 1, so that no weight collapses; got {floor}.")
        if prefer not in ("easy", "hard"):
            raise BalancerError(f"learned: prefer must be 'easy' or 'hard'; got '{prefer}'.")
        self.floor = floor
        self.prefer = prefer

    def build_state(self, count: int) -> None:
        """All weights start at one."""
        self.logits = nn.Parameter(torch.zeros(count))

    def _weights(self, logits: Tensor) -> Tensor:
        return self.floor + (1.0 - self.floor) * len(logits) * logits.softmax(0)

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights, shape ``[p]``; they sum to p."""
        return self._weights(present(self, self.logits.detach(), tasks, working(losses)))

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weighted mean of the losses, negated for ``hard``; a scalar."""
        losses = working(losses)
        size = losses.abs().sum()
        shares = losses / torch.where(size > 0, size, torch.ones_like(size))
        total = (self._weights(present(self, self.logits, tasks, losses)) * shares).sum()
        return total if self.prefer == "easy" else -total


class IMTLL(NonNegativeWeighting):
    r"""IMTL-L: learned scales that make all scaled losses equal.

    Total :math:`\sum_k e^{s_k} L_k - s_k` with :math:`s_k` learned: its minimum over :math:`s_k` is at
    :math:`e^{s_k} L_k = 1`. The weight is :math:`e^{s_k}`.

    While a loss is exactly zero its weight grows, and stops at exp(60). A negative loss counts as zero within
    a step, and is an error at the epoch's end if it is so on average. An absent task has no weight and its
    :math:`s_k` gets no gradient; the others do not change.

    Example:
        >>> method = IMTLL()
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([2.0, 5.0]), ["a", "b"])
        tensor([1., 1.])

    Reference:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, loss balance (IMTL-L), with
        base e.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "stateful"})
    needs_losses: bool = False

    def build_state(self, count: int) -> None:
        """All scales start at one."""
        self.log_scale = nn.Parameter(torch.zeros(count))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The scales :math:`e^{s_k}`, shape ``[p]``."""
        return present(self, bounded(self.log_scale), tasks, working(losses)).exp()

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The total, as a function of the scales; a scalar."""
        losses = working(losses).clamp_min(0.0)
        log_scale = present(self, self.log_scale, tasks, losses)
        return (log_scale.exp() * losses - log_scale).sum()

    def own_gradients(self, losses: Tensor, weights: Tensor, tasks: Sequence[str]) -> list[Tensor]:
        """Of the total with respect to :math:`s_k`: :math:`w_k L_k - 1`."""
        return [scattered(self, weights * working(losses).clamp_min(0.0) - 1.0, tasks)]
