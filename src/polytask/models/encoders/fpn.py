"""A feature pyramid that ends in one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask import registry
from polytask.errors import RecipeError, ShapeError, listed
from polytask.models.encoders.convnet import map_norm
from polytask.models.encoders.staged import Staged
from polytask.sharing.parts import in_stages, quietly

PROBE = 64
"""Height and width of the image that shows the backbone's levels."""


class FPN(Staged):
    r"""A feature pyramid over a backbone's stages, merged into one map.

    With :math:`c_i` the outputs of the last stage of every stride, from fine to coarse,
    :math:`p_i = L_i c_i + \mathrm{up}(p_{i+1})` with 1 x 1 convolutions :math:`L_i` and bilinear resizing. The map is
    the sum of :math:`\mathrm{conv}_i(p_i)`, resized to the finest level, and goes through ``blocks`` 3 x 3
    convolutions, which are the encoder's stages. It keeps the place of things as well as the wide view, so heads of
    pixels, boxes and rows can read it.

    Args:
        backbone: A staged encoder by name, or ``{name: ..., options}``; its pooling is left out.
        in_channels: Channels of the image.
        channels: Width of the map.
        stride: Pixels of the image a position of the map stands for. Levels finer than this are left out.
        blocks: Convolutions after merging, from 1; sharings that join or change stages work on these.
        norm: Of the convolutions here: ``"batch"``, ``"group"`` or None; the backbone has its own.
        pool: Whether features are averaged over positions; else they are maps ``[rows, channels, h, w]``.

    Raises:
        RecipeError: for an unknown backbone, a number out of range, or a stride that no stage has.
        ShapeError: if the backbone does not run in stages that give feature maps.

    Example:
        >>> FPN({"name": "convnet", "channels": [8, 8, 16]}, channels=32)(torch.zeros(2, 3, 48, 64)).shape
        torch.Size([2, 32, 12, 16])

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection" (CVPR 2017); Kirillov et al., "Panoptic Feature
        Pyramid Networks" (CVPR 2019), section 3, for the sum of resized levels. There each level is resized by 2 as
        often as needed, with a convolution each time; here it has one convolution and is resized once.
    """

    def __init__(
        self,
        backbone: str | Mapping[str, Any] = "resnet18",
        in_channels: int = 3,
        channels: int = 64,
        stride: int = 4,
        blocks: int = 1,
        norm: str | None = "batch",
        pool: bool = False,
    ):
        super().__init__()
        if min(channels, blocks, stride, in_channels) < 1:
            raise RecipeError(
                f"An FPN needs channels, stride, blocks and in_channels from 1; found {channels}, {stride}, {blocks}, "
                f"{in_channels}."
            )
        name, options = _named(backbone)
        self.backbone: Any = registry.build("encoders", name, options | {"in_channels": in_channels})
        noted = registry.mark_of(self.backbone)
        widths, strides = _levels(self.backbone, in_channels)
        if stride not in strides:
            raise RecipeError(
                f"encoder fpn: stride is {stride}; the stages of '{name}' have: {listed(map(str, strides))}."
            )
        # Of stages with one stride the last has seen most.
        last = {step: number for number, step in enumerate(strides)}
        self.levels = tuple(number for step, number in last.items() if step >= stride)
        used = [widths[number] for number in self.levels]
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in used)
        self.smooth = nn.ModuleList(_block(channels, norm) for _ in used)
        self.stages = nn.ModuleList(_block(channels, norm) for _ in range(blocks))
        self.channel_dims = (1,) * blocks
        self.pool = pool
        # The size of a feature map depends on the image, so it comes from an example.
        self.out_features = channels if pool else None
        own = {
            "in_channels": in_channels,
            "channels": channels,
            "stride": stride,
            "blocks": blocks,
            "norm": norm,
            "pool": pool,
        }
        # The backbone's own note leaves out the file that its weights came from: a bundle has the weights.
        told = {"name": name, **(noted["options"] if noted else options)}
        for own_option in ("in_channels", "pool"):
            told.pop(own_option, None)
        registry.mark(self, "fpn", {"backbone": told, **own})

    def begin(self, inputs: Tensor) -> Tensor:
        """The merged map ``[rows, channels, h, w]``."""
        state, levels = self.backbone.begin(inputs), []
        for stage in self.backbone.stages:
            state = stage(state)
            levels.append(state)
        levels = [levels[number] for number in self.levels]
        size = levels[0].shape[-2:]
        merged, above = None, None
        for level, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth, strict=True))):
            wide = lateral(level)
            above = wide if above is None else wide + _resized(above, wide.shape[-2:])
            term = _resized(smooth(above), size)
            merged = term if merged is None else merged + term
        return merged  # type: ignore[return-value]

    def end(self, state: Tensor) -> Tensor:
        """The map itself, or its mean over positions."""
        return state.flatten(2).mean(2) if self.pool else state


def _named(backbone: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(backbone, str):
        return backbone, {}
    options = dict(backbone)
    if not isinstance(options.get("name"), str):
        raise RecipeError(f"encoder fpn: backbone is {dict(backbone)}; it needs a name, such as {{name: resnet18}}.")
    for told in ("in_channels", "pool"):
        if told in options:
            raise RecipeError(f"encoder fpn: {told} is an option of fpn itself, not of its backbone.")
    return options.pop("name"), options


def _levels(backbone: nn.Module, in_channels: int) -> tuple[list[int], list[int]]:
    """Channels and strides of what the stages give."""
    staged = in_stages(backbone)

    def run() -> list[Tensor]:
        state, found = staged.begin(torch.zeros(1, in_channels, PROBE, PROBE)), []
        for stage in staged.stages:
            state = stage(state)
            found.append(state)
        return found

    shapes: Sequence[Tensor] = quietly(backbone, run)
    for number, state in enumerate(shapes):
        if state.dim() != 4:
            raise ShapeError(
                f"An FPN reads stages that give feature maps; stage {number} of {type(backbone).__name__} gives "
                f"{list(state.shape[1:])} without the rows."
            )
    return [state.shape[1] for state in shapes], [PROBE // state.shape[-1] for state in shapes]


def _block(channels: int, norm: str | None) -> nn.Sequential:
    # A bias before a norm would be taken out again by it.
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None)
    return nn.Sequential(conv, map_norm(norm, channels), nn.ReLU())


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    same = tuple(maps.shape[-2:]) == tuple(size)
    return maps if same else functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
