"""PCGrad and GradVac: gradients corrected pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.functional.projection import Order, gradvac_weights, pcgrad_weights
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.gramian.solver import SolvedWeighting, check_choice
from polytask.errors import BalancerError


class PairwiseWeighting(SolvedWeighting):
    """A method whose result depends on the order in which a task visits the others.

    Args:
        ordering: ``"random"``, drawn anew for every task and step, or ``"given"``.
        order: With ``"given"``, task names (or their positions), the same order for all; the order in which the
            tasks are listed if it is left out. Giving it says ``ordering="given"``.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "scale_equivariant", "random"})

    def __init__(self, ordering: str = "random", order: Sequence[str | int] | None = None) -> None:
        super().__init__()
        check_choice(type(self).__name__, "ordering", ordering, ("random", "given"))
        self.ordering = "random" if ordering == "random" and order is None else "given"
        self.order = None if order is None else tuple(order)
        self.shared_order: tuple[str, ...] = ()

    def build_state(self, count: int) -> None:
        """Check that a given order names every task once.

        Raises:
            BalancerError: if it does not.
        """
        super().build_state(count)
        if self.order is None:
            self.shared_order = self.tasks
            return
        named = [self.tasks[item] if isinstance(item, int) and 0 <= item < count else item for item in self.order]
        self.shared_order = tuple(str(item) for item in named)
        if sorted(self.shared_order) != sorted(self.tasks):
            raise BalancerError(
                f"{type(self).__name__}: order must name every task once, {list(self.tasks)}; got {list(self.order)}."
            )

    def visits(self, tasks: Sequence[str]) -> Order:
        """For each present task the order of its visits, int64 ``[p, p]``."""
        count = len(tasks)
        if self.ordering == "random":
            drawn: Order = torch.rand(count, count, generator=self.generator).argsort(dim=1).numpy()
            return drawn
        shared = sorted(range(count), key=lambda place: self.shared_order.index(tasks[place]))
        return np.tile(np.asarray(shared, dtype=np.int64), (count, 1))


class PCGrad(PairwiseWeighting):
    r"""Project each gradient off the others that it conflicts with, and add up what is left.

    .. math:: v_i \leftarrow v_i - \frac{\min(0, \langle v_i, g_j\rangle)}{|g_j|^2} g_j, \qquad d = \sum_i v_i

    for every other task j, always with the original :math:`g_j`. The update is a sum, not a mean: without
    conflicts it is the plain sum of the gradients. With two tasks it conflicts with neither; with more it may.

    A zero gradient changes nothing. Absent tasks are not visited. Nothing is kept between steps but the
    generator, so the update scales with the gradients at any scale.

    Args:
        ordering: ``"random"``, drawn anew for every task and step as in the paper, or ``"given"``, the same order
            for all tasks, which makes the method deterministic.
        order: The given order as task names or positions; that of the task list if it is left out.

    Raises:
        BalancerError: for another word, or (in ``setup``) names that are not the tasks.

    Example:
        >>> gramian = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
        >>> PCGrad().weigh(gramian, None, ["a", "b"])
        tensor([1.5000, 1.5000], dtype=torch.float64)

    Reference:
        Yu et al. 2020, "Gradient surgery for multi-task learning", algorithm 1.
    """

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, none negative."""
        return Solved(pcgrad_weights(gramian, self.visits(tasks)))


class GradVac(PairwiseWeighting):
    r"""Pull gradients together until their cosines reach what is usual for the pair.

    Where the cosine :math:`\phi` of the corrected gradient :math:`v_i` and :math:`g_j` lies below its target
    :math:`\rho_{ij}`, so much of :math:`g_j` is added to :math:`v_i` that the cosine equals the target. The
    targets are running averages, :math:`\rho_{ij} \leftarrow (1 - \beta)\rho_{ij} + \beta\phi`, renewed at
    every visit, and start at 0: the first step equals PCGrad's. The update is :math:`\sum_i v_i`.

    A zero gradient changes nothing, and neither a correction nor a target is formed with it. The targets of
    absent tasks stay as they are; a step with a single task changes none.

    Args:
        beta: Rate of the targets' average, in [0, 1]; the paper has 0.01.
        ordering: As in PCGrad.
        order: As in PCGrad.

    Raises:
        BalancerError: for a ``beta`` outside [0, 1], another ordering, or an order that is not the tasks.

    Example:
        >>> method = GradVac(beta=0.1)
        >>> method.setup(["a", "b"])
        >>> gramian = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
        >>> method.weigh(gramian, None, ["a", "b"]), method.targets[0, 1]
        (tensor([1.5000, 1.5000], dtype=torch.float64), tensor(-0.0500))

    Reference:
        Wang et al. 2021, "Gradient vaccine", the GradVac algorithm.
    """

    traits: frozenset[str] = PairwiseWeighting.traits | {"stateful"}
    targets: Tensor

    def __init__(self, beta: float = 0.01, ordering: str = "random", order: Sequence[str | int] | None = None) -> None:
        super().__init__(ordering, order)
        self.beta = check_share("GradVac", "beta", beta)

    def build_state(self, count: int) -> None:
        """Targets of zero for all pairs, ``[m, m]``."""
        super().build_state(count)
        self.register_buffer("targets", torch.zeros(count, count))

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``; renews the targets of the present pairs."""
        places = self.index(tasks).to(self.targets.device)
        pairs = (places[:, None], places)
        targets = self.targets[pairs].to("cpu", torch.float64).numpy()
        weights, renewed = gradvac_weights(gramian, targets, self.visits(tasks), self.beta)
        self.targets[pairs] = torch.from_numpy(renewed).to(self.targets)
        return Solved(weights)
