"""Priority-constrained descent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.functional.priority import pcd
from polytask.balancing.gramian.solver import SolvedWeighting, check_number
from polytask.errors import BalancerError, unknown


class PCD(SolvedWeighting):
    r"""Follow one task's gradient while every other task keeps a share of its progress.

    .. math:: \tilde d = \arg\min_d \| d - s_p g_p \|^2 \ \text{ subject to } \
              \langle s_j g_j, d \rangle \ge \tau \| s_j g_j \|^2, \qquad d = \frac{\|g_p\|}{\|\tilde d\|} \tilde d

    p is the primary task and ``s_i = 1 / sqrt(v_i + eps)``, with v_i the bias-corrected running average of
    ``|g_i|^2`` over the steps in which task i was present. If the primary task is absent from a step, the
    first present one in the order of all tasks stands in for it.

    A primary gradient of zero gives a zero update. Constraints that contradict each other are dropped, with
    a BalancerWarning: the update is then the primary gradient. Other zero gradients have no constraint.

    Args:
        primary: Name of the task with priority; by default the first of all tasks.
        tau: Share of its own normalised progress granted to each other task, from 0 to 1.
        beta: Decay of the running averages, from 0 to below 1.
        eps: Added to the averages. The default 0 keeps the method free of scale; the authors use 1e-8.

    Raises:
        BalancerError: for options out of range, or a primary task that does not exist.

    Example:
        >>> balancer = PCD(primary="main", tau=1.0)
        >>> balancer.setup(["main", "side"])
        >>> balancer.weigh(torch.diag(torch.tensor([1.0, 4.0]).double()), None, ["main", "side"])
        tensor([0.7071, 0.3536], dtype=torch.float64)

    Reference:
        "Not all objectives are born equal: priority-constrained descent for hierarchical multi-objective
        optimization", arXiv 2606.29521.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "scale_equivariant", "stateful"})

    squares: Tensor
    steps: Tensor

    def __init__(self, primary: str | None = None, tau: float = 0.02, beta: float = 0.999, eps: float = 0.0) -> None:
        super().__init__()
        self.primary = primary
        self.tau = check_number("PCD", "tau", tau, 0.0)
        self.beta = check_number("PCD", "beta", beta, 0.0)
        self.eps = check_number("PCD", "eps", eps, 0.0)
        if self.tau > 1.0 or self.beta >= 1.0:
            raise BalancerError(f"PCD: tau must be at most 1 and beta below 1; got tau={tau!r}, beta={beta!r}.")

    def build_state(self, count: int) -> None:
        """Running averages of the squared norms and the number of steps behind each, ``[m]``."""
        if self.primary is not None and self.primary not in self.tasks:
            raise BalancerError(f"PCD: {unknown('task', self.primary, self.tasks)}")
        self.register_buffer("squares", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(count, dtype=torch.float64))

    def weigh(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The weight of each present task's gradient, ``[p]``; moves the running averages.

        Args:
            gramian: Inner products of the present tasks' gradients, float64 on the CPU, ``[p, p]``.
            losses: Not used.
            tasks: Names of the present tasks.

        Returns:
            Weights ``[p]``, float64.

        Raises:
            BalancerError: if an inner product is not finite.
        """
        if bool(torch.isfinite(gramian).all()):
            where = self._places(tasks)
            fresh = gramian.diagonal().to(self.squares)
            self.squares[where] = self.beta * self.squares[where] + (1.0 - self.beta) * fresh
            self.steps[where] += 1.0
        return super().weigh(gramian, losses, tasks)

    def _places(self, tasks: Sequence[str]) -> Tensor | slice:
        """Where the present tasks' numbers stand; looking them up takes longer than the rest of a small step."""
        return slice(None) if tuple(tasks) == self.tasks else self.index(tasks).to(self.squares.device)

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``, none negative."""
        where = self._places(tasks)
        averages = (self.squares[where] / (1.0 - self.beta ** self.steps[where])).cpu().numpy() + self.eps
        scales = 1.0 / np.sqrt(np.where(averages > 0.0, averages, 1.0))
        name = self.primary if self.primary is not None else self.tasks[0]
        first = list(tasks).index(name) if name in tasks else int(self.index(tasks).argmin())
        return pcd(gramian, first, self.tau, scales)
