"""GO4Align: tasks in groups, each with one weight from the risks seen so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balancing.loss.common import NonNegativeWeighting, check_positive, present, safe_log, store, working
from polytask.errors import BalancerError


class GO4Align(NonNegativeWeighting):
    r"""Group optimization for alignment: similar tasks share one weight.

    Every step multiplies each task's indicator by the exponential of its risk,
    :math:`p_k \leftarrow p_k e^{-\eta L_k}`, normalised over the present tasks. The indicator times the
    inverse share of the loss, :math:`a_k = p_k \sum_j L_j / L_k`, is what tasks are grouped by: k-means in one
    dimension with K groups. The weight of a task is the mean of a over its group. The total is
    :math:`\sum_k w_k L_k`.

    In one dimension k-means has an exact solution, which is used here (the authors start Lloyd's
    iteration at random): it is deterministic and has no random state. The product is kept in logarithms, so that it
    cannot vanish. Eta has the unit of one over a loss.

    A task whose loss is zero is solved: it joins no group and gets weight zero. A negative loss counts as
    zero within a step, and is an error at the epoch's end if it is so on average. An absent task joins no
    group and its indicator keeps its value.

    Args:
        groups: K, at least 1; with fewer present tasks than K every task is its own group.
        step_size: eta > 0.

    Raises:
        BalancerError: if ``groups`` is below 1 or ``step_size`` is not positive.

    Example:
        >>> method = GO4Align(groups=2, step_size=1e-9)
        >>> method.setup(["a", "b", "c"])
        >>> method.weigh(torch.tensor([1.0, 4.0, 4.0]), ["a", "b", "c"])
        tensor([3.0000, 0.7500, 0.7500])

    Reference:
        Shen et al., "GO4Align: Group Optimization for Multi-Task Alignment", NeurIPS 2024 (arXiv
        2404.06486), group risk minimisation as in the authors' published program.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "identity_for_one_task", "stateful"})
    log_indicator: Tensor

    def __init__(self, groups: int = 2, step_size: float = 1e-4) -> None:
        super().__init__()
        if int(groups) != groups or groups < 1:
            raise BalancerError(f"go4align: groups must be a whole number from 1 up; got {groups}.")
        self.groups = int(groups)
        self.step_size = check_positive("go4align: step_size", step_size)

    def build_state(self, count: int) -> None:
        """Equal indicators."""
        self.register_buffer("log_indicator", torch.zeros(count))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The groups' weights, shape ``[p]``."""
        losses = working(losses).clamp_min(0.0)
        logs, positive = safe_log(losses)
        indicator = present(self, self.log_indicator, tasks, losses) - self.step_size * losses
        # Normalised to the present tasks' former total, so that absent tasks keep their standing.
        shares = indicator.log_softmax(0)
        former = present(self, self.log_indicator, tasks, losses).logsumexp(0)
        store(self, self.log_indicator, tasks, shares + former)
        single = torch.where(positive, (shares - logs).exp() * losses.sum(), torch.zeros_like(losses))
        return torch.where(positive, group_means(single, positive, self.groups), torch.zeros_like(losses))


def _segment_costs(values: Tensor, counts: Tensor) -> Tensor:
    """Sum of squared distances to the mean of every run ``i..j`` of sorted values; infinite for j < i.

    Welford's update for all starts at once: no difference of large sums.
    """
    size = len(values)
    costs = values.new_full((size, size), torch.inf)
    number, mean, cost = (torch.zeros_like(values) for _ in range(3))
    for end in range(size):
        started = torch.arange(size, device=values.device) <= end
        weight = counts[end] * started
        total = number + weight
        step = values[end] - mean
        share = weight / torch.where(total > 0, total, torch.ones_like(total))
        cost = cost + number * share * step.square()
        mean = mean + share * step
        number = total
        costs[:, end] = torch.where(started, cost, torch.full_like(cost, torch.inf))
    return costs


def group_means(values: Tensor, mask: Tensor, groups: int) -> Tensor:
    """The mean of each value's group in the best split of a line into at most ``groups`` groups.

    Exact k-means in one dimension by dynamic programming over the sorted values, without a look at
    the numbers from the host. Entries outside ``mask`` belong to no group and their result means nothing.

    Args:
        values: Shape ``[p]``, not negative.
        mask: Which of them take part, bool ``[p]``.
        groups: How many groups at most.

    Returns:
        Means, shape ``[p]``.

    Example:
        >>> values = torch.tensor([1.0, 10.0, 3.0])
        >>> group_means(values, values > 0, 2)
        tensor([ 2., 10.,  2.])
    """
    size = len(values)
    values = torch.where(mask, values, values.max())
    order = values.argsort(stable=True)
    ordered, counts = values[order], mask[order].to(values)
    peak = ordered[-1]
    costs = _segment_costs(ordered / torch.where(peak > 0, peak, torch.ones_like(peak)), counts)
    best = costs[0]
    starts = []
    for _ in range(min(groups, size) - 1):
        # The last group runs from i to j; the best split of 0..i-1 stands before it.
        before = torch.cat([best.new_zeros(1), best[:-1]])
        best, start = (before[:, None] + costs).min(0)
        starts.append(start)
    places = torch.arange(size, device=values.device)
    end = torch.full((1,), size - 1, device=values.device)
    label = torch.zeros_like(places)
    for number, start in enumerate(reversed(starts), 1):
        # An index_select: indexing by a scalar tensor would read it on the host.
        begin = start.index_select(0, end.clamp_min(0))
        label = torch.where((places >= begin) & (places <= end), number, label)
        end = begin - 1
    sums = ordered.new_zeros(len(starts) + 1).index_add(0, label, ordered * counts)
    totals = ordered.new_zeros(len(starts) + 1).index_add(0, label, counts)
    means = sums / torch.where(totals > 0, totals, torch.ones_like(totals))
    return torch.empty_like(ordered).index_copy(0, order, means[label])
