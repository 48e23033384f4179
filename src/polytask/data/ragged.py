"""Texts of different lengths in one tensor: finding them among inputs, and cutting padding off a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.errors import DataError

TEXT_KEYS = ("tokens", "words")
"""What the inputs of a text column have: int64 ``[rows, tokens]`` and, for each word, the place of its first token,
``[rows, words]``; -1 is padding. A tokenizer may add more."""


def is_text(value: Any) -> bool:
    """Whether a value is the inputs of a text column."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), Tensor) for key in TEXT_KEYS)


def texts_in(inputs: Any) -> list[Mapping[str, Tensor]]:
    """The inputs of all text columns among a model's inputs."""
    if is_text(inputs):
        return [inputs]
    return [value for value in inputs.values() if is_text(value)] if isinstance(inputs, Mapping) else []


def present_words(inputs: Any) -> Tensor:
    """Which words a row has, bool ``[rows, words]``.

    Raises:
        DataError: if the inputs have no text, or several.

    Example:
        >>> present_words({"tokens": torch.tensor([[4]]), "words": torch.tensor([[0, -1]])})
        tensor([[ True, False]])
    """
    found = texts_in(inputs)
    if len(found) != 1:
        raise DataError(f"Tags of words need inputs with one text column; found {len(found)}.")
    return found[0]["words"] >= 0


def extents(tensor: Tensor) -> tuple[Tensor, ...]:
    """For each dimension after the rows how far a row's entries reach that are not padding, int64 ``[rows]``.

    Example:
        >>> extents(torch.tensor([[3, -1, 4, -1], [-1, -1, -1, -1]]))
        (tensor([3, 0]),)
    """
    known = tensor >= 0
    found = []
    for dim in range(1, tensor.dim()):
        others = [other for other in range(1, tensor.dim()) if other != dim]
        along = known.amax(others) if others else known
        places = torch.arange(1, tensor.shape[dim] + 1, device=tensor.device)
        found.append((along * places).amax(1).cpu())
    return tuple(found)


class Padding:
    """How far each row of padded tensors reaches, so that a batch is no wider than its longest row.

    Args:
        inputs: A model's inputs.
        targets: Targets by task.
    """

    def __init__(self, inputs: Any, targets: Mapping[str, Tensor]):
        self._texts = [{k: extents(t) for k, t in text.items() if t.dim() > 1} for text in texts_in(inputs)]
        of_words = {name: t for name, t in targets.items() if t.dim() == 2 and not t.is_floating_point()}
        self._targets = {name: extents(t) for name, t in of_words.items()} if self._texts else {}

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of every row, int64 ``[rows]``; None where nothing is padded."""
        if not self._texts:
            return None
        return torch.stack([text["tokens"][0] for text in self._texts]).amax(0)

    def cut_inputs(self, inputs: Any, rows: Tensor) -> Any:
        """The inputs of ``rows``, each tensor as wide as they need it."""
        known: Iterator[dict[str, tuple[Tensor, ...]]] = iter(self._texts)

        def cut(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
            reach = next(known)
            return {key: _cut(t, reach[key], rows) if key in reach else t for key, t in text.items()}

        if is_text(inputs):
            return cut(inputs)
        return {key: cut(v) if is_text(v) else v for key, v in inputs.items()} if self._texts else inputs

    def cut_targets(self, targets: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The targets of ``rows``, each as wide as they need it."""
        return {n: _cut(t, self._targets[n], rows) if n in self._targets else t for n, t in targets.items()}


def _cut(tensor: Tensor, reach: Sequence[Tensor], rows: Tensor) -> Tensor:
    if len(rows) == 0:
        return tensor
    for dim, of_rows in enumerate(reach, start=1):
        # A row without a word still needs a place.
        tensor = tensor.narrow(dim, 0, max(1, int(of_rows[rows].amax())))
    return tensor
