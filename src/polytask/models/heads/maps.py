"""The head of tasks with an output at every pixel or position of a feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import ShapeError
from polytask.models.heads.base import TaskHead
from polytask.models.heads.vector import standardising_buffer
from polytask.sharing.layers import channel_norm
from polytask.tasks.task import HeadSpec


class MapHead(TaskHead):
    r"""Private 3 x 3 convolutions, then a 1 x 1 one, then bilinear resizing to the targets' size.

    ``shift`` and ``scale``, a number or one a channel, act on the outputs as in the head of vectors.

    Args:
        spec: ``outputs`` channels; ``hidden`` channels of private layers, each with a group norm and a ReLU; ``size``
            of the output maps, None for that of the features.
        shape: The features' shape without the rows, ``(c, h, w)``.

    Raises:
        ShapeError: for features that are not maps, or a shift or scale that does not fit the outputs.

    Example:
        >>> MapHead(HeadSpec(outputs=3, form="map", size=(8, 8)), (16, 4, 4))(torch.zeros(5, 16, 4, 4)).shape
        torch.Size([5, 3, 8, 8])
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, spec: HeadSpec, shape: tuple[int, ...]):
        super().__init__(spec)
        if len(shape) != 3:
            raise ShapeError(
                "This head reads feature maps (channels, height, width); the encoder's features have the shape "
                f"{shape} without the rows. Use an encoder that keeps the map, such as fpn, or convnet or resnet18 "
                "with pool: false, and a sharing without private dense layers."
            )
        widths = [shape[0], *spec.hidden]
        blocks: list[nn.Module] = []
        for before, after in zip(widths, spec.hidden, strict=False):
            # A bias before a norm would be taken out again by it.
            blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), channel_norm(after), nn.ReLU()]
            blocks += [nn.Dropout2d(spec.dropout)] if spec.dropout else []
        self.layers = nn.Sequential(*blocks)
        self.output = nn.Conv2d(widths[-1], spec.outputs or 1, 1)
        self.register_buffer("shift", None)
        self.register_buffer("scale", None)
        self.standardise(spec)

    def standardise(self, spec: HeadSpec) -> None:
        """Take the shift and scale of ``spec``; the weights stay as they are."""
        device = self.output.weight.device
        self.shift = standardising_buffer("shift", spec.shift, 0.0, spec.outputs, device)
        self.scale = standardising_buffer("scale", spec.scale, 1.0, spec.outputs, device)
        super().standardise(spec)

    def forward(self, features: Tensor, inputs: Any = None) -> Tensor:
        """Raw outputs ``[rows, outputs, H, W]``."""
        raw = self.output(self.layers(features))
        if raw.dtype in (torch.float16, torch.bfloat16):
            raw = raw.float()
        if self.spec.size is not None and tuple(raw.shape[-2:]) != tuple(self.spec.size):
            raw = functional.interpolate(raw, self.spec.size, mode="bilinear", align_corners=False)
        if self.scale is not None:
            raw = raw * self.scale.view(1, -1, 1, 1)
        if self.shift is not None:
            raw = raw + self.shift.view(1, -1, 1, 1)
        return raw  # type: ignore[no-any-return]
