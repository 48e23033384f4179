"""Heads with one output a word: alone, or with transitions between the tags of neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask.data.ragged import present_words
from polytask.errors import ShapeError
from polytask.fused import full_precision
from polytask.models.heads.base import TaskHead
from polytask.sharing.layers import ANY, dense_stages
from polytask.tasks.crf import EXTRA, with_transitions
from polytask.tasks.task import HeadSpec


class TokenHead(TaskHead):
    """The same private layers and affine map for every word of a text.

    Args:
        spec: The widths.
        shape: The features' shape without the rows: ``(ANY, d)``, the whole text first and then its words.

    Raises:
        ShapeError: for features without words.

    Example:
        >>> inputs = {"tokens": torch.tensor([[5, 7, -1]]), "words": torch.tensor([[0, 1, -1]])}
        >>> TokenHead(HeadSpec(outputs=2), (ANY, 8))(torch.zeros(1, 4, 8), inputs).isnan()[0, :, 0]
        tensor([False, False,  True])
    """

    reads_inputs: ClassVar[bool] = True

    def __init__(self, spec: HeadSpec, shape: tuple[int, ...]):
        super().__init__(spec)
        if len(shape) != 2 or shape[0] != ANY:
            raise ShapeError(
                f"A head for the words of a text needs features of every word; these have the shape {shape} without "
                "the rows. Use an encoder for text (bilstm, hub), and a sharing that keeps the words, such as hard."
            )
        assert spec.outputs is not None
        self.layers = nn.Sequential(*dense_stages(shape[1], spec.hidden, dropout=spec.dropout))
        # Between private layers a dropout belongs to them; a head without any drops from the features themselves.
        self.dropout = nn.Dropout(0.0 if spec.hidden else spec.dropout)
        self.output = nn.Linear([shape[1], *spec.hidden][-1], spec.outputs)

    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs ``[rows, width, outputs]``, NaN where a row has no word."""
        hidden = self.layers(self.dropout(features[:, 1:]))
        raw = full_precision(self.output, hidden)
        return raw.masked_fill(~present_words(inputs).unsqueeze(2), float("nan"))


class ChainHead(TokenHead):
    """A head for words that also learns which tag follows which.

    Its raw output has the ``k + 2`` rows of transition scores first, see ``tasks/crf.py``.

    Args:
        spec: The widths.
        shape: ``(ANY, d)``.

    Example:
        >>> inputs = {"tokens": torch.tensor([[5, 7]]), "words": torch.tensor([[0, 1]])}
        >>> ChainHead(HeadSpec(outputs=3), (ANY, 8))(torch.zeros(1, 3, 8), inputs).shape
        torch.Size([1, 7, 3])
    """

    def __init__(self, spec: HeadSpec, shape: tuple[int, ...]):
        super().__init__(spec, shape)
        assert spec.outputs is not None
        self.transitions = nn.Parameter(torch.zeros(spec.outputs + EXTRA, spec.outputs))

    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs ``[rows, k + 2 + width, k]``."""
        return with_transitions(super().forward(features, inputs), self.transitions)
