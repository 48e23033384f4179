"""What engines over linear layers share: which of them can stand for their parameters by their outputs' gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import Layer, OutputRows, recorded, used_once
from polytask.balancing.engines.gradients import GradientEngine
from polytask.balancing.engines.heads import plain_tap
from polytask.balancing.engines.jacobian import Entry, Jacobian, Product
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

    def watched(self, batch: MicroBatch) -> tuple[Losses, list[Layer]]:
        """Losses of a micro-batch, and the layers whose outputs' gradients say all about their parameters'."""
        with recorded(self._linear) as layers:
            losses = self.check_losses(batch, batch.forward(plain_tap))
        able = [layer for layer in layers if layer.is_plain()]
        if able:
            # In every step: which tasks are there and what the model does may change.
            single = used_once(losses.tasks, self.shared)
            able = [layer for layer in able if all(id(p) in single for p in layer.trained)]
        return losses, able

    def output_rows(self, layers: Sequence[Layer], tasks: Sequence[str]) -> OutputRows:
        """Room for the tasks' gradients of the layers' outputs."""
        return OutputRows(layers, len(tasks), self._rooms)


class Columns:
    """What autograd is asked for so that a row of a Jacobian can be written.

    Linear layers are asked for the gradients of their outputs, from which a row's part is written at once. Left to
    itself, autograd makes every task's gradient in new memory, from where it would be copied.

    Args:
        jacobian: Whose rows are written.
        layers: Linear layers whose outputs' gradients say all; those without columns there are passed over.
    """

    def __init__(self, jacobian: Jacobian, layers: Sequence[Layer]):
        self._parameters = jacobian.parameters
        there = {id(p) for p in self._parameters}
        # Under autocast the layer's own product is in half precision, and takes less time than one in full.
        taken = [layer for layer in layers if id(layer.module.weight) in there and layer.dtypes == {jacobian.dtype}]
        self._owner = {id(p): (place, layer) for place, layer in enumerate(taken) for p in layer.trained}
        rest = [p for p in self._parameters if id(p) not in self._owner]
        self._rest = {id(p): place for place, p in enumerate(rest, len(taken))}
        self.asked: list[Tensor] = [*(layer.outputs[0] for layer in taken), *rest]

    def entries(self, found: Sequence[Tensor | None]) -> list[Entry]:
        """A row's entries in the order of the parameters, from the gradients of what was asked for."""
        return [self._entry(p, found) for p in self._parameters] if self._owner else list(found)

    def _entry(self, parameter: nn.Parameter, found: Sequence[Tensor | None]) -> Entry:
        if id(parameter) in self._rest:
            return found[self._rest[id(parameter)]]
        place, layer = self._owner[id(parameter)]
        gradient = found[place]
        if gradient is None:
            return None
        flat = gradient.reshape(-1, gradient.shape[-1])
        return flat.sum(0) if parameter is layer.module.bias else Product(flat, layer.rows())
