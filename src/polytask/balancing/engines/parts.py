"""The engine over parts of the gradients at a time: the last shared layer, or as many columns as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import Layer, OutputRows, linear_layers
from polytask.balancing.engines.gradients import add_gradients, backward_penalty, gradients
from polytask.balancing.engines.halves import cross_products
from polytask.balancing.engines.heads import forward_for_each
from polytask.balancing.engines.jacobian import Jacobian, first_broken, started
from polytask.balancing.engines.leaves import leaves_of
from polytask.balancing.engines.outputs import OUTPUTS, OutputEngine
from polytask.balancing.engines.rows import exact_products, products
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, MicroBatch, Parameters, StepReport


class PartEngine(OutputEngine):
    """Finds the weights from a part of the gradients at a time, then does one weighted backward.

    For ``at: last`` the one part is the last shared layer. For a Jacobian above the memory budget the parts
    are consecutive parameters, and the Gramian is the sum of theirs: exact, for more backwards.

    Args:
        parts: Lists of parameters; None for the last shared layer.
    """

    def __init__(
        self,
        balancer: Balancer,
        parameters: Parameters,
        options: Options,
        optimizer: Mapping[str, Any] | None,
        parts: Sequence[Sequence[nn.Parameter]] | None = None,
    ):
        super().__init__(balancer, parameters, options, optimizer)
        self.parts = [last_shared(parameters, self.shared)] if parts is None else [list(part) for part in parts]
        self._last = parts is None
        module = parameters if isinstance(parameters, nn.Module) else None
        if self._last and options.reduce is None and not balancer.halves:
            self._linear = layers_of(module, self.parts[0])

    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """The Gramian part by part, the solve, and a weighted backward."""
        kept = self.kept_weights(tasks)
        if kept is not None:
            return self.told(tasks, self.weighted_pass(micro, tasks, kept), kept)
        alone = None
        if len(micro) == 1:
            alone, layers = self.watched(micro[0], summed=False)
            if layers and len(layers) == len(self._linear):
                return self._from_outputs(alone, tasks, layers)
        gramian, values, cross = self._gramian(micro, tasks, alone, products, own=True)
        weights, found = self.decide(
            gramian,
            values,
            tasks,
            lambda: self._gramian(micro, tasks, alone, exact_products)[0],
            None if alone is None else lambda row: self.named(self._broken(alone.tasks[tasks[row]])),
            cross,
        )
        if alone is not None:
            self.weighted_backward(alone, tasks, weights, own=False)
        else:
            self.weighted_pass(micro, tasks, weights, own=False)
        return found

    def _from_outputs(self, losses: Losses, tasks: tuple[str, ...], layers: Sequence[Layer]) -> StepReport:
        """The same from the gradients of the last layers' outputs; each task's backward ends there."""
        outputs, total = self.output_rows(layers, tasks), Sums()
        total.add(losses)
        for row, task in enumerate(tasks):
            own = self.own_parameters(task)
            grads = gradients(losses.tasks[task], [*outputs.outputs, *own], keep_graph=True)
            outputs.add(row, grads[: len(layers)])
            add_gradients(own, grads[len(layers) :])
        weights, found = self.decide(
            outputs.gramian(),
            total.stack(tasks),
            tasks,
            lambda: outputs.gramian(exact=True),
            lambda row: self.named(outputs.broken(row)),
        )
        self._from_there(losses, tasks, weights, outputs)
        return found

    def _broken(self, loss: Tensor) -> nn.Parameter | None:
        """The first parameter of the parts for which a loss, whose graph is still there, has no finite gradient."""
        owned = [p for part in self.parts for p in part]
        return first_broken(owned, gradients(loss, owned, keep_graph=True))

    def _from_there(self, losses: Losses, tasks: tuple[str, ...], weights: Tensor, outputs: OutputRows) -> None:
        """The weighted backward: from the one layer's outputs if all of the tasks' paths lead through them."""
        made = outputs.outputs
        beside = {id(leaf) for leaf in leaves_of(losses.tasks.values(), {z.grad_fn for z in made})}
        if len(made) > 1 or any(id(p) in beside for p in self.shared):
            self.weighted_backward(losses, tasks, weights, own=False)
            return
        live = [p for p in self.shared if p.requires_grad]
        seed = outputs.weighted(weights)[0].view_as(made[0]).to(made[0].dtype)
        torch.autograd.backward(made, [seed], inputs=live, retain_graph=losses.penalty is not None)
        backward_penalty(losses)

    def _gramian(
        self,
        micro: Sequence[MicroBatch],
        tasks: tuple[str, ...],
        alone: Losses | None,
        form: Callable[[Tensor], Tensor],
        own: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The Gramian, the losses and, of a method with halves, the products of the two.

        With ``own``, the tasks' own parameters get their gradients on the way.
        """
        gramian, cross = None, None
        values = torch.empty(0)
        for number, part in enumerate(self.parts):
            total, jacobian = Sums(), Jacobian(part)
            buffers = started([jacobian, Jacobian(part) if self.balancer.halves else None], len(tasks))
            with self.replay.peek():
                for batch in micro:
                    losses = alone or self.check_losses(batch, forward_for_each(batch))
                    total.add(losses)
                    for task in tasks:
                        if task in losses.tasks:
                            mine = self.own_parameters(task) if own and number == 0 else []
                            grads = gradients(losses.tasks[task], [*part, *mine], keep_graph=True)
                            for buffer in buffers[: 1 + batch.half]:
                                buffer.add(tasks.index(task), grads[: len(part)])
                            add_gradients(mine, grads[len(part) :])
            for buffer in buffers:
                buffer.finish()
            share = jacobian.gramian(self.options.reduce, form)
            gramian = share if gramian is None else gramian + share
            if len(buffers) == 2:
                crossed = cross_products(jacobian, buffers[1], micro, tasks, self.options.reduce)
                cross = crossed if cross is None else cross + crossed
            values = total.stack(tasks)
        assert gramian is not None
        return gramian, self.reduced(values), cross

    def place(self) -> str:
        """In words."""
        if self._last:
            words = "gradients of the last shared layer (at: last)"
            return words + (OUTPUTS if self._linear else "")
        return f"gradients of the shared parameters (at: parameters), in {len(self.parts)} parts to save memory"


def last_shared(parameters: Parameters, shared: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters of the last shared layer that has a weight matrix.

    A model may name them itself with a method ``last_shared_parameters``. Otherwise it is the last module, in
    the order of registration, that owns a trained shared weight of two or more dimensions.
    """
    named = getattr(parameters, "last_shared_parameters", None)
    if named is not None:
        return [p for p in named() if p.requires_grad]
    matrices = [p for p in shared if p.dim() >= 2] or list(shared)
    if not matrices or not isinstance(parameters, nn.Module):
        return matrices[-1:]
    chosen, own = matrices[-1], {id(p) for p in shared}
    for module in parameters.modules():
        mine = list(module.parameters(recurse=False))
        if any(p is chosen for p in mine):
            return [p for p in mine if id(p) in own]
    return [chosen]


def layers_of(model: nn.Module | None, part: Sequence[nn.Parameter]) -> list[nn.Linear]:
    """The linear layers that own all of these parameters between them; none if there are others."""
    found = linear_layers(model, part)
    owned = {id(p) for layer in found for p in (layer.weight, layer.bias)}
    return found if owned >= {id(p) for p in part} else []
