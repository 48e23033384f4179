"""FAMO: weights that follow how much each log loss changed in the step just taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import Relook
from polytask.balancing.loss.common import (
    NonNegativeWeighting,
    check_positive,
    masked_softmax,
    per_task,
    present,
    safe_log,
    store,
    working,
)
from polytask.errors import BalancerError, unknown

BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
"""Of the logits' optimizer. A change of log losses has no unit, so this is no threshold on a loss."""


class FAMO(NonNegativeWeighting):
    r"""Fast adaptive multitask optimization: lower all log losses at the same rate.

    With logits :math:`\xi` and :math:`z = \mathrm{softmax}(\xi)`, the total is :math:`c \sum_k z_k \log D_k`,
    where :math:`D_k = L_k - b_k`, b is a lower bound of the loss, and :math:`c = 1 / \sum_k (z_k / D_k)` is
    taken as a constant. The weight is :math:`w_k = c z_k / D_k`, computed as
    :math:`\mathrm{softmax}(\xi - \log D)`: the weights sum to one and see only ratios of losses.

    After the step the losses of the SAME batch are computed again, and the logits take one step of size
    ``lr`` along :math:`-(\delta + \gamma \xi)`, with
    :math:`\delta = (\partial z / \partial \xi)^T (\log D^{before} - \log D^{after})`. The method steps its
    own logits; it has no Parameters for an optimizer.

    A task with D = 0 in one of the two looks is solved for this step: it leaves the softmax, gets weight
    zero and its logit stays. So does a task with D < 0 within a step; if a task's average over an epoch lies below
    b, that is an error at the epoch's end. Absent tasks leave the softmax and their logits stay.

    Args:
        gamma: Decay of the logits, zero or more.
        lr: Step size of the logits.
        min_losses: The lower bounds b, by task name or in their order; zeros if None.
        update: ``adam`` (the authors' programs; the decay is added to the gradient) or ``sgd`` (the paper's algorithm).

    Raises:
        BalancerError: for a negative gamma, a step size that is not positive or an unknown update; at
            ``setup``, if ``min_losses`` does not fit the tasks.

    Example:
        >>> method = FAMO()
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([1.0, 3.0]), ["a", "b"])
        tensor([0.7500, 0.2500])
        >>> method.after_step(lambda: {"a": torch.tensor(0.5), "b": torch.tensor(3.0)})
        >>> bool(method.logits[1] > method.logits[0])
        True

    Reference:
        Liu, Feng, Stone and Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023 (arXiv
        2306.03792), the FAMO algorithm.
    """

    traits: frozenset[str] = frozenset(
        {"permutation_equivariant", "scale_equivariant", "identity_for_one_task", "stateful"}
    )
    looks_again: bool = True
    logits: Tensor
    bounds: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(
        self,
        gamma: float = 0.001,
        lr: float = 0.025,
        min_losses: Mapping[str, float] | Sequence[float] | None = None,
        update: str = "adam",
    ) -> None:
        super().__init__()
        if not 0.0 <= gamma < float("inf"):
            raise BalancerError(f"famo: gamma must be zero or more and finite; got {gamma}.")
        if update not in ("adam", "sgd"):
            raise BalancerError(f"famo: {unknown('update', update, ('adam', 'sgd'))}")
        self.gamma = gamma
        self.lr = check_positive("famo: lr", lr)
        self.min_losses = min_losses
        self.update = update
        self._before: tuple[tuple[str, ...], Tensor, Tensor] | None = None

    def build_state(self, count: int) -> None:
        """Logits of zero; two moments and a count of steps for every one of them."""
        bounds = [0.0] * count if self.min_losses is None else self.min_losses
        self.register_buffer("bounds", per_task("famo min_losses", bounds, self.tasks))
        for name in ("logits", "first", "second", "steps"):
            self.register_buffer(name, torch.zeros(count))
        self._before = None

    def lower_bound(self, task: str) -> float:
        """The bound that ``min_losses`` gives."""
        return float(self.bounds[self.tasks.index(task)])

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights, shape ``[p]``; they sum to one. Remembers the log losses for ``after_step``."""
        losses = working(losses)
        logs, positive = safe_log(losses - present(self, self.bounds, tasks, losses))
        self._before = (tuple(tasks), logs, positive)
        return masked_softmax(present(self, self.logits, tasks, losses) - logs, positive)

    @torch.no_grad()
    def after_step(self, relook: Relook) -> None:
        """Look at the batch again and step the logits.

        Raises:
            BalancerError: if no weights were asked for since the last call.
        """
        if self._before is None:
            raise BalancerError("famo: after_step was called without a step. Call weigh with the batch's losses first.")
        tasks, before, alive = self._before
        self._before = None
        again = relook()
        losses = torch.stack([again[task] for task in tasks]).to(before)
        after, still = safe_log(losses - present(self, self.bounds, tasks, losses))
        both = alive & still
        self._step(tasks, torch.where(both, before - after, 0.0), both)

    def _step(self, tasks: Sequence[str], decrease: Tensor, mask: Tensor) -> None:
        logits = present(self, self.logits, tasks, decrease)
        shares = masked_softmax(logits, mask)
        gradient = shares * (decrease - (shares * decrease).sum()) + self.gamma * logits
        if self.update == "sgd":
            store(self, self.logits, tasks, torch.where(mask, logits - self.lr * gradient, logits))
            return
        first, second = (present(self, moment, tasks, decrease) for moment in (self.first, self.second))
        steps = present(self, self.steps, tasks, decrease) + mask
        first = torch.where(mask, first.lerp(gradient, 1.0 - BETAS[0]), first)
        second = torch.where(mask, second.lerp(gradient.square(), 1.0 - BETAS[1]), second)
        size = (second / (1.0 - BETAS[1] ** steps)).sqrt() + ADAM_EPS
        moved = logits - self.lr * first / (1.0 - BETAS[0] ** steps) / size
        store(self, self.logits, tasks, torch.where(mask, moved, logits))
        for state, new in ((self.first, first), (self.second, second), (self.steps, steps)):
            store(self, state, tasks, new)
