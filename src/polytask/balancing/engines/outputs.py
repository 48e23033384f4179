"""What engines over linear layers share: the Gramian from the tasks' gradients of the layers' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import Layer, ghost_products, used_once
from polytask.balancing.engines.gradients import GradientEngine, add_gradients, gradients
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, Parameters, StepReport


class OutputEngine(GradientEngine):
    """Can form the Gramian of linear layers from the tasks' gradients of their outputs."""

    def __init__(
        self, balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
    ):
        super().__init__(balancer, parameters, options, optimizer)
        self._linear: list[nn.Linear] = []
        self._checked = False

    def tied_to_nothing(self, losses: Losses, owned: Sequence[nn.Parameter]) -> bool:
        """Checked in the first step that could use it; a model whose weights are used elsewhere never does."""
        if not self._checked:
            self._checked = True
            if not used_once(losses.tasks, owned):
                self._linear = []
        return bool(self._linear)

    def from_outputs(
        self, losses: Losses, tasks: tuple[str, ...], layers: Sequence[Layer]
    ) -> tuple[Tensor, StepReport, list[Tensor]]:
        """Weights from the tasks' gradients of the layers' outputs alone, the report, and these gradients.

        The tasks' own parameters get their gradients on the way.
        """
        outputs = [layer.outputs[0] for layer in layers]
        stacks = [layer.empty_stack(len(tasks)) for layer in layers]
        for row, task in enumerate(tasks):
            own = self.own_parameters(task)
            grads = gradients(losses.tasks[task], [*outputs, *own], keep_graph=True)
            for stack, grad in zip(stacks, grads, strict=False):
                stack[row] = 0.0 if grad is None else grad.reshape(stack[row].shape)
            add_gradients(own, grads[len(outputs) :])
        total = Sums()
        total.add(losses)
        weights, found = self.decide(
            ghost_products(layers, stacks, stacks[0].dtype),
            total.stack(tasks),
            tasks,
            lambda: ghost_products(layers, stacks, torch.float64),
        )
        return weights, found, stacks
