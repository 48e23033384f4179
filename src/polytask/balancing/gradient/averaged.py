"""DB-MTL, MoCo and ExcessMTL: methods that keep a running gradient for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import JacobianAggregator
from polytask.balancing.functional.simplex_projection import simplex_step
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.gradient.memory import TaskRows, falling
from polytask.balancing.gramian.solver import check_number
from polytask.balancing.loss.common import masked_softmax, present, store
from polytask.errors import BalancerError


def refuse_negative(method: str, losses: Mapping[str, float], shift: float = 0.0) -> None:
    """Raise a BalancerError for an epoch's average loss that has no logarithm because it is negative."""
    for task, value in losses.items():
        if value + shift < 0.0:
            raise BalancerError(
                f"{method} takes logarithms of losses; the loss of '{task}' was {value:g} on average over the epoch. "
                "Add a constant to that loss, or leave the logarithm out."
            )


def log_rates(losses: Tensor, shift: float = 0.0) -> Tensor:
    """The derivative of log(L + shift), 1 / (L + shift); zero where the logarithm is not defined.

    Args:
        losses: Shape ``[p]``.
        shift: Added to the losses.

    Returns:
        Shape ``[p]``.

    Example:
        >>> log_rates(torch.tensor([0.5, 0.0, -1.0]))
        tensor([2., 0., 0.])
    """
    values = losses + shift
    return torch.where(values > 0, 1.0 / torch.where(values > 0, values, 1.0), 0.0)


class DBMTL(JacobianAggregator):
    r"""Dual balancing: averaged gradients of log losses, all brought to the largest norm, then added up.

    At a task's step t, counted over the steps in which it is present,

    .. math::
        \hat g_i \leftarrow \beta_t \hat g_i + (1 - \beta_t) \frac{g_i}{L_i + \epsilon}, \quad
        \beta_t = \frac{\beta}{t^\sigma}, \qquad
        d = \max_k |\hat g_k| \sum_i \frac{\hat g_i}{|\hat g_i|},

    from :math:`\hat g_i = 0`. Absent tasks keep their average and take no part. A zero average adds nothing.
    A loss that is not positive has no logarithm: within a step its gradient counts as zero (looking at it
    would cost a transfer from the device), and a negative average over an epoch is an error.

    Multiplying a loss by a constant changes nothing, with :math:`\epsilon = 0`. The paper has
    :math:`10^{-8}`, which matters for losses as small.

    Args:
        beta: Share of the old average, in [0, 1]. 0 keeps no average.
        sigma: How fast that share falls.
        eps: Added to the losses, in their units.

    Raises:
        BalancerError: for options out of range, missing losses, or a negative average loss.

    Example:
        >>> method = DBMTL(beta=0.0)
        >>> method.setup(["a", "b"])
        >>> method.aggregate(torch.tensor([[1.0, 0.0], [0.0, 8.0]]), torch.tensor([0.5, 2.0]), ["a", "b"])
        tensor([4., 4.])

    Reference:
        Lin et al. 2023, "Dual-balancing for multi-task learning", the DB-MTL algorithm.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "stateful"})
    needs_losses: bool = True

    def __init__(self, beta: float = 0.9, sigma: float = 0.0, eps: float = 0.0) -> None:
        super().__init__()
        self.beta = check_share("DBMTL", "beta", beta)
        self.sigma = check_number("DBMTL", "sigma", sigma, 0.0)
        self.eps = check_number("DBMTL", "eps", eps, 0.0)

    def build_state(self, count: int) -> None:
        """Averages of zero."""
        self.averages = TaskRows(count)

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Refuse to go on with negative losses.

        Raises:
            BalancerError: if a task's average loss plus ``eps`` is negative.
        """
        refuse_negative("DBMTL", losses, self.eps)

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Direction ``[n]`` from gradients ``[p, n]`` and losses ``[p]``; renews the averages."""
        if losses is None:
            raise BalancerError("DBMTL takes gradients of log losses, so it needs the losses. Pass them along.")
        places = self.index(tasks)
        rows, kept, steps = self.averages.read(jacobian, places)
        share = falling(self.beta, steps, self.sigma)
        rate = log_rates(losses.detach().to(rows), self.eps)
        averages = kept.mul_(share[:, None]).add_(((1.0 - share) * rate)[:, None] * rows)
        self.averages.write(places, averages)
        norms = torch.linalg.vector_norm(averages, dim=1)
        weights = torch.where(norms > 0, norms.max() / torch.where(norms > 0, norms, 1.0), 0.0)
        return (weights @ averages).to(jacobian.dtype)


class MoCo(JacobianAggregator):
    r"""Multi-objective gradient correction: tracked gradients, with weights that descend on the simplex.

    In this order, from :math:`y_i = 0` and :math:`\lambda = 1/m`:

    .. math::
        y_i \leftarrow y_i - \beta_t (y_i - g_i), \qquad
        \lambda \leftarrow \Pi_\Delta\big(\lambda - \gamma_t (Y Y^T + \rho I) \lambda\big), \qquad
        d = \sum_i \lambda_i y_i

    with the y as rows of Y, :math:`\beta_t = \beta / t^{\sigma_\beta}` and
    :math:`\gamma_t = \gamma / t^{\sigma_\gamma}`; the projection is exact. For the tracking, t counts the
    steps in which the task is present; for the weights, all steps. The authors' experiments first scale every
    gradient to the norm of its loss. The paper does not, nor does this class; put the transform
    ``normalize_rows("loss")`` before it for that.

    :math:`\gamma` has the units of one over a squared gradient: the method is not free of scale, and with
    large gradients the weights jump between corners. Absent tasks keep y and their weight; the others share
    the rest, and the update uses their weights scaled to sum 1. A zero gradient pulls its y to zero and, as
    in MGDA, draws weight.

    Args:
        beta: Rate of the tracking, in [0, 1].
        beta_sigma: How fast it falls.
        gamma: Step size of the weights.
        gamma_sigma: How fast it falls.
        rho: Weight of the penalty on :math:`|\lambda|^2 / 2`.

    Raises:
        BalancerError: for options out of range.

    Example:
        >>> method = MoCo(beta=1.0, gamma=0.1)
        >>> method.setup(["a", "b"])
        >>> method.aggregate(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None, ["a", "b"])
        tensor([0.5750, 0.8500])

    Reference:
        Fernando et al. 2023, "Mitigating gradient bias in multi-objective learning", the MoCo
        algorithm.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "stateful"})
    weights: Tensor
    step: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
    ) -> None:
        super().__init__()
        self.beta = check_share("MoCo", "beta", beta)
        self.beta_sigma = check_number("MoCo", "beta_sigma", beta_sigma, 0.0)
        self.gamma = check_number("MoCo", "gamma", gamma, 0.0)
        self.gamma_sigma = check_number("MoCo", "gamma_sigma", gamma_sigma, 0.0)
        self.rho = check_number("MoCo", "rho", rho, 0.0)

    def build_state(self, count: int) -> None:
        """Tracked gradients of zero and equal weights."""
        self.tracked = TaskRows(count)
        self.register_buffer("weights", torch.full((count,), 1.0 / count))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Direction ``[n]`` from gradients ``[p, n]``; renews the tracked gradients and the weights."""
        places = self.index(tasks)
        rows, kept, steps = self.tracked.read(jacobian, places)
        tracked = kept.lerp_(rows, falling(self.beta, steps, self.beta_sigma)[:, None])
        self.tracked.write(places, tracked)
        self.step += 1
        old = present(self, self.weights, tasks, rows)
        total = old.sum()
        shares = torch.where(total > 0, old / torch.where(total > 0, total, 1.0), 1.0 / len(tasks))
        rate = falling(self.gamma, self.step.to(rows), self.gamma_sigma)
        shares = simplex_step(shares, tracked @ tracked.T, rate, self.rho)
        store(self, self.weights, tasks, total * shares)
        return (shares @ tracked).to(jacobian.dtype)


class ExcessMTL(JacobianAggregator):
    r"""More weight for tasks that are still far from their optimum, by an estimate of the excess risk.

    .. math::
        E_i = g_i^T \mathrm{diag}\Big(\sqrt{\textstyle\sum_t g_{i,t}^2}\Big)^{-1} g_i, \qquad
        w_i \propto w_i \exp(\eta E_i / E_{i,0}), \qquad d = \sum_i w_i g_i

    The sum of squares runs over all steps so far, this one included; a coordinate where it is 0 adds 0. The
    weights start equal and sum to 1. A task's first step with a gradient that is not zero records
    :math:`E_{i,0}` and leaves its weight, so the first update is the mean gradient. A zero gradient leaves its
    task's factor at 1. Absent tasks keep their state, and the weights of the others are scaled to sum 1. The
    update scales with the gradients.

    Args:
        eta: Step size of the weights.

    Raises:
        BalancerError: for a step size that is not positive.

    Example:
        >>> method = ExcessMTL()
        >>> method.setup(["a", "b"])
        >>> method.aggregate(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None, ["a", "b"])
        tensor([0.5000, 1.0000])

    Reference:
        He et al. 2024, "Robust multi-task learning with excess risks", the
        ExcessMTL algorithm.
    """

    traits: frozenset[str] = frozenset(
        {"identity_for_one_task", "permutation_equivariant", "scale_equivariant", "stateful"}
    )
    first: Tensor
    logits: Tensor

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__()
        self.eta = check_number("ExcessMTL", "eta", eta, 0.0, strict=True)

    def build_state(self, count: int) -> None:
        """Sums of squares of zero, and equal weights."""
        self.roots = TaskRows(count)
        self.register_buffer("first", torch.zeros(count))
        self.register_buffer("logits", torch.zeros(count))

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, tasks: Sequence[str]) -> Tensor:
        """Direction ``[n]`` from gradients ``[p, n]``; renews the sums of squares and the weights."""
        places = self.index(tasks)
        rows, kept, _ = self.roots.read(jacobian, places)
        # The root of the sum is what is kept: squares of small gradients would underflow.
        roots = torch.hypot(kept, rows)
        self.roots.write(places, roots)
        excess = (rows.abs() * (rows.abs() / torch.where(roots > 0, roots, 1.0))).sum(1)
        first = present(self, self.first, tasks, rows)
        known = first > 0
        store(self, self.first, tasks, torch.where(known, first, excess))
        logits = present(self, self.logits, tasks, rows)
        logits = torch.where(known, logits + self.eta * excess / torch.where(known, first, 1.0), logits)
        store(self, self.logits, tasks, logits)
        # Only differences matter; without this the sums would grow until float32 loses the differences.
        self.logits -= self.logits.max()
        weights = masked_softmax(logits, torch.ones_like(logits, dtype=torch.bool))
        return (weights @ rows).to(jacobian.dtype)
