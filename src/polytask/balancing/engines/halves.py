"""Two independent halves of a step's rows: their cross products, and looks at each of them from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polytask.balancing.engines.core import BaseEngine
from polytask.balancing.engines.heads import plain_tap
from polytask.balancing.engines.jacobian import Jacobian
from polytask.balancing.engines.rows import BLOCK
from polytask.balancing.engines.sums import Sums
from polytask.balancing.types import Losses, MicroBatch, Reduce


def fractions(micro: Sequence[MicroBatch], tasks: Sequence[str]) -> Tensor:
    """Share of each task's labels that lies in each half, ``[2, p]`` float64; zero where a half has none."""
    shares = torch.zeros(2, len(tasks), dtype=torch.float64)
    for batch in micro:
        for task in batch.tasks:
            shares[batch.half, tasks.index(task)] = batch.fractions.get(task, 1.0)
    return shares


def cross_products(
    both: Jacobian, second: Jacobian, micro: Sequence[MicroBatch], tasks: Sequence[str], reduce: Reduce | None
) -> Tensor:
    """Inner products of the first half's mean gradients with the second half's.

    Args:
        both: Rows over the whole step.
        second: Rows over the second half; the first half's are what is left.
        micro: The step's micro-batches.
        tasks: Names of the rows.
        reduce: Sums a tensor over processes.

    Returns:
        Shape ``[p, p]``, float64 on the CPU; NaN in row and column of a task without labels in both halves.
    """
    total = torch.zeros(len(tasks), len(tasks), dtype=torch.float64, device=both.buffer.device)
    for blocks in zip(torch.split(both.buffer, BLOCK, 1), torch.split(second.buffer, BLOCK, 1), strict=True):
        whole, last = (block if reduce is None else reduce(block.contiguous()) for block in blocks)
        total += (whole.double() - last.double()) @ last.double().T
    shares = fractions(micro, tasks)
    shares = torch.where((shares > 0).all(0), shares, torch.nan)
    return total.cpu() / shares[0][:, None] / shares[1]


class Halves:
    """A trial of a step's two halves, for ``look_ahead``.

    Args:
        engine: Whose model is tried.
        micro: The step's micro-batches.
        tasks: Present tasks.
    """

    def __init__(self, engine: BaseEngine, micro: Sequence[MicroBatch], tasks: tuple[str, ...]):
        self._engine, self._micro, self._tasks = engine, micro, tasks
        self._shares = fractions(micro, tasks)
        own = [p for task in engine.balancer.tasks for p in engine.parameters.task_parameters(task)]
        every = {id(p): p for p in [*engine.shared, *own] if p.requires_grad}
        self._parameters: list[nn.Parameter] = list(every.values())

    def present(self, half: int) -> tuple[str, ...]:
        """Tasks with labels in that half."""
        return tuple(task for task, share in zip(self._tasks, self._shares[half], strict=True) if share > 0)

    def losses(self, half: int, shift: Sequence[Tensor] | None = None) -> Tensor:
        """Mean losses of the half's tasks with the parameters moved by ``shift``, in the order of ``present``."""
        total, tasks = Sums(), self.present(half)
        with self._moved(shift), torch.no_grad(), self._engine.replay.peek():
            for losses in self._forwards(half):
                total.add(losses)
        return self._engine.reduced(total.stack(tasks)) / self._means(half, tasks).to(total.stack(tasks))

    def gradient(self, half: int, weights: Tensor, shift: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Gradient of the half's weighted mean losses, one tensor for every trained parameter."""
        tasks = self.present(half)
        seeds = weights / self._means(half, tasks).to(weights)
        found = [torch.zeros_like(p) for p in self._parameters]
        with self._moved(shift), self._engine.replay.peek():
            for losses in self._forwards(half):
                reached = {task: loss for task, loss in losses.tasks.items() if loss.requires_grad}
                if not reached:
                    continue
                roots = list(reached.values())
                along = [seeds[tasks.index(task)].to(loss) for task, loss in reached.items()]
                grads = torch.autograd.grad(roots, self._parameters, along, allow_unused=True)
                found = [old if g is None else old + g for old, g in zip(found, grads, strict=True)]
        return [self._engine.reduced(g) for g in found]

    def _means(self, half: int, tasks: Sequence[str]) -> Tensor:
        """What divides shares of the whole step's mean, so that they become the half's mean."""
        return self._shares[half][[self._tasks.index(task) for task in tasks]]

    def _forwards(self, half: int) -> Iterator[Losses]:
        for batch in self._micro:
            if batch.half == half:
                yield self._engine.check_losses(batch, batch.forward(plain_tap))

    @contextmanager
    def _moved(self, shift: Sequence[Tensor] | None) -> Iterator[None]:
        """Parameters moved by ``shift``; afterwards they are what they were, to the last bit."""
        if shift is None:
            yield
            return
        kept = [p.detach().clone() for p in self._parameters]
        try:
            with torch.no_grad():
                for parameter, step in zip(self._parameters, shift, strict=True):
                    parameter.add_(step)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, kept, strict=True):
                    parameter.copy_(value)
