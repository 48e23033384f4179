"""Texts and sounds of different lengths in one tensor: finding them among inputs, and cutting padding off a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.errors import DataError

TEXT_KEYS = ("tokens", "words")
"""What the inputs of a text column have: int64 ``[rows, tokens]`` and, for each word, the place of its first token,
``[rows, words]``; -1 is padding. A tokenizer may add more."""


SOUND_KEYS = ("sound", "heard")
"""What the inputs of a column of sounds have; see ``data.sounds``."""
SAMPLES = 320
"""Samples of a waveform that count like one token where rows of about one length are put together."""


def is_sound(value: Any) -> bool:
    """Whether a value is the inputs of a column of sounds."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), Tensor) for key in SOUND_KEYS)


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
        self._padded = [_reach(value) for value in _padded_in(inputs)]
        self._texts = any("tokens" in reach for reach in self._padded)
        of_words = {name: t for name, t in targets.items() if t.dim() == 2 and not t.is_floating_point()}
        self._targets = {name: extents(t) for name, t in of_words.items()} if self._texts else {}
        self._lengths = [_length(value, reach) for value, reach in zip(_padded_in(inputs), self._padded, strict=True)]

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of every row, or what counts like them, int64 ``[rows]``; None where nothing is padded."""
        return torch.stack(self._lengths).amax(0) if self._lengths else None

    def cut_inputs(self, inputs: Any, rows: Tensor) -> Any:
        """The inputs of ``rows``, each tensor as wide as they need it."""
        known: Iterator[dict[str, tuple[Tensor, ...]]] = iter(self._padded)

        def cut(value: Mapping[str, Tensor]) -> dict[str, Tensor]:
            reach = next(known)
            return {key: _cut(t, reach[key], rows) if key in reach else t for key, t in value.items()}

        if not self._padded:
            return inputs
        if _is_padded(inputs):
            return cut(inputs)
        return {key: cut(value) if _is_padded(value) else value for key, value in inputs.items()}

    def cut_targets(self, targets: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The targets of ``rows``, each as wide as they need it."""
        return {n: _cut(t, self._targets[n], rows) if n in self._targets else t for n, t in targets.items()}


def _is_padded(value: Any) -> bool:
    return is_text(value) or is_sound(value)


def _padded_in(inputs: Any) -> list[Mapping[str, Tensor]]:
    """The inputs of all columns whose rows have lengths."""
    if _is_padded(inputs):
        return [inputs]
    return [value for value in inputs.values() if _is_padded(value)] if isinstance(inputs, Mapping) else []


def _reach(value: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """How far each row of a column's padded tensors reaches; spectra of sounds have one length and are never cut."""
    if is_text(value):
        return {key: extents(tensor) for key, tensor in value.items() if tensor.dim() > 1}
    return {"sound": (value["heard"].cpu(),)} if value["sound"].dim() == 2 else {}


def _length(value: Mapping[str, Tensor], reach: Mapping[str, tuple[Tensor, ...]]) -> Tensor:
    if is_text(value):
        return reach["tokens"][0]
    sound, heard = value["sound"], value["heard"].cpu()
    return -(-heard // SAMPLES) if sound.dim() == 2 else torch.full_like(heard, sound.shape[1])


def _cut(tensor: Tensor, reach: Sequence[Tensor], rows: Tensor) -> Tensor:
    if len(rows) == 0:
        return tensor
    for dim, of_rows in enumerate(reach, start=1):
        # A row without a word still needs a place.
        tensor = tensor.narrow(dim, 0, max(1, int(of_rows[rows].amax())))
    return tensor
