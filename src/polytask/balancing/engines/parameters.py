"""The engine over gradients of all shared parameters at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer, JacobianAggregator
from polytask.balancing.engines.core import Options
from polytask.balancing.engines.ghost import OutputRows, linear_layers
from polytask.balancing.engines.gradients import GradientEngine, add_gradients, backward_penalty, gradients, report
from polytask.balancing.engines.halves import cross_products
from polytask.balancing.engines.heads import forward_for_each
from polytask.balancing.engines.host import check_finite
from polytask.balancing.engines.jacobian import Jacobian, blocks_of, started
from polytask.balancing.engines.outputs import OUTPUTS, OutputEngine
from polytask.balancing.engines.parts import PartEngine
from polytask.balancing.engines.rows import exact_products, products
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, MicroBatch, Parameters, StepReport

FEWEST_WEIGHTS = 1 << 15
"""Of a layer whose outputs are looked at: a smaller one saves less than the look takes."""


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
            self._linear = linear_layers(module, self.shared, FEWEST_WEIGHTS)

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
            losses = self.check_losses(batch, forward_for_each(batch)) if alone is None else alone[0]
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
            lambda row: self.named(self.jacobian.broken(row), outputs.broken(row)),
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
        return found + outputs.gramian(exact).to(found.device) if outputs.layers else found

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
        check_finite(torch.diag(norms.detach().cpu()), tasks, lambda row: self.named(self.jacobian.broken(row)))
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
        return words + (OUTPUTS if self._linear else "")


def parameter_engine(
    balancer: Balancer, parameters: Parameters, options: Options, optimizer: Mapping[str, Any] | None
) -> GradientEngine:
    """The engine for ``at: parameters``: the whole Jacobian if it fits the memory budget, else parts of it."""
    shared = [p for p in parameters.shared_parameters() if p.requires_grad]
    parts = blocks_of(shared, len(balancer.tasks) * (1 + balancer.halves), options.memory_budget)
    if len(parts) <= 1 or isinstance(balancer, JacobianAggregator):
        return ParameterEngine(balancer, parameters, options, optimizer)
    return PartEngine(balancer, parameters, options, optimizer, parts)
