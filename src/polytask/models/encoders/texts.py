"""What encoders of texts and sounds share: what they read, what their stages need of it, and how they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.data.ragged import texts_in
from polytask.data.schema import TableSchema, TextColumn
from polytask.errors import DataError, RecipeError, listed


class Margins:
    """Which places of the batch at hand are real: what stages have to know beside their input.

    ``begin`` sets them and the stages of the same forward read them. Copies of an encoder, such as experts, read what
    the original's beginning set, so a copy is the object itself.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> Margins:
        return self

    def hold(self, **tensors: Tensor) -> None:
        """Set what the stages of this forward read."""
        self._held = tensors

    def __getitem__(self, name: str) -> Tensor:
        found = self.get(name)
        assert found is not None, name
        return found

    def get(self, name: str) -> Tensor | None:
        """What ``begin`` set under a name, or None if it set nothing there."""
        if not self._held:
            raise RuntimeError("The stages of an encoder of texts or sounds run after its begin(inputs).")
        return self._held.get(name)


def only_text(schema: TableSchema, name: str, tokenizer: bool) -> TextColumn:
    """The one text column of a table.

    Args:
        schema: The fitted table.
        name: The encoder's, for errors.
        tokenizer: Whether it reads the tokens of a pretrained model, not a vocabulary of words.

    Raises:
        DataError: if the table has other columns, or its text was cut in another way.
    """
    if len(schema.texts) != 1 or len(schema.names) != 1:
        found = listed(schema.names) or "none"
        raise DataError(f"'{name}' reads one text column; the inputs are: {found}. Say inputs: {{sentence: text}}.")
    column = schema.texts[0]
    if tokenizer != (column.tokenizer is not None):
        wanted = "the tokens of a pretrained model" if tokenizer else "words; leave out tokenizer"
        raise DataError(f"'{name}' reads {wanted}, but column '{column.name}' was fitted for something else.")
    return column


def text_of(inputs: Any, name: str) -> Mapping[str, Tensor]:
    """The text among a model's inputs.

    Raises:
        DataError: if there is none, or several.
    """
    found = texts_in(inputs)
    if len(found) != 1:
        raise DataError(f"'{name}' reads the tensors of one text column (tokens, words); found {len(found)}.")
    return found[0]


POOLS = ("first", "mean", "max")


def check_pool(pool: str, known: tuple[str, ...] = POOLS) -> None:
    """Raise a RecipeError for an unknown way to pool."""
    if pool not in known:
        raise RecipeError(f"pool is '{pool}'. Use one of: {listed(known)}.")


def pooled(state: Tensor, present: Tensor, how: str) -> Tensor:
    """One vector a row from its places: ``[rows, places, d]`` to ``[rows, d]``; zeros for a row without any.

    Example:
        >>> state, present = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> pooled(state, present, "mean"), pooled(state, present, "max")
        (tensor([[2.]]), tensor([[3.]]))
    """
    if how == "first":
        return state[:, 0]
    real = present.unsqueeze(2)
    if how == "mean":
        return state.masked_fill(~real, 0.0).sum(1) / present.sum(1, keepdim=True).clamp_min(1)
    largest = state.masked_fill(~real, float("-inf")).amax(1)
    return largest.masked_fill(~present.any(1, keepdim=True), 0.0)


def with_words(whole: Tensor, state: Tensor, words: Tensor) -> Tensor:
    """Features ``[rows, 1 + words, d]``: of the text, then of its words' first tokens; zeros where there is no word."""
    places = words.clamp_min(0).unsqueeze(2).expand(-1, -1, state.shape[2])
    of_words = state.gather(1, places).masked_fill((words < 0).unsqueeze(2), 0.0)
    return torch.cat([whole.unsqueeze(1), of_words], 1)
