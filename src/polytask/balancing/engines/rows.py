"""Inner products and weighted sums of gradient rows, in float32 or better and safe at every scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polytask.errors import BalancerError

BLOCK = 1 << 22
"""Columns that are looked at together where a copy is needed: bounds the extra memory."""

TOGETHER = 1 << 18
"""Entries of separate rows that are stacked at a time: a copy of all rows would take as much memory again."""

_LOW, _HIGH = 1e-28, 1e30
"""Squared norms outside of this range may have lost digits to float32; they are formed again in float64."""


def products(rows: Tensor) -> Tensor:
    """Inner products of the rows of ``[p, n]``: ``[p, p]`` in float32, or float64 for float64 rows."""
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        if rows.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            return exact_products(rows)
        return rows @ rows.T


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


def on_host(gramian: Tensor, losses: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Gramian ``[p, p]`` and losses ``[p]`` as float64 on the CPU, in one transfer."""
    if losses is None:
        return gramian.detach().to("cpu", torch.float64), None
    both = torch.cat([gramian.detach().double(), losses.detach().to(gramian.device).double()[:, None]], 1).cpu()
    return both[:, :-1].contiguous(), both[:, -1].contiguous()


def lost_digits(gramian: Tensor) -> bool:
    """Whether a float32 Gramian on the CPU has norms that float32 squares cannot hold."""
    norms = gramian.diagonal()
    return bool(((norms < _LOW) | ~(norms < _HIGH)).any())


def check_finite(gramian: Tensor, tasks: Sequence[str], culprit: Callable[[int], str] | None = None) -> None:
    """Raise for a Gramian with NaN or infinity.

    Args:
        gramian: On the CPU, ``[p, p]``.
        tasks: Names of the rows.
        culprit: Names the parameter of a row that is not finite.

    Raises:
        BalancerError: naming the tasks and, where known, a parameter.
    """
    if bool(gramian.isfinite().all()):
        return
    broken = [k for k in range(len(tasks)) if not bool(gramian[k, k].isfinite())] or list(range(len(tasks)))
    where = f", first in {culprit(broken[0])}" if culprit is not None else ""
    raise BalancerError(
        f"The gradient of task {', '.join(repr(tasks[k]) for k in broken)} is not finite{where}. Lower the learning "
        "rate, clip the gradients, or look for extreme targets and inputs."
    )


def symmetrised(gramian: Tensor) -> Tensor:
    """The symmetric part: rounding may differ between the two triangles."""
    return (gramian + gramian.T) / 2


def semi_definite(gramian: Tensor) -> Tensor:
    """The Gramian without the slightly negative eigenvalues that float32 rounding gives to dependent gradients.

    Rows are normalised first, so that the correction to a short gradient is as small as that gradient.
    """
    lengths = gramian.diagonal().clamp_min(0).sqrt()
    divisor = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    cosines = gramian / divisor / divisor[:, None]
    if int(torch.linalg.cholesky_ex(cosines).info) == 0:
        return gramian
    values, vectors = torch.linalg.eigh(cosines)
    fixed = (vectors * values.clamp_min(0)) @ vectors.T * divisor * divisor[:, None]
    return symmetrised(fixed)
