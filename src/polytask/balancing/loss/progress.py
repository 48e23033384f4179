"""Weights from how far each task has come, by averages over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import LossWeighting
from polytask.balancing.loss.common import NonNegativeWeighting, check_positive, masked_softmax, present, store, working
from polytask.errors import BalancerError


class DWA(LossWeighting):
    r"""Dynamic weight average: more weight where the loss has fallen least.

    Weights :math:`w_k = p \, \mathrm{softmax}(r / T)_k` over the p present tasks, with
    :math:`r_k = L_k(t-1) / L_k(t-2)` from the average losses of the last two epochs that had the task. In the
    first two epochs r is one.

    The ratio says nothing if one of the two averages is zero or negative; r is then one. A task that was
    absent for an epoch keeps its two averages. The weights sum to p over the present tasks.

    Args:
        temperature: T > 0; a large one makes the weights equal.

    Raises:
        BalancerError: if the temperature is not positive.

    Example:
        >>> method = DWA()
        >>> method.setup(["a", "b"])
        >>> method.epoch_end({"a": 1.0, "b": 1.0})
        >>> method.epoch_end({"a": 0.5, "b": 1.0})
        >>> method.weigh(torch.tensor([0.5, 1.0]), ["a", "b"])
        tensor([0.8756, 1.1244])

    Reference:
        Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, dynamic weight
        average.
    """

    traits: frozenset[str] = frozenset(
        {"permutation_equivariant", "scale_equivariant", "identity_for_one_task", "stateful"}
    )
    needs_losses: bool = False
    last: Tensor
    before: Tensor

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = check_positive("dwa: temperature", temperature)

    def build_state(self, count: int) -> None:
        """No averages yet: NaN."""
        self.register_buffer("last", torch.full((count,), torch.nan))
        self.register_buffer("before", torch.full((count,), torch.nan))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights of this epoch, shape ``[p]``; they sum to p."""
        losses = working(losses)
        last = present(self, self.last, tasks, losses)
        before = present(self, self.before, tasks, losses)
        # A comparison with NaN is false, so an epoch that is not there yet gives a ratio of one as well.
        known = (last > 0) & (before > 0)
        one = torch.ones_like(losses)
        ratio = torch.where(known, last, one) / torch.where(known, before, one)
        return len(tasks) * (ratio / self.temperature).softmax(0)

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Shift the averages of the tasks that had a loss."""
        tasks = list(losses)
        store(self, self.before, tasks, present(self, self.last, tasks, self.last))
        store(self, self.last, tasks, torch.tensor([float(losses[task]) for task in tasks]))


class IGB(NonNegativeWeighting):
    r"""Improvable gap balancing, version 1: more weight where the loss is still near its early level.

    Total :math:`\sum_k \alpha_k \log L_k` with :math:`\alpha = p \, \mathrm{softmax}(L / L^{base})` over the p
    present tasks, taken as a constant; the weight is :math:`\alpha_k / L_k`. The base is the average loss
    of one early epoch. Until the end of that epoch, and for a task that had no loss in it, alpha's ratio
    is one. A task that was absent from the base epoch takes its base from the next epoch that has it.

    A task whose loss is zero is solved: it leaves the softmax and gets weight zero. A negative loss counts
    as zero within a step, and is an error at the epoch's end if it is so on average. Absent tasks are not
    in the softmax. Version 2 of the paper, which learns the weights by reinforcement learning, is another method.

    Args:
        base_epoch: Which epoch gives the base, counted from zero.

    Raises:
        BalancerError: if ``base_epoch`` is negative.

    Example:
        >>> method = IGB(base_epoch=0)
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([2.0, 4.0]), ["a", "b"])
        tensor([0.5000, 0.2500])

    Reference:
        Dai, Fei and Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023 (arXiv 2307.15429),
        IGBv1.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "scale_invariant", "stateful"})
    base: Tensor
    epoch: Tensor

    def __init__(self, base_epoch: int = 0) -> None:
        super().__init__()
        if base_epoch < 0:
            raise BalancerError(f"igb: base_epoch must be zero or more; got {base_epoch}.")
        self.base_epoch = int(base_epoch)

    def build_state(self, count: int) -> None:
        """No base yet: NaN."""
        self.register_buffer("base", torch.full((count,), torch.nan))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights :math:`\\alpha_k / L_k`, shape ``[p]``."""
        losses = working(losses)
        base = present(self, self.base, tasks, losses)
        positive, known = losses > 0, base > 0
        one = torch.ones_like(losses)
        ratio = torch.where(known, losses, one) / torch.where(known, base, one)
        alpha = positive.sum() * masked_softmax(ratio, positive)
        return alpha / torch.where(positive, losses, one)

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Take the base from the chosen epoch's averages."""
        super().epoch_end(losses)
        if int(self.epoch) >= self.base_epoch:
            new = [task for task in losses if bool(self.base[self.tasks.index(task)].isnan())]
            store(self, self.base, new, torch.tensor([float(losses[task]) for task in new]))
        self.epoch += 1
