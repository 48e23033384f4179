"""The engine at the features: one ordinary backward through the balance node."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing.base import JacobianAggregator
from polytask.balancing.engines.gradients import (
    GradientEngine,
    add_gradients,
    backward_penalty,
    gradients,
    report,
)
from polytask.balancing.engines.heads import heads_only, plain_tap, rows_of
from polytask.balancing.engines.host import check_finite
from polytask.balancing.engines.jacobian import Jacobian
from polytask.balancing.engines.losses import backward_weighted
from polytask.balancing.engines.node import Column, Combine, Link, aliases, unreached
from polytask.balancing.engines.rows import Rows, exact_products, products
from polytask.balancing.engines.sums import Sums, joined, plain_values
from polytask.balancing.types import Losses, MicroBatch, StepReport
from polytask.errors import BalancerError


class FeatureEngine(GradientEngine):
    """Balances the gradients of the features z where shared computation ends.

    The node's backward receives every task's dL/dz, forms the Gramian, and passes the weighted sum on. Heads
    see ordinary gradients. With several micro-batches, a first pass forms the Gramian of the whole step;
    separate data sets, with one task a micro-batch, need no second pass. While a strategy fixes all that lies before
    the features, what lies behind them gets its plain gradients.
    """

    _waiting = False

    def step(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """Forward, and one backward in which the weights are found."""
        kept = self.kept_weights(tasks)
        if kept is not None:
            return self._with(kept, micro, tasks, None)
        if len(micro) == 1:
            return self._one_pass(micro[0], tasks)
        if isinstance(self.balancer, JacobianAggregator):
            raise BalancerError(
                f"'{type(self.balancer).__name__}' at the features works on one micro-batch a step; this one has "
                f"{len(micro)}. Use at: parameters, or accumulate: micro."
            )
        if self._streams(micro, tasks):
            return self._streamed(micro, tasks)
        gramian, total = self._first_pass(micro, tasks, products)
        weights, found = self.decide(
            self.reduced(gramian),
            self.reduced(total.stack(tasks)),
            tasks,
            lambda: self.reduced(self._first_pass(micro, tasks, exact_products)[0]),
        )
        return self._with(weights, micro, tasks, found)

    def _streams(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> bool:
        """Whether no two tasks share rows, and a trunk gradient for every task fits the memory budget."""
        if not self.shared or self._shared_waits():
            return False
        size = len(tasks) * sum(p.numel() * max(4, p.element_size()) for p in self.shared)
        return size <= self.options.memory_budget and all(len(b.tasks) == 1 for b in micro)

    def _streamed(self, micro: Sequence[MicroBatch], tasks: tuple[str, ...]) -> StepReport:
        """Separate data sets: each micro-batch is run forward and backward once, and freed.

        Rows of different examples are different columns of the features' Jacobian, so the Gramian is diagonal.
        The trunk's backward is linear, so each task's gradient of the trunk can wait for its weight.
        """
        jacobian, total = self._trunk_rows, Sums()
        jacobian.start(len(tasks))
        squares = [torch.zeros((), dtype=torch.float64, device=jacobian.buffer.device) for _ in tasks]
        for batch in micro:
            row = tasks.index(batch.tasks[0])
            losses, square = self._stream(batch, jacobian, row)
            total.add(losses)
            squares[row] = squares[row] + square
        rows = jacobian.finish()
        gramian = self.reduced(torch.diag(torch.stack(squares)))
        values = self.reduced(total.stack(tasks))
        weights, found = self.decide(gramian, values, tasks, lambda: gramian, lambda k: self.named(jacobian.broken(k)))
        jacobian.write(weights.to(rows) @ rows)
        return found

    @functools.cached_property
    def _trunk_rows(self) -> Jacobian:
        return Jacobian(self.shared)

    def _stream(self, batch: MicroBatch, jacobian: Jacobian, row: int) -> tuple[Losses, Tensor]:
        """One task's backward into its row; returns the losses and the squared norm at the features."""
        (task,) = batch.tasks
        seen: list[dict[str, Tensor]] = []

        def tap(features: dict[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
            seen.append({key: z for key, z in features.items() if z.requires_grad})
            return plain_tap(features)

        losses = self.check_losses(batch, batch.forward(tap))
        check_called([True] * len(seen))
        features, own = list(seen[0].values()), self.own_parameters(task)
        wanted = [*features, *self.shared, *own]
        found = gradients(losses.tasks[task], wanted, keep_graph=losses.penalty is not None)
        cut = len(features)
        reached = [z.double().square().sum() for z in found[:cut] if z is not None]
        if not reached:
            raise BalancerError(unreached(tuple(seen[0]), [task]))
        jacobian.add(row, found[cut : cut + len(self.shared)])
        add_gradients(own, found[cut + len(self.shared) :])
        backward_penalty(losses)
        return losses, sum_of(reached)

    def _one_pass(self, batch: MicroBatch, tasks: tuple[str, ...]) -> StepReport:
        made: list[StepReport] = []

        def combine(columns: list[Column]) -> list[Tensor]:
            combined, found = self.balance(columns, values, tasks)
            made.append(found)
            return combined

        losses = self.forward(batch, combine, tasks)
        root = joined(losses.tasks, tasks)
        values = self.reduced(plain_values(losses, root, tasks))
        backward_weighted(losses, root, torch.ones_like(root))
        if self._waiting:
            return report(tasks, values, None)
        if not made:
            raise BalancerError(
                "No gradient arrived at the features: the losses do not depend on what the tap returned. Feed each "
                "head with the features of its task, or use at: parameters."
            )
        return made[0]

    def balance(
        self, columns: Sequence[Column], losses: Tensor | None, tasks: tuple[str, ...]
    ) -> tuple[list[Tensor], StepReport]:
        """What goes on into the trunk, from every task's gradient of the features.

        Args:
            columns: The p rows of every feature tensor; no column is without any.
            losses: Of the present tasks ``[p]``, or None if they are unknown.
            tasks: Names of the present tasks.

        Returns:
            A gradient for every feature tensor, and the report.
        """
        if isinstance(self.balancer, JacobianAggregator):
            return self._aggregated(self.balancer, columns, losses, tasks), report(tasks, losses, None)
        rows = [Rows(column) for column in columns]
        gramian = self.reduced(sum_of(each.products() for each in rows))
        weights, found = self.decide(
            gramian,
            losses,
            tasks,
            lambda: self.reduced(sum_of(each.products(exact_products) for each in rows)),
        )
        return [each.weighted_sum(weights) for each in rows], found

    def _aggregated(
        self, balancer: JacobianAggregator, columns: Sequence[Column], losses: Tensor | None, tasks: tuple[str, ...]
    ) -> list[Tensor]:
        stacks = [whole(column) for column in columns]
        flat = torch.cat([stack.reshape(len(tasks), -1) for stack in stacks], 1)
        jacobian = flat.to(torch.promote_types(flat.dtype, torch.float32))
        check_finite(torch.diag(torch.linalg.vector_norm(jacobian, dim=1).cpu()), tasks)
        with torch.no_grad():
            direction = balancer.aggregate(jacobian, losses, tasks)
        parts = torch.split(direction, [stack[0].numel() for stack in stacks])
        return [part.view(stack.shape[1:]).to(stack.dtype) for part, stack in zip(parts, stacks, strict=True)]

    def _with(
        self, weights: Tensor, micro: Sequence[MicroBatch], tasks: tuple[str, ...], found: StepReport | None
    ) -> StepReport:
        """Forward and backward of every micro-batch with weights that are known."""
        total = Sums()
        for batch in micro:
            chosen = weights[[tasks.index(task) for task in tasks if task in batch.tasks]]
            losses = self.forward(batch, fixed(chosen), tasks)
            total.add(losses)
            root = joined(losses.tasks, tasks)
            backward_weighted(losses, root, torch.ones_like(root))
        return found or self.told(tasks, self.reduced(total.stack(tasks)), weights)

    def _first_pass(
        self, micro: Sequence[MicroBatch], tasks: tuple[str, ...], form: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Sums]:
        """The step's Gramian and losses, without touching the trunk's backward.

        Rows of different examples are different columns of the Jacobian, so the micro-batches' Gramians add.
        """
        total, gramian = Sums(), None
        with self.replay.peek():
            for batch in micro:
                order = [task for task in tasks if task in batch.tasks]
                columns, losses = self._rows(batch, order)
                total.add(losses)
                part = sum_of(Rows(column).products(form) for column in columns)
                if gramian is None:
                    gramian = part.new_zeros(len(tasks), len(tasks))
                at = torch.tensor([tasks.index(task) for task in order], device=part.device)
                gramian[at[:, None], at] += part
        assert gramian is not None
        return gramian, total

    def _rows(self, batch: MicroBatch, order: list[str]) -> tuple[list[Column], Losses]:
        """Every task's gradient of the features, a column for each feature tensor that some loss depends on."""
        losses, leaves = heads_only(batch)
        losses = self.check_losses(batch, losses)
        check_called([True] if leaves else [])
        rows = rows_of(losses, leaves, order)
        for task, mine in zip(order, rows, strict=True):
            if all(row is None for row in mine):
                raise BalancerError(unreached(tuple(leaves), [task]))
        columns: list[Column] = [column for column in zip(*rows, strict=True) if any(row is not None for row in column)]
        return columns, losses

    def forward(self, batch: MicroBatch, combine: Combine, tasks: tuple[str, ...]) -> Losses:
        """Run the model with a balance node at the tap."""
        order = [task for task in tasks if task in batch.tasks]
        called: list[bool] = []

        def tap(features: dict[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
            called.append(True)
            self._waiting = not any(z.requires_grad for z in features.values()) and self._shared_waits()
            if self._waiting:
                return plain_tap(features)
            return aliases(features, Link(order, tuple(features), combine))

        losses = self.check_losses(batch, batch.forward(tap))
        check_called(called)
        return losses

    def _shared_waits(self) -> bool:
        """Whether a training strategy fixes shared parameters that will be trained later."""
        return not all(p.requires_grad for p in self.shared)

    def place(self) -> str:
        """In words."""
        return "gradients of the shared features (at: features)"


def check_called(called: list[bool]) -> None:
    """A forward that never shows its features cannot be balanced there."""
    if len(called) != 1:
        raise BalancerError(
            f"The model called the tap {len(called)} times in one forward, but balancing at the features needs "
            "exactly one call. Use at: parameters."
        )


def fixed(weights: Tensor) -> Combine:
    """Combine rows with weights that are known before the backward."""
    return lambda columns: [Rows(column).weighted_sum(weights) for column in columns]


def whole(column: Column) -> Tensor:
    """The rows of a column as one ``[p, ...]``."""
    some = next(row for row in column if row is not None)
    return torch.stack([torch.zeros_like(some) if row is None else row for row in column])


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors of one shape."""
    return functools.reduce(torch.add, parts)
