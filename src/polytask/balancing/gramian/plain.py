"""Equal weights: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balancing.base import GramianWeighting


class Sum(GramianWeighting):
    r"""The sum of the tasks' gradients.

    .. math:: d = \sum_i g_i

    It needs no Gramian: the loss weighting ``equal`` gives the same update for less. It stands here so
    that the same route can be timed and reported with equal weights. A zero row adds nothing.

    Example:
        >>> Sum().weigh(torch.eye(3, dtype=torch.float64), None, ["a", "b", "c"])
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "permutation_equivariant", "scale_equivariant"})
    fixed_weights: ClassVar[bool] = True

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """A weight of one for each present task, ``[p]``."""
        return torch.ones(len(tasks), dtype=torch.float64)


class Mean(GramianWeighting):
    r"""The mean of the present tasks' gradients.

    .. math:: d = g_0 = \frac1m \sum_i g_i

    m counts the tasks present in the step. A zero row counts in m.

    Example:
        >>> Mean().weigh(torch.eye(4, dtype=torch.float64), None, ["a", "b", "c", "d"])
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    traits: frozenset[str] = Sum.traits
    fixed_weights: ClassVar[bool] = True

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """One over the number of present tasks, for each of them, ``[p]``."""
        return torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64)
