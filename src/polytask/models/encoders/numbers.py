"""Embeddings of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError


class PiecewiseLinear(nn.Module):
    r"""Piecewise-linear encoding of numbers, optionally embedded.

    With bin edges :math:`b_0 < ... < b_T` the entry of bin t is :math:`(x - b_{t-1}) / (b_t - b_{t-1})`,
    cut off below at 0 except in the first bin, and above at 1 except in the last bin. Outside of the
    edges the encoding goes on linearly. A column with fewer than two edges passes as it is.

    Args:
        edges: Rising bin edges of each column, in the units of the input.
        width: Width of a learned linear embedding with ReLU of each column's encoding; None gives the
            encodings themselves side by side.

    Raises:
        RecipeError: for edges that do not rise, or a width below 1.

    Example:
        >>> encode = PiecewiseLinear([[0.0, 1.0, 3.0]])
        >>> encode(torch.tensor([[0.5], [2.0], [-1.0], [5.0]])).tolist()
        [[0.5, 0.0], [1.0, 0.5], [-1.0, 0.0], [1.0, 2.0]]

    Reference:
        Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning"
        (NeurIPS 2022), equation 1; embeddings of section 3.4.
    """

    column: Tensor
    slope: Tensor
    left: Tensor
    lowest: Tensor
    highest: Tensor
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, edges: Sequence[Sequence[float]], width: int | None = None):
        super().__init__()
        bins = [_bins(index, column) for index, column in enumerate(edges)]
        self.width = width
        self.columns = len(bins)
        self.bins = max((len(rows) for rows in bins), default=0)
        if width is not None:
            if width < 1:
                raise RecipeError(f"A number embedding of width {width} cannot be built; widths start at 1.")
            # Columns have different numbers of bins; empty ones let a single product serve all columns.
            bins = [rows + [(0.0, 0.0, 0.0, 0.0)] * (self.bins - len(rows)) for rows in bins]
            self.weight = nn.Parameter(torch.empty(self.columns, self.bins, width))
            self.bias = nn.Parameter(torch.empty(self.columns, 1, width))
            self._used = [sum(row != (0.0, 0.0, 0.0, 0.0) for row in rows) for rows in bins]
        flat = torch.tensor([row for rows in bins for row in rows], dtype=torch.float64).reshape(-1, 4).T
        which = torch.tensor([index for index, rows in enumerate(bins) for _ in rows], dtype=torch.int64)
        self.register_buffer("column", which, persistent=False)
        for name, values in zip(("slope", "left", "lowest", "highest"), flat, strict=True):
            # They follow from the schema, so a state dict need not hold them.
            self.register_buffer(name, values.float(), persistent=False)
        self.out_features = len(which) if width is None else self.columns * width
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding: uniform within 1 / sqrt(number of the column's bins)."""
        if self.width is not None:
            with torch.no_grad():
                for column, used in enumerate(self._used):
                    bound = used**-0.5
                    self.weight[column].uniform_(-bound, bound)
                    self.bias[column].uniform_(-bound, bound)

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers ``[rows, d]`` to ``[rows, out_features]``."""
        # One gather over all bins of all columns; the bounds are infinite at the ends. Subtracting first
        # keeps the digits of narrow bins. In place, since there may be thousands of bins: new memory for every
        # operation takes longer than the operation.
        encoded = numbers.index_select(1, self.column).sub_(self.left).mul_(self.slope)
        encoded = encoded.clamp_(self.lowest, self.highest)
        if self.width is None:
            return encoded
        by_column = encoded.view(-1, self.columns, self.bins).transpose(0, 1)
        embedded = torch.baddbmm(self.bias, by_column, self.weight).relu()
        return embedded.transpose(0, 1).flatten(1)


def _bins(index: int, edges: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Slope, left edge, lowest and highest value of each bin of one column."""
    if len(edges) < 2:
        return [(1.0, 0.0, -torch.inf, torch.inf)]
    pairs = list(itertools.pairwise(edges))
    if any(right <= left for left, right in pairs):
        raise RecipeError(f"The bin edges of number column {index} do not rise: {list(edges)}.")
    last = len(pairs) - 1
    return [
        (
            1.0 / (right - left),
            left,
            -torch.inf if position == 0 else 0.0,
            torch.inf if position == last else 1.0,
        )
        for position, (left, right) in enumerate(pairs)
    ]
