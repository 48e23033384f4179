"""What engines over linear layers share: which of them can stand for their parameters by their outputs' gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import Layer, OutputRows, recorded, used_once
from polytask.balancing.engines.gradients import GradientEngine
from polytask.balancing.engines.heads import forward_for_each
from polytask.balancing.types import Losses, MicroBatch, Parameters

OUTPUTS = ", of linear layers from the gradients of their outputs where that takes fewer multiplications"


class OutputEngine(GradientEngine):
    """Can take inner products of linear layers' gradients from the tasks' gradients of the layers' outputs."""

    def __init__(
        self, balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
    ):
        super().__init__(balancer, parameters, options, optimizer)
        self._linear: list[nn.Linear] = []
        self._rooms: dict[int, Tensor] = {}

    def watched(self, batch: MicroBatch, summed: bool) -> tuple[Losses, list[Layer]]:
        """Losses of the micro-batch that is the whole step, and the layers for which the short way pays.

        Args:
            batch: What to run.
            summed: Whether the weighted sum of the layers' gradients is wanted from there as well.
        """
        with recorded(self._linear) as layers:
            losses = self.check_losses(batch, forward_for_each(batch))
        able = [layer for layer in layers if layer.is_plain() and layer.pays(len(batch.tasks), summed)]
        if able:
            # In every step: which tasks are there and what the model does may change.
            single = used_once(losses.tasks, self.shared)
            able = [layer for layer in able if all(id(p) in single for p in layer.trained)]
        return losses, able

    def output_rows(self, layers: Sequence[Layer], tasks: Sequence[str]) -> OutputRows:
        """Room for the tasks' gradients of the layers' outputs."""
        return OutputRows(layers, len(tasks), self._rooms)
