"""Inner products and weighted sums of gradient rows, in float32 or better and safe at every scale."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from polytask.fused import ProductRow, common_products

BLOCK = 1 << 22
"""Columns that are looked at together where a copy is needed: bounds the extra memory."""

TOGETHER = 1 << 18
"""Entries of separate rows that are stacked at a time: a copy of all rows would take as much memory again."""

SMALL = 1 << 17
"""Up to so many entries all rows are stacked, and what is done with them takes a call or two."""


PIECES, WIDE = 4, 1 << 10
"""A product of few rows and many columns is taken in so many pieces, if each has that many columns: a processor's
cores share pieces better than the inside of one small matrix; a fifth less time for 8 to 100 rows on two cores."""


def products(rows: Tensor) -> Tensor:
    """Inner products of the rows of ``[p, n]``: ``[p, p]`` in float32, or float64 for float64 rows."""
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        if is_rounded(rows):
            return exact_products(rows)
        return rows @ rows.T if rows.is_cuda or rows.shape[1] < PIECES * WIDE else _in_pieces(rows)


def _in_pieces(rows: Tensor) -> Tensor:
    """The products over pieces of the columns at once, whose sum is wanted."""
    size = rows.shape[1] // PIECES
    cut = rows[:, : PIECES * size].reshape(len(rows), PIECES, size).transpose(0, 1)
    total = torch.bmm(cut, cut.mT).sum(0)
    rest = rows[:, PIECES * size :]
    return total.addmm_(rest, rest.T) if rest.shape[1] else total


def is_rounded(rows: Tensor) -> bool:
    """Whether products of ``rows`` would be taken in less than float32, which the user allowed for the model's sake."""
    return rows.is_cuda and torch.backends.cuda.matmul.allow_tf32


def exact_products(rows: Tensor) -> Tensor:
    """The same in float64, a block of columns at a time; gradients of any size keep their digits."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], BLOCK):
        block = rows[:, start : start + BLOCK].double()
        total += block @ block.T
    return total


class Rows:
    """Every task's gradient of one feature tensor, lying apart as the backward left them.

    Small rows are stacked once; of large ones a block of columns at a time, which is all the memory that it takes.

    Args:
        column: One row a task; None stands for zeros. At least one is a tensor.
    """

    def __init__(self, column: Sequence[Tensor | None]):
        together = common_products(column)
        self._products = together if together is not None and together[0].pays(len(column)) else None
        if self._products is None:
            column = [row.formed() if isinstance(row, ProductRow) else row for row in column]
        self.column = column
        self.some = next(row for row in column if row is not None)
        self._width = max(1, TOGETHER // len(column))

    @functools.cached_property
    def _small(self) -> Tensor | None:
        """A copy of all rows, ``[p, n]``, if it is small."""
        if self.some.numel() * len(self.column) > SMALL:
            return None
        zeros = torch.zeros_like(self.some)
        return torch.stack([zeros if row is None else row for row in self.column]).view(len(self.column), -1)

    def _blocks(self) -> Iterator[Tensor]:
        """Copies of some columns at a time, ``[p, n]``."""
        count = self.some.numel()
        flat = [None if row is None else row.reshape(-1) for row in self.column]
        for start in range(0, count, self._width):
            stop = min(start + self._width, count)
            yield torch.stack([self.some.new_zeros(stop - start) if row is None else row[start:stop] for row in flat])

    def products(self, form: Callable[[Tensor], Tensor] = products) -> Tensor:
        """Inner products ``[p, p]``.

        Args:
            form: ``products`` or ``exact_products``.
        """
        if self._products is not None:
            factors, positions = self._products
            # As of any other rows: another process may have fewer rows, which it forms, and the two are added.
            wide = form is exact_products or is_rounded(self.some) or self.some.dtype == torch.float64
            return factors.gramian(positions).to(torch.float64 if wide else torch.float32)
        if self._small is not None:
            return form(self._small)
        return functools.reduce(Tensor.add_, map(form, self._blocks()))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Their weighted sum in their own shape and dtype; ``weights`` is ``[p]``."""
        if self._products is not None:
            factors, positions = self._products
            return factors.weighted_sum(positions, weights)
        dtype = torch.promote_types(self.some.dtype, torch.float32)
        if self._small is not None:
            # Not a product of matrices, which autocast would round.
            total = (self._small * weights.to(self.some.device, dtype)[:, None]).sum(0)
        else:
            there = [(row, w) for row, w in zip(self.column, weights.tolist(), strict=True) if row is not None]
            (first, weight), *others = there
            total = first.to(dtype) * weight
            for row, weight in others:
                total.add_(row, alpha=weight)
        return total.to(self.some.dtype).view(self.some.shape)
