"""The Jacobian of the tasks' losses: one preallocated buffer, written a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.engines.rows import BLOCK, exact_products, products
from polytask.balancing.types import Reduce


class Jacobian:
    """Rows of gradients with respect to some parameters.

    Args:
        parameters: Whose gradients; their order is that of the columns. There may be none.
        device: Where the rows are kept; the parameters' own if None.

    Attributes:
        buffer: Shape ``[p, n]``, float32 or the parameters' own wider type; valid after ``start``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device | None = None):
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in self.parameters]
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        device = self.parameters[0].device if device is None else device
        self._room = torch.empty(0, sum(self.sizes), dtype=self.dtype, device=device)
        self._views: list[list[Tensor]] = []
        self._written: list[bool] = []
        self._reached: list[bool] = []
        self.buffer = self._room

    def start(self, rows: int) -> None:
        """Begin a step with ``rows`` tasks; the memory of earlier steps is used again."""
        if len(self._room) < rows:
            self._room = torch.empty(rows, sum(self.sizes), dtype=self.dtype, device=self.buffer.device)
            self._views = [[] for _ in range(rows)]
        self.buffer = self._room[:rows]
        self._written = [False] * rows
        self._reached = [False] * len(self.parameters)

    def add(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Write a task's gradients into its row, or add them to what an earlier micro-batch left there."""
        again = self._written[row]
        rooms: list[Tensor] = []
        found: list[Tensor] = []
        for position, (part, gradient) in enumerate(zip(self._parts(row), gradients, strict=True)):
            if gradient is not None:
                rooms.append(part)
                found.append(gradient)
            elif not again:
                part.zero_()
            self._reached[position] |= gradient is not None
        if rooms:  # in one call: most are small, and a call costs more than they do
            (torch._foreach_add_ if again else torch._foreach_copy_)(rooms, found)
        self._written[row] = True

    def finish(self) -> Tensor:
        """The rows; a task that no micro-batch wrote has zeros."""
        for row, written in enumerate(self._written):
            if not written:
                self.buffer[row].zero_()
        return self.buffer

    def _parts(self, row: int) -> list[Tensor]:
        """A row cut up, in the parameters' shapes."""
        if not self._views[row]:
            cut = torch.split(self._room[row], self.sizes)
            self._views[row] = [part.view(p.shape) for part, p in zip(cut, self.parameters, strict=True)]
        return self._views[row]

    def gramian(self, reduce: Reduce | None, form: Callable[[Tensor], Tensor] = products) -> Tensor:
        """Inner products of the rows after summing them over processes, ``[p, p]``.

        The Gramian of summed gradients is not the sum of Gramians, so the rows themselves travel; a block of
        columns at a time, because this process's own rows are still needed.
        """
        if reduce is None:
            return form(self.buffer)
        total = self.buffer.new_zeros(len(self.buffer), len(self.buffer), dtype=torch.float64)
        for block in torch.split(self.buffer, BLOCK, 1):
            total += exact_products(reduce(block.contiguous()))
        return total

    def write(self, direction: Tensor) -> None:
        """Put a direction ``[n]`` into ``.grad``; parameters that no task reached keep theirs."""
        for parameter, part, reached in zip(
            self.parameters, torch.split(direction, self.sizes), self._reached, strict=True
        ):
            if reached:
                add_gradient(parameter, part.view_as(parameter))

    def broken(self, row: int) -> nn.Parameter | None:
        """The first parameter whose gradient in a row is not finite."""
        return first_broken(self.parameters, self._parts(row))


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Put a gradient into ``.grad``, or add it to what is there."""
    if parameter.grad is None:
        made = gradient.to(parameter.dtype)
        # In another layout, what a later backward adds to it would be slow, and PyTorch warns of that.
        parameter.grad = made if made.stride() == parameter.stride() else torch.empty_like(parameter).copy_(made)
    else:
        parameter.grad += gradient


def first_broken(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> nn.Parameter | None:
    """The first parameter whose gradient is not finite."""
    pairs = zip(parameters, gradients, strict=True)
    return next((p for p, gradient in pairs if gradient is not None and not bool(gradient.isfinite().all())), None)


def started(buffers: Sequence[Jacobian | None], rows: int) -> list[Jacobian]:
    """Those buffers that there are, ready for a step with ``rows`` tasks."""
    kept = [buffer for buffer in buffers if buffer is not None]
    for buffer in kept:
        buffer.start(rows)
    return kept


def blocks_of(parameters: Sequence[nn.Parameter], rows: int, budget: int) -> list[list[nn.Parameter]]:
    """Consecutive parameters whose Jacobian of ``rows`` rows takes at most ``budget`` bytes, or one parameter."""
    blocks: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        bytes_ = rows * parameter.numel() * max(4, parameter.element_size())
        if not blocks or size + bytes_ > budget:
            blocks.append([])
            size = 0
        blocks[-1].append(parameter)
        size += bytes_
    return blocks
