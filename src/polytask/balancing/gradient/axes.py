"""IMTL-G, ConFIG and Aligned-MTL: closed forms in the angles and principal axes of the gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from polytask.balancing.functional.geometry import (
    RANK_TOLERANCE,
    Scale,
    aligned_mtl_weights,
    config_weights,
    imtl_g_weights,
)
from polytask.balancing.functional.gramian import Array, Solved
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.gramian.solver import SolvedWeighting, check_choice
from polytask.balancing.loss.common import EXPONENT_LIMIT, per_task, present, refuse_below
from polytask.errors import BalancerError


class IMTLG(SolvedWeighting):
    r"""IMTL-G: the update whose projections on all gradients' directions are equal.

    .. math:: d = \sum_i a_i g_i, \quad \sum_i a_i = 1, \quad \langle d, g_i / |g_i| \rangle \text{ equal for all } i

    Weights may be negative. So may be the common projection, with very unequal norms and gradients at sharp
    angles: then the formula's update climbs every loss, and this class returns it as it is.

    Dependent gradients: the shortest least-squares solution in units of unit gradients. Where directions
    cancel (two opposite gradients, or weights that sum to zero) there is no finite solution; the update is
    zero, with a BalancerWarning. A zero gradient has no direction: it leaves the problem with weight 0.
    Absent tasks leave it as well. The update scales with the gradients at any scale.

    Args:
        rank_tolerance: Eigenvalues of the cosine matrix below this share of the largest count as zero. For
            gradients whose products were formed in float32 use about 1e-6.

    Raises:
        BalancerError: for a tolerance outside [0, 1].

    Example:
        >>> IMTLG().weigh(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), None, ["a", "b"])
        tensor([0.6667, 0.3333], dtype=torch.float64)

    Reference:
        Liu et al. 2021, "Towards impartial multi-task learning", gradient balance (IMTL-G).
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, rank_tolerance: float = RANK_TOLERANCE) -> None:
        super().__init__()
        self.rank_tolerance = check_share("IMTLG", "rank_tolerance", rank_tolerance)

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]`` with sum 1."""
        return imtl_g_weights(gramian, self.rank_tolerance)


class IMTL(IMTLG):
    r"""IMTL: learned loss scales, and for the shared parameters equal projections of the scaled gradients.

    The hybrid of the paper. Scales :math:`s_k` are learned on :math:`\sum_k e^{s_k} L_k - s_k`, as in IMTL-L, whose
    minimum is at :math:`e^{s_k} L_k = 1`. The parameters of one task follow the gradient of :math:`e^{s_k} L_k`.
    The shared ones get

    .. math::
        d = \sum_k a_k e^{s_k} g_k, \quad \sum_k a_k = 1, \quad
        \langle d, g_k / |g_k| \rangle \text{ equal for all } k

    which is IMTL-G's update for the scaled gradients: its direction, with a length that the scales decide.
    Dependent gradients, directions that cancel and zero gradients as there.

    While a loss is exactly zero its scale grows, and stops at exp(60). A negative loss counts as zero for the scale,
    and is an error at the epoch's end if it is so on average. The scale of an absent task stays. The
    update does not scale with the gradients, because the scales answer to the losses alone.

    Args:
        rank_tolerance: As in IMTL-G.

    Raises:
        BalancerError: for a tolerance outside [0, 1], missing losses, or a negative average loss.

    Example:
        >>> method = IMTL()
        >>> method.setup(["a", "b"])
        >>> losses = torch.tensor([2.0, 5.0])
        >>> method.weigh(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), losses, ["a", "b"])
        tensor([0.6667, 0.3333], dtype=torch.float64)
        >>> method.loss_scales(["a", "b"])
        tensor([1., 1.])

    Reference:
        Liu et al. 2021, "Towards impartial multi-task learning", the hybrid of IMTL-G and IMTL-L, with base e.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "stateful"})
    needs_losses: bool = True

    def build_state(self, count: int) -> None:
        """All scales start at one."""
        self.log_scale = nn.Parameter(torch.zeros(count))

    def loss_scales(self, tasks: Sequence[str]) -> Tensor:
        """The scales :math:`e^{s_k}`, shape ``[p]``."""
        with torch.no_grad():
            self.log_scale.clamp_(-EXPONENT_LIMIT, EXPONENT_LIMIT)
        return present(self, self.log_scale.detach(), tasks, self.log_scale).detach().exp()

    def objective(self, gramian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """The scaled losses less the logarithms of their scales; a scalar."""
        if losses is None:
            raise BalancerError("IMTL learns the scales of the losses, so it needs them. Pass the step's losses.")
        log_scale = present(self, self.log_scale, tasks, losses)
        return (log_scale.exp() * losses.detach().clamp_min(0.0) - log_scale).sum()

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Refuse to go on with negative losses.

        Raises:
            BalancerError: if a task's average loss is negative.
        """
        for task, value in losses.items():
            refuse_below("IMTL", task, value)


class ConFIG(SolvedWeighting):
    r"""A direction at equal angles to all gradients, as long as their projections on it together.

    .. math:: u = \frac{U^+ 1}{|U^+ 1|}, \qquad d = \Big(\sum_i \langle g_i, u\rangle\Big) u

    with the unit gradients as rows of U. With independent gradients the update conflicts with none.
    Dependent gradients: the pseudo-inverse drops what lies below a relative cut-off, and angles may differ.
    Where directions cancel, the update is zero, with a BalancerWarning. A zero gradient has no direction: it
    leaves the problem with weight 0, as absent tasks do. The update scales with the gradients at any scale.

    Args:
        rank_tolerance: Eigenvalues of the cosine matrix below this share of the largest count as zero (the
            cut-off of U's singular values is its square root). For products formed in float32 about 1e-6.

    Raises:
        BalancerError: for a tolerance outside [0, 1].

    Example:
        >>> ConFIG().weigh(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), None, ["a", "b"])
        tensor([1.5000, 0.7500], dtype=torch.float64)

    Reference:
        Liu et al. 2025, "ConFIG: towards conflict-free training of physics informed neural networks",
        equation 2.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}

    def __init__(self, rank_tolerance: float = RANK_TOLERANCE) -> None:
        super().__init__()
        self.rank_tolerance = check_share("ConFIG", "rank_tolerance", rank_tolerance)

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``."""
        return config_weights(gramian, self.rank_tolerance)


class AlignedMTL(SolvedWeighting):
    r"""Bring the principal axes of the gradients to one length, then add the gradients up.

    .. math:: d = J^T B p, \qquad B = s V \Lambda^{-1/2} V^T, \qquad G = V \Lambda V^T

    over the eigenvalues that are not zero. The aligned gradients are orthogonal and of equal length in the
    space that the gradients span. Dependent gradients: eigenvalues below a relative cut-off leave. A zero
    gradient gets weight 0. Absent tasks leave; the preference of the others is scaled to sum 1. The update
    scales with the gradients at any scale.

    Args:
        scale: The common length s: ``"min"`` the smallest singular value of the gradients (the paper),
            ``"median"`` the root of the median eigenvalue, ``"rmse"`` the root of the mean eigenvalue.
        preference: p, a number for every task (by name, or in the order of the tasks), scaled to sum 1. None
            is 1/m each.
        rank_tolerance: Eigenvalues below this share of the largest count as zero. For products formed in
            float32 use about 1e-6.

    Raises:
        BalancerError: for another scale, a tolerance outside [0, 1], or (in ``setup``) a preference that
            does not fit the tasks, is negative, or is zero throughout.

    Example:
        >>> AlignedMTL().weigh(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), None, ["a", "b"])
        tensor([0.5000, 0.2500], dtype=torch.float64)

    Reference:
        Senushkin et al. 2023, "Independent component alignment for multi-task learning", algorithm 1.
    """

    traits: frozenset[str] = SolvedWeighting.traits | {"scale_equivariant"}
    shares: Tensor

    def __init__(
        self,
        scale: Scale = "min",
        preference: Mapping[str, float] | Sequence[float] | None = None,
        rank_tolerance: float = RANK_TOLERANCE,
    ) -> None:
        super().__init__()
        check_choice("AlignedMTL", "scale", scale, ("min", "median", "rmse"))
        self.scale: Scale = scale
        self.preference = preference
        self.rank_tolerance = check_share("AlignedMTL", "rank_tolerance", rank_tolerance)

    def build_state(self, count: int) -> None:
        """Read the preference for the tasks."""
        if self.preference is None:
            return
        shares = per_task("AlignedMTL: preference", self.preference, self.tasks)
        if bool((shares < 0).any()) or not bool(shares.any()):
            raise BalancerError(
                f"AlignedMTL: preference must be positive somewhere and negative nowhere; got {shares}."
            )
        # Not part of the checkpoint: it is an option, and the options of the resumed run hold.
        self.register_buffer("shares", shares, persistent=False)

    def solve(self, gramian: Array, losses: Array | None, tasks: Sequence[str]) -> Solved:
        """Weights ``[p]``."""
        count = len(tasks)
        wanted = np.full(count, 1.0 / count)
        if self.preference is not None:
            chosen = present(self, self.shares, tasks, torch.empty(0, dtype=torch.float64)).numpy()
            # Tasks without preference may be alone in a step; then they count alike.
            wanted = chosen / chosen.sum() if chosen.any() else wanted
        return Solved(aligned_mtl_weights(gramian, wanted, self.scale, self.rank_tolerance))
