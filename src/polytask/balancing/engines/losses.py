"""The engine of loss weightings: one ordinary backward of the weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balancing.base import LossWeighting
from polytask.balancing.engines.core import BaseEngine, Sums
from polytask.balancing.engines.halves import Halves
from polytask.balancing.engines.heads import plain_tap
from polytask.balancing.types import Losses, MicroBatch, StepReport
from polytask.errors import BalancerError


class LossEngine(BaseEngine):
    """Weights from the step's losses, then one backward a micro-batch.

    Several micro-batches of a method that reads losses are first looked at without gradients: its weights
    are a function of the whole step's losses.
    """

    balancer: LossWeighting

    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """Forward, weights, backward."""
        total, waiting, values = Sums(), None, None
        weights = self.kept_weights(tasks)
        if weights is None and self.balancer.halves:
            self._look_ahead(micro, tasks)
        if weights is None:
            if len(micro) == 1:
                waiting = self.check_losses(micro[0], micro[0].forward(plain_tap))
                total.add(waiting)
                values = self.reduced(total.stack(tasks))
                weights = self._weigh(values, tasks)
            elif self.balancer.needs_losses:
                weights = self._weigh(self.reduced(self._first_look(micro, tasks)), tasks)
            else:
                unread = torch.full((len(tasks),), torch.nan, device=self._device())
                weights = self._weigh(unread, tasks)
            self.keep(tasks, weights)
        by_task = dict(zip(tasks, weights.unbind(), strict=True))
        for batch in micro:
            losses = waiting
            if losses is None:
                losses = self.check_losses(batch, batch.forward(plain_tap))
                total.add(losses)
            backward_weighted(losses, by_task)
        if values is None:
            values = self.reduced(total.stack(tasks))
        if self._fresh:
            self.learn(self.balancer.objective(values, tasks))
        return StepReport(dict(zip(tasks, values.unbind(), strict=True)), by_task)

    def _look_ahead(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> None:
        """Let the method try the step, and step its own Parameters before it weighs."""
        objective = self.balancer.look_ahead(Halves(self, micro, tasks), tasks)
        if objective is not None and self.own is not None:
            self.learn(objective)
            self.own.step()
            self.own.zero_grad(set_to_none=True)

    def _weigh(self, losses: Tensor, tasks: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            weights = self.balancer.weigh(losses, tasks)
        if weights.shape != (len(tasks),):
            raise BalancerError(
                f"'{type(self.balancer).__name__}' returned weights of shape {list(weights.shape)} for "
                f"{len(tasks)} present tasks. Return one weight a task."
            )
        return weights.to(losses.device)

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


def backward_weighted(losses: Losses, weights: dict[str, Tensor]) -> None:
    """One backward of the weighted sum and the penalty; weights go in as seeds, so no graph grows."""
    roots = [loss for loss in losses.tasks.values() if loss.requires_grad]
    seeds: list[Tensor] = [weights[task].to(loss) for task, loss in losses.tasks.items() if loss.requires_grad]
    if losses.penalty is not None and losses.penalty.requires_grad:
        roots.append(losses.penalty)
        seeds.append(torch.ones_like(losses.penalty))
    if not roots:
        raise BalancerError("No loss of this step needs a gradient. Are all parameters frozen?")
    torch.autograd.backward(roots, seeds)
