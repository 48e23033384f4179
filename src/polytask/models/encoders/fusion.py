"""Columns of several kinds in one encoder: each kind has an encoder of its own, and layers read them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.schema import TableSchema
from polytask.data.spec import InputSpec
from polytask.errors import DataError, RecipeError, unknown
from polytask.models.encoders.staged import Staged
from polytask.sharing.layers import dense_stages, per_task, task_key, vector_from

TABLE = "table"
"""The part that reads number and category columns."""

Spec = str | Mapping[str, Any]


class Fusion(Staged):
    """An encoder for each column of texts, images or sounds, one for the rest of a table, and dense layers.

    The parts' vectors stand side by side before the layers: of a text or sound that of the whole, of a feature map its
    mean.
    So the features are one vector a row, and tags of words need another encoder.

    Args:
        schema: The fitted table.
        parts: For each column of texts, images or sounds, and for ``table``, the name of an encoder or
            ``{name: ..., options}``. Texts left out get ``bilstm``, numbers and categories ``tabular``.
        hidden: Widths of the layers; the last is the width of the features.
        activation: Of the layers.
        norm: Of the layers: ``"batch"``, ``"layer"`` or None.
        dropout: Of the layers.

    Raises:
        RecipeError: for a part that the table does not have, or an option that cannot be used.
        DataError: for a table without columns, or an image column without an encoder.

    Example:
        >>> from polytask.data.schema import CategoryColumn, TextColumn
        >>> text = TextColumn("note", words=("good",), characters=("d", "g", "o"))
        >>> schema = TableSchema(categories=(CategoryColumn("shop", ("a", "b")),), texts=(text,))
        >>> fusion = Fusion(schema, parts={"note": {"name": "bilstm", "hidden": 4, "characters": 0}}, hidden=[16])
        >>> note = {"tokens": torch.tensor([[1, 0]]), "words": torch.tensor([[0, 1]])}
        >>> fusion({"note": note, "categories": torch.tensor([[2]])}).shape
        torch.Size([1, 16])
    """

    def __init__(
        self,
        schema: TableSchema,
        parts: Mapping[str, Spec] | None = None,
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        given = dict(parts or {})
        tables = _part_tables(schema)
        for name in given:
            if name not in tables:
                raise RecipeError(f"fusion: parts: {unknown('column', name, tables)}")
        if not tables:
            raise DataError("'fusion' needs columns to read; the table's inputs have none.")
        if not hidden:
            raise RecipeError("fusion needs at least one layer: hidden is empty.")
        made = {name: _encoder(name, given.get(name), table) for name, table in tables.items()}
        self.parts = per_task(made)
        shapes = {name: _vector(name, encoder) for name, encoder in made.items()}
        self.pools = per_task({name: nn.Sequential(*pool) for name, (pool, _) in shapes.items()})
        self._names = tuple(tables)
        width = sum(wide for _, wide in shapes.values())
        blocks = dense_stages(width, hidden, act=activation, norm=norm, dropout=dropout)
        self.stages = nn.ModuleList(blocks)
        self.channel_dims = (-1,) * len(blocks)
        self.out_features = hidden[-1]
        marks = {name: _plain(registry.mark_of(encoder), given.get(name)) for name, encoder in made.items()}
        options = {"parts": marks, "hidden": list(hidden), "activation": activation, "norm": norm, "dropout": dropout}
        registry.mark(self, "fusion", options)

    @staticmethod
    def completed(options: Mapping[str, Any], spec: InputSpec, column: str) -> InputSpec:
        """How a column is read, with what the encoder of its part says where ``spec`` is silent."""
        part = (options.get("parts") or {}).get(column)
        if part is None:
            return spec
        name, inner = _named(column, part)
        of_part = getattr(registry.get("encoders", name), "completed", None)
        return spec if of_part is None else of_part(inner, spec, column)

    def begin(self, inputs: Mapping[str, Any]) -> Tensor:
        """The parts' vectors side by side."""
        found = []
        for name in self._names:
            if name != TABLE and name not in inputs:
                raise DataError(f"The inputs lack the column '{name}'; found: {', '.join(inputs)}.")
            features = self.parts[task_key(name)](inputs if name == TABLE else inputs[name])
            found.append(self.pools[task_key(name)](features))
        return torch.cat(found, 1)


def _part_tables(schema: TableSchema) -> dict[str, TableSchema]:
    """What each part reads."""
    tables = {column.name: TableSchema(texts=(column,)) for column in schema.texts}
    tables |= {column.name: TableSchema(sounds=(column,)) for column in schema.sounds}
    tables |= {name: TableSchema(arrays={name: shape}) for name, shape in schema.arrays.items()}
    tables |= {column.name: TableSchema(images=(column,)) for column in schema.images}
    if TABLE in tables:
        raise RecipeError(f"fusion: '{TABLE}' names numbers and categories; give the column of that name another one.")
    if schema.numbers or schema.categories:
        tables[TABLE] = TableSchema(schema.numbers, schema.categories)
    return tables


def _named(part: str, spec: Spec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"fusion: parts.{part} has no name of an encoder. Say {{name: ..., options}}.")
    return name, options


def _encoder(part: str, spec: Spec | None, table: TableSchema) -> nn.Module:
    if spec is None:
        if table.pictures or table.sounds:
            kind = "image column" if table.pictures else "column of sounds"
            raise DataError(f"fusion: the {kind} '{part}' has no encoder. Name one: parts: {{{part}: ...}}.")
        spec = "bilstm" if table.texts else "tabular"
    name, options = _named(part, spec)
    try:
        made: nn.Module = registry.build("encoders", name, options, schema=table)
    except RecipeError as error:
        raise RecipeError(f"fusion: parts.{part}: {error}") from None
    return made


def _vector(part: str, encoder: nn.Module) -> tuple[list[nn.Module], int]:
    declared = getattr(encoder, "out_features", None)
    if isinstance(declared, int):
        return [], declared
    if isinstance(declared, tuple):
        return vector_from(declared)
    raise RecipeError(
        f"fusion: parts.{part}: {type(encoder).__name__} has no out_features, so its width is unknown. Let it pool "
        "(pool: true), or give it the attribute."
    )


def _plain(mark: Mapping[str, Any] | None, spec: Spec | None) -> Spec | None:
    """How a part is made again: as its own mark says, which holds what the part has read, else as was asked."""
    return spec if mark is None else {"name": mark["name"], **mark["options"]}
