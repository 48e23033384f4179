"""The engines over gradients of the shared parameters: the whole Jacobian, or parts of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer, JacobianAggregator
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import Layer, OutputRows, linear_layers
from polytask.balancing.engines.gradients import GradientEngine, add_gradients, backward_penalty, gradients, report
from polytask.balancing.engines.halves import cross_products
from polytask.balancing.engines.heads import plain_tap
from polytask.balancing.engines.host import check_finite
from polytask.balancing.engines.jacobian import Jacobian, blocks_of
from polytask.balancing.engines.leaves import leaves_of
from polytask.balancing.engines.outputs import OUTPUTS, OutputEngine
from polytask.balancing.engines.rows import exact_products, products
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, MicroBatch, Parameters, StepReport


class ParameterEngine(OutputEngine):
    """Keeps every task's gradient of the shared parameters in one ``[m, n]`` buffer.

    The forward and gradients of one micro-batch are over before the next begins, and each costs as many
    trunk backwards as it has tasks: separate data sets are streamed.
    """

    def __init__(
        self, balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
    ):
        super().__init__(balancer, parameters, options, optimizer)
        device = self.shared[0].device if self.shared else torch.device("cpu")
        self.jacobian = Jacobian(self.shared, device)
        # Of the second half alone, for a method that needs two.
        self._second = Jacobian(self.shared, device) if balancer.halves else None
        module = parameters if isinstance(parameters, nn.Module) else None
        if options.reduce is None and not isinstance(balancer, JacobianAggregator) and not balancer.halves:
            self._linear = linear_layers(module, self.shared)

    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """Rows of the Jacobian, the solve, and the result in ``.grad``."""
        kept = self.kept_weights(tasks)
        if kept is not None:
            return self.told(tasks, self.weighted_pass(micro, tasks, kept), kept)
        alone = self.watched(micro[0], summed=True) if self._linear and len(micro) == 1 else None
        outputs = self.output_rows([] if alone is None else alone[1], tasks)
        self._leave_out(outputs)
        total, buffers = Sums(), started([self.jacobian, self._second], len(tasks))
        for batch in micro:
            losses = self.check_losses(batch, batch.forward(plain_tap)) if alone is None else alone[0]
            total.add(losses)
            self._write_rows(losses, tasks, buffers[: 1 + batch.half], outputs)
            backward_penalty(losses)
        values = self.reduced(total.stack(tasks))
        self.jacobian.finish()
        cross = None
        if self._second is not None:
            self._second.finish()
            cross = cross_products(self.jacobian, self._second, micro, tasks, self.options.reduce)
        if isinstance(self.balancer, JacobianAggregator):
            return self._aggregate(self.balancer, values, tasks)
        weights, found = self.decide(
            self._gramian(outputs),
            values,
            tasks,
            lambda: self._gramian(outputs, exact=True),
            None if outputs.layers else self.jacobian.culprit,
            cross,
        )
        rows = self.jacobian.buffer
        self.jacobian.write(weights.to(rows) @ rows)
        outputs.write(weights)
        return found

    def _leave_out(self, outputs: OutputRows) -> None:
        """Give the Jacobian columns for those parameters only that the layers' outputs do not stand for."""
        there = {id(p) for layer in outputs.layers for p in layer.trained}
        rest = [p for p in self.shared if id(p) not in there]
        if list(map(id, rest)) != list(map(id, self.jacobian.parameters)):
            self.jacobian = Jacobian(rest, self.jacobian.buffer.device)

    def _gramian(self, outputs: OutputRows, exact: bool = False) -> Tensor:
        found = self.jacobian.gramian(self.options.reduce, exact_products if exact else products)
        return found + outputs.gramian(exact) if outputs.layers else found

    def _write_rows(
        self, losses: Losses, tasks: tuple[str, ...], buffers: Sequence[Jacobian], outputs: OutputRows
    ) -> None:
        """One backward a task, into its row; its own parameters get their gradient on the way."""
        present = [task for task in tasks if task in losses.tasks]
        balanced = [*outputs.outputs, *self.jacobian.parameters]
        first, last = len(outputs.outputs), len(balanced)
        for position, task in enumerate(present):
            keep_graph = position < len(present) - 1 or losses.penalty is not None
            own, row = self.own_parameters(task), tasks.index(task)
            grads = gradients(losses.tasks[task], [*balanced, *own], keep_graph)
            outputs.add(row, grads[:first])
            for buffer in buffers:
                buffer.add(row, grads[first:last])
            add_gradients(own, grads[last:])

    def _aggregate(self, balancer: JacobianAggregator, losses: Tensor, tasks: tuple[str, ...]) -> StepReport:
        rows = self.reduced(self.jacobian.buffer)
        norms = torch.linalg.vector_norm(rows, dim=1)
        check_finite(torch.diag(norms.detach().cpu()), tasks, self.jacobian.culprit)
        with torch.no_grad():
            direction = balancer.aggregate(rows, losses, tasks)
        if self.options.rescale_to != "none":
            target = rows.mean(0) if self.options.rescale_to == "mean" else rows.sum(0)
            norm = torch.linalg.vector_norm(direction)
            factor = torch.linalg.vector_norm(target) / torch.where(norm > 0, norm, torch.ones_like(norm))
            direction = direction * factor
        # Every process has the whole direction, and the loop will sum over processes.
        self.jacobian.write(direction / self.world())
        made = report(tasks, losses, None)
        made.extras["update_norm"] = torch.linalg.vector_norm(direction)
        return made

    def place(self) -> str:
        """In words."""
        words = "gradients of the shared parameters (at: parameters)"
        if self._linear:
            words += OUTPUTS
        return words


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
            gramian, values, tasks, lambda: self._gramian(micro, tasks, alone, exact_products)[0], cross=cross
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
        weights, found = self.decide(outputs.gramian(), total.stack(tasks), tasks, lambda: outputs.gramian(exact=True))
        self._from_there(losses, tasks, weights, outputs)
        return found

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
                    losses = alone or self.check_losses(batch, batch.forward(plain_tap))
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


def parameter_engine(
    balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
) -> GradientEngine:
    """The engine for ``at: parameters``: the whole Jacobian if it fits the memory budget, else parts of it."""
    shared = [p for p in parameters.shared_parameters() if p.requires_grad]
    parts = blocks_of(shared, len(balancer.tasks) * (1 + balancer.halves), options.memory_budget)
    if len(parts) <= 1 or isinstance(balancer, JacobianAggregator):
        return ParameterEngine(balancer, parameters, options, optimizer)
    return PartEngine(balancer, parameters, options, optimizer, parts)


def started(buffers: Sequence[Jacobian | None], rows: int) -> list[Jacobian]:
    """Those buffers that there are, ready for a step with ``rows`` tasks."""
    kept = [buffer for buffer in buffers if buffer is not None]
    for buffer in kept:
        buffer.start(rows)
    return kept


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
