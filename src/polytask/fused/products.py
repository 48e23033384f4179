"""Tasks' gradients of the same features as products of two small matrices, which need not be formed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polytask.fused.pool import POOLS, Pool


class Products:
    """Gradients of the same features that several tasks' linear heads make: ``slopes[k] @ weights[k]`` each.

    Args:
        slopes: The tasks' gradients of their outputs, side by side, ``[rows, all outputs]``.
        weights: The heads' weights, one below the other, ``[all outputs, d]``.
        widths: How many outputs each task has.
        like: A tensor with the features' shape and dtype.
        pool: How the heads read them.
    """

    def __init__(
        self, slopes: Tensor, weights: Tensor, widths: Sequence[int], like: Tensor, pool: Pool = POOLS["none"]
    ):
        self.slopes, self.weights, self.widths, self.like, self.pool = slopes, weights, list(widths), like, pool

    def row(self, position: int) -> Tensor:
        """One task's gradient, in the features' shape and dtype."""
        start = sum(self.widths[:position])
        part = slice(start, start + self.widths[position])
        return self._product(self.slopes[:, part], self.weights[part])

    def whole(self) -> Tensor:
        """The sum of all tasks' gradients."""
        return self._product(self.slopes, self.weights)

    def _product(self, slopes: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(slopes.device.type, enabled=False):
            return self.pool.spread(slopes @ weights, self.like.shape).to(self.like.dtype)

    def pays(self, count: int) -> bool:
        """Whether ``gramian`` and ``weighted_sum`` take less than the gradients of ``count`` tasks by themselves would.

        A multiplication in float64 counts double.
        """
        rows, outputs, size = len(self.slopes), *self.weights.shape
        short = 2 * outputs * outputs * (rows + size) + rows * outputs * size
        return short <= rows * size * outputs + self.like.numel() * count * count

    def gramian(self, positions: Sequence[int]) -> Tensor:
        """Inner products of the gradients at ``positions``, in float64: what cancels here would not in the rows."""
        # One kind of device has no float64.
        dtype = torch.float32 if self.slopes.device.type == "mps" else torch.float64
        with torch.autocast(self.slopes.device.type, enabled=False):
            slopes, weights = self.slopes.to(dtype), self.weights.to(dtype)
            both = (slopes.T @ slopes) * (weights @ weights.T)
            if len(self.weights) > len(self.widths):
                both = torch.stack([part.sum(0) for part in torch.split(both, self.widths)])
                both = torch.stack([part.sum(1) for part in torch.split(both, self.widths, 1)], 1)
        both *= self.pool.share(self.like.shape)
        at = list(positions)
        return both if at == list(range(len(both))) else both[at][:, at]

    def weighted_sum(self, positions: Sequence[int], weights: Tensor) -> Tensor:
        """The weighted sum of the gradients at ``positions``, in the features' shape and dtype."""
        # Put together on the host, where weights are found, so that one transfer takes them to the device.
        scales = torch.zeros(len(self.widths), dtype=torch.float64)
        scales[list(positions)] = weights.to(scales)
        if len(self.weights) > len(self.widths):
            scales = scales.repeat_interleave(torch.tensor(self.widths))
        return self._product(self.slopes * scales.to(self.slopes), self.weights)


class ProductRow(Tensor):
    """A task's gradient of the features that is not formed until an operation asks for its numbers.

    Attributes:
        numbers: The gradient, once it is formed; from then on it counts, since an operation may have written into it.
    """

    products: Products
    position: int
    numbers: Tensor | None

    @staticmethod
    def of(products: Products, position: int) -> ProductRow:
        """The gradient at ``position``."""
        like = products.like
        row: ProductRow = Tensor._make_wrapper_subclass(ProductRow, like.shape, dtype=like.dtype, device=like.device)
        row.products, row.position, row.numbers = products, position, None
        return row

    def formed(self) -> Tensor:
        """The numbers."""
        if self.numbers is None:
            self.numbers = self.products.row(self.position)
        return self.numbers

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the base class has a built-in function there, without types
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Any operation works on the numbers."""
        form = functools.partial(pytree.tree_map_only, ProductRow, ProductRow.formed)
        return func(*form(args), **form(kwargs or {}))


def common_products(column: Sequence[Tensor | None]) -> tuple[Products, list[int]] | None:
    """The products that all rows are part of, and which part each is; None if they are not of one making."""
    rows = [row for row in column if isinstance(row, ProductRow) and row.numbers is None]
    if len(rows) < len(column) or any(row.products is not rows[0].products for row in rows):
        return None
    return rows[0].products, [row.position for row in rows]
