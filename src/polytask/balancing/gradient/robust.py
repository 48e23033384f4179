"""Krum, the trimmed mean and GradDrop: rows or coordinates that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import JacobianAggregator
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.functional.robust import graddrop, krum_weights, trimmed_mean
from polytask.balancing.gradient.checks import check_count, check_share
from polytask.balancing.gramian.solver import SolvedWeighting
from polytask.balancing.loss.common import per_task, present
from polytask.errors import BalancerError


class Krum(SolvedWeighting):
    r"""Keep the gradients that lie nearest to their neighbours, and take their mean.

    The score of a gradient is the sum of SQUARED distances to its :math:`m - f - 2` nearest others.
    Gradients that tie at the cut share the place, so that the order of the tasks does not matter. A zero
    gradient is a gradient like any other, and may well be kept. Absent tasks leave; if fewer than f + 3
    tasks are present, the single nearest neighbour counts. The update scales with the gradients.

    Args:
        n_byzantine: f, how many gradients may be wild.
        n_selected: How many gradients to keep; all present ones if they are fewer.

    Raises:
        BalancerError: for negative numbers, or (in ``setup``) fewer than ``n_byzantine + 3`` tasks with
            ``n_byzantine > 0``, or fewer tasks than ``n_selected``.

    Example:
        >>> rows = torch.tensor([[1.0], [1.1], [1.3], [9.0]], dtype=torch.float64)
        >>> Krum(n_byzantine=1).weigh(rows @ rows.T, None, ["a", "b", "c", "d"])
        tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)

    Reference:
        Blanchard et al. 2017, "Machine learning with adversaries", the Krum function.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__()
        self.n_byzantine = check_count("Krum", "n_byzantine", n_byzantine, 0)
        self.n_selected = check_count("Krum", "n_selected", n_selected, 1)

    def build_state(self, count: int) -> None:
        """Check that there are enough tasks."""
        if self.n_byzantine and count < self.n_byzantine + 3:
            raise BalancerError(
                f"Krum: n_byzantine={self.n_byzantine} needs at least {self.n_byzantine + 3} tasks; there are {count}."
            )
        if self.n_selected > count:
            raise BalancerError(f"Krum: n_selected={self.n_selected} is more than the {count} tasks there are.")

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]`` with sum 1."""
        return Solved(krum_weights(gramian, self.n_byzantine, self.n_selected))


class TrimmedMean(JacobianAggregator):
    r"""The mean of every coordinate without its smallest and largest values.

    .. math:: d_c = \frac{1}{m - 2t} \sum_{i = t + 1}^{m - t} g_{(i) c}

    with the values :math:`g_{(1) c} \le \ldots \le g_{(m) c}` of coordinate c in order, and t = ``trim``. A
    zero gradient is a gradient like any other. Absent tasks leave. Where fewer than 2 ``trim`` + 1 tasks
    are present, as many are left out at each end as leaves one or two: the median. The update scales with
    the gradients.

    Args:
        trim: How many values to leave out at each end. 0 is the mean.

    Raises:
        BalancerError: for a number that is negative or not whole.

    Example:
        >>> rows = torch.tensor([[1.0, -9.0], [2.0, 3.0], [90.0, 4.0]])
        >>> TrimmedMean(trim=1).aggregate(rows, None, ["a", "b", "c"])
        tensor([2., 3.])

    Reference:
        Yin et al. 2018, "Byzantine-robust distributed learning", the coordinate-wise trimmed mean.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "permutation_equivariant", "scale_equivariant"})

    def __init__(self, trim: int = 1) -> None:
        super().__init__()
        self.trim = check_count("TrimmedMean", "trim", trim, 0)

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Direction ``[n]`` from gradients ``[p, n]``."""
        return trimmed_mean(jacobian, self.trim)


class GradDrop(JacobianAggregator):
    r"""Keep one sign per coordinate, drawn by how much the gradients agree on it.

    .. math::
        P = \tfrac12 \left(1 + \frac{\sum_i g_i}{\sum_i |g_i|}\right), \qquad
        M_i = [g_i > 0][P > U] + [g_i < 0][P < U], \qquad
        d = \sum_i (l_i + (1 - l_i) M_i)\, g_i

    U is drawn between 0 and 1 for every coordinate, on the gradients' device, from a generator that the
    method's own one seeds. A coordinate where all gradients are 0 stays 0. Zero gradients and absent tasks
    change nothing. The update is a sum, and scales with the gradients.

    Args:
        leak: l, how much of a gradient passes undropped: one number in [0, 1], or one for every task (by
            name, or in the order of the tasks).

    Raises:
        BalancerError: for a leak outside [0, 1], or (in ``setup``) one that does not fit the tasks.

    Example:
        >>> method = GradDrop()
        >>> method.setup(["a", "b"])
        >>> method.aggregate(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), None, ["a", "b"])
        tensor([3., 3.])

    Reference:
        Chen et al. 2020, "Just pick a sign", algorithm 1.
    """

    traits: frozenset[str] = frozenset({"identity_for_one_task", "scale_equivariant", "random"})
    leaks: Tensor

    def __init__(self, leak: float | Mapping[str, float] | Sequence[float] = 0.0) -> None:
        super().__init__()
        self.leak = check_share("GradDrop", "leak", leak) if isinstance(leak, int | float) else leak

    def build_state(self, count: int) -> None:
        """Read the leaks of the tasks."""
        if isinstance(self.leak, float):
            return
        leaks = per_task("GradDrop: leak", self.leak, self.tasks)
        for leak in leaks.tolist():
            check_share("GradDrop", "leak", leak)
        # Not part of the checkpoint: it is an option, and the options of the resumed run hold.
        self.register_buffer("leaks", leaks, persistent=False)

    def aggregate(
        self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str], *, uniform: Tensor | None = None
    ) -> Tensor:
        """The update direction.

        Args:
            jacobian: Gradients of the present tasks, ``[p, n]``.
            losses: Not read.
            tasks: Names of the present tasks.
            uniform: U for this call, ``[n]``, instead of a draw.

        Returns:
            Direction ``[n]``.
        """
        uniform = self._draw(jacobian) if uniform is None else uniform.to(jacobian.device)
        if uniform.shape != jacobian.shape[1:]:
            raise BalancerError(
                f"GradDrop: uniform has shape {list(uniform.shape)}; give one number for each of the "
                f"{jacobian.shape[1]} columns."
            )
        leak = self.leak if isinstance(self.leak, float) else present(self, self.leaks, tasks, uniform)
        return graddrop(jacobian, uniform, leak)

    def _draw(self, jacobian: Tensor) -> Tensor:
        seed = int(torch.randint(2**62, (1,), generator=self.generator))
        drawn = torch.Generator(jacobian.device).manual_seed(seed)
        uniform = torch.rand(jacobian.shape[1], generator=drawn, device=jacobian.device)
        # The open interval: where all gradients agree, their sign is kept for certain.
        return uniform.clamp_(min=torch.finfo(uniform.dtype).tiny)
