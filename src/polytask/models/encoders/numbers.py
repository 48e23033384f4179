"""Embeddings of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError

MANY = 256
"""Rows from which on it pays to add up the weights of all bins beforehand."""


class PiecewiseLinear(nn.Module):
    r"""Piecewise-linear encoding of numbers, optionally embedded.

    With bin edges :math:`b_0 < ... < b_T` the entry of bin t is :math:`(x - b_{t-1}) / (b_t - b_{t-1})`,
    cut off below at 0 except in the first bin, and above at 1 except in the last bin. Outside of the
    edges the encoding goes on linearly. A column with fewer than two edges passes as it is.

    The embedding is linear within a bin. So where nothing is trained, a number's own bin is looked up, and what the
    bins below add is known beforehand. It differs from the product over all bins by rounding.

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
    place: Tensor
    first: Tensor
    final: Tensor
    inner: Tensor
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
            # A column with fewer bins than another leaves the last rows of its weights unread.
            self.weight = nn.Parameter(torch.empty(self.columns, self.bins, width))
            self.bias = nn.Parameter(torch.empty(self.columns, 1, width))
        self._used = [len(rows) for rows in bins]
        # Columns with equally many bins share one product, so they lie side by side.
        order = list(range(self.columns))
        if width is not None:
            order.sort(key=self._used.__getitem__)
        self._groups = [(count, list(group)) for count, group in itertools.groupby(order, self._used.__getitem__)]
        flat = torch.tensor([row for index in order for row in bins[index]], dtype=torch.float64).reshape(-1, 4).T
        which = torch.tensor([index for index in order for _ in bins[index]], dtype=torch.int64)
        self.register_buffer("column", which, persistent=False)
        for name, values in zip(("slope", "left", "lowest", "highest"), flat, strict=True):
            # They follow from the schema, so a state dict need not hold them.
            self.register_buffer(name, values.float(), persistent=False)
        self._prepare_search(order)
        self.out_features = len(which) if width is None else self.columns * width
        self.reset_parameters()

    def _prepare_search(self, order: Sequence[int]) -> None:
        """Note where each column's bins begin and end, the edges between them, and whether rounding left them apart."""
        counts = [self._used[index] for index in order]
        place = torch.tensor([at for count in counts for at in range(count)], dtype=torch.int64)
        starts = dict(zip(order, itertools.accumulate(counts, initial=0), strict=False))
        first = torch.tensor([starts[index] for index in range(self.columns)], dtype=torch.int64)
        lefts = torch.full((self.columns, self.bins), torch.inf)
        lefts[self.column, place] = self.left
        final = first + torch.tensor(self._used) - 1
        inner = lefts[:, 1:].contiguous()
        for name, values in (("place", place), ("first", first), ("final", final), ("inner", inner)):
            self.register_buffer(name, values, persistent=False)
        # Between two infinite ones, which are no edges, the difference is NaN.
        self._apart = not bool((lefts.diff(dim=1) <= 0).any())

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
        if self._looks_up(numbers):
            return self._looked_up(numbers)
        # One gather over all bins of all columns; the bounds are infinite at the ends. Subtracting first
        # keeps the digits of narrow bins. In place, since there may be thousands of bins: new memory for every
        # operation takes longer than the operation.
        encoded = numbers.index_select(1, self.column).sub_(self.left).mul_(self.slope)
        encoded = encoded.clamp_(self.lowest, self.highest)
        if self.width is None:
            return encoded
        if len(self._groups) == 1:
            by_column = encoded.view(-1, self.columns, self.bins).transpose(0, 1)
            return torch.baddbmm(self.bias, by_column, self.weight).relu().transpose(0, 1).flatten(1)
        return torch.cat(self._embedded(encoded), 1).relu()

    def _looks_up(self, numbers: Tensor) -> bool:
        """Whether bins are looked up: for many rows, without gradients, in full precision, on a CPU."""
        if self.width is None or self.training or not self._apart or len(numbers) < MANY:
            return False
        plain = numbers.dtype == self.weight.dtype == torch.float32 and numbers.device.type == "cpu"
        changed = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        return plain and not changed

    def _looked_up(self, numbers: Tensor) -> Tensor:
        assert self.width is not None
        # What all lower bins and the bias add, beside the weights of the bin itself.
        exact = self.weight.double()
        lower = (exact.cumsum(1) - exact + self.bias).float()
        table = torch.cat([lower, self.weight], 2)[self.column, self.place]
        found = torch.searchsorted(self.inner, numbers.T.contiguous(), right=True).T.add(self.first)
        # Infinity and NaN are sorted behind the infinite edges that fill up columns of fewer bins.
        bins = torch.minimum(found, self.final).flatten()
        share = (numbers.flatten() - self.left[bins]).mul_(self.slope[bins])
        below, own = table.index_select(0, bins).tensor_split(2, 1)
        return torch.addcmul(below, share[:, None], own).relu_().view(-1, self.out_features)

    def _embedded(self, encoded: Tensor) -> list[Tensor]:
        """Each column's embedding before the ReLU, ``[rows, width]``, in the order of the columns."""
        weight, bias = self.weight.unbind(), self.bias.unbind()
        found: dict[int, Tensor] = {}
        parts = encoded.split_with_sizes([count * len(group) for count, group in self._groups], 1)
        for part, (count, group) in zip(parts, self._groups, strict=True):
            if len(group) == 1:
                found[group[0]] = torch.addmm(bias[group[0]], part, weight[group[0]][:count])
                continue
            by_column = part.view(-1, len(group), count).transpose(0, 1)
            of_group = [torch.stack([values[index] for index in group]) for values in (bias, weight)]
            products = torch.baddbmm(of_group[0], by_column, of_group[1][:, :count])
            found.update(zip(group, products.unbind(), strict=True))
        return [found[index] for index in range(self.columns)]


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
