"""Pretrained image encoders: transformers of patches, networks of feature maps, and transformers of windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.data.pretrained import PROCESSOR, read_image_settings
from polytask.data.schema import TableSchema
from polytask.errors import DataError, RecipeError
from polytask.models.encoders.hub_models import (
    LAYERS,
    HubLayer,
    kept,
    layers_at,
    load_model,
    other_build,
    plain_config,
    same,
    takes,
)
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.texts import check_pool
from polytask.models.encoders.weights import pixels as as_pixels
from polytask.tasks.losses import constant

KNOWN = "ViT, DeiT, DINOv2, ResNet, RegNet, ConvNeXt or Swin"


def hub_images(
    schema: TableSchema,
    model: str | None,
    layers: int | None,
    pool: str | None,
    config: Mapping[str, Any] | None,
    pixels: Mapping[str, Any] | None,
) -> HubImages:
    """A pretrained image encoder for the one column of a table; see ``hub`` for the arguments.

    Raises:
        DataError: if the model cannot be read, or the column holds no images.
        RecipeError: for a model of another build, other channels or sizes than it reads, or a wrong option.
    """
    loaded = load_model(model, config, PROCESSOR)
    settings = dict(pixels) if pixels is not None else read_image_settings(str(model))
    channels, *size = _shape(schema)
    if channels != loaded.config.num_channels:
        raise RecipeError(
            f"hub: the model reads images with {loaded.config.num_channels} channels; the column has {channels}. Say "
            "colour: rgb, or colour: grey."
        )
    for build in (Maps, Windows, Patches):
        parts = build.parts(loaded)
        if parts is not None:
            return build(loaded, parts, model, layers, pool, settings, (size[0], size[1]))
    raise _other_build(loaded)


def _other_build(loaded: Any) -> RecipeError:
    return other_build(loaded, "images", KNOWN)


def _shape(schema: TableSchema) -> tuple[int, ...]:
    """Channels, height and width of the one column."""
    if schema.images:
        return (schema.images[0].channels, *schema.images[0].size)
    name, shape = next(iter(schema.arrays.items()))
    if len(shape) != 3:
        raise DataError(
            f"Column '{name}' holds arrays of the shape {list(shape)}; images are [channels, height, width]."
        )
    return tuple(shape)


class HubImages(Staged):
    """What pretrained image encoders have in common.

    Args:
        loaded: The model.
        stages: Its stages.
        model: Its name, for errors.
        layers: Stages that are kept.
        pool: How features are pooled, or ``"map"``; None for what suits the model.
        settings: What its image processor does with pixels.
        size: Height and width of the images.
    """

    channel_dim = 1

    def __init__(
        self,
        loaded: Any,
        stages: list[nn.Module],
        model: str | None,
        layers: int | None,
        pool: str | None,
        settings: Mapping[str, Any],
        size: tuple[int, int],
    ):
        super().__init__()
        self._settings = dict(settings)
        self.stem: nn.Module = loaded.embedder if hasattr(loaded, "embedder") else loaded.embeddings
        if getattr(self.stem, "mask_token", None) is not None:
            # It stands for patches that pretraining hides, so it would never get a gradient here.
            self.stem.mask_token = None
        # Positions that were learned for one size are stretched to another one.
        stretched = size != _own_size(loaded.config) and takes(self.stem, "interpolate_pos_encoding")
        self._stretch = {"interpolate_pos_encoding": True} if stretched else {}
        self.stages = nn.ModuleList(stages)
        self.norm: nn.Module = getattr(loaded, "layernorm", nn.Identity())
        self.grid, self.specials = (0, 0), 0
        example = torch.linspace(-2.0, 2.0, int(loaded.config.num_channels) * size[0] * size[1]).sin()
        shape = self._cut(loaded, example.view(1, -1, *size), layers, model)
        choices = (*(("first",) if self.specials else ()), "mean", "max", "map")
        self.pool = choices[0] if pool is None else pool
        check_pool(self.pool, choices)
        self.channel_dims = (self.channel_dim,) * len(self.stages)
        self.out_features = shape if self.pool == "map" else shape[0]
        options = {"config": plain_config(loaded), "layers": layers, "pool": self.pool, "pixels": self._settings}
        registry.mark(self, "hub", options)

    def _cut(self, loaded: Any, example: Tensor, layers: int | None, model: str | None) -> tuple[int, ...]:
        """Compare the stages with the model, keep the first ``layers``; the shape of the map that they end in."""
        self.eval()
        with torch.no_grad():
            self._check_same(loaded, example)
            self.stages = kept(self.stages, layers, model)
            state = self._through(example)
            if isinstance(self.norm, nn.LayerNorm) and self.norm.normalized_shape != (state.shape[self.channel_dim],):
                self.norm = nn.Identity()
            shape = tuple(self.as_map(state).shape[1:])
        self.train()
        return shape

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The model's stages, or None if it is built in another way."""
        raise NotImplementedError

    def as_map(self, state: Tensor) -> Tensor:
        """The feature map ``[rows, d, h, w]`` that the model ends in."""
        raise NotImplementedError

    def last(self, state: Tensor) -> Tensor:
        """What the model calls its last hidden state."""
        return state

    def begin(self, inputs: Tensor) -> Tensor:
        """The stem, of images as the model's processor would give them."""
        images = as_pixels(inputs)
        mean, deviation = (constant(tuple(self._settings[k]), images).view(1, -1, 1, 1) for k in ("mean", "std"))
        return self._embedded((images * self._settings["scale"] - mean) / deviation)

    def end(self, state: Tensor) -> Tensor:
        """The map, or one vector an image."""
        maps = self.as_map(state)
        if self.pool == "map":
            return maps
        return maps.flatten(2).amax(2) if self.pool == "max" else maps.flatten(2).mean(2)

    def _embedded(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.stem(images, **self._stretch)
        return embedded

    def _through(self, images: Tensor) -> Tensor:
        state = self._embedded(images)
        for stage in self.stages:
            state = stage(state)
        return state

    def _check_same(self, loaded: Any, example: Tensor) -> None:
        """Check on an image that stem and stages make up the model.

        Raises:
            RecipeError: if they do not, or the model cannot read images of this size.
        """
        try:
            whole = loaded(example, **self._stretch).last_hidden_state
        except (ValueError, RuntimeError) as error:
            high, wide = example.shape[2:]
            raise RecipeError(
                f"hub: the model cannot read images of {high} x {wide} pixels: {error}. Give the input another size, "
                f"such as {{kind: image, size: {list(_own_size(loaded.config)) or [224, 224]}}}."
            ) from None
        try:
            state = self._through(example)
            agree = same(self.last(state), whole)
        except Exception:
            # Layers that want more than a state raise whatever their code raises.
            agree = False
        if not agree:
            raise _other_build(loaded)


class Maps(HubImages):
    """Convolutional networks whose stages go from feature map to feature map: ResNet, RegNet, ConvNeXt."""

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The stages of the encoder."""
        found = layers_at(loaded, ["encoder.stages"], ["encoder"])
        stem = hasattr(loaded, "embedder") or hasattr(loaded, "embeddings")
        return [HubLayer(stage) for stage in found] if found and stem else None

    def as_map(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def end(self, state: Tensor) -> Tensor:
        """As in every encoder; what a norm follows is the vector."""
        found = super().end(state)
        return found if self.pool == "map" else self.norm(found)


class Windows(HubImages):
    """Transformers of windows whose stages halve the map: Swin."""

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The stages of the encoder."""
        found = layers_at(loaded, ["encoder.layers"], ["embeddings"])
        stages = found and all(hasattr(stage, "downsample") for stage in found)
        return [WindowStage(stage) for stage in found or ()] if stages else None

    def as_map(self, state: Tensor) -> Tensor:
        """The state with its channels normed."""
        return self.norm(state.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]

    def last(self, state: Tensor) -> Tensor:
        """The map as tokens."""
        return self.as_map(state).flatten(2).transpose(1, 2)

    def _embedded(self, images: Tensor) -> Tensor:
        tokens, grid = self.stem(images, **self._stretch)
        return _unrolled(tokens, *grid)


class WindowStage(nn.Module):
    """A stage of windows, from map to map.

    Args:
        stage: It takes tokens and their grid.
    """

    def __init__(self, stage: nn.Module):
        super().__init__()
        self.stage = stage

    def forward(self, maps: Tensor) -> Tensor:
        """``[rows, c, h, w]``, of half the height and width if the stage ends in merging patches."""
        high, wide = maps.shape[-2:]
        tokens = self.stage(maps.flatten(2).transpose(1, 2), (high, wide))[0]
        halves = self.stage.downsample is not None
        return _unrolled(tokens, -(-high // 2), -(-wide // 2)) if halves else _unrolled(tokens, high, wide)


class Patches(HubImages):
    """Transformers of patches: ViT, DeiT, DINOv2. The first token, if there is one, stands for the whole image."""

    channel_dim = -1

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The layers."""
        found = layers_at(loaded, LAYERS, ["embeddings", "layernorm"])
        return [HubLayer(layer) for layer in found] if found else None

    def last(self, state: Tensor) -> Tensor:
        """The normed tokens."""
        return self.norm(state)  # type: ignore[no-any-return]

    def as_map(self, state: Tensor) -> Tensor:
        """The patches' tokens in their places."""
        return _unrolled(self.norm(state[:, self.specials :]), *self.grid)

    def end(self, state: Tensor) -> Tensor:
        """The map, or one vector an image."""
        return self.norm(state[:, 0]) if self.pool == "first" else super().end(state)

    def _check_same(self, loaded: Any, example: Tensor) -> None:
        super()._check_same(loaded, example)
        patch = int(loaded.config.patch_size)
        self.grid = (example.shape[2] // patch, example.shape[3] // patch)
        self.specials = self._embedded(example).shape[1] - self.grid[0] * self.grid[1]


def _unrolled(tokens: Tensor, high: int, wide: int) -> Tensor:
    """Tokens ``[rows, high * wide, d]`` as a map ``[rows, d, high, wide]``."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, high, wide)


def _own_size(config: Any) -> tuple[int, ...]:
    """Height and width that a model was made for; empty if it has none."""
    size = getattr(config, "image_size", None)
    return () if size is None else (size, size) if isinstance(size, int) else tuple(size)
