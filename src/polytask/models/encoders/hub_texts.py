"""Pretrained text encoders that are built like BERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.pretrained import TOKENIZER
from polytask.data.schema import TableSchema
from polytask.data.text import SHAPES
from polytask.errors import RecipeError
from polytask.models.encoders.hub_models import (
    LAYERS,
    HubLayer,
    kept,
    layers_at,
    load_model,
    other_build,
    plain_config,
    same,
)
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.texts import Margins, check_pool, only_text, pooled, text_of, with_words
from polytask.sharing.layers import ANY
from polytask.sharing.separate import keep_weights


class HubText(Staged):
    """A pretrained text encoder that is built like BERT: BERT, RoBERTa, DistilBERT, MiniLM and their kin.

    Args:
        schema: The fitted table, with one text column that this model's tokenizer cut.
        model: See ``hub``; so for the other arguments.
        layers: Layers that are kept.
        pool: ``"first"``, ``"mean"`` or ``"max"``.
        case: Whether an embedding of how each word is written is added.
        config: The model's configuration.
    """

    def __init__(
        self,
        schema: TableSchema,
        model: str | None = None,
        layers: int | None = None,
        pool: str = "first",
        case: bool = False,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        column = only_text(schema, "hub", tokenizer=True)
        check_pool(pool)
        loaded = load_model(model, config, TOKENIZER, attention="sdpa")
        self._margins = Margins()
        self.pool = pool
        self.pad = int(loaded.config.pad_token_id or 0)
        found = layers_at(loaded, LAYERS, ["embeddings"])
        if found is None:
            raise _other_build(loaded)
        limit = _longest(loaded.config)
        if column.longest > limit:
            raise RecipeError(
                f"Column '{column.name}': longest is {column.longest}, but the model reads {limit}. Lower it."
            )
        self.embeddings: nn.Module = loaded.embeddings
        self.tells_segments = getattr(loaded.config, "type_vocab_size", 0) > 1
        self.stages = nn.ModuleList(HubLayer(layer, self._margins) for layer in found)
        width = int(loaded.config.hidden_size)
        self.writing = nn.Embedding(len(SHAPES), width) if case else None
        if self.writing is not None:
            nn.init.zeros_(self.writing.weight)
            keep_weights(self.writing)
        _check_same(self, loaded)
        self.stages = kept(self.stages, layers, model)
        self.channel_dims = (-1,) * len(self.stages)
        self.out_features = (ANY, width)
        options = {"config": plain_config(loaded), "layers": layers, "pool": pool, "case": case}
        registry.mark(self, "hub", options)

    def begin(self, inputs: Any) -> Tensor:
        """The embedded tokens ``[rows, tokens, d]``."""
        text = text_of(inputs, "hub")
        tokens = text["tokens"]
        present = tokens >= 0
        self._margins.hold(present=present, words=text["words"], mask=present[:, None, None, :])
        known, segments = tokens.masked_fill(~present, self.pad), text.get("segments")
        more = {} if segments is None or not self.tells_segments else {"token_type_ids": segments.clamp_min(0)}
        state: Tensor = self.embeddings(known, **more)
        if self.writing is not None:
            state = state + self.writing(text["shapes"].clamp_min(0))
        return state

    def end(self, state: Tensor) -> Tensor:
        """The text's features, then those of its words."""
        whole = pooled(state, self._margins["present"], self.pool)
        return with_words(whole, state, self._margins["words"])


def _other_build(loaded: Any) -> RecipeError:
    return other_build(loaded, "texts", "BERT (bert, roberta, xlm-roberta, distilbert)")


def _longest(config: Any) -> int:
    """Tokens that a model reads: some keep their first positions for padding."""
    padding = int(config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return int(config.max_position_embeddings) - padding


def _check_same(encoder: HubText, loaded: Any) -> None:
    """Check on a few tokens that embeddings and layers alone make up the model.

    Raises:
        RecipeError: if they do not.
    """
    last = int(loaded.config.vocab_size) - 1
    tokens = torch.tensor([[min(5, last), last, min(7, last)], [last, min(6, last), -1]])
    shapes = torch.zeros_like(tokens)
    words = torch.zeros(2, 1, dtype=torch.int64)
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        try:
            state = encoder.begin({"tokens": tokens, "words": words, "shapes": shapes})
            for stage in encoder.stages:
                state = stage(state)
        except (TypeError, RuntimeError, AttributeError):
            raise _other_build(loaded) from None
        known = tokens.masked_fill(tokens < 0, encoder.pad)
        whole = loaded(input_ids=known, attention_mask=(tokens >= 0).long()).last_hidden_state
    encoder.train(was_training)
    real = tokens >= 0
    if state.shape != whole.shape or not same(state[real], whole[real]):
        raise _other_build(loaded)
