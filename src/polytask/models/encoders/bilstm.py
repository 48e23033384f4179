"""A text encoder to train from scratch: words and their characters, then LSTMs in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.schema import TableSchema
from polytask.errors import RecipeError
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.texts import Margins, check_pool, only_text, pooled, text_of, with_words
from polytask.sharing.layers import ANY, check_dropout


class CharacterCNN(nn.Module):
    """Features of words from their characters: the largest response of each filter over a word.

    Args:
        count: Characters, the unseen one included.
        width: Width of a character's embedding.
        filters: Features of a word.
        kernel_size: Characters that a filter reads, odd.

    Example:
        >>> CharacterCNN(5, 4, 6)(torch.tensor([[[1, 2, -1], [-1, -1, -1]]], dtype=torch.int16)).shape
        torch.Size([1, 2, 6])
    """

    def __init__(self, count: int, width: int, filters: int, kernel_size: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(count, width)
        self.convolution = nn.Conv1d(width, filters, kernel_size, padding=kernel_size // 2)

    def forward(self, characters: Tensor) -> Tensor:
        """Characters ``[rows, words, c]``, -1 where there is none, to ``[rows, words, filters]``."""
        codes = characters.flatten(0, 1).long()
        real = codes >= 0
        embedded = self.embedding(codes.clamp_min(0)) * real.unsqueeze(2)
        response = self.convolution(embedded.transpose(1, 2)).transpose(1, 2)
        return pooled(response, real, "max").view(*characters.shape[:2], -1)


class BothWays(nn.Module):
    """One LSTM from the first word to the last and one back, side by side.

    The second reads each row turned around within its own length. So padding changes nothing, and no length has to
    come to the CPU.

    Args:
        width: Width of the input.
        hidden: Width of each direction.
        dropout: On the output.
        margins: Which places are real.
    """

    def __init__(self, width: int, hidden: int, dropout: float, margins: Margins):
        super().__init__()
        self.ahead = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self._margins = margins

    def forward(self, state: Tensor) -> Tensor:
        """``[rows, words, width]`` to ``[rows, words, 2 hidden]``."""
        present = self._margins["present"]
        places = torch.arange(state.shape[1], device=state.device)
        # Where a row ends, what follows stays where it is.
        turned = torch.where(present, present.sum(1, keepdim=True) - 1 - places, places).unsqueeze(2)
        back = self.back(state.gather(1, turned.expand_as(state)))[0]
        both = torch.cat([self.ahead(state)[0], back.gather(1, turned.expand_as(back))], 2)
        dropped: Tensor = self.dropout(both)
        return dropped


class BiLSTM(Staged):
    """Words and their characters, then LSTMs in both directions.

    The features are ``[rows, 1 + words, 2 hidden]``: of the text as a whole, pooled over its words, then of each word.
    A stage is one layer of LSTMs.

    Args:
        schema: The fitted table, with one text column.
        embedding: Width of a word's embedding.
        characters: Width of a character's embedding; 0 reads whole words alone.
        filters: Features of a word that come from its characters.
        hidden: Width of each direction.
        layers: Stages.
        dropout: On the embedded words and after every stage.
        word_dropout: Probability that a word is read as an unseen one in training, so that those are learned.
        pool: ``"max"`` or ``"mean"`` over the words.

    Raises:
        DataError: for a table without exactly one text column of words, or with other columns.
        RecipeError: for a number out of range.

    Example:
        >>> from polytask.data.text import encode_text, fit_words
        >>> import polars as pl
        >>> texts = [pl.Series("sentence", ["fly to Boston", "hello"])]
        >>> column = fit_words(texts, min_count=1, lowercase=True, longest_word=20)
        >>> BiLSTM(TableSchema(texts=(column,)), hidden=8)(encode_text(texts, column)).shape
        torch.Size([2, 4, 16])

    Reference:
        Ma and Hovy, End-to-end sequence labeling via bi-directional LSTM-CNNs-CRF (2016), sections 2.1 and 2.2.
    """

    def __init__(
        self,
        schema: TableSchema,
        embedding: int = 100,
        characters: int = 30,
        filters: int = 50,
        hidden: int = 200,
        layers: int = 1,
        dropout: float = 0.3,
        word_dropout: float = 0.05,
        pool: str = "max",
    ):
        super().__init__()
        column = only_text(schema, "bilstm", tokenizer=False)
        check_pool(pool, ("max", "mean"))
        check_dropout(dropout)
        check_dropout(word_dropout)
        if min(embedding, filters, hidden, layers) < 1 or characters < 0:
            raise RecipeError(
                f"bilstm needs embedding, filters, hidden and layers from 1, and characters from 0; found embedding "
                f"{embedding}, filters {filters}, hidden {hidden}, layers {layers}, characters {characters}."
            )
        self._margins = Margins()
        self.word_dropout, self.pool = word_dropout, pool
        self.words = nn.Embedding(len(column.words) + 1, embedding)
        self.spelling = CharacterCNN(len(column.characters) + 1, characters, filters) if characters else None
        self.dropout = nn.Dropout(dropout)
        widths = [embedding + (filters if characters else 0), *[2 * hidden] * (layers - 1)]
        self.stages = nn.ModuleList(BothWays(width, hidden, dropout, self._margins) for width in widths)
        self.channel_dims = (-1,) * layers
        self.out_features = (ANY, 2 * hidden)
        if type(self) is BiLSTM:
            options = {"embedding": embedding, "characters": characters, "filters": filters, "hidden": hidden}
            more = {"layers": layers, "dropout": dropout, "word_dropout": word_dropout, "pool": pool}
            registry.mark(self, "bilstm", {**options, **more})

    def begin(self, inputs: Any) -> Tensor:
        """The embedded words ``[rows, words, width]``."""
        text = text_of(inputs, "bilstm")
        tokens = text["tokens"]
        present = tokens >= 0
        self._margins.hold(present=present, words=text["words"])
        known = tokens.clamp_min(0)
        if self.training and self.word_dropout:
            known = known.masked_fill(torch.rand(known.shape, device=known.device) < self.word_dropout, 0)
        parts = [self.words(known)]
        if self.spelling is not None:
            parts.append(self.spelling(text["characters"]))
        return self.dropout(torch.cat(parts, 2))  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """The text's features, then those of its words."""
        whole = pooled(state, self._margins["present"], self.pool)
        return with_words(whole, state, self._margins["words"])
