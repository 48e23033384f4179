"""The encoder of table rows: numbers, missing indicators and categories, then an MLP."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.schema import FIRST_SLOT, TableSchema
from polytask.errors import DataError, RecipeError, unknown
from polytask.models.encoders.mlp import MLP
from polytask.models.encoders.numbers import PiecewiseLinear
from polytask.models.encoders.staged import Staged
from polytask.sharing.layers import check_dropout

NUMBERS = ("linear", "piecewise_linear")
DEFAULT_NUMBER_WIDTH = 8


class CategoryEmbedding(nn.Module):
    """All category columns in one table: one gather for all of them.

    The rows of missing and unseen values start at zero: what training never shows says nothing.

    Args:
        sizes: Number of codes of each column.
        width: Width of each column's embedding.

    Example:
        >>> CategoryEmbedding([4, 3], 5)(torch.tensor([[0, 2], [3, 1]])).shape
        torch.Size([2, 10])
    """

    offsets: Tensor
    sizes: Tensor

    def __init__(self, sizes: Sequence[int], width: int):
        super().__init__()
        self.width, self.out_features = width, width * len(sizes)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self._checked = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table: normal with deviation 1 / sqrt(width), zero for missing and unseen values."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.width**-0.5)
            for slot in range(FIRST_SLOT):
                self.weight[self.offsets + slot] = 0.0

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``[rows, columns]`` to ``[rows, columns * width]``."""
        if not self._checked and not torch.compiler.is_compiling():
            # With the first batch only: a code that is too large would read the next column's rows.
            wrong = ((codes < 0) | (codes >= self.sizes)).any(0).nonzero().flatten().tolist()
            if wrong:
                raise DataError(f"Category columns {wrong} hold codes outside of their vocabulary.")
            self._checked = True
        rows = codes + self.offsets
        if rows.device.type == "cpu":
            # The same rows; its backward is three to five times as fast here.
            return self.weight.index_select(0, rows.flatten()).view(len(rows), self.out_features)
        return nn.functional.embedding(rows, self.weight).flatten(1)


class Tabular(Staged):
    """Numbers and categories of a table, then an MLP.

    Inputs are a dict of ``"numbers"`` (float ``[rows, d]``), ``"missing"`` (bool ``[rows, d']``, whether a
    number is missing) and ``"categories"`` (int64 ``[rows, c]``), as far as the schema has such columns.

    Args:
        schema: The fitted table.
        hidden: Widths of the MLP.
        embedding: Width of each category's embedding; ``"auto"`` takes the square root of the median
            number of codes, from 4 to 16.
        numbers: ``"linear"`` (as they are) or ``"piecewise_linear"`` (over the schema's bins).
        number_embedding: Width of each number's embedding with ``"piecewise_linear"``; 8 if left out, 0
            passes the encodings themselves.
        activation: Of the MLP.
        norm: Of the MLP: ``"batch"``, ``"layer"`` or None.
        dropout: Of the MLP.
        embedding_dropout: Probability that an entry of the embedded row is dropped before the MLP.

    Raises:
        RecipeError: for an unknown name, a width out of range, or an option that has no effect.
        DataError: for a schema without number and category columns, or with array columns.

    Example:
        >>> from polytask.data.schema import CategoryColumn
        >>> encoder = Tabular(TableSchema(categories=(CategoryColumn("sex", ("f", "m")),)), hidden=[8])
        >>> encoder({"categories": torch.tensor([[2], [3]])}).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        schema: TableSchema,
        hidden: Sequence[int] = (256, 128),
        embedding: str | int = "auto",
        numbers: str = "linear",
        number_embedding: int | None = None,
        activation: str = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
    ):
        super().__init__()
        _check(schema, numbers, number_embedding, embedding_dropout)
        self.has_missing = bool(schema.missing)
        self.numbers: nn.Module | None = None
        self.categories: CategoryEmbedding | None = None
        width = len(schema.missing)
        if schema.numbers:
            wide = DEFAULT_NUMBER_WIDTH if number_embedding is None else number_embedding
            edges = [column.edges for column in schema.numbers]
            self.numbers = nn.Identity() if numbers == "linear" else PiecewiseLinear(edges, wide or None)
            width += self.numbers.out_features if isinstance(self.numbers, PiecewiseLinear) else len(schema.numbers)
        if schema.categories:
            sizes = [column.size for column in schema.categories]
            self.categories = CategoryEmbedding(sizes, embedding_width(embedding, sizes))
            width += self.categories.out_features
        self.dropout = nn.Dropout(embedding_dropout)
        self.in_features = width
        body = MLP(width, hidden, activation, norm, dropout)
        self.stages, self.channel_dims, self.out_features = body.stages, body.channel_dims, body.out_features
        if type(self) is Tabular:
            options = {
                "hidden": list(hidden),
                "embedding": embedding,
                "numbers": numbers,
                "number_embedding": number_embedding,
                "activation": activation,
                "norm": norm,
                "dropout": dropout,
                "embedding_dropout": embedding_dropout,
            }
            registry.mark(self, "tabular", options)

    def begin(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """All columns of a row side by side, ``[rows, in_features]``."""
        parts = []
        if self.numbers is not None:
            parts.append(self.numbers(_column(inputs, "numbers")))
        if self.has_missing:
            parts.append(_column(inputs, "missing").float())
        if self.categories is not None:
            parts.append(self.categories(_column(inputs, "categories")))
        return self.dropout(torch.cat(parts, 1))  # type: ignore[no-any-return]


def embedding_width(asked: str | int, sizes: Sequence[int]) -> int:
    """The width of category embeddings.

    Raises:
        RecipeError: for a word other than ``"auto"`` or a width below 1.

    Example:
        >>> embedding_width("auto", [4, 50, 9]), embedding_width("auto", [100]), embedding_width(3, [4])
        (4, 10, 3)
    """
    if isinstance(asked, str):
        if asked != "auto":
            raise RecipeError(f"embedding is '{asked}'; it is 'auto' or a width such as 8.")
        return min(16, max(4, math.ceil(math.sqrt(statistics.median(sizes)))))
    if asked < 1:
        raise RecipeError(f"embedding is {asked}; widths start at 1.")
    return asked


def _check(schema: TableSchema, numbers: str, number_embedding: int | None, embedding_dropout: float) -> None:
    if schema.beside:
        raise DataError(
            f"'tabular' reads numbers and categories; the table has other columns: {', '.join(schema.beside)}. Leave "
            "them out, or use an encoder for those, such as fusion."
        )
    if not schema.numbers and not schema.categories:
        raise DataError("'tabular' needs at least one number or category column; the table's inputs have none.")
    if numbers not in NUMBERS:
        raise RecipeError(unknown("number encoding", numbers, NUMBERS))
    if number_embedding is not None and (numbers == "linear" or number_embedding < 0):
        raise RecipeError(
            f"number_embedding is {number_embedding} with numbers: {numbers}. It is a width from 0, and goes with "
            "numbers: piecewise_linear."
        )
    check_dropout(embedding_dropout)


def _column(inputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in inputs:
        raise DataError(f"The inputs lack '{name}', which the encoder's table has; found: {', '.join(inputs)}.")
    return inputs[name]
