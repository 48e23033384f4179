"""Losses and reports of several micro-batches, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.types import Losses, StepReport


class Sums:
    """Adds up the micro-batches' shares of every task's loss."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, losses: Losses) -> None:
        """Add one micro-batch's shares, detached."""
        for task, loss in (losses.tasks if losses.plain is None else losses.plain).items():
            share = loss.detach()
            self.values[task] = self.values[task] + share if task in self.values else share

    def stack(self, tasks: Sequence[str]) -> Tensor:
        """One vector in the order of ``tasks``, float32 or better."""
        return full(joined(self.values, tasks))


def joined(losses: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    """The losses of those ``tasks`` that have one, as one tensor."""
    return torch.stack([losses[task] for task in tasks if task in losses])


def plain_values(losses: Losses, root: Tensor, tasks: Sequence[str]) -> Tensor:
    """Detached values of the losses that ``root`` joins, before any scaling; float32 or better."""
    return full(root.detach() if losses.plain is None else joined(losses.plain, tasks))


def full(losses: Tensor) -> Tensor:
    """Losses in float32 or better."""
    return losses if losses.dtype == torch.float64 else losses.float()


def merged(reports: Sequence[StepReport]) -> StepReport:
    """One report of a step whose micro-batches were solved by themselves: losses add, weights average."""
    losses: dict[str, Tensor] = {}
    weights: dict[str, list[Tensor]] = {}
    for report in reports:
        for task, loss in report.losses.items():
            losses[task] = losses[task] + loss if task in losses else loss
        for task, weight in report.weights.items():
            weights.setdefault(task, []).append(weight)
    return StepReport(losses, {task: torch.stack(of).mean() for task, of in weights.items()})
