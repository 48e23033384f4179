"""MobileNetV2, whose parameters have the names that published weights use."""

from __future__ import annotations

from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.weights import Normalise, load_weights, pixels
from polytask.sharing.layers import GlobalPool

FIRST, LAST = 32, 1280
"""Channels after the first and the last convolution."""
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each group of blocks: expansion, channels, blocks, stride of the first one."""


class InvertedResidual(nn.Module):
    """A 1 x 1 convolution to more channels, one in each channel, and a 1 x 1 one back, with a shortcut if all fits.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Of the middle convolution.
        expansion: How many times more channels lie between; 1 leaves the first convolution out.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        layers = [_convolved(before, inner, 1)] if expansion != 1 else []
        layers += [_convolved(inner, inner, 3, stride, groups=inner)]
        self.conv = nn.Sequential(*layers, nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after))
        self.has_shortcut = stride == 1 and before == after

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[rows, before, h, w]`` to ``[rows, after, h / stride, w / stride]``."""
        return maps + self.conv(maps) if self.has_shortcut else self.conv(maps)  # type: ignore[no-any-return]


class MobileNetV2(Staged):
    """MobileNetV2 for arrays of images.

    Parameters are named ``features.0`` to ``features.18`` as in published weights, which load without their last layer
    ``classifier``. The stages are ``features.1`` to ``features.18``.

    Args:
        in_channels: Channels of the image.
        pool: Whether features are averaged over positions, ``[rows, 1280]``; else they are maps ``[rows, 1280, h, w]``.
        normalise: Whether images from 0 to 1 are standardised by ImageNet's means and deviations, as published weights
            want.
        weights: File of published weights, ``.safetensors`` or ``.pth``.

    Raises:
        RecipeError: if the weights are not those of this network, or ``normalise`` is asked for without 3 channels.

    Example:
        >>> import torch
        >>> MobileNetV2().eval()(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1280])

    Reference:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2.
    """

    def __init__(self, in_channels: int = 3, pool: bool = True, normalise: bool = False, weights: str | None = None):
        super().__init__()
        if normalise and in_channels != 3:
            raise RecipeError(f"normalise is for images with 3 channels; found in_channels {in_channels}.")
        self.normalise = Normalise() if normalise else nn.Identity()
        layers: list[nn.Module] = [_convolved(in_channels, FIRST, 3, 2)]
        before = FIRST
        for expansion, channels, blocks, stride in GROUPS:
            for number in range(blocks):
                layers.append(InvertedResidual(before, channels, stride if number == 0 else 1, expansion))
                before = channels
        self.features = nn.Sequential(*layers, _convolved(before, LAST, 1))
        self.channel_dims = (1,) * len(layers)
        self.pool = GlobalPool() if pool else nn.Identity()
        self.out_features = LAST if pool else None
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
        if weights is not None:
            load_weights(self, weights, skip=("classifier.",))
        if type(self) is MobileNetV2:
            # A bundle holds the weights itself, so the file is not noted.
            registry.mark(self, "mobilenet_v2", {"in_channels": in_channels, "pool": pool, "normalise": normalise})

    @property
    def stages(self) -> list[nn.Module]:  # type: ignore[override]
        """All but the first convolution; they are not registered twice, so that published names hold."""
        return list(self.features)[1:]

    def begin(self, inputs: Tensor) -> Tensor:
        """The first convolution; images of bytes become floats from 0 to 1 first."""
        return self.features[0](self.normalise(pixels(inputs)))  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """The mean over positions, or the map itself."""
        return self.pool(state)  # type: ignore[no-any-return]


def _convolved(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())
