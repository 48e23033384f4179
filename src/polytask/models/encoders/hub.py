"""Pretrained models through ``transformers``, by their name in a hub or from a folder: for texts, images and sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polytask.data.pretrained import read_image_settings
from polytask.data.schema import TableSchema
from polytask.data.spec import InputSpec
from polytask.errors import DataError, RecipeError, listed
from polytask.models.encoders.hub_images import hub_images
from polytask.models.encoders.hub_sounds import hub_sounds
from polytask.models.encoders.hub_texts import HubText
from polytask.models.encoders.staged import Staged


def hub(
    schema: TableSchema,
    model: str | None = None,
    layers: int | None = None,
    pool: str | None = None,
    case: bool = False,
    config: Mapping[str, Any] | None = None,
    pixels: Mapping[str, Any] | None = None,
) -> Staged:
    """A pretrained model for the one column of a table: text, images or sounds.

    The features of a text are ``[rows, 1 + words, d]``: of the whole, then of each word, which are those of its first
    piece. Those of a sound are ``[rows, 1 + frames, d]``. Those of an image are ``[rows, d]``, or a map
    ``[rows, d, h, w]``. A stage is one layer, or one stage of a convolutional or windowed model. All weights are
    trained unless they are frozen. At the start the stages are compared with the whole model.

    Args:
        schema: The fitted table, with one column of texts that this model's tokenizer cut, of images, or of sounds
            that this model's extractor read.
        model: Name in a hub, such as ``"google-bert/bert-base-cased"``; a folder as ``save_pretrained`` writes it; or
            ``"all-minilm-l6-v2"``, which is fetched through pip.
        layers: Layers or stages that are kept, from the first on; None keeps all.
        pool: ``"first"`` (the first token, such as [CLS]), ``"mean"`` or ``"max"`` over the tokens or positions, and
            for images ``"map"`` (no pooling). None is what suits the model: ``"first"`` where there is such a token
            for the whole, else ``"mean"``.
        case: Of texts: whether an embedding of how each word is written (lower case, Title, UPPER, ...) is added to
            its pieces, for models whose tokenizer drops the case. It starts at zero.
        config: The model's configuration, to build it without its weights; a bundle fills it in.
        pixels: What the model's image processor does with pixels; a bundle fills it in.

    Raises:
        DataError: if the model cannot be read, or for a table without exactly one such column.
        RecipeError: for a model of another build, or an option that cannot be used.
        MissingExtraError: without the extra ``hub``.

    Reference:
        Devlin et al., BERT: Pre-training of deep bidirectional transformers for language understanding (2019);
        Dosovitskiy et al., An image is worth 16x16 words (2021); Baevski et al., wav2vec 2.0 (2020).
    """
    found = [*schema.texts, *schema.images, *schema.arrays, *schema.sounds]
    if len(found) != 1 or schema.numbers or schema.categories:
        raise DataError(
            f"'hub' reads one column of texts, images or sounds; the inputs are: {listed(schema.names) or 'none'}. For "
            "several columns use the encoder fusion, with hub as a part."
        )
    if schema.texts:
        return HubText(schema, model, layers, pool or "first", case, config)
    if case:
        raise RecipeError("hub: case is for texts.")
    if schema.sounds:
        return hub_sounds(model, layers, pool, config)
    return hub_images(schema, model, layers, pool, config, pixels)


def completed(options: Mapping[str, Any], spec: InputSpec, column: str) -> InputSpec:
    """How a column is read, with what the model of an encoder with these options says where ``spec`` is silent.

    Raises:
        RecipeError: if the options name no model.
    """
    model = options.get("model")
    if not isinstance(model, str):
        raise RecipeError("hub needs model: its name in a hub or its folder, such as google-bert/bert-base-cased.")
    if spec.kind == "text" and spec.tokenizer is None:
        return replace(spec, tokenizer=model)
    if spec.kind == "audio" and spec.extractor is None:
        return replace(spec, extractor=model)
    if spec.kind == "image" and spec.size is None:
        return replace(spec, size=tuple(read_image_settings(model)["size"]))
    return spec


hub.completed = completed  # type: ignore[attr-defined]  # the recipe asks an encoder by this name
