"""Inner products and weighted sums of gradient rows, in float32 or better and safe at every scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 22
"""Columns that are looked at together where a copy is needed: bounds the extra memory."""

TOGETHER = 1 << 18
"""Entries of separate rows that are stacked at a time: a copy of all rows would take as much memory again."""


def products(rows: Tensor) -> Tensor:
    """Inner products of the rows of ``[p, n]``: ``[p, p]`` in float32, or float64 for float64 rows."""
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        if is_rounded(rows):
            return exact_products(rows)
        return rows @ rows.T


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


def column_products(column: Sequence[Tensor | None], form: Callable[[Tensor], Tensor] = products) -> Tensor:
    """Inner products ``[p, p]`` of rows that lie apart, with ``form`` for the products of a block of columns.

    Args:
        column: Every task's gradient of one feature tensor; None stands for zeros. At least one is a tensor.
        form: ``products`` or ``exact_products``.
    """
    some = next(row for row in column if row is not None)
    flat = [None if row is None else row.reshape(-1) for row in column]
    width = max(1, TOGETHER // len(column))
    total = None
    for start in range(0, some.numel(), width):
        stop = min(start + width, some.numel())
        block = torch.stack([some.new_zeros(stop - start) if row is None else row[start:stop] for row in flat])
        share = form(block)
        total = share if total is None else total.add_(share)
    assert total is not None
    return total


def column_sum(column: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """The weighted sum of rows that lie apart, in their shape and dtype; None stands for zeros."""
    there = [(row, weight) for row, weight in zip(column, weights.tolist(), strict=True) if row is not None]
    (first, weight), *others = there
    total: Tensor = first.to(torch.promote_types(first.dtype, torch.float32)) * weight
    for row, weight in others:
        total.add_(row, alpha=weight)
    return total.to(first.dtype)
