"""The engine of loss weightings: one ordinary backward of the weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balancing.base import LossWeighting
from polytask.balancing.engines.core import BaseEngine
from polytask.balancing.engines.halves import Halves
from polytask.balancing.engines.heads import plain_tap
from polytask.balancing.engines.sums import Sums, joined, plain_values
from polytask.balancing.types import Losses, MicroBatch, StepReport
from polytask.errors import BalancerError


class LossEngine(BaseEngine):
    """Weights from the step's losses, then one backward a micro-batch.

    Several micro-batches of a method that reads losses are first looked at without gradients: its weights
    are a function of the whole step's losses.
    """

    balancer: LossWeighting

    def kept_weights(self, tasks: tuple[str, ...]) -> Tensor | None:
        """The weights of an earlier step where this one reuses them; always if they never change."""
        if self.balancer.fixed_weights and self._kept is not None and self._kept[0] == tasks:
            return self._kept[1]
        return super().kept_weights(tasks)

    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """Forward, weights, backward."""
        weights = self.kept_weights(tasks)
        if weights is None and self.balancer.halves:
            self._look_ahead(micro, tasks)
        weights, values = self._one(micro[0], tasks, weights) if len(micro) == 1 else self._all(micro, tasks, weights)
        by_task = dict(zip(tasks, weights.unbind(), strict=True))
        return StepReport(dict(zip(tasks, values.unbind(), strict=True)), by_task)

    def _one(self, batch: MicroBatch, tasks: tuple[str, ...], weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weights and losses of a step of one micro-batch, which needs one forward."""
        losses = self.check_losses(batch, batch.forward(plain_tap))
        root = joined(losses.tasks, tasks)
        values = self.reduced(plain_values(losses, root, tasks))
        if weights is None:
            weights = self._weigh(values, tasks)
        # Before the backward, while what made the weights is warm in the caches.
        self._learn_own(values, weights, tasks)
        backward_weighted(losses, root, weights)
        return weights, values

    def _all(
        self, micro: Sequence[MicroBatch], tasks: tuple[str, ...], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The weights and losses of a step of several micro-batches."""
        total = Sums()
        if weights is None and self.balancer.needs_losses:
            weights = self._weigh(self.reduced(self._first_look(micro, tasks)), tasks)
        elif weights is None:
            weights = self._weigh(torch.full((len(tasks),), torch.nan, device=self._device()), tasks)
        for batch in micro:
            losses = self.check_losses(batch, batch.forward(plain_tap))
            total.add(losses)
            here = [place for place, task in enumerate(tasks) if task in losses.tasks]
            backward_weighted(losses, joined(losses.tasks, tasks), weights[here])
        values = self.reduced(total.stack(tasks))
        self._learn_own(values, weights, tasks)
        return weights, values

    def _learn_own(self, values: Tensor, weights: Tensor, tasks: tuple[str, ...]) -> None:
        """Gradients of the method's own Parameters, where this step finds new weights."""
        if self._fresh and self.own is not None:
            found = self.balancer.own_gradients(values, weights, tasks)
            if found is None:
                self.learn(self.balancer.objective(values, tasks))
            else:
                self.leave(found)

    def _look_ahead(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> None:
        """Let the method try the step, and step its own Parameters before it weighs."""
        objective = self.balancer.look_ahead(Halves(self, micro, tasks), tasks)
        if objective is not None and self.own is not None:
            self.learn(objective)
            self.step_own()

    def _weigh(self, losses: Tensor, tasks: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            weights = self.balancer.weigh(losses, tasks)
        if weights.shape != (len(tasks),):
            raise BalancerError(
                f"'{type(self.balancer).__name__}' returned weights of shape {list(weights.shape)} for "
                f"{len(tasks)} present tasks. Return one weight a task."
            )
        weights = weights.to(losses.device)
        self.keep(tasks, weights)
        return weights

    def _first_look(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> Tensor:
        total = Sums()
        with torch.no_grad(), self.replay.peek():
            for batch in micro:
                total.add(self.check_losses(batch, batch.forward(plain_tap)))
        return total.stack(tasks)

    def _device(self) -> torch.device:
        known = [p.device for task in self.balancer.tasks for p in self.parameters.task_parameters(task)]
        return next((p.device for p in self.shared), known[0] if known else torch.device("cpu"))

    def place(self) -> str:
        """No gradients are taken apart."""
        return "weights from the losses"


def backward_weighted(losses: Losses, root: Tensor, weights: Tensor) -> None:
    """One backward of the weighted sum and the penalty; weights go in as seeds, so no graph grows.

    Args:
        losses: Of some tasks.
        root: The same losses, ``joined``: one root in place of one a task, each of which would cost the host a little.
        weights: One a loss of ``root``.
    """
    roots, seeds = ([root], [weights.to(root)]) if root.requires_grad else ([], [])
    if losses.penalty is not None and losses.penalty.requires_grad:
        roots.append(losses.penalty)
        seeds.append(torch.ones_like(losses.penalty))
    if not roots:
        raise BalancerError("No loss of this step needs a gradient. Are all parameters frozen?")
    torch.autograd.backward(roots, seeds)
